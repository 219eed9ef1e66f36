//! Indexes of one kind's objects that follow the store: whoever asks one lets it catch up first.

use crate::orchestrator::store::{Entry, Range, Revision, Store};
use std::sync::Arc;

/// Events that are taken at once; more are taken in turns.
const BATCH: usize = 1024;

pub trait Index: Default {
    /// Where the store keeps the kind's objects, such as `pods/`.
    const PREFIX: &'static str;

    /// Up to where the index has followed.
    fn seen(&mut self) -> &mut Revision;
    fn add(&mut self, entry: &Entry);
    fn remove(&mut self, key: &Arc<str>);

    fn catch_up(&mut self, store: &Store) {
        loop {
            let Ok((events, seen)) = store.events(Self::PREFIX, *self.seen(), BATCH) else {
                return self.rebuild(store);
            };
            for event in &events {
                self.remove(event.entry.key());
                if !event.deleted {
                    self.add(&event.entry);
                }
            }
            *self.seen() = seen;
            if events.len() < BATCH {
                return;
            }
        }
    }

    fn rebuild(&mut self, store: &Store) {
        let all = Range { prefix: Self::PREFIX, after: None, limit: 0, at: None };
        let Ok(page) = store.range(&all) else { return };
        *self = Self::default();
        *self.seen() = page.revision;
        page.entries.iter().for_each(|entry| self.add(entry));
    }
}
