//! Observe, plan, lint, apply, until quiet: what `up`, `down` and the loop inside the cluster have in common.

mod apply;
mod bug;
mod look;
mod pace;
mod queue;
mod report;
mod retry;
mod settle;
#[cfg(test)]
mod tests;

pub(crate) use bug::Bug;
pub use look::{Look, look};

use super::event::Event;
use super::journal::Journal;
use super::plan::Plan;
use super::{Door, Id, Key, Observed, Resource, lint};
use crate::error::{Error, Kind, Result};
use apply::Applied;
use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Who hears what happens.
pub type Events<'a> = &'a (dyn Fn(Event) + Send + Sync);

/// How a converge behaves; `Options::new(epoch)` suits `up`.
#[derive(Clone)]
pub struct Options {
    /// The writer's epoch, put on every request.
    pub epoch: u64,
    /// Requests in flight per door; `None`: as many as each door says.
    pub concurrency: Option<usize>,
    /// For the whole run; `None` for the loop inside.
    pub deadline: Option<Duration>,
    /// For one action, retries included.
    pub action_deadline: Duration,
    /// For how long one action's transient errors are retried before the round gives it up.
    pub retry_budget: Duration,
    /// First Ctrl-C: start nothing new, finish what is in flight.
    pub cancel: CancellationToken,
    /// After a final error go on with all that does not depend on it (`down`, the loop); otherwise start nothing new (`up`).
    pub keep_going: bool,
    /// This writer has looked under this epoch when all that former writers sent must have shown: an empty journal is no lost one.
    pub has_looked: bool,
    /// Rounds before giving up; each must do something.
    pub rounds: u32,
    /// Of the pauses between retries.
    pub seed: u64,
    /// The order of starting among equals is shuffled, so that tests see every order.
    pub shuffle: bool,
    #[cfg(test)]
    pub(crate) bug: Option<Bug>,
}

impl Options {
    pub fn new(epoch: u64) -> Self {
        Options {
            epoch,
            concurrency: None,
            deadline: None,
            // A cloud's slowest resource (a shared filesystem, a machine that boots) takes five minutes.
            action_deadline: Duration::from_secs(600),
            // Longer than a throttling window, shorter than a person's patience without a word.
            retry_budget: Duration::from_secs(90),
            cancel: CancellationToken::new(),
            keep_going: false,
            has_looked: false,
            // A replacement takes two rounds, a mended broken machine three; thirty-two is a run that goes in circles.
            rounds: 32,
            seed: rand::random(),
            shuffle: false,
            #[cfg(test)]
            bug: None,
        }
    }
}

/// How a converge ended well: what is desired is observed.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The last observation; empty after `down`.
    pub observed: Vec<Observed>,
    pub rounds: u32,
    /// Confirmed effects of this run.
    pub effects: usize,
}

/// What one round did; for the loop, which comes back by itself.
#[derive(Debug)]
pub struct Step {
    pub plan: Plan,
    /// As before the round's actions.
    pub observed: Vec<Observed>,
    pub effects: usize,
    /// What failed, in a way to try again (`Transient`, `Timeout`) or for good.
    pub failed: Vec<(Key, Error)>,
}

/// Rounds in a row that may achieve nothing, each after a longer pause, before the run says so.
const STALLED_ROUNDS: u32 = 3;
/// Rounds in a row that may carry out the very same plan: a door whose reads lag settles within two.
const SAME_PLANS: u32 = 4;

/// Runs rounds until nothing is left to do. Ends with an error at a final refusal (see `Options::keep_going`), at the deadline, on
/// Ctrl-C and when rounds stop achieving anything; its hints say what is there, what is missing and how to go on.
pub async fn converge(
    doors: &[Arc<dyn Door>],
    desired: &[Resource],
    journal: &dyn Journal,
    options: &Options,
    events: Events<'_>,
) -> Result<Outcome> {
    let mut run = Run::new(doors, journal, options, events);
    // Somebody wrote before: what they sent last may not show yet.
    run.takes_over = options.epoch > 1;
    run.until_quiet(desired).await.map_err(report::with_next_step)
}

/// One round of the loop inside the cluster: errors of single actions are values here, the next round is another try.
pub async fn step(
    doors: &[Arc<dyn Door>],
    desired: &[Resource],
    journal: &dyn Journal,
    options: &Options,
    events: Events<'_>,
) -> Result<Step> {
    let run = Run::new(doors, journal, options, events);
    let (observed, _) = run.observe_and_settle().await?;
    let plan = run.plan(desired, &observed);
    if plan.is_empty() {
        events(Event::Quiet { rounds: 1 });
        return Ok(Step { plan, observed, effects: 0, failed: Vec::new() });
    }
    let applied = run.round(1, &plan, desired, &observed).await?;
    Ok(Step { plan, observed, effects: applied.effects, failed: applied.failed })
}

/// What every part of one converge shares.
struct Run<'a> {
    doors: &'a [Arc<dyn Door>],
    journal: &'a dyn Journal,
    options: &'a Options,
    events: Events<'a>,
    started: Instant,
    /// The run's first look waits until it shows everything that former writers have sent.
    takes_over: bool,
    deadline: Option<Instant>,
    random: Mutex<StdRng>,
    /// What this run's own requests have made and ended, for doors whose reads lag behind.
    own: Mutex<settle::Own>,
    /// By bucket: when the next request may leave.
    paces: Mutex<BTreeMap<&'static str, Instant>>,
    last_seen: Mutex<Vec<Observed>>,
    /// When something last changed, by this run or the journal's word.
    last_effect: Mutex<Option<Instant>>,
}

impl<'a> Run<'a> {
    fn new(doors: &'a [Arc<dyn Door>], journal: &'a dyn Journal, options: &'a Options, events: Events<'a>) -> Self {
        let started = Instant::now();
        let run = Run {
            doors,
            journal,
            options,
            events,
            started,
            takes_over: false,
            deadline: options.deadline.map(|deadline| started + deadline),
            random: Mutex::new(StdRng::seed_from_u64(options.seed)),
            own: Mutex::default(),
            paces: Mutex::default(),
            last_seen: Mutex::default(),
            last_effect: Mutex::default(),
        };
        run.recall();
        run
    }

    async fn until_quiet(&self, desired: &[Resource]) -> Result<Outcome> {
        let (mut stalled, mut same, mut effects, mut former) = (0, 0, 0, BTreeSet::new());
        for round in 1..=self.options.rounds {
            let (observed, asked) = self.observe_and_settle().await?;
            let plan = self.plan(desired, &observed);
            if plan.is_empty() || (round > 1 && self.has(Bug::OneRoundIsEnough)) {
                // What the read shows may be older than the last effect; only a read that shows it all ends the self.
                if !self.is_settled(asked) && !self.has(Bug::FirstQuietLookTrusted) {
                    self.pause_until_settled().await?;
                    continue;
                }
                (self.events)(Event::Quiet { rounds: round });
                return Ok(Outcome { observed, rounds: round, effects });
            }
            let applied = self.round(round, &plan, desired, &observed).await?;
            effects += applied.effects;
            let keys: BTreeSet<Key> = plan.actions.iter().map(super::Action::key).collect();
            same = if keys == former { same + 1 } else { 0 };
            former = keys;
            stalled = if applied.finished.is_empty() { stalled + 1 } else { 0 };
            if let Some(error) = self.verdict(applied, stalled, same) {
                return Err(report::report(error, &plan, &self.last_look().await));
            }
            if stalled > 0 || same > 1 {
                self.rest(stalled + same).await?;
            }
        }
        let (observed, _) = self.observe_and_settle().await?;
        let plan = self.plan(desired, &observed);
        Err(report::report(Error::timeout(format!("could not come to rest in {} rounds", self.options.rounds)), &plan, &observed))
    }

    fn has(&self, bug: Bug) -> bool {
        bug.is_in(self.options)
    }

    fn door(&self, id: &Id) -> Result<&Arc<dyn Door>> {
        let owner = self.doors.iter().find(|door| door.kinds().contains(&id.kind.as_str()));
        owner.ok_or_else(|| Error::internal(format!("no door owns the kind of {id}")))
    }

    fn plan(&self, desired: &[Resource], observed: &[Observed]) -> Plan {
        let mut plan = super::plan::plan(desired, observed, &self.journal.generations());
        bug::spoil(&mut plan, desired, observed, self.options);
        plan
    }

    async fn round(&self, round: u32, plan: &Plan, desired: &[Resource], observed: &[Observed]) -> Result<Applied> {
        let mut refusals = lint::lint_doors(self.doors, plan);
        refusals.extend(lint::lint(plan, desired, observed));
        lint::refuse(&refusals)?;
        (self.events)(Event::PlanMade { round, plan: plan.clone() });
        let applied = self.apply(plan, observed).await;
        let (finished, left) = (applied.finished.len(), plan.actions.len() - applied.finished.len());
        (self.events)(Event::RoundEnded { round, finished, left });
        Ok(applied)
    }

    /// The error this round ends the run with, if it does.
    fn verdict(&self, applied: Applied, stalled: u32, same: u32) -> Option<Error> {
        if let Some(error) = applied.stopped {
            return Some(error);
        }
        let stop = stalled >= STALLED_ROUNDS || same >= SAME_PLANS;
        let is_final = |error: &Error| error.kind != Kind::Transient;
        let ends = |error: &Error| error.kind == Kind::Conflict || stop || (is_final(error) && (!self.options.keep_going || stalled > 0));
        let mut failed = applied.failed;
        failed.sort_by_key(|(_, error)| !is_final(error));
        if let Some((key, mut error)) = failed.into_iter().find(|(_, error)| ends(error)) {
            let kind = if error.kind == Kind::Transient { Kind::Timeout } else { error.kind };
            let what = format!("could not {key}");
            // A door that said the same sentence says it better: with its cause right after it.
            if error.to_string() != what {
                error = Error::new(kind, what).because(error);
            }
            error.kind = kind;
            return Some(error);
        }
        stop.then(|| Error::timeout("could not come to rest: the same actions are planned again and again"))
    }
}
