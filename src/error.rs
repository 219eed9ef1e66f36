//! The one error of the program: what could not be done, why, and what to do next.
//!
//! `Display` prints only this layer's sentence ("could not ..."); the cause is kept apart and printed by the command line
//! as its own line, so no text appears twice.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What went wrong, by who can mend it. Decides the exit code and whether a try is repeated, nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// The command line or a file given to it is wrong: exit code 1.
    Input,
    /// This host, or a machine, lacks something kprov needs: exit code 3.
    Host,
    /// The provider refused for good (quota, denied, bad request): exit code 4.
    Provider,
    /// Something did not become true in time: exit code 5.
    Timeout,
    /// Another writer holds the cluster: exit code 6.
    Conflict,
    /// The person pressed Ctrl-C: exit code 130.
    Interrupted,
    /// Worth trying again without anybody changing anything (connection reset, throttled): exit code 7 when it reaches a person.
    Transient,
    /// A bug in kprov: exit code 70.
    Internal,
}

impl Kind {
    /// The process exit code. 2 is left to clap's usage errors and to `plan --exit-code`.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Input => 1,
            Kind::Host => 3,
            Kind::Provider => 4,
            Kind::Timeout => 5,
            Kind::Conflict => 6,
            Kind::Transient => 7,
            Kind::Internal => 70,
            Kind::Interrupted => 130,
        }
    }
}

/// See the module text.
#[derive(Debug)]
pub struct Error {
    pub kind: Kind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    hints: Vec<String>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), source: None, hints: Vec::new() }
    }
    pub fn input(message: impl Into<String>) -> Self {
        Self::new(Kind::Input, message)
    }
    pub fn host(message: impl Into<String>) -> Self {
        Self::new(Kind::Host, message)
    }
    pub fn provider(message: impl Into<String>) -> Self {
        Self::new(Kind::Provider, message)
    }
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(Kind::Timeout, message)
    }
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(Kind::Conflict, message)
    }
    pub fn transient(message: impl Into<String>) -> Self {
        Self::new(Kind::Transient, message)
    }
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }
    /// Keeps `source` as the cause, and its next steps as this error's.
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        let source = source.into();
        let inner = source.downcast_ref::<Error>().map(|error| error.hints.clone()).unwrap_or_default();
        let new: Vec<String> = inner.into_iter().filter(|hint| !self.hints.contains(hint)).collect();
        self.hints.extend(new);
        self.source = Some(source);
        self
    }
    /// Adds a next step for the person who reads this.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
    pub fn hints(&self) -> &[String] {
        &self.hints
    }
    /// This error and its causes, outermost first, on one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// Adds a sentence to any error on its way up: `file.read().or_fail(Kind::Host, || "could not read the journal")?`.
pub trait Context<T> {
    fn or_fail<M: Into<String>>(self, kind: Kind, message: impl FnOnce() -> M) -> Result<T>;
}

impl<T, E: Into<Box<dyn std::error::Error + Send + Sync>>> Context<T> for std::result::Result<T, E> {
    fn or_fail<M: Into<String>>(self, kind: Kind, message: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|source| Error::new(kind, message()).because(source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_steps_of_a_cause_are_not_lost_on_the_way_up() {
        let inner = Error::provider("could not create machine/a").hint("grant a role").hint("go on");
        let outer = Error::provider("could not go on").hint("go on").because(inner).hint("or take it down");
        assert_eq!(outer.hints(), ["go on", "grant a role", "or take it down"]);
        assert_eq!(outer.chain(), "could not go on: could not create machine/a");
        let lost: Result<()> = Err(Error::host("no").hint("look there")).or_fail(Kind::Host, || "could not look");
        assert_eq!(lost.expect_err("it failed").hints(), ["look there"]);
    }
}
