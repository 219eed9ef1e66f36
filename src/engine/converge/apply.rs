//! Carrying out one plan: each action as soon as what it waits for is done, never in waves.

use super::queue::Queue;
use super::{Bug, Run, retry};
use crate::engine::event::Event;
use crate::engine::journal::State;
use crate::engine::plan::Plan;
use crate::engine::{Action, Door, Id, Inputs, Key, Observed, Phase, Request, Verb};
use crate::error::{Error, Kind, Result};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use rand::seq::SliceRandom;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use tokio::time::Instant;

/// What became of a round's actions.
#[derive(Default)]
pub(super) struct Applied {
    pub finished: BTreeSet<Key>,
    /// Finished actions that may have changed something; waiting is none.
    pub effects: usize,
    pub failed: Vec<(Key, Error)>,
    /// Ctrl-C or the deadline.
    pub stopped: Option<Error>,
}

/// How often a create may find that its token's thing came and went, before the next generation. Each costs one call; a lost journal
/// and a machine made again every day take a year to get there.
const SPENT_GENERATIONS: u32 = 366;

impl Run<'_> {
    pub(super) async fn apply(&self, plan: &Plan, observed: &[Observed]) -> Applied {
        let inputs = Mutex::new(inputs(observed));
        let said: Mutex<BTreeMap<Key, String>> = Mutex::default();
        let mut queue = Queue::new(&plan.actions);
        let mut applied = Applied::default();
        let mut in_flight: BTreeMap<usize, usize> = BTreeMap::new();
        let mut flying = FuturesUnordered::new();
        loop {
            let mut ready = if self.may_start(&applied) { queue.ready() } else { Vec::new() };
            if self.options.shuffle {
                ready.shuffle(&mut *self.random.lock());
            }
            for place in ready {
                let action = queue.action(place);
                let door = self.door_number(&action.id);
                let count = in_flight.entry(door).or_default();
                if *count < self.at_once(door) {
                    *count += 1;
                    queue.start(place);
                    flying.push(self.carry_out(action, door, &inputs, &said));
                }
            }
            tokio::select! {
                biased;
                _ = retry::until(self.deadline) => {
                    applied.stopped = Some(self.overdue(&said.lock()));
                    break;
                }
                next = flying.next() => {
                    let Some((action, door, end)) = next else { break };
                    *in_flight.entry(door).or_default() -= 1;
                    said.lock().remove(&action.key());
                    if end.is_ok() {
                        queue.finished(&action.key());
                    }
                    self.note(action, end, &mut applied);
                }
            }
        }
        if self.options.cancel.is_cancelled() && applied.stopped.is_none() {
            applied.stopped = Some(retry::interrupted());
        }
        for action in queue.not_started() {
            (self.events)(Event::Waiting { key: action.key(), why: why_not_started(action, &applied) });
        }
        applied
    }

    fn may_start(&self, applied: &Applied) -> bool {
        let is_final = |error: &Error| error.kind != Kind::Transient;
        let ends = |error: &Error| error.kind == Kind::Conflict || (is_final(error) && !self.options.keep_going);
        !self.options.cancel.is_cancelled() && !applied.failed.iter().any(|(_, error)| ends(error))
    }

    pub(super) fn at_once(&self, door: usize) -> usize {
        self.options.concurrency.or_else(|| self.doors.get(door).map(|door| door.at_once())).unwrap_or(1)
    }

    pub(super) fn door_number(&self, id: &Id) -> usize {
        self.doors.iter().position(|door| door.kinds().contains(&id.kind.as_str())).unwrap_or_default()
    }

    fn note(&self, action: &Action, end: Result<u64>, applied: &mut Applied) {
        let key = action.key();
        match end {
            Ok(milliseconds) => {
                applied.effects += usize::from(action.verb != Verb::Await);
                applied.finished.insert(key.clone());
                (self.events)(Event::Finished { key, milliseconds });
            }
            Err(error) => {
                (self.events)(Event::Failed { key: key.clone(), error: error.chain() });
                applied.failed.push((key, error));
            }
        }
    }

    /// What was on its way when the deadline came, and the last word of each.
    fn overdue(&self, said: &BTreeMap<Key, String>) -> Error {
        said.iter().fold(self.late(), |error, (key, text)| error.hint(format!("in flight: {key}: {text}")))
    }

    async fn carry_out<'p>(
        &self,
        action: &'p Action,
        door: usize,
        inputs: &Mutex<Inputs>,
        said: &Mutex<BTreeMap<Key, String>>,
    ) -> (&'p Action, usize, Result<u64>) {
        let started = Instant::now();
        said.lock().insert(action.key(), "started".into());
        (self.events)(Event::Started { key: action.key(), summary: action.summary.clone() });
        let end = self.effect(action, inputs, said).await;
        (action, door, end.map(|()| started.elapsed().as_millis() as u64))
    }

    async fn effect(&self, action: &Action, inputs: &Mutex<Inputs>, said: &Mutex<BTreeMap<Key, String>>) -> Result<()> {
        let door = self.door(&action.id)?;
        let mut action = action.clone();
        for _ in 0..SPENT_GENERATIONS {
            let request = Request { epoch: self.epoch(), ..door.render(&action, &inputs.lock())? };
            let thing = self.journaled(door, &action, request, said).await?;
            let mut inputs = inputs.lock();
            match (action.verb, thing) {
                // What this token once made is gone, and the journal did not know: the next generation has another token.
                (Verb::Create, None) => action.generation += 1,
                (Verb::Delete, _) | (Verb::Await, None) => {
                    if inputs.get(&action.id).is_some_and(|known| Some(&known.handle) == action.handle.as_ref()) {
                        inputs.remove(&action.id);
                    }
                    self.own.lock().gone(&action.id, action.handle.as_deref().unwrap_or_default(), Instant::now());
                    return Ok(());
                }
                (_, Some(thing)) => {
                    self.own.lock().made(&thing);
                    let phase = thing.phase.clone();
                    inputs.insert(action.id.clone(), thing);
                    return match phase {
                        // What needs it must not start; the next round repairs it.
                        Phase::Broken(why) => Err(Error::transient(format!("{} is there and does not work: {why}", action.id))),
                        _ => Ok(()),
                    };
                }
                (Verb::Update | Verb::Repair, None) => return Ok(()),
            }
        }
        Err(Error::provider(format!("could not find an unused generation of {}", action.id)))
    }

    /// Intent to the journal, the request to the door, the end to the journal. An effect that stays unknown stays open.
    async fn journaled(
        &self,
        door: &Arc<dyn Door>,
        action: &Action,
        request: Request,
        said: &Mutex<BTreeMap<Key, String>>,
    ) -> Result<Option<Observed>> {
        let waits = action.verb == Verb::Await;
        let intent = || if waits { Ok(None) } else { self.journal.intent(&request).map(Some) };
        let mut sequence = if self.has(Bug::JournalAfterCall) { None } else { intent()? };
        let end = self.send(door, action, &request, said).await;
        if self.has(Bug::JournalAfterCall) {
            sequence = intent()?;
        }
        let Some(sequence) = sequence else { return end.map_err(|(error, _)| error) };
        match &end {
            Ok(None) if action.verb == Verb::Create => self.journal.close(sequence, State::Failed)?,
            Ok(_) => self.journal.close(sequence, State::Done)?,
            Err((_, Certain::NoEffect)) => self.journal.close(sequence, State::Failed)?,
            Err((_, Certain::Nothing)) if self.has(Bug::TransientIsFinal) => self.journal.close(sequence, State::Failed)?,
            Err((_, Certain::Nothing)) => {}
        }
        end.map_err(|(error, _)| error)
    }

    async fn send(
        &self,
        door: &Arc<dyn Door>,
        action: &Action,
        request: &Request,
        said: &Mutex<BTreeMap<Key, String>>,
    ) -> Result<Option<Observed>, (Error, Certain)> {
        let key = action.key();
        let progress = |text: &str| {
            said.lock().insert(key.clone(), text.into());
            (self.events)(Event::Progress { key: key.clone(), text: text.into() });
        };
        let tries = Mutex::new(0u32);
        let call = || {
            *tries.lock() += 1;
            let mut request = request.clone();
            if self.has(Bug::RetryRendersAnew) {
                request.token = format!("{}-{}", request.token, *tries.lock());
            }
            let progress = &progress;
            async move { door.execute(&request, progress).await }
        };
        let retry = |attempt: u32, pause: std::time::Duration, error: &Error| {
            let pause_milliseconds = pause.as_millis() as u64;
            (self.events)(Event::Retrying { key: key.clone(), attempt, pause_milliseconds, error: error.chain() });
        };
        if let Some(pace) = door.pace(request) {
            self.paced(&pace).await;
        }
        let end = self.in_time(self.retrying(call, retry)).await;
        if action.verb != Verb::Await {
            self.note_effect();
        }
        end.map_err(|error| {
            // A refusal of the first try is certain; after a lost reply it only says that this try had no effect.
            let refused = *tries.lock() == 1 && !matches!(error.kind, Kind::Transient | Kind::Timeout);
            (error, if refused { Certain::NoEffect } else { Certain::Nothing })
        })
    }

    /// Within the time one action may take.
    pub(super) async fn in_time<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let limit = self.options.action_deadline;
        let late = |_| Err(Error::timeout(format!("no end after {} s", limit.as_secs())));
        tokio::time::timeout(limit, work).await.unwrap_or_else(late)
    }
}

/// What an error says about the effect.
enum Certain {
    NoEffect,
    Nothing,
}

/// What actions may refer to: of each id the thing the planner keeps.
fn inputs(observed: &[Observed]) -> Inputs {
    let mut inputs = Inputs::new();
    for thing in crate::engine::plan::kept(observed) {
        inputs.insert(thing.id.clone(), thing.clone());
    }
    inputs
}

fn why_not_started(action: &Action, applied: &Applied) -> String {
    let failed = action.after.iter().find(|key| applied.failed.iter().any(|(other, _)| other == *key));
    let open = action.after.iter().find(|key| !applied.finished.contains(key));
    match (failed, open) {
        (Some(key), _) => format!("{key} failed"),
        (None, Some(key)) => format!("{key} is not finished"),
        (None, None) => "stopping".into(),
    }
}
