//! What is true although a read does not show it yet: this run's own effects, and what earlier runs left open.

use super::{Bug, Run, retry};
use crate::engine::event::Event;
use crate::engine::journal::{Entry, State};
use crate::engine::{Door, HOST, Id, Key, Observed, Phase, Request, Verb};
use crate::error::{Kind, Result};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// This run's confirmed effects, and what it has seen: reads that lag may also go back in time.
#[derive(Default)]
pub(super) struct Own {
    /// By id and handle, with the moment when it surely was there.
    made: BTreeMap<(Id, String), (Observed, Instant)>,
    gone: BTreeMap<(Id, String), Instant>,
}

impl Own {
    pub fn made(&mut self, thing: &Observed) {
        self.made.insert((thing.id.clone(), thing.handle.clone()), (thing.clone(), Instant::now()));
    }
    pub fn gone(&mut self, id: &Id, handle: &str, moment: Instant) {
        let thing = (id.clone(), handle.to_owned());
        self.made.remove(&thing);
        self.gone.insert(thing, moment);
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

    /// Whether a read at `asked` shows every effect, of this run and of those in the journal. A run without a memory waits its window
    /// from its own start, for what an earlier one may have sent.
    pub(super) fn is_settled(&self, asked: Instant) -> bool {
        asked >= self.settled_at()
    }

    fn settled_at(&self) -> Instant {
        let last = *self.last_effect.lock();
        let from = if self.is_blind() { last.max(Some(self.started)) } else { last };
        from.map_or(self.started, |moment| moment + self.window())
    }

    /// Whether others may have sent what neither a read shows yet nor the journal knows. An empty journal of a first run and a lost one look
    /// the same.
    fn is_blind(&self) -> bool {
        self.takes_over || (!self.options.has_looked && self.journal.generations().is_empty())
    }

    pub(super) async fn pause_until_settled(&self) -> Result<()> {
        self.unless_stopped(tokio::time::sleep_until(self.settled_at())).await
    }

    pub(super) fn note_effect(&self) {
        *self.last_effect.lock() = Some(Instant::now());
    }

    /// What a door has read since `asked`, with this run's own younger effects put right. Zero window: the door reads what it wrote.
    pub(super) fn corrected(&self, door: &Arc<dyn Door>, asked: Instant, mut observed: Vec<Observed>) -> Vec<Observed> {
        let (mut own, window) = (self.own.lock(), self.settle_of(door));
        let young = |moment: &Instant| asked.saturating_duration_since(*moment) < window;
        observed.retain(|thing| !own.gone.get(&(thing.id.clone(), thing.handle.clone())).is_some_and(young));
        for ((id, handle), (thing, moment)) in &own.made {
            let ours = door.kinds().contains(&id.kind.as_str()) && young(moment);
            if ours && !observed.iter().any(|seen| seen.id == *id && seen.handle == *handle) {
                observed.push(thing.clone());
            }
        }
        if !window.is_zero() {
            for thing in observed.iter().filter(|thing| thing.phase != Phase::Deleting) {
                own.made.entry((thing.id.clone(), thing.handle.clone())).or_insert_with(|| (thing.clone(), asked));
            }
        }
        observed
    }

    /// What an earlier run did counts as this run's own, so that a read of the past does not undo it.
    pub(super) fn recall(&self) {
        for entry in self.journal.deleted() {
            let moment = self.started.checked_sub(self.age(entry.time)).unwrap_or(self.started);
            self.own.lock().gone(&entry.request.id, entry.request.handle.as_deref().unwrap_or_default(), moment);
        }
        *self.last_effect.lock() = self.journal.latest().and_then(|time| self.started.checked_sub(self.age(time)));
    }

    /// How long ago `time` is at least: journals cut to whole seconds.
    fn age(&self, time: u64) -> Duration {
        Duration::from_secs(self.journal.now().saturating_sub(time).saturating_sub(1))
    }

    /// Observes, resolves what the journal holds open, and observes again if that had an effect. A run that takes over from another writer,
    /// or finds a cluster that it has no memory of, cannot know what is too young to be seen: it looks again when everything must show.
    /// Also answers when it asked.
    pub(super) async fn observe_and_settle(&self) -> Result<(Vec<Observed>, Instant)> {
        let mut asked = Instant::now();
        let mut observed = self.observe().await?;
        let all_shows = self.started + self.window();
        if (self.takes_over || !observed.is_empty()) && self.is_blind() && asked < all_shows {
            self.unless_stopped(tokio::time::sleep_until(all_shows)).await?;
            asked = Instant::now();
            observed = self.observe().await?;
        }
        if !self.has(Bug::PendingForgotten) && self.resolve(&observed, asked).await? {
            asked = Instant::now();
            observed = self.observe().await?;
        }
        Ok((observed, asked))
    }

    /// Settles every request whose effect is unknown: either it shows, or the same bytes go out again (the token makes them harmless).
    /// A confirmed create that does not show inside its settle window is "not yet" and handled the same way. Answers whether anything
    /// was sent. Updates, repairs, deletes and installations of hosts are not sent again: the plan made from what is observed covers them,
    /// and an installation that was meant for a machine which is gone or dead would keep everything else waiting.
    async fn resolve(&self, observed: &[Observed], asked: Instant) -> Result<bool> {
        let shows = |request: &Request| observed.iter().any(|thing| thing.id == request.id && thing.generation == request.generation);
        // Another writer has made it meanwhile, as another generation: what is open here would be a second one. Not so the forerunner that
        // this journal knows as deleted, and that a read of the past still shows.
        let deleted = self.journal.deleted();
        let is_former = |thing: &Observed| deleted.iter().any(|entry| entry.request.handle.as_deref() == Some(thing.handle.as_str()));
        let others = |request: &Request| {
            let there = observed.iter().filter(|thing| thing.id == request.id && thing.phase == Phase::Ready);
            self.is_settled(asked) && there.filter(|thing| !is_former(thing)).count() > 0
        };
        let mut open = Vec::new();
        for entry in self.journal.pending() {
            let request = &entry.request;
            // `down` goes through the provider alone: what was meant for other doors ends with what it was meant for.
            if self.door(&request.id).is_err() {
                continue;
            }
            match (request.verb, shows(request)) {
                (Verb::Create, false) if others(request) || request.id.kind == HOST => self.journal.close(entry.sequence, State::Failed)?,
                (Verb::Create, false) => open.push(entry),
                (Verb::Create, true) => self.journal.close(entry.sequence, State::Done)?,
                (Verb::Delete, false) => self.journal.close(entry.sequence, State::Done)?,
                _ => self.journal.close(entry.sequence, State::Failed)?,
            }
        }
        for entry in self.journal.created() {
            let age = self.age(entry.time).saturating_sub(asked.elapsed());
            if !shows(&entry.request) && self.door(&entry.request.id).is_ok_and(|door| age < self.settle_of(door)) {
                open.push(entry);
            }
        }
        let sends = !open.is_empty();
        let mut waiting = open.into_iter();
        let at_once = (0..self.doors.len()).map(|door| self.at_once(door)).min().unwrap_or(1);
        let mut flying = FuturesUnordered::new();
        loop {
            while flying.len() < at_once
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
        if self.has(Bug::ReplayRendersAnew) {
            request.generation += 1;
            request.token.push_str("-anew");
        }
        let key = Key { id: request.id.clone(), verb: request.verb, handle: None };
        let door = self.door(&request.id)?;
        let progress_key = key.clone();
        let progress = move |text: &str| (self.events)(Event::Progress { key: progress_key.clone(), text: text.into() });
        if let Some(pace) = door.pace(&request) {
            self.paced(&pace).await;
        }
        let sent = self.retrying(|| door.execute(&request, &progress), |_, _, _| ());
        let end = self.in_time(sent).await;
        self.note_effect();
        let (state, how) = match end {
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
