//! How people are talked to: errors with cause and hint, questions, progress. stdout is data, stderr is talk.

use crate::blueprint::diagnostic::Problems;
use crate::blueprint::load::{self, Loaded};
use crate::error::{Error, Kind};
use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

/// Colour only where somebody sees it, and never against NO_COLOR.
pub fn paint(code: &str, text: &str) -> String {
    if std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_string()
    }
}

pub fn print_error(error: &Error) {
    eprintln!("{} {error}", paint("1;31", "error:"));
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        eprintln!("  caused by: {source}");
        cause = source.source();
    }
    for hint in error.hints() {
        eprintln!("  {} {hint}", paint("36", "hint:"));
    }
}

/// Every mistake with its place, then how many there were.
pub fn print_problems(problems: &Problems) {
    eprint!("{problems}");
}

/// A blueprint that can be acted on, its warnings said; or `None` after every mistake in it was.
pub fn read_blueprint(file: &Path) -> Option<Loaded> {
    match load::from_path(file) {
        Ok(loaded) => {
            print_warnings(&loaded.warnings);
            Some(loaded)
        }
        Err(problems) => {
            print_problems(&problems);
            None
        }
    }
}

/// What a command exits with after `read_blueprint` has said what is wrong.
pub fn bad_input() -> ExitCode {
    ExitCode::from(Kind::Input.exit_code())
}

pub fn print_warnings(warnings: &[String]) {
    for warning in warnings {
        eprintln!("{} {warning}", paint("1;33", "warning:"));
    }
}

/// Asks on a terminal; without one there is nobody to ask, so the answer must have been given by `--yes`.
pub fn confirm(question: &str) -> Result<bool, Error> {
    if !std::io::stdin().is_terminal() {
        return Err(Error::input("there is no terminal to ask on").hint("add --yes to go on without being asked"));
    }
    eprint!("{question} [y/N] ");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    let _ = std::io::stdin().lock().read_line(&mut answer);
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
