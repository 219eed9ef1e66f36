//! The commands that machines and the local cloud run; no person types them, so they are not in the menu.

use super::{logging, terminal};
use crate::error::{Context, Error, Kind, Result};
use crate::providers::local;
use crate::supervisor;
use std::io::Read;
use std::process::ExitCode;

/// `None` when the arguments are not one of these.
pub fn dispatch(arguments: &[String]) -> Option<ExitCode> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["local", "init", _] => supervisor::init(),
        ["local", "shim", uid, name] => local::shim_main(uid, name),
        ["local", "daemon", uid] => local::daemon_main(uid),
        ["supervise"] => supervisor::supervise(),
        ["service", ref command @ ..] => service(command),
        _ => return None,
    };
    Some(match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::print_error(&error);
            ExitCode::from(error.kind.exit_code())
        }
    })
}

/// `kprov service status | ensure (definition on stdin) | start NAME | stop NAME | restart NAME | remove NAME`.
fn service(command: &[&str]) -> Result<()> {
    logging::to_stderr();
    let changed = match command {
        ["status"] => {
            return terminal::print_json(&supervisor::client::status()?);
        }
        ["ensure"] => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).or_fail(Kind::Input, || "could not read the service's definition")?;
            let service = serde_json::from_str(&text).or_fail(Kind::Input, || "could not read the service's definition")?;
            supervisor::client::ensure(&service)
        }
        ["start", name] => supervisor::client::start(name),
        ["stop", name] => supervisor::client::stop(name),
        ["restart", name] => supervisor::client::restart(name),
        ["remove", name] => supervisor::client::remove(name),
        _ => Err(Error::input("usage: kprov service status | ensure < definition | start|stop|restart|remove NAME")),
    }?;
    terminal::print(if changed { "changed\n" } else { "unchanged\n" })
}
