//! Group commit: one thread takes all queued writes, decides them in order, puts them on disk with one sync, then publishes.

use super::state::{State, entry, event};
use super::{Change, Engine, Entry, Event, Expect, Refused};
use crate::error::{Context, Error, Kind, Result};
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{oneshot, watch};

/// Bounds the memory of one transaction and the wait of its first writer.
const BATCH: usize = 1024;
/// Expiry is only tidiness; nobody waits for it.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(5);

pub struct Request {
    pub key: Arc<str>,
    pub expect: Expect,
    pub change: Change,
    pub reply: oneshot::Sender<Result<Entry, Refused>>,
}

pub struct Writer {
    queue: Option<Sender<Request>>,
    /// What the disk said when it failed.
    failure: watch::Receiver<Option<String>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub fn start(engine: impl Engine + 'static, state: Arc<RwLock<State>>) -> Result<Writer> {
        let (queue, requests) = channel();
        let (failed, failure) = watch::channel(None);
        let work = Work { engine: Box::new(engine), state, failure: failed };
        let thread = std::thread::Builder::new().name("store".into()).spawn(move || work.run(&requests));
        let thread = thread.or_fail(Kind::Host, || "could not start the store's writer thread")?;
        Ok(Writer { queue: Some(queue), failure, thread: Some(thread) })
    }

    pub fn send(&self, request: Request) {
        // A writer that is gone drops the request, and with it the reply channel: the caller sees that.
        let _ = self.queue.as_ref().map(|queue| queue.send(request));
    }

    pub fn healthy(&self) -> bool {
        self.failure.borrow().is_none() && self.failure.has_changed().is_ok()
    }

    /// Waits for as long as the disk takes what is written.
    pub async fn failed(&self) -> Error {
        match self.failure.clone().wait_for(Option::is_some).await {
            Ok(text) => Error::host(text.as_deref().unwrap_or_default()),
            Err(_) => gone(),
        }
    }
}

impl Drop for Writer {
    /// Queued writes finish and the file is closed before the store is gone.
    fn drop(&mut self) {
        self.queue.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Work {
    engine: Box<dyn Engine>,
    state: Arc<RwLock<State>>,
    failure: watch::Sender<Option<String>>,
}

/// The thread ended without being told to.
pub fn gone() -> Error {
    Error::internal("the store's writer is gone")
}

type Decided = (oneshot::Sender<Result<Entry, Refused>>, Result<Entry, Refused>);

impl Work {
    fn run(mut self, requests: &Receiver<Request>) {
        loop {
            match requests.recv_timeout(EXPIRY_INTERVAL) {
                Ok(first) => {
                    let batch = std::iter::once(first).chain(requests.try_iter()).take(BATCH).collect();
                    self.write(batch);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.expire();
        }
    }

    fn write(&mut self, batch: Vec<Request>) {
        let failure = self.failure.borrow().clone();
        if let Some(failure) = failure {
            for request in batch {
                let _ = request.reply.send(Err(Refused::Failed(Error::host(failure.clone()))));
            }
            return;
        }
        let (events, decided) = self.decide(batch);
        match self.commit(events) {
            Ok(()) => decided.into_iter().for_each(|(reply, answer)| drop(reply.send(answer))),
            Err(error) => {
                let text = error.chain();
                tracing::error!(error = text, "could not write to the store; nothing more is written");
                self.failure.send_replace(Some(text.clone()));
                decided.into_iter().for_each(|(reply, _)| drop(reply.send(Err(Refused::Failed(Error::host(text.clone()))))));
            }
        }
    }

    /// Answers are held back until the batch is on disk: a refusal may be due to a write of the same batch.
    fn decide(&self, batch: Vec<Request>) -> (Vec<Arc<Event>>, Vec<Decided>) {
        let state = self.state.read();
        let mut revision = state.revision();
        let mut fresh: HashMap<Arc<str>, Option<Entry>> = HashMap::new();
        let (mut events, mut decided) = (Vec::new(), Vec::new());
        for request in batch {
            let current = fresh.get(&request.key).cloned().unwrap_or_else(|| state.get(&request.key));
            let holds = match (request.expect, &current) {
                (Expect::Absent, None) => true,
                (Expect::Revision(revision), Some(entry)) => entry.modified() == revision,
                _ => false,
            };
            let written = match (request.change, &current) {
                (Change::Put { payload, expires }, _) if holds => Some((payload, expires, false)),
                (Change::Delete, Some(entry)) if holds => Some((entry.payload(), 0, true)),
                _ => None,
            };
            let Some((payload, expires, deleted)) = written else {
                decided.push((request.reply, Err(Refused::Conflict(current))));
                continue;
            };
            revision += 1;
            let created = current.as_ref().map_or(revision, Entry::created);
            let next = entry(request.key.clone(), &payload, created, revision, expires);
            fresh.insert(request.key, (!deleted).then(|| next.clone()));
            events.push(Arc::new(event(next.clone(), deleted, current)));
            decided.push((request.reply, Ok(next)));
        }
        (events, decided)
    }

    fn commit(&mut self, events: Vec<Arc<Event>>) -> Result<()> {
        if events.is_empty() {
            return Ok(());
        }
        self.engine.commit(&events)?;
        self.state.write().apply(events);
        Ok(())
    }

    fn expire(&mut self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs());
        let due = self.state.read().expired(now, BATCH);
        let batch: Vec<Request> = due.iter().map(expiry).collect();
        if !batch.is_empty() {
            self.write(batch);
        }
    }
}

fn expiry(entry: &Entry) -> Request {
    let (reply, _) = oneshot::channel();
    Request { key: entry.key().clone(), expect: Expect::Revision(entry.modified()), change: Change::Delete, reply }
}
