//! Arguments in, exit code out.

fn main() -> std::process::ExitCode {
    kprov::cli::main()
}
