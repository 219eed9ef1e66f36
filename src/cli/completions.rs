//! `kprov completions SHELL`.

use clap::CommandFactory;

#[derive(Debug, clap::Args)]
pub struct Args {
    shell: clap_complete::Shell,
}

pub fn run(args: &Args) {
    clap_complete::generate(args.shell, &mut super::Cli::command(), "kprov", &mut std::io::stdout());
}
