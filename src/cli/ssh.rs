//! `kprov ssh NAME MACHINE [-- CMD...]`: a shell on a machine, with its key pinned and no question asked.

use super::session::Session;
use super::state::Named;
use crate::engine::MACHINE;
use crate::error::{Context, Error, Kind, Result};
use crate::remote::{Side, Target};
use std::process::{Command, ExitCode};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    cluster: Named,
    /// The machine, e.g. worker-1
    machine: String,
    /// A command to run there instead of a shell
    #[arg(last = true)]
    command: Vec<String>,
}

pub async fn run(args: &Args) -> Result<ExitCode> {
    let mut session = Session::view(args.cluster.find().await?).await?;
    session.borrow_trust().await?;
    let observed = session.observe_provider().await?;
    let machines: Vec<_> = observed.iter().filter(|thing| thing.id.kind == MACHINE).collect();
    let machine = machines.iter().find(|machine| machine.id.name == args.machine).ok_or_else(|| {
        let names: Vec<&str> = machines.iter().map(|machine| machine.id.name.as_str()).collect();
        Error::input(format!("could not find machine {} in cluster {}", args.machine, session.cluster.name))
            .hint(format!("its machines: {}", names.join(", ")))
    })?;
    let ssh = session.ssh()?;
    ssh.know(&Target::of(machine, Side::Outside)?)?;
    let status = Command::new("ssh")
        .arg("-F")
        .arg(ssh.config_file())
        .arg(&args.machine)
        .args(remote(&args.command))
        .status()
        .or_fail(Kind::Host, || "could not start ssh")?;
    // ssh answers with the remote command's own exit code; so does this.
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(255)).unwrap_or(255)))
}

/// ssh joins the words that it is given, and a shell there splits them again: several stay the words they are, a single one is that
/// shell's to read.
fn remote(command: &[String]) -> Vec<String> {
    let quoted = |word: &String| format!("'{}'", word.replace('\'', "'\\''"));
    if let [line] = command { vec![line.clone()] } else { command.iter().map(quoted).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_words_stay_as_they_are_and_one_is_a_line_for_the_shell() {
        let check = |words: &[&str], expected: &[&str]| {
            assert_eq!(remote(&words.iter().map(|word| word.to_string()).collect::<Vec<_>>()), expected)
        };
        check(&[], &[]);
        check(&["uptime; df -h"], &["uptime; df -h"]);
        check(&["sh", "-c", "exit 7"], &["'sh'", "'-c'", "'exit 7'"]);
        check(&["echo", "it's"], &["'echo'", "'it'\\''s'"]);
    }
}
