//! Intent before effect: what is about to be sent is on disk before it is sent, so that a run after a crash sends the same again.

mod book;
mod file;
#[cfg(test)]
mod tests;

pub use book::MemoryJournal;
pub use file::FileJournal;

use super::{Id, Request};
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How far a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// Sent, or about to be: its effect is unknown.
    Intent,
    /// The receiver confirmed it.
    Done,
    /// The receiver refused it for good, or what it made is gone again: nothing is left of it.
    Failed,
}

/// One request and its latest state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub sequence: u64,
    pub request: Request,
    pub state: State,
    /// Unix seconds of the latest state; only ever compared with this host's own clock.
    pub time: u64,
}

/// The engine's memory across runs. A cache of intentions: with all of it lost, tokens and tags still lead to the right end.
/// One writer at a time; whoever opens it holds the cluster's lock.
pub trait Journal: Send + Sync {
    /// Durable when it returns; only then may the request be sent.
    fn intent(&self, request: &Request) -> Result<u64>;
    fn close(&self, sequence: u64, state: State) -> Result<()>;
    /// What was begun and nobody confirmed, oldest first.
    fn pending(&self) -> Vec<Entry>;
    /// The latest create per id that the receiver confirmed and that no confirmed delete followed.
    fn created(&self) -> Vec<Entry>;
    /// The latest confirmed delete per id.
    fn deleted(&self) -> Vec<Entry>;
    /// When the last entry was written.
    fn latest(&self) -> Option<u64>;
    /// The highest generation per id.
    fn generations(&self) -> BTreeMap<Id, u32>;
    /// Unix seconds, from the clock that stamps entries.
    fn now(&self) -> u64;
}

/// Unix seconds. Passed in, so that tests own the time.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The host's own clock.
pub fn wall_clock() -> Clock {
    Arc::new(|| std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}
