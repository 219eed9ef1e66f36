//! What can come back instead of an object: the API's own `Status`, or no answer at all.

use crate::error::{Error, Kind};
use serde::Deserialize;

/// What the API answered instead of an object: a Kubernetes `Status`.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    pub code: u16,
    /// `NotFound`, `AlreadyExists`, `Conflict`, `Forbidden`, `Invalid`, `Expired`, ...
    pub reason: String,
    pub message: String,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Wire {
    code: Option<u16>,
    reason: String,
    message: String,
}

impl Status {
    /// Reads a `Status` body; a body that is none still gives its code and its first words.
    pub fn from_body(code: u16, body: &[u8]) -> Self {
        match serde_json::from_slice::<Wire>(body) {
            Ok(wire) => Status { code: wire.code.unwrap_or(code), reason: wire.reason, message: wire.message },
            Err(_) => {
                let text: String = String::from_utf8_lossy(body).chars().take(200).collect();
                Status { code, reason: String::new(), message: format!("the API answered {code}: {text}") }
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Status(Status),
    #[error(transparent)]
    Transport(#[from] Error),
}

impl Failure {
    fn status(&self) -> Option<&Status> {
        match self {
            Failure::Status(status) => Some(status),
            Failure::Transport(_) => None,
        }
    }
    pub fn code(&self) -> Option<u16> {
        self.status().map(|status| status.code)
    }
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }
    /// A stale `resourceVersion` or a precondition that does not hold.
    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(|status| status.code == 409 && status.reason != "AlreadyExists")
    }
    pub fn is_already_exists(&self) -> bool {
        self.status().is_some_and(|status| status.code == 409 && status.reason == "AlreadyExists")
    }
    /// The asked `resourceVersion` or continue token is compacted away: list again.
    pub fn is_expired(&self) -> bool {
        self.code() == Some(410)
    }
    /// The asked `resourceVersion` is one that this server has not reached (a restored backup, or another server's): list again.
    pub fn is_ahead(&self) -> bool {
        self.status().is_some_and(|status| status.code == 504 && status.message.contains("Too large resource version"))
    }
    /// The object is refused for what it says; trying again without changing it is useless.
    pub fn is_invalid(&self) -> bool {
        matches!(self.code(), Some(400 | 422))
    }
    /// A create refused because its namespace is being deleted.
    pub fn is_terminating(&self) -> bool {
        self.status().is_some_and(|status| status.code == 403 && status.message.contains("because it is being terminated"))
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        match failure {
            Failure::Transport(error) => error,
            Failure::Status(status) => {
                let kind = match status.code {
                    409 | 410 => Kind::Conflict,
                    401 | 403 => Kind::Host,
                    408 | 429 | 500..=599 => Kind::Transient,
                    _ => Kind::Input,
                };
                Error::new(kind, format!("could not complete a request to the API ({} {})", status.code, status.reason)).because(status)
            }
        }
    }
}
