//! What a journal's records add up to, and the journal that lives in memory alone.

use super::{Clock, Entry, Journal, State};
use crate::engine::{Id, Request, Verb};
use crate::error::Result;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One line of the journal. The request is written once, with the first record of its sequence number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub sequence: u64,
    pub state: State,
    pub time: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Request>,
}

/// All records folded together: bounded by the number of ids, not by the number of records.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Book {
    pending: BTreeMap<u64, Entry>,
    created: BTreeMap<Id, Entry>,
    deleted: BTreeMap<Id, Entry>,
    /// Keeps the highest generation per id, whatever became of it.
    highest: BTreeMap<Id, Entry>,
    next: u64,
    latest: Option<u64>,
}

impl Book {
    pub fn next(&self) -> u64 {
        self.next
    }

    pub fn apply(&mut self, record: Record) {
        let Record { sequence, state, time, request } = record;
        self.next = self.next.max(sequence + 1);
        self.latest = self.latest.max(Some(time));
        let known = self.pending.remove(&sequence).or_else(|| self.created.values().find(|entry| entry.sequence == sequence).cloned());
        // A state whose intent was in a damaged line says nothing about anything.
        let Some(request) = request.or(known.map(|entry| entry.request)) else { return };
        let entry = Entry { sequence, request, state, time };
        self.remember(&entry);
        let id = &entry.request.id;
        match (state, entry.request.verb) {
            (State::Intent, _) => {
                self.pending.insert(sequence, entry);
            }
            (State::Done, Verb::Create) => {
                self.created.insert(id.clone(), entry);
            }
            (State::Done, Verb::Delete) => {
                if self.created.get(id).is_some_and(|made| made.request.generation <= entry.request.generation) {
                    self.created.remove(id);
                }
                self.deleted.insert(id.clone(), entry);
            }
            (State::Failed, _) => {
                if self.created.get(id).is_some_and(|made| made.sequence == sequence) {
                    self.created.remove(id);
                }
            }
            (State::Done, _) => {}
        }
    }

    fn remember(&mut self, entry: &Entry) {
        let generation = |entry: &Entry| entry.request.generation;
        if self.highest.get(&entry.request.id).is_none_or(|known| generation(known) <= generation(entry)) {
            self.highest.insert(entry.request.id.clone(), entry.clone());
        }
    }

    pub fn pending(&self) -> Vec<Entry> {
        self.pending.values().cloned().collect()
    }

    pub fn created(&self) -> Vec<Entry> {
        self.created.values().cloned().collect()
    }

    pub fn deleted(&self) -> Vec<Entry> {
        self.deleted.values().cloned().collect()
    }

    pub fn latest(&self) -> Option<u64> {
        self.latest
    }

    pub fn generations(&self) -> BTreeMap<Id, u32> {
        self.highest.iter().map(|(id, entry)| (id.clone(), entry.request.generation)).collect()
    }

    /// The fewest records that fold to this book again, in order.
    pub fn records(&self) -> Vec<Record> {
        let record =
            |entry: &Entry| Record { sequence: entry.sequence, state: entry.state, time: entry.time, request: Some(entry.request.clone()) };
        self.entries().into_values().map(record).collect()
    }

    /// How many [`Book::records`] there are.
    pub fn len(&self) -> usize {
        self.entries().len()
    }

    fn entries(&self) -> BTreeMap<u64, &Entry> {
        let settled = [&self.highest, &self.created, &self.deleted].into_iter().flat_map(BTreeMap::values);
        settled.chain(self.pending.values()).map(|entry| (entry.sequence, entry)).collect()
    }
}

/// A journal that dies with its process: for tests, and for a loop whose journal folder cannot be written.
pub struct MemoryJournal {
    book: Mutex<Book>,
    clock: Clock,
}

impl MemoryJournal {
    pub fn new(clock: Clock) -> Self {
        MemoryJournal { book: Mutex::default(), clock }
    }
}

impl Journal for MemoryJournal {
    fn intent(&self, request: &Request) -> Result<u64> {
        let mut book = self.book.lock();
        let sequence = book.next();
        book.apply(Record { sequence, state: State::Intent, time: self.now(), request: Some(request.clone()) });
        Ok(sequence)
    }
    fn close(&self, sequence: u64, state: State) -> Result<()> {
        self.book.lock().apply(Record { sequence, state, time: self.now(), request: None });
        Ok(())
    }
    fn pending(&self) -> Vec<Entry> {
        self.book.lock().pending()
    }
    fn created(&self) -> Vec<Entry> {
        self.book.lock().created()
    }
    fn latest(&self) -> Option<u64> {
        self.book.lock().latest()
    }
    fn deleted(&self) -> Vec<Entry> {
        self.book.lock().deleted()
    }
    fn generations(&self) -> BTreeMap<Id, u32> {
        self.book.lock().generations()
    }
    fn now(&self) -> u64 {
        (self.clock)()
    }
}
