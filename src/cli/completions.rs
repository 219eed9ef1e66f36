//! `kprov completions SHELL`.

use super::terminal;
use crate::error::Result;
use clap::{Command, CommandFactory};

#[derive(Debug, clap::Args)]
pub struct Args {
    shell: clap_complete::Shell,
}

pub fn run(args: &Args) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut menu(), "kprov", &mut text);
    terminal::print(String::from_utf8_lossy(&text))
}

/// What people are shown: the completer would offer hidden commands, too.
fn menu() -> Command {
    let all = super::Cli::command();
    Command::new("kprov").version("-").subcommands(all.get_subcommands().filter(|command| !command.is_hide_set()).cloned())
}
