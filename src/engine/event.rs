//! What happened, once, for terminal, log file and API.

use super::{Key, plan::Plan};
use serde::{Deserialize, Serialize};
use std::fmt;

/// One thing that happened in a converge. `Display` is the plain line of the log and of terminals without cursor control.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "event")]
pub enum Event {
    /// A round's plan, before its first action.
    PlanMade {
        round: u32,
        plan: Plan,
    },
    /// Its request is in the journal and on its way.
    Started {
        key: Key,
        summary: String,
    },
    /// One short line, replaced by the next.
    Progress {
        key: Key,
        text: String,
    },
    /// Failed in a way worth trying again; the same request goes out after the pause.
    Retrying {
        key: Key,
        attempt: u32,
        pause_milliseconds: u64,
        error: String,
    },
    Finished {
        key: Key,
        milliseconds: u64,
    },
    Failed {
        key: Key,
        error: String,
    },
    /// Not started, and why: a need is not there yet, the run is stopping.
    Waiting {
        key: Key,
        why: String,
    },
    /// An earlier run's unfinished request was found and settled.
    Resolved {
        key: Key,
        how: String,
    },
    /// A round has ended; `left` actions were not finished.
    RoundEnded {
        round: u32,
        finished: usize,
        left: usize,
    },
    /// Observed is desired: nothing to do.
    Quiet {
        rounds: u32,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::PlanMade { round, plan } => write!(out, "round {round}: {}", plan.footer()),
            Event::Started { key, summary } if summary.is_empty() => write!(out, "{key}"),
            Event::Started { key, summary } => write!(out, "{key}: {summary}"),
            Event::Progress { key, text } => write!(out, "{key}: {text}"),
            Event::Retrying { key, attempt, pause_milliseconds, error } => {
                write!(out, "{key}: try {attempt} failed, again in {pause_milliseconds} ms: {error}")
            }
            Event::Finished { key, milliseconds } => {
                write!(out, "{key}: done in {}.{:01} s", milliseconds / 1000, milliseconds % 1000 / 100)
            }
            Event::Failed { key, error } => write!(out, "{key}: failed: {error}"),
            Event::Waiting { key, why } => write!(out, "{key}: waiting: {why}"),
            Event::Resolved { key, how } => write!(out, "{key}: left by an earlier run, {how}"),
            Event::RoundEnded { round, finished, left: 0 } => write!(out, "round {round}: {finished} done"),
            Event::RoundEnded { round, finished, left } => write!(out, "round {round}: {finished} done, {left} not"),
            Event::Quiet { .. } => out.write_str("nothing left to do"),
        }
    }
}
