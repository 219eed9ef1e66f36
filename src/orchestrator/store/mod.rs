//! The embedded store: compare-and-put on one key, ordered ranges (also of the recent past), watches from a revision, expiry.
//!
//! The whole state is in memory; a write is acknowledged and published only after its batch is on disk. Keys are
//! `<bucket>/<rest>`, where the bucket is the resource (`pods`, `deployments.apps`): every range and watch stays in one bucket, so
//! each bucket has its own map, its own window of recent events and its own wake-up call.

mod disk;
mod state;
#[cfg(test)]
mod tests;
mod writer;

pub use disk::{Engine, Memory, Redb, Stored};

use crate::error::{Error, Result};
use bytes::Bytes;
use parking_lot::RwLock;
use state::State;
use std::any::Any;
use std::sync::{Arc, OnceLock};
use tokio::sync::{oneshot, watch};

/// One counter for the whole store; each write takes the next number.
pub type Revision = u64;

/// One object as it was at one revision. Cheap to clone.
#[derive(Clone)]
pub struct Entry(Arc<EntryData>);

struct EntryData {
    key: Arc<str>,
    value: Bytes,
    created: Revision,
    modified: Revision,
    /// Where the digits of `modified` stand in `value`.
    revision_at: usize,
    /// Unix seconds; 0 = never.
    expires: u64,
    note: OnceLock<Box<dyn Any + Send + Sync>>,
}

impl Entry {
    pub fn key(&self) -> &Arc<str> {
        &self.0.key
    }
    pub fn value(&self) -> &Bytes {
        &self.0.value
    }
    pub fn created(&self) -> Revision {
        self.0.created
    }
    pub fn modified(&self) -> Revision {
        self.0.modified
    }
    pub fn expires(&self) -> u64 {
        self.0.expires
    }
    /// The same value, ready to be written again.
    pub fn payload(&self) -> Payload {
        let (value, at) = (&self.0.value, self.0.revision_at);
        let behind = at + self.0.modified.to_string().len();
        let bytes = [&value[..at], value.get(behind..).unwrap_or_default()].concat();
        Payload { bytes: bytes.into(), revision_at: at }
    }
    /// Whatever a reader derives from the value, derived once and shared by all readers. One type per store.
    pub fn note<T: Any + Send + Sync>(&self, derive: impl FnOnce(&Bytes) -> T) -> &T {
        let note = self.0.note.get_or_init(|| Box::new(derive(&self.0.value)));
        note.downcast_ref().expect("one reader derives one type of note")
    }
}

/// A change, shared by all who watch.
pub struct Event {
    pub revision: Revision,
    /// The object after the change; of a deleted object its last state.
    pub entry: Entry,
    pub deleted: bool,
    pub previous: Option<Entry>,
    note: OnceLock<Bytes>,
}

impl Event {
    /// The event as one watcher encoded it, for the others that want the same encoding.
    pub fn encoded(&self, encode: impl FnOnce() -> Bytes) -> &Bytes {
        self.note.get_or_init(encode)
    }
}

/// A value whose revision is only known when it is written: its decimal digits are put in at `revision_at`.
#[derive(Debug, Clone)]
pub struct Payload {
    pub bytes: Bytes,
    pub revision_at: usize,
}

impl Payload {
    pub fn at(&self, revision: Revision) -> Bytes {
        let digits = revision.to_string();
        let mut value = Vec::with_capacity(self.bytes.len() + digits.len());
        value.extend_from_slice(&self.bytes[..self.revision_at]);
        value.extend_from_slice(digits.as_bytes());
        value.extend_from_slice(&self.bytes[self.revision_at..]);
        value.into()
    }
}

/// What must be true of the key for a write to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    Absent,
    /// Last modified at exactly this revision.
    Revision(Revision),
}

pub enum Change {
    /// `expires` in unix seconds; 0 = never.
    Put { payload: Payload, expires: u64 },
    /// Watchers see the object's last state at the revision of its end.
    Delete,
}

pub enum Refused {
    /// The expectation did not hold; what the key holds now.
    Conflict(Option<Entry>),
    /// The disk failed: nothing more is written until a restart.
    Failed(Error),
}

/// A question for [`Store::range`].
pub struct Range<'a> {
    /// Starts with a whole bucket name and its slash.
    pub prefix: &'a str,
    /// Only keys behind this one.
    pub after: Option<&'a str>,
    /// 0 = all.
    pub limit: usize,
    /// The state as of this revision; the present one if none is given.
    pub at: Option<Revision>,
}

pub struct Page {
    pub entries: Vec<Entry>,
    pub revision: Revision,
    /// How many matching keys lie behind the last entry.
    pub remaining: usize,
}

/// The asked revision is out of the window of recent events.
#[derive(Debug, PartialEq, Eq)]
pub struct Compacted {
    pub oldest: Revision,
}

/// How much of the recent past each bucket remembers.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    pub events: usize,
    pub bytes: usize,
}

impl Default for Window {
    /// Minutes of a busy cluster; a watcher further behind lists anew.
    fn default() -> Self {
        Window { events: 16_384, bytes: 32 << 20 }
    }
}

pub struct Store {
    state: Arc<RwLock<State>>,
    writer: writer::Writer,
}

impl Store {
    /// Reads everything from the engine and starts the writer thread.
    pub fn open(engine: impl Engine + 'static, window: Window) -> Result<Arc<Store>> {
        let mut engine = engine;
        let state = Arc::new(RwLock::new(State::load(engine.load()?, window)));
        let writer = writer::Writer::start(engine, state.clone())?;
        Ok(Arc::new(Store { state, writer }))
    }

    /// A store that forgets: tests and dry runs.
    pub fn in_memory() -> Arc<Store> {
        Self::open(Memory, Window::default()).expect("memory cannot fail to open")
    }

    /// Durable when it returns.
    pub async fn write(&self, key: &str, expect: Expect, change: Change) -> Result<Entry, Refused> {
        let (reply, answer) = oneshot::channel();
        self.writer.send(writer::Request { key: key.into(), expect, change, reply });
        answer.await.unwrap_or_else(|_| Err(Refused::Failed(writer::gone())))
    }

    pub fn get(&self, key: &str) -> Option<Entry> {
        self.state.read().get(key)
    }

    pub fn range(&self, range: &Range) -> Result<Page, Compacted> {
        self.state.read().range(range)
    }

    /// Events under `prefix` after `after`, at most `most`, and the revision up to which nothing is missing.
    pub fn events(&self, prefix: &str, after: Revision, most: usize) -> Result<(Vec<Arc<Event>>, Revision), Compacted> {
        self.state.read().events(prefix, after, most)
    }

    /// Fires when something in the prefix's bucket has changed.
    pub fn changes(&self, prefix: &str) -> watch::Receiver<Revision> {
        let bucket = state::bucket_of(prefix);
        if let Some(receiver) = self.state.read().changes(bucket) {
            return receiver;
        }
        self.state.write().subscribe(bucket)
    }

    pub fn revision(&self) -> Revision {
        self.state.read().revision()
    }

    /// Names of all buckets that hold something.
    pub fn buckets(&self) -> Vec<String> {
        self.state.read().buckets()
    }

    /// False after a disk failure: the server should end and be started again.
    pub fn healthy(&self) -> bool {
        self.writer.healthy()
    }

    /// Waits for that failure.
    pub async fn failed(&self) -> Error {
        self.writer.failed().await
    }
}
