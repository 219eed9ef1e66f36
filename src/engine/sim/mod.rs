//! The world in which the engine is tested: a strict cloud, faults at chosen calls, crashes, second writers, and a judge.
//!
//! A [`Case`] is played from its seed alone and answers with the first broken promise. `KPROV_SIM_SEEDS` sets how many random cases
//! run; a failing one prints its seed, and `KPROV_SIM_SEED=<seed> cargo test --lib engine::sim::tests::one_seed` plays it again.

mod case;
mod judge;
mod tests;

use super::converge::{Bug, Options, converge};
use super::event::Event;
use super::handoff::{Wish, Writer, take};
use super::journal::{Clock, MemoryJournal};
use super::{Cluster, Door, Resource};
use crate::error::Error;
use crate::providers::fake::{Cloud, Fault, Manners};
use crate::providers::resources;
use crate::providers::{Context, Provider};
use futures::FutureExt;
use serde_json::json;
use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Requests that were on their way have landed after this.
const LATEST: Duration = Duration::from_secs(900);

/// What one run of a command wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Up { workers: u32, memory_gibibytes: u32 },
    Down,
}

/// A cluster's life: made, larger, smaller, its workers replaced, gone.
const LIFE: [Stage; 5] = [
    Stage::Up { workers: 2, memory_gibibytes: 1 },
    Stage::Up { workers: 3, memory_gibibytes: 1 },
    Stage::Up { workers: 2, memory_gibibytes: 1 },
    Stage::Up { workers: 2, memory_gibibytes: 2 },
    Stage::Down,
];

/// Everything that a play depends on.
#[derive(Debug, Clone)]
struct Case {
    manners: Manners,
    seed: u64,
    /// Stage number, mutating call of that stage, what happens there.
    faults: Vec<(usize, usize, Fault)>,
    /// A run that fails takes its journal with it.
    journal_lost: bool,
    /// After the first run that fails, people give up: `down`.
    then_down: bool,
    /// After the last stage with a fault: `down`, without the stages between.
    short: bool,
    bug: Option<Bug>,
}

/// What a play has shown.
#[derive(Debug, Clone, Copy, Default)]
struct Figures {
    /// Mutating calls per stage, of the runs that reached it.
    calls: [usize; LIFE.len()],
    runs: usize,
    fired: usize,
}

/// Plays the case on a runtime of its own, whose clock jumps from event to event.
fn play(case: &Case) -> Result<Figures, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(Play::new(case).all())
}

struct Play<'a> {
    case: &'a Case,
    cloud: Cloud,
    cluster: Cluster,
    journal: MemoryJournal,
    clock: Clock,
    figures: Figures,
    processes: Cell<u32>,
}

/// `KPROV_SIM_TRACE=1` shows what happens, for playing one seed again.
fn trace(epoch: u64, event: &Event) {
    if std::env::var_os("KPROV_SIM_TRACE").is_some() {
        println!("epoch {epoch}: {event}");
    }
}

/// How one run of a command ended.
enum End {
    Converged,
    Failed(Error),
    Crashed,
}

impl<'a> Play<'a> {
    fn new(case: &'a Case) -> Self {
        let zero = Instant::now();
        let clock: Clock = Arc::new(move || 1_000_000 + zero.elapsed().as_secs());
        let journal = MemoryJournal::new(clock.clone());
        let cluster = Cluster { name: "shop".into(), uid: "u-1".into() };
        Play {
            case,
            cloud: Cloud::new(case.manners.clone(), case.seed),
            cluster,
            journal,
            clock,
            figures: Figures::default(),
            processes: Cell::new(0),
        }
    }

    async fn all(mut self) -> Result<Figures, String> {
        let decoys = judge::place_decoys(&self.cloud, &self.desired(LIFE[0]));
        let mut number = 0;
        while number < LIFE.len() {
            for (_, call, fault) in self.case.faults.iter().filter(|(stage, ..)| *stage == number) {
                self.cloud.inject(*call, *fault);
            }
            let before = self.cloud.ledger().len();
            let reached = self.reach(LIFE[number]).await?;
            self.figures.calls[number] = self.cloud.ledger().len() - before;
            judge::decoys_untouched(&self.cloud, &decoys)?;
            judge::no_violations(&self.cloud)?;
            let last = LIFE.len() - 1;
            let over = self.case.short && number < last && self.case.faults.iter().all(|(stage, ..)| *stage <= number);
            number = if over || !reached { last } else { number + 1 };
        }
        self.figures.fired = self.case.faults.len() - self.cloud.unfired();
        Ok(self.figures)
    }

    /// Runs the command until it succeeds, as a patient person would. Answers false when they give up and turn to `down`.
    async fn reach(&mut self, stage: Stage) -> Result<bool, String> {
        let desired = self.desired(stage);
        self.cloud.want(&self.cluster, &desired);
        let mut runs = 0;
        let mut last = String::new();
        loop {
            runs += 1;
            // Each fault costs at most one run, and one that is fenced or refused may be met once more.
            if runs > 2 + 2 * self.case.faults.len() {
                return Err(format!("{stage:?} did not converge in {} runs: {last}", runs - 1));
            }
            self.figures.runs += 1;
            match self.run(&desired).await? {
                End::Converged => break,
                End::Failed(error) => last = format!("{} {:?}", error.chain(), error.hints()),
                End::Crashed => last = "crashed".into(),
            }
            if self.case.journal_lost || self.case.bug == Some(Bug::JournalNotDurable) {
                self.journal = MemoryJournal::new(self.clock.clone());
            }
            if self.case.then_down && stage != Stage::Down {
                return Ok(false);
            }
        }
        self.rest(&desired).await?;
        Ok(true)
    }

    /// What must be true once a command has said that it is done, at once and after everything in flight has landed.
    async fn rest(&mut self, desired: &[Resource]) -> Result<(), String> {
        let late = self.case.faults.iter().any(|(_, _, fault)| {
            matches!(fault, Fault::LateSuccess(_) | Fault::CrashLate(_) | Fault::Paused(_) | Fault::ForeignDelete | Fault::Breaks)
        });
        if !late {
            judge::is_as_desired(&self.cloud, &self.cluster, desired)?;
        }
        tokio::time::sleep(LATEST).await;
        if desired.is_empty() && self.case.manners.tokens {
            // A late request must not bring back what `down` has removed.
            judge::is_as_desired(&self.cloud, &self.cluster, desired)?;
        }
        if late {
            self.again(desired).await?;
            tokio::time::sleep(LATEST).await;
        }
        let before = self.cloud.ledger().len();
        self.again(desired).await?;
        judge::is_as_desired(&self.cloud, &self.cluster, desired)?;
        judge::no_calls_since(&self.cloud, before)
    }

    async fn again(&mut self, desired: &[Resource]) -> Result<(), String> {
        for _ in 0..=self.case.faults.len() {
            if let End::Converged = self.run(desired).await? {
                return Ok(());
            }
        }
        Err("a quiet cluster did not stay so".into())
    }

    /// One process: takes the writer's epoch, converges, ends or dies.
    async fn run(&self, desired: &[Resource]) -> Result<End, String> {
        let epoch = self.take().await;
        let options = self.options(epoch, desired);
        let doors = self.doors();
        let tell = move |event| trace(epoch, &event);
        let first = converge(&doors, desired, &self.journal, &options, &tell);
        tokio::pin!(first);
        let end = tokio::select! {
            biased;
            _ = self.cloud.crash.notified() => return Ok(End::Crashed),
            _ = self.cloud.usurped.notified() => {
                // While the first process stands still, a second one on another computer does all of the work.
                let journal = MemoryJournal::new(self.clock.clone());
                let epoch = self.take().await;
                let options = self.options(epoch, desired);
                let tell = move |event| trace(epoch, &event);
                let second = converge(&doors, desired, &journal, &options, &tell);
                let (first, second) = tokio::select! {
                    biased;
                    _ = self.cloud.crash.notified() => return Ok(End::Crashed),
                    both = async { tokio::join!(first, second) } => both,
                };
                if self.case.manners.epochs && first.is_ok() {
                    return Err(format!("a writer that was overtaken went on: {first:?}"));
                }
                second
            }
            end = &mut first => end,
        };
        Ok(end.map_or_else(End::Failed, |_| End::Converged))
    }

    /// A new process becomes the writer.
    async fn take(&self) -> u64 {
        self.processes.set(self.processes.get() + 1);
        let provider = self.cloud.provider(&self.cluster);
        match take(provider.epochs(), Wish::Seize, &format!("cli:host:{}", self.processes.get())).await {
            Ok(Writer::Us(epoch)) => epoch.epoch,
            other => unreachable!("an epoch that is seized is ours: {other:?}"),
        }
    }

    fn doors(&self) -> [Arc<dyn Door>; 2] {
        [Arc::new(self.cloud.provider(&self.cluster)), Arc::new(self.cloud.hosts(&self.cluster))]
    }

    fn options(&self, epoch: u64, desired: &[Resource]) -> Options {
        let mut options = Options::new(epoch);
        options.seed = self.case.seed;
        options.shuffle = true;
        options.concurrency = 1 + (self.case.seed % 8) as usize;
        options.keep_going = desired.is_empty();
        options.deadline = Some(Duration::from_secs(1800));
        options.bug = self.case.bug;
        options
    }

    fn desired(&self, stage: Stage) -> Vec<Resource> {
        let Stage::Up { workers, memory_gibibytes } = stage else { return Vec::new() };
        let blueprint = json!({
            "apiVersion": "kprov.dev/v1", "kind": "Blueprint", "metadata": {"name": "shop"},
            "spec": {
                "provider": "local",
                "machines": [
                    {"name": "control", "role": "control-plane", "count": 1},
                    {"name": "worker", "role": "worker", "count": workers, "size": {"memory": format!("{memory_gibibytes}Gi")}},
                ],
                "loadBalancers": [{"name": "web", "listeners": [{"port": 80, "service": "shop/web"}]}],
                "filesystems": [{"name": "media", "size": "5Gi"}],
            },
        });
        let blueprint = serde_json::from_value(blueprint).expect("a blueprint");
        let context = Context { cluster: self.cluster.clone(), ssh_public_key: "ssh-ed25519 AAAA".into(), service_load_balancers: vec![] };
        let provider = self.cloud.provider(&self.cluster);
        let resources = provider.resources(&blueprint, &context).now_or_never().expect("the fake never waits");
        let mut desired = resources.expect("a good blueprint");
        let hosts = resources::hosts(&desired, |_, machine| json!({"role": machine.role}));
        desired.extend(hosts);
        desired
    }
}
