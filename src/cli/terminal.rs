//! How people are talked to: errors with cause and hint, questions, progress. stdout is data, stderr is talk.

use crate::blueprint::diagnostic::Problems;
use crate::blueprint::load::{self, Loaded};
use crate::blueprint::manifests::Judge;
use crate::error::{Context, Error, Kind, Result};
use serde::Serialize;
use std::fmt::Display;
use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

/// Coloured talk, for stderr.
pub fn paint(code: &str, text: &str) -> String {
    coloured(std::io::stderr().is_terminal(), code, text)
}

/// Coloured data, for stdout.
pub fn paint_data(code: &str, text: &str) -> String {
    coloured(std::io::stdout().is_terminal(), code, text)
}

/// Colour only where somebody sees it, and never against NO_COLOR.
fn coloured(is_seen: bool, code: &str, text: &str) -> String {
    if is_seen && std::env::var_os("NO_COLOR").is_none() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
}

/// Data, whole, to stdout. A reader that went away (`| head -1`) has what it wanted; a disk that is full is an error.
pub fn print(text: impl Display) -> Result<()> {
    write_to(&mut std::io::stdout().lock(), &text)
}

fn write_to(out: &mut impl Write, text: &impl Display) -> Result<()> {
    match out.write_all(text.to_string().as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.or_fail(Kind::Host, || "could not write to stdout"),
    }
}

/// A value as JSON on stdout.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).or_fail(Kind::Internal, || "could not encode the answer")?;
    print(format_args!("{text}\n"))
}

/// A line to the person on stderr. Nobody may be there any more (a closed terminal): the work goes on all the same.
pub fn talk(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

pub fn print_error(error: &Error) {
    talk(format_args!("{} {error}", paint("1;31", "error:")));
    // Whoever met the cause knows best how to mend it: what it hints at comes first.
    let mut hints = vec![error.hints()];
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        talk(format_args!("  caused by: {source}"));
        hints.extend(source.downcast_ref::<Error>().map(Error::hints));
        cause = source.source();
    }
    for hint in hints.into_iter().rev().flatten() {
        talk(format_args!("  {} {hint}", paint("36", "hint:")));
    }
}

/// Every mistake with its place, then how many there were.
pub fn print_problems(problems: &Problems) {
    talk(problems.to_string().trim_end());
}

/// A blueprint that can be acted on, its warnings said; or `None` after every mistake in it was.
pub fn read_blueprint(file: &Path, judge: Judge<'_>) -> Option<Loaded> {
    match load::from_path(file, judge) {
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
        talk(format_args!("{} {warning}", paint("1;33", "warning:")));
    }
}

/// Asks on a terminal; without one there is nobody to ask, so the answer must have been given by `--yes`.
pub fn confirm(question: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Error::input("there is no terminal to ask on").hint("add --yes to go on without being asked"));
    }
    let _ = write!(std::io::stderr(), "{question} [y/N] ");
    let mut line = String::new();
    let _ = std::io::stdin().lock().read_line(&mut line);
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Refuses(std::io::ErrorKind);

    impl Write for Refuses {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure_and_a_full_disk_is_one() {
        assert!(write_to(&mut Refuses(std::io::ErrorKind::BrokenPipe), &"text").is_ok());
        let error = write_to(&mut Refuses(std::io::ErrorKind::StorageFull), &"text").expect_err("nothing was written");
        assert_eq!((error.kind, error.to_string().as_str()), (Kind::Host, "could not write to stdout"));
    }
}
