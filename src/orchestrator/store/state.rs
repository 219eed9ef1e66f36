//! The state in memory: one ordered map and one window of recent events per bucket. Pure: no disk, no clock.

use super::{Compacted, Entry, EntryData, Event, Page, Payload, Range, Revision, Stored, Window};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, OnceLock};
use tokio::sync::watch;

pub struct State {
    buckets: BTreeMap<Box<str>, Bucket>,
    revision: Revision,
    window: Window,
    /// (unix seconds, key)
    expiries: BTreeSet<(u64, Arc<str>)>,
}

struct Bucket {
    entries: BTreeMap<Arc<str>, Entry>,
    events: VecDeque<Arc<Event>>,
    event_bytes: usize,
    /// Revision of the last event that is no longer in `events`; a watch may start here or later.
    compacted: Revision,
    changed: watch::Sender<Revision>,
}

impl Bucket {
    fn new(compacted: Revision) -> Self {
        let changed = watch::Sender::new(compacted);
        Bucket { entries: BTreeMap::new(), events: VecDeque::new(), event_bytes: 0, compacted, changed }
    }

    fn remember(&mut self, event: Arc<Event>, window: Window) {
        self.event_bytes += size_of_event(&event);
        self.events.push_back(event);
        while self.events.len() > window.events || (self.event_bytes > window.bytes && self.events.len() > 1) {
            let Some(oldest) = self.events.pop_front() else { break };
            self.event_bytes -= size_of_event(&oldest);
            self.compacted = oldest.revision;
        }
    }

    fn events_after(&self, after: Revision) -> impl DoubleEndedIterator<Item = &Arc<Event>> {
        let start = self.events.partition_point(|event| event.revision <= after);
        self.events.range(start..)
    }
}

/// What keeping an event costs: the previous value would otherwise be gone.
fn size_of_event(event: &Event) -> usize {
    256 + event.previous.as_ref().map_or(0, |entry| entry.value().len()) + if event.deleted { event.entry.value().len() } else { 0 }
}

pub fn bucket_of(key: &str) -> &str {
    key.split_once('/').map_or(key, |(bucket, _)| bucket)
}

pub fn entry(key: Arc<str>, payload: &Payload, created: Revision, modified: Revision, expires: u64) -> Entry {
    restored(key, payload.at(modified), payload.revision_at, (created, modified, expires))
}

/// An entry as the disk holds it: (created, modified, expires).
pub fn restored(key: Arc<str>, value: Bytes, revision_at: usize, times: (Revision, Revision, u64)) -> Entry {
    let (created, modified, expires) = times;
    Entry(Arc::new(EntryData { key, value, created, modified, revision_at, expires, note: OnceLock::new() }))
}

pub fn event(entry: Entry, deleted: bool, previous: Option<Entry>) -> Event {
    Event { revision: entry.modified(), entry, deleted, previous, note: OnceLock::new() }
}

impl State {
    pub fn load(stored: Stored, window: Window) -> Self {
        let mut state = State { buckets: BTreeMap::new(), revision: stored.revision.max(1), window, expiries: BTreeSet::new() };
        for (bucket, last_change) in stored.buckets {
            state.buckets.insert(bucket.into(), Bucket::new(last_change));
        }
        for entry in stored.entries {
            let bucket = state.bucket(bucket_of(entry.key()));
            bucket.compacted = bucket.compacted.max(entry.modified());
            bucket.entries.insert(entry.key().clone(), entry.clone());
            state.expect_expiry(&entry);
        }
        state
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    pub fn buckets(&self) -> Vec<String> {
        self.buckets.iter().filter(|(_, bucket)| !bucket.entries.is_empty()).map(|(name, _)| name.to_string()).collect()
    }

    pub fn get(&self, key: &str) -> Option<Entry> {
        self.buckets.get(bucket_of(key))?.entries.get(key).cloned()
    }

    /// Takes over a committed batch and wakes the watchers of the touched buckets.
    pub fn apply(&mut self, events: Vec<Arc<Event>>) {
        let window = self.window;
        let mut touched = BTreeSet::new();
        for event in events {
            self.revision = event.revision;
            let key = event.entry.key().clone();
            if let Some(previous) = event.previous.as_ref().filter(|entry| entry.0.expires > 0) {
                self.expiries.remove(&(previous.0.expires, key.clone()));
            }
            let bucket = self.bucket(bucket_of(&key));
            if event.deleted {
                bucket.entries.remove(&key);
            } else {
                bucket.entries.insert(key.clone(), event.entry.clone());
            }
            bucket.remember(event.clone(), window);
            if !event.deleted {
                self.expect_expiry(&event.entry);
            }
            touched.insert(Box::<str>::from(bucket_of(&key)));
        }
        for name in touched {
            self.buckets[&name].changed.send_replace(self.revision);
        }
    }

    fn expect_expiry(&mut self, entry: &Entry) {
        if entry.0.expires > 0 {
            self.expiries.insert((entry.0.expires, entry.key().clone()));
        }
    }

    /// Entries whose time has come, oldest first.
    pub fn expired(&self, now: u64, most: usize) -> Vec<Entry> {
        let due = self.expiries.iter().take_while(|(at, _)| *at <= now).take(most);
        due.filter_map(|(_, key)| self.get(key)).collect()
    }

    pub fn range(&self, range: &Range) -> Result<Page, Compacted> {
        let at = range.at.unwrap_or(self.revision);
        let Some(bucket) = self.buckets.get(bucket_of(range.prefix)) else {
            return Ok(Page { entries: Vec::new(), revision: at, remaining: 0 });
        };
        let past = past_of(bucket, range.prefix, at)?;
        let start = match range.after {
            Some(after) => Bound::Excluded(after),
            None => Bound::Included(range.prefix),
        };
        let within = |key: &str| key.starts_with(range.prefix);
        let now = bucket.entries.range::<str, _>((start, Bound::Unbounded)).take_while(|(key, _)| within(key));
        let now = now.filter(|(key, _)| !past.contains_key(*key)).map(|(_, entry)| entry);
        let then = past.range::<str, _>((start, Bound::Unbounded)).filter_map(|(_, entry)| entry.as_ref());
        let limit = if range.limit == 0 { usize::MAX } else { range.limit };
        let mut page = Page { entries: Vec::new(), revision: at, remaining: 0 };
        for entry in merged(now, then) {
            if page.entries.len() < limit { page.entries.push(entry.clone()) } else { page.remaining += 1 }
        }
        Ok(page)
    }

    pub fn events(&self, prefix: &str, after: Revision, most: usize) -> Result<(Vec<Arc<Event>>, Revision), Compacted> {
        let Some(bucket) = self.buckets.get(bucket_of(prefix)) else {
            return Ok((Vec::new(), self.revision));
        };
        if after < bucket.compacted {
            return Err(Compacted { oldest: bucket.compacted });
        }
        let mut complete_to = self.revision;
        let mut events = Vec::new();
        for event in bucket.events_after(after).filter(|event| event.entry.key().starts_with(prefix)) {
            if events.len() == most {
                complete_to = events.last().map_or(after, |event: &Arc<Event>| event.revision);
                break;
            }
            events.push(event.clone());
        }
        Ok((events, complete_to))
    }

    pub fn changes(&self, bucket: &str) -> Option<watch::Receiver<Revision>> {
        self.buckets.get(bucket).map(|bucket| bucket.changed.subscribe())
    }

    pub fn subscribe(&mut self, bucket: &str) -> watch::Receiver<Revision> {
        self.bucket(bucket).changed.subscribe()
    }

    /// A bucket without a history never had an object: any revision is a good start.
    fn bucket(&mut self, name: &str) -> &mut Bucket {
        if !self.buckets.contains_key(name) {
            self.buckets.insert(name.into(), Bucket::new(0));
        }
        self.buckets.get_mut(name).expect("it has just been put in")
    }
}

/// What differed at revision `at`: key -> the entry then (none: it did not exist yet).
fn past_of(bucket: &Bucket, prefix: &str, at: Revision) -> Result<BTreeMap<Arc<str>, Option<Entry>>, Compacted> {
    if at < bucket.compacted {
        return Err(Compacted { oldest: bucket.compacted });
    }
    let mut past = BTreeMap::new();
    for event in bucket.events_after(at).rev().filter(|event| event.entry.key().starts_with(prefix)) {
        past.insert(event.entry.key().clone(), event.previous.clone());
    }
    Ok(past)
}

/// Two streams in key order, without common keys, as one.
fn merged<'a>(one: impl Iterator<Item = &'a Entry>, two: impl Iterator<Item = &'a Entry>) -> impl Iterator<Item = &'a Entry> {
    let (mut one, mut two) = (one.peekable(), two.peekable());
    std::iter::from_fn(move || match (one.peek(), two.peek()) {
        (Some(left), Some(right)) if left.key() < right.key() => one.next(),
        (Some(_), None) => one.next(),
        _ => two.next(),
    })
}
