//! The world in which the engine is tested: a strict cloud, faults at chosen calls, crashes, second writers, and a judge.
//!
//! A [`Case`] is played from its seed alone and answers with the first broken promise. What is played:
//! - `matrix`: every single fault of every provider and verb (the README's table), pairs of crashes, journals cut anywhere
//! - `schedules`: random mixtures; `KPROV_SIM_SEEDS` sets how many, `KPROV_SIM_SEED=<seed> cargo test --lib engine::sim::schedules::one_seed`
//!   plays one again, `KPROV_SIM_TRACE=1` shows what happens in it
//! - `races`: two writers at once
//! - `bugs`: guards that are taken away, and that the others must miss
//! - `figures`: how long and how many calls, with the times that providers publish

mod bugs;
mod case;
mod figures;
mod judge;
mod matrix;
mod races;
mod schedules;
mod tests;

use super::converge::{Bug, Options, converge, step};
use super::event::Event;
use super::handoff::{Wish, Writer, give, inside, take};
use super::journal::{Clock, FileJournal, Journal, MemoryJournal};
use super::{Cluster, Door, HOST, Id, Resource};
use crate::error::{Error, Kind};
use crate::providers::fake::{BLUEPRINT, Cloud, Fault, Manners};
use crate::providers::resources;
use crate::providers::{Context, Provider};
use futures::FutureExt;
use judge::{Broken, Promise};
use serde_json::json;
use std::cell::Cell;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::time::Instant;

/// Requests that were on their way have landed after this.
const LATEST: Duration = Duration::from_secs(900);
/// The loop's pauses between rounds, as in `cli::keeper`.
const REST: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_secs(2);
/// A loop that has not come to rest in so many rounds never will.
const LOOP_ROUNDS: u32 = 60;

/// What one run of a command wants, or what the loop inside is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Up {
        workers: u32,
        memory_gibibytes: u32,
    },
    /// `up` whose last steps are to write the Blueprint inside and to give the epoch away.
    HandOver {
        workers: u32,
    },
    /// The loop's: somebody changed the Blueprint object.
    Inside {
        workers: u32,
    },
    Down,
}

/// A cluster's life under the command line: made, larger, smaller, its workers replaced, gone.
const LIFE: [Stage; 5] = [
    Stage::Up { workers: 2, memory_gibibytes: 1 },
    Stage::Up { workers: 3, memory_gibibytes: 1 },
    Stage::Up { workers: 2, memory_gibibytes: 1 },
    Stage::Up { workers: 2, memory_gibibytes: 2 },
    Stage::Down,
];

/// One that is handed over, and larger by its own loop before it goes.
const HANDED_OVER: [Stage; 4] =
    [Stage::Up { workers: 1, memory_gibibytes: 1 }, Stage::HandOver { workers: 1 }, Stage::Inside { workers: 2 }, Stage::Down];

/// What becomes of the state folder when a run fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Folder {
    Kept,
    Lost,
    /// Its journal is cut off after so many bytes.
    Cut(usize),
}

/// Everything that a play depends on.
#[derive(Debug, Clone)]
struct Case {
    manners: Manners,
    seed: u64,
    life: &'static [Stage],
    /// Stage number, call of that stage, what happens there.
    faults: Vec<(usize, usize, Fault)>,
    folder: Folder,
    /// After the first run that fails, people give up: `down`.
    then_down: bool,
    /// After the last stage with a fault: `down`, without the stages between.
    short: bool,
    bug: Option<Bug>,
}

/// What a play has shown.
#[derive(Debug, Clone, Default, PartialEq)]
struct Figures {
    /// Calls per stage, of the stages that it reached.
    calls: Vec<usize>,
    /// Runs of all stages.
    runs: usize,
    /// Runs that the stage with the most of them took.
    most_runs: usize,
    fired: usize,
    /// Bytes of the journal when a run first failed.
    journal_bytes: usize,
}

/// Plays the case on a runtime of its own, whose clock jumps from event to event.
fn play(case: &Case) -> Result<Figures, Broken> {
    runtime().block_on(Play::new(case).all())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime")
}

/// Where the operator's journal is: in memory, but for plays that cut its file.
enum Book {
    Memory(MemoryJournal),
    File(tempfile::TempDir, FileJournal),
}

impl Book {
    fn journal(&self) -> &dyn Journal {
        match self {
            Book::Memory(journal) => journal,
            Book::File(_, journal) => journal,
        }
    }
}

struct Play<'a> {
    case: &'a Case,
    cloud: Cloud,
    cluster: Cluster,
    operator: Book,
    /// The loop's own journal is on the control plane.
    keeper: MemoryJournal,
    clock: Clock,
    figures: Figures,
    processes: Cell<u32>,
}

fn trace(epoch: u64, event: &Event) {
    static SHOWN: LazyLock<bool> = LazyLock::new(|| std::env::var_os("KPROV_SIM_TRACE").is_some());
    if *SHOWN {
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
        let cluster = Cluster { name: "shop".into(), uid: "u-1".into() };
        Play {
            case,
            cloud: Cloud::new(case.manners.clone(), case.seed),
            cluster,
            operator: book(case, &clock),
            keeper: MemoryJournal::new(clock.clone()),
            clock,
            figures: Figures::default(),
            processes: Cell::new(0),
        }
    }

    async fn all(mut self) -> Result<Figures, Broken> {
        let decoys = judge::place_decoys(&self.cloud, &self.desired(self.case.life[0]));
        let (mut number, last) = (0, self.case.life.len() - 1);
        while number <= last {
            for (_, call, fault) in self.case.faults.iter().filter(|(stage, ..)| *stage == number) {
                self.cloud.inject(*call, *fault);
            }
            let before = self.cloud.calls();
            let (reached, unfired) = self.reach(self.case.life[number], before).await?;
            let expected = self.case.faults.iter().filter(|(stage, ..)| *stage == number).count();
            self.figures.fired += expected.saturating_sub(unfired);
            judge::decoys_untouched(&self.cloud, &decoys)?;
            judge::no_violations(&self.cloud)?;
            let over = self.case.short && number < last && self.case.faults.iter().all(|(stage, ..)| *stage <= number);
            number = if (over || !reached) && number < last { last } else { number + 1 };
        }
        Ok(self.figures)
    }

    /// Runs the command until it succeeds, as a patient person would. Answers false when they give up and turn to `down`; and how many
    /// faults have not happened.
    async fn reach(&mut self, stage: Stage, calls_before: usize) -> Result<(bool, usize), Broken> {
        let desired = self.desired(stage);
        self.cloud.want(&self.cluster, &desired);
        let mut runs = 0;
        let mut last = String::new();
        loop {
            runs += 1;
            // Each fault costs at most one run, and one that is fenced or refused may be met once more.
            if runs > 2 + 2 * self.case.faults.len() {
                return Err(Promise::Converges.broken(format!("{stage:?} did not converge in {} runs: {last}", runs - 1)));
            }
            self.figures.runs += 1;
            match self.run(stage, &desired).await? {
                End::Converged => break,
                End::Failed(error) => last = format!("{} {:?}", error.chain(), error.hints()),
                End::Crashed => last = "crashed".into(),
            }
            self.lose_folder(stage);
            if self.case.then_down && stage != Stage::Down {
                return Ok((false, self.cloud.forget_faults()));
            }
        }
        self.figures.calls.push(self.cloud.calls() - calls_before);
        self.figures.most_runs = self.figures.most_runs.max(runs);
        let unfired = self.cloud.forget_faults();
        self.rest(stage, &desired).await?;
        Ok((true, unfired))
    }

    fn lose_folder(&mut self, stage: Stage) {
        if let Book::File(folder, _) = &self.operator {
            let path = folder.path().join("journal");
            let bytes = std::fs::read(&path).unwrap_or_default();
            if self.figures.journal_bytes == 0 {
                self.figures.journal_bytes = bytes.len();
            }
            if let Folder::Cut(length) = self.case.folder {
                std::fs::write(&path, &bytes[..length.min(bytes.len())]).expect("a shorter journal");
            }
            let journal = FileJournal::open(&path, self.clock.clone()).expect("a journal opens whatever is in it");
            let Book::File(_, kept) = &mut self.operator else { unreachable!("just matched") };
            *kept = journal;
        }
        if self.case.folder == Folder::Lost || self.case.bug == Some(Bug::JournalNotDurable) {
            match stage {
                Stage::Inside { .. } => self.keeper = MemoryJournal::new(self.clock.clone()),
                _ => self.operator = Book::Memory(MemoryJournal::new(self.clock.clone())),
            }
        }
    }

    /// What must be true once a command has said that it is done, at once and after everything in flight has landed.
    async fn rest(&mut self, stage: Stage, desired: &[Resource]) -> Result<(), Broken> {
        let late = self.case.faults.iter().any(|(_, _, fault)| {
            matches!(
                fault,
                Fault::LateSuccess(_) | Fault::CrashLate(_) | Fault::Paused(_) | Fault::Usurped | Fault::ForeignDelete | Fault::Breaks
            )
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
            self.again(stage, desired).await?;
            tokio::time::sleep(LATEST).await;
        }
        let before = self.cloud.effects();
        self.again(stage, desired).await?;
        judge::is_as_desired(&self.cloud, &self.cluster, desired)?;
        judge::no_calls_since(&self.cloud, before)
    }

    /// A cluster that was handed over is looked at by its loop, any other by the command.
    async fn again(&mut self, stage: Stage, desired: &[Resource]) -> Result<(), Broken> {
        let stage = match stage {
            Stage::HandOver { workers } => Stage::Inside { workers },
            other => other,
        };
        let desired: Vec<Resource> = desired.iter().filter(|wish| wish.id.kind != BLUEPRINT).cloned().collect();
        let mut last = String::new();
        for _ in 0..=self.case.faults.len() {
            match self.run(stage, &desired).await? {
                End::Converged => return Ok(()),
                End::Failed(error) => last = format!("{} {:?}", error.chain(), error.hints()),
                End::Crashed => last = "crashed".into(),
            }
        }
        Err(Promise::Converges.broken(format!("a quiet cluster did not stay so: {last}")))
    }

    /// One process; and when it is overtaken while it stands still, a second one on another computer, which does all of the work.
    async fn run(&self, stage: Stage, desired: &[Resource]) -> Result<End, Broken> {
        // What happened to an earlier process is no news to this one.
        let _ = (self.cloud.crash.notified().now_or_never(), self.cloud.usurped.notified().now_or_never());
        let first = self.process(stage, desired, self.journal(stage));
        tokio::pin!(first);
        let end = tokio::select! {
            biased;
            _ = self.cloud.crash.notified() => return Ok(End::Crashed),
            _ = self.cloud.usurped.notified() => {
                let journal = MemoryJournal::new(self.clock.clone());
                let second = self.process(stage, desired, &journal);
                let (first, second) = tokio::select! {
                    biased;
                    _ = self.cloud.crash.notified() => return Ok(End::Crashed),
                    both = async { tokio::join!(first, second) } => both,
                };
                // Only a receiver that keeps epochs refuses the very request that was on its way.
                if self.case.manners.refuses_late_writers() && first.is_ok() {
                    return Err(Promise::OneWriter.broken("a writer that was overtaken went on"));
                }
                second
            }
            end = &mut first => end,
        };
        Ok(end.map_or_else(End::Failed, |()| End::Converged))
    }

    fn journal(&self, stage: Stage) -> &dyn Journal {
        if matches!(stage, Stage::Inside { .. }) { &self.keeper } else { self.operator.journal() }
    }

    async fn process(&self, stage: Stage, desired: &[Resource], journal: &dyn Journal) -> Result<(), Error> {
        match stage {
            Stage::Inside { workers } => self.keep(workers, desired, journal).await,
            _ => self.command(stage, desired, journal).await,
        }
    }

    /// `up` or `down`: becomes the writer, converges, and gives the cluster to its loop when that is what it is for.
    async fn command(&self, stage: Stage, desired: &[Resource], journal: &dyn Journal) -> Result<(), Error> {
        self.processes.set(self.processes.get() + 1);
        let me = format!("cli:host:{}", self.processes.get());
        let provider = self.cloud.provider(&self.cluster);
        let wish = if stage == Stage::Down { Wish::Seize } else { Wish::Act };
        let Writer::Us(ours) = take(provider.epochs(), wish, &me).await? else { return Ok(()) };
        let options = self.options(ours.epoch, desired);
        let handed_over = matches!(stage, Stage::HandOver { .. });
        if handed_over && self.case.bug == Some(Bug::GivenBeforeWritten) {
            give(provider.epochs(), &ours).await?;
        }
        converge(&self.doors(stage), desired, journal, &options, &move |event| trace(ours.epoch, &event)).await?;
        if handed_over && self.case.bug != Some(Bug::GivenBeforeWritten) {
            give(provider.epochs(), &ours).await?;
        }
        Ok(())
    }

    /// The loop inside, until two looks with a rest between them found nothing to do. While somebody else is the writer, it is for
    /// people to hand the cluster over again.
    async fn keep(&self, workers: u32, desired: &[Resource], journal: &dyn Journal) -> Result<(), Error> {
        let provider = self.cloud.provider(&self.cluster);
        let stage = Stage::Inside { workers };
        let (mut quiet, mut looked) = (0, None);
        for _ in 0..LOOP_ROUNDS {
            let Some(epoch) = inside(provider.epochs()).await? else {
                let stage = Stage::HandOver { workers };
                return self.command(stage, &self.desired(stage), self.operator.journal()).await;
            };
            let mut options = self.options(epoch, desired);
            (options.keep_going, options.deadline, options.has_looked) = (true, None, looked == Some(epoch));
            let ended = step(&self.doors(stage), desired, journal, &options, &move |event| trace(epoch, &event)).await?;
            looked = Some(epoch);
            if let Some((_, error)) = ended.failed.into_iter().find(|(_, error)| error.kind == Kind::Conflict) {
                return Err(error);
            }
            quiet = if ended.plan.is_empty() { quiet + 1 } else { 0 };
            if quiet == 2 {
                return Ok(());
            }
            tokio::time::sleep(if quiet > 0 { REST } else { AGAIN }).await;
        }
        Err(Error::timeout("the loop did not come to rest"))
    }

    /// As in `cli`: `down` goes through the provider alone, and only `up` writes the Blueprint.
    fn doors(&self, stage: Stage) -> Vec<Arc<dyn Door>> {
        let mut doors: Vec<Arc<dyn Door>> = vec![Arc::new(self.cloud.provider(&self.cluster))];
        if stage != Stage::Down {
            doors.push(Arc::new(self.cloud.hosts(&self.cluster)));
        }
        if matches!(stage, Stage::HandOver { .. }) {
            doors.push(Arc::new(self.cloud.inside(&self.cluster)));
        }
        doors
    }

    fn options(&self, epoch: u64, desired: &[Resource]) -> Options {
        let mut options = Options::new(epoch);
        options.seed = self.case.seed;
        options.shuffle = true;
        options.concurrency = Some(1 + (self.case.seed % 8) as usize);
        options.keep_going = desired.is_empty();
        options.deadline = Some(Duration::from_secs(1800));
        options.bug = self.case.bug;
        options
    }

    fn desired(&self, stage: Stage) -> Vec<Resource> {
        let (workers, memory_gibibytes) = match stage {
            Stage::Up { workers, memory_gibibytes } => (workers, memory_gibibytes),
            Stage::HandOver { workers } | Stage::Inside { workers } => (workers, 1),
            Stage::Down => return Vec::new(),
        };
        let mut desired = expanded(&self.cloud, &self.cluster, 1, workers, memory_gibibytes);
        if matches!(stage, Stage::HandOver { .. }) {
            let (id, needs) = (Id::new(BLUEPRINT, &self.cluster.name), vec![Id::new(HOST, "control-1")]);
            desired.push(Resource { id, spec: json!({"workers": workers}), needs, replace_on: vec![], summary: String::new() });
        }
        desired
    }
}

fn book(case: &Case, clock: &Clock) -> Book {
    if !matches!(case.folder, Folder::Cut(_)) {
        return Book::Memory(MemoryJournal::new(clock.clone()));
    }
    // In memory where there is such a folder: each record is synced.
    let shared = std::path::Path::new("/dev/shm");
    let folder = if shared.is_dir() { tempfile::tempdir_in(shared) } else { tempfile::tempdir() }.expect("a folder");
    let journal = FileJournal::open(&folder.path().join("journal"), clock.clone()).expect("a journal");
    Book::File(folder, journal)
}

/// What the provider makes of a blueprint of so many machines, and a host for each.
fn expanded(cloud: &Cloud, cluster: &Cluster, controls: u32, workers: u32, memory_gibibytes: u32) -> Vec<Resource> {
    let blueprint = json!({
        "apiVersion": "kprov.dev/v1", "kind": "Blueprint", "metadata": {"name": "shop"},
        "spec": {
            "provider": "local",
            "access": {"from": ["192.0.2.0/24"]},
            "machines": [
                {"name": "control", "role": "control-plane", "count": controls},
                {"name": "worker", "role": "worker", "count": workers, "size": {"memory": format!("{memory_gibibytes}Gi")}},
            ],
            "loadBalancers": [{"name": "web", "listeners": [{"port": 80, "service": "shop/web"}]}],
            "filesystems": [{"name": "media", "size": "5Gi"}],
        },
    });
    let blueprint = serde_json::from_value(blueprint).expect("a blueprint");
    let context = Context { cluster: cluster.clone(), ssh_public_key: "ssh-ed25519 AAAA".into(), service_load_balancers: vec![] };
    let provider = cloud.provider(cluster);
    let resources = provider.resources(&blueprint, &context).now_or_never().expect("the fake never waits");
    let mut desired = resources.expect("a good blueprint");
    let hosts = resources::hosts(&desired, |_, machine| json!({"role": machine.role}));
    desired.extend(hosts);
    desired
}

/// Plays all on all cores; the first broken promise in order, and what all have shown.
fn play_all(cases: &[Case]) -> (Option<(Case, Broken)>, usize) {
    let results = on_all_cores(cases, |case| play(case).map(|figures| figures.fired));
    let fired = results.iter().map(|result| *result.as_ref().unwrap_or(&0)).sum();
    let broken = cases.iter().zip(results).find_map(|(case, result)| Some((case.clone(), result.err()?)));
    (broken, fired)
}

/// In the order of the items; each core takes the next one that nobody has.
fn on_all_cores<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let take = || next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut done: Vec<(usize, R)> = std::thread::scope(|scope| {
        let work = || {
            let mut mine = Vec::new();
            while let Some((place, item)) = Some(take()).and_then(|place| Some((place, items.get(place)?))) {
                mine.push((place, work(item)));
            }
            mine
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a case panicked")).collect()
    });
    done.sort_by_key(|(place, _)| *place);
    done.into_iter().map(|(_, result)| result).collect()
}

fn holds(cases: &[Case]) -> usize {
    let (broken, fired) = play_all(cases);
    if let Some((case, broken)) = broken {
        panic!("{broken}\n  in {case:?}");
    }
    fired
}
