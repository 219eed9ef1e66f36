//! The menu, as one enum; one file per command. The composition roots (`up`, `server`, `agent`) are here too: only they may join rooms.

pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
