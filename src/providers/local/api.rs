//! What the local cloud's daemon and its clients say to each other: HTTP/1.1 with JSON bodies.
//!
//! `GET /v1/observe`, `POST /v1/execute`, `GET|POST /v1/epoch`, `GET /v1/changes?after=...` (answers when something has changed),
//! `GET /v1/credentials`, `POST /v1/admit` and `POST /v1/close` (unix socket only; a cloud that has anything stays open).

use crate::engine::Observed;
use crate::engine::handoff::Epoch;
use crate::error::{Error, Kind};
use serde::{Deserialize, Serialize};

/// Compare-and-swap of the writer's record.
#[derive(Debug, Serialize, Deserialize)]
pub struct SwapEpoch {
    pub expected: Option<Epoch>,
    pub next: Epoch,
}

/// A public key that may log in to a machine for a moment.
#[derive(Debug, Serialize, Deserialize)]
pub struct Admit {
    pub machine: String,
    pub key: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Executed {
    pub observed: Option<Observed>,
    /// Set when the last thing of the cluster is gone: this daemon ends right after the answer.
    pub closing: Option<i32>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct View {
    pub resources: Vec<Observed>,
    /// For `changes`: differs from now on as soon as anything is different.
    pub version: String,
}

/// What the loop inside the cluster gets (secret).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Credentials {
    pub cluster: crate::engine::Cluster,
    /// `10.88.0.1:7443`
    pub address: std::net::SocketAddr,
    pub token: String,
    /// The only certificate to trust there, PEM.
    pub certificate: String,
}

/// An error on the wire; its kind survives, so `Transient` stays worth a retry.
#[derive(Debug, Serialize, Deserialize)]
pub struct Failure {
    kind: String,
    message: String,
    cause: Option<String>,
    hints: Vec<String>,
}

const KINDS: [Kind; 8] =
    [Kind::Input, Kind::Host, Kind::Provider, Kind::Timeout, Kind::Conflict, Kind::Interrupted, Kind::Transient, Kind::Internal];

impl From<&Error> for Failure {
    fn from(error: &Error) -> Failure {
        let chain = error.chain();
        let cause = chain.strip_prefix(&format!("{error}: ")).map(String::from);
        Failure { kind: format!("{:?}", error.kind), message: error.to_string(), cause, hints: error.hints().to_vec() }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        let kind = KINDS.into_iter().find(|kind| format!("{kind:?}") == failure.kind).unwrap_or(Kind::Internal);
        let mut error = Error::new(kind, failure.message);
        if let Some(cause) = failure.cause {
            error = error.because(cause);
        }
        failure.hints.into_iter().fold(error, Error::hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_arrives_as_it_was_sent() {
        for kind in KINDS {
            let sent = Error::new(kind, "could not start machine a").because("disk full").hint("make room");
            let text = serde_json::to_string(&Failure::from(&sent)).unwrap();
            let got = Error::from(serde_json::from_str::<Failure>(&text).unwrap());
            assert_eq!((got.kind, got.chain(), got.hints()), (sent.kind, sent.chain(), sent.hints()));
        }
    }
}
