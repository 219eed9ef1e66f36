//! What is true although a read does not show it yet: this run's own effects, and what earlier runs left open.

use super::{Bug, Run, retry};
use crate::engine::event::Event;
use crate::engine::journal::{Entry, State};
use crate::engine::{Door, Id, Key, Observed, Request, Verb};
use crate::error::{Kind, Result};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// This run's confirmed effects, by id and handle.
#[derive(Default)]
pub(super) struct Own {
    made: BTreeMap<(Id, String), (Observed, Instant)>,
    gone: BTreeMap<(Id, String), Instant>,
}

impl Own {
    pub fn made(&mut self, thing: &Observed) {
        self.made.insert((thing.id.clone(), thing.handle.clone()), (thing.clone(), Instant::now()));
    }
    pub fn gone(&mut self, id: &Id, handle: &str) {
        let thing = (id.clone(), handle.to_owned());
        self.made.remove(&thing);
        self.gone.insert(thing, Instant::now());
    }
}

impl Run<'_> {
    /// The longest settle window of all doors.
    pub(super) fn window(&self) -> Duration {
        self.doors.iter().map(|door| self.settle_of(door)).max().unwrap_or_default()
    }

    fn settle_of(&self, door: &Arc<dyn Door>) -> Duration {
        if self.has(Bug::SettleIgnored) { Duration::ZERO } else { door.settle() }
    }

    /// Whether everything an earlier run did must be visible by now.
    pub(super) fn settled(&self) -> bool {
        self.has(Bug::DownTrustsOneLook) || self.started.elapsed() >= self.window()
    }

    pub(super) async fn pause_until_settled(&self) -> Result<()> {
        self.unless_stopped(tokio::time::sleep_until(self.started + self.window())).await
    }

    /// What a door has read, with this run's own younger effects put right. Zero window: the door reads what it wrote.
    pub(super) fn corrected(&self, door: &Arc<dyn Door>, mut observed: Vec<Observed>) -> Vec<Observed> {
        let (own, window) = (self.own.lock(), self.settle_of(door));
        let young = |moment: &Instant| moment.elapsed() < window;
        observed.retain(|thing| !own.gone.get(&(thing.id.clone(), thing.handle.clone())).is_some_and(young));
        for ((id, handle), (thing, moment)) in &own.made {
            let ours = door.kinds().contains(&id.kind.as_str()) && young(moment);
            if ours && !observed.iter().any(|seen| seen.id == *id && seen.handle == *handle) {
                observed.push(thing.clone());
            }
        }
        observed
    }

    /// Observes, resolves what the journal holds open, and observes again if that had an effect.
    pub(super) async fn observe_and_settle(&self) -> Result<Vec<Observed>> {
        let observed = self.observe().await?;
        if self.has(Bug::PendingForgotten) || !self.resolve(&observed).await? {
            return Ok(observed);
        }
        self.observe().await
    }

    /// Settles every request whose effect is unknown: either it shows, or the same bytes go out again (the token makes them harmless).
    /// A confirmed create that does not show inside its settle window is "not yet" and handled the same way. Answers whether anything
    /// was sent. Updates, repairs and deletes are not sent again: the plan made from what is observed covers them.
    async fn resolve(&self, observed: &[Observed]) -> Result<bool> {
        let shows = |request: &Request| observed.iter().any(|thing| thing.id == request.id && thing.generation == request.generation);
        let mut open = Vec::new();
        for entry in self.journal.pending() {
            let request = &entry.request;
            match (request.verb, shows(request)) {
                (Verb::Create, false) => open.push(entry),
                (Verb::Create, true) => self.journal.close(entry.sequence, State::Done)?,
                (Verb::Delete, false) => self.journal.close(entry.sequence, State::Done)?,
                _ => self.journal.close(entry.sequence, State::Failed)?,
            }
        }
        for entry in self.journal.created() {
            let age = Duration::from_secs(self.journal.now().saturating_sub(entry.time));
            if !shows(&entry.request) && self.door(&entry.request.id).is_ok_and(|door| age < self.settle_of(door)) {
                open.push(entry);
            }
        }
        let sends = !open.is_empty();
        let mut waiting = open.into_iter();
        let mut flying = FuturesUnordered::new();
        loop {
            while flying.len() < self.options.concurrency
                && !self.options.cancel.is_cancelled()
                && let Some(entry) = waiting.next()
            {
                flying.push(self.replay(entry));
            }
            tokio::select! {
                end = flying.next() => match end {
                    Some(end) => end?,
                    None if self.options.cancel.is_cancelled() => return Err(retry::interrupted()),
                    None => return Ok(sends),
                },
                _ = retry::until(self.deadline) => return Err(self.late()),
            }
        }
    }

    async fn replay(&self, entry: Entry) -> Result<()> {
        let Entry { sequence, mut request, .. } = entry;
        request.epoch = self.epoch();
        let key = Key { id: request.id.clone(), verb: request.verb, handle: None };
        let door = self.door(&request.id)?;
        let progress_key = key.clone();
        let progress = move |text: &str| (self.events)(Event::Progress { key: progress_key.clone(), text: text.into() });
        let sent = self.retrying(|| door.execute(&request, &progress), |_, _, _| ());
        let (state, how) = match self.in_time(sent).await {
            Ok(Some(thing)) => {
                self.own.lock().made(&thing);
                (State::Done, "sent again: it is there".to_owned())
            }
            Ok(None) => (State::Failed, "sent again: what it made is gone".into()),
            Err(error) if matches!(error.kind, Kind::Transient | Kind::Timeout | Kind::Conflict) => return Err(error),
            Err(error) => (State::Failed, format!("sent again and refused: {}", error.chain())),
        };
        self.journal.close(sequence, state)?;
        (self.events)(Event::Resolved { key, how });
        Ok(())
    }

    pub(super) fn epoch(&self) -> u64 {
        if self.has(Bug::EpochForged) { u64::MAX } else { self.options.epoch }
    }
}
