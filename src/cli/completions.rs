//! `kprov completions SHELL`.

use super::terminal;
use crate::error::Result;
use clap::CommandFactory;

#[derive(Debug, clap::Args)]
pub struct Args {
    shell: clap_complete::Shell,
}

pub fn run(args: &Args) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "kprov", &mut text);
    terminal::print(String::from_utf8_lossy(&text))
}
