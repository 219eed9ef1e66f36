//! One pod's worker: looks, decides, acts, tells; then sleeps until something happens. Long steps run beside it and report back.

mod acting;
mod hearing;
mod looking;
mod probing;
mod starting;
mod stopping;
mod telling;
mod volumes;

use super::Context;
use super::cri::messages::Image;
use super::decide::{self, Op};
use super::observed::*;
use super::probes::Report;
use super::publish::Publisher;
use super::sandbox::{name, uid};
use super::volumes::Prepared;
use k8s_openapi::api::core::v1::Pod;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::AbortHandle;

/// What can happen to a worker.
#[derive(Debug)]
pub enum Signal {
    Pod(Arc<Pod>),
    /// The API does not know the pod any more.
    Removed,
    Wake,
    /// The main process of this container or sandbox ended.
    Exited(String),
    /// The kernel killed a process in this container: its state is to be read anew.
    OutOfMemory(String),
    /// Config maps, secrets or claims of the pod changed.
    Objects,
    Volumes(Result<Prepared, String>),
    Image(String, Result<Image, Failure>),
    /// A stop that was asked for came to its end; when it failed, it is asked for again.
    Stopped {
        id: String,
        failed: bool,
    },
    Hook {
        id: String,
        container: String,
        failure: Option<String>,
    },
}

/// Retries of steps that failed: 1 s, doubling to 2 min (upstream waits 0.5 s to 2 min for volumes).
const FIRST_PAUSE: Nanos = SECOND;
const LONGEST_PAUSE: Nanos = 120 * SECOND;

/// What the API and the runtime write, and people read: somebody may set it.
pub fn wall() -> Nanos {
    crate::orchestrator::client::time::now().as_nanosecond() as Nanos
}

/// For pauses, back-offs and grace periods: the wall's time when this process began, and counted on by a clock that nobody sets.
pub fn now() -> Nanos {
    static BEGIN: LazyLock<(Instant, Nanos)> = LazyLock::new(|| (Instant::now(), wall()));
    let (begin, at) = *BEGIN;
    at + begin.elapsed().as_nanos() as Nanos
}

pub struct Worker {
    context: Arc<Context>,
    pod: Arc<Pod>,
    removed: bool,
    memory: Memory,
    prepared: Prepared,
    volumes_pause: Option<Nanos>,
    images: BTreeMap<String, Image>,
    mailbox: UnboundedReceiver<Signal>,
    own: UnboundedSender<Signal>,
    reports: UnboundedReceiver<Report>,
    report: UnboundedSender<Report>,
    publisher: Option<Publisher>,
    /// Tasks beside the worker: probes by container id and kind, stops by container id.
    tasks: HashMap<String, AbortHandle>,
    ips: HashMap<String, Vec<String>>,
    /// What was seen of containers in their present state, by id.
    known: HashMap<String, Container>,
    exited: BTreeSet<String>,
    /// Containers that the kernel killed for their memory limit: the runtime's own books say so later, and perhaps after we have read them.
    starved: BTreeSet<String>,
    /// Containers that had probes started or were taken over from an earlier run.
    adopted: BTreeSet<String>,
    refresh: bool,
    /// Waiting reasons that were told as events, by container.
    told: BTreeMap<String, String>,
    first_look: bool,
}

/// Starts a worker; it ends when nothing is left of the pod.
pub fn spawn(context: Arc<Context>, pod: Arc<Pod>, tasks: &mut tokio::task::JoinSet<String>) -> UnboundedSender<Signal> {
    let (own, mailbox) = mpsc::unbounded_channel();
    let (report, reports) = mpsc::unbounded_channel();
    let publisher = Some(Publisher::start(context.client.clone(), &pod));
    let worker = Worker {
        context,
        pod,
        removed: false,
        memory: Memory::default(),
        prepared: Prepared::default(),
        volumes_pause: None,
        images: BTreeMap::new(),
        mailbox,
        own: own.clone(),
        reports,
        report,
        publisher,
        tasks: HashMap::new(),
        ips: HashMap::new(),
        known: HashMap::new(),
        exited: BTreeSet::new(),
        starved: BTreeSet::new(),
        adopted: BTreeSet::new(),
        refresh: false,
        told: BTreeMap::new(),
        first_look: true,
    };
    tasks.spawn(async move {
        let uid = uid(&worker.pod).to_owned();
        worker.run().await;
        uid
    });
    own
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.tasks.values().for_each(AbortHandle::abort);
    }
}

impl Worker {
    async fn run(mut self) {
        let mut pause = Duration::from_millis(100);
        self.checkpoint();
        loop {
            self.notice_ending();
            let seen = match self.observe().await {
                Ok(seen) => seen,
                Err(refusal) => {
                    tracing::warn!(pod = name(&self.pod), %refusal, "could not look at a pod's containers");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(5));
                    continue;
                }
            };
            pause = Duration::from_millis(100);
            self.adopt(&seen);
            self.check_deadline();
            let plan = decide::sync(&self.pod, &seen, &self.memory, now());
            self.publish(&seen, &plan);
            self.tell_back_off(&plan);
            let mut acted = false;
            for op in plan.ops.clone() {
                if op == Op::Finish {
                    return self.finish().await;
                }
                acted |= self.execute(op, &seen, &plan).await;
            }
            self.refresh_volumes(&seen);
            if !acted {
                self.sleep(plan.wake_at).await;
            }
            self.drain();
        }
    }

    async fn sleep(&mut self, planned: Option<Nanos>) {
        let wall = wall();
        let deadline = hearing::deadline(&self.pod, wall).filter(|_| self.memory.rejected.is_none());
        let renewal = self.prepared.renew_at.map(|at| at.as_nanosecond() as Nanos);
        let by_wall = [deadline, renewal].into_iter().flatten().map(|at| at - wall);
        let left = planned.map(|at| at - now()).into_iter().chain(by_wall).min();
        let pause = left.map(|left| Duration::from_nanos(left.clamp(SECOND / 100, 600 * SECOND) as u64));
        tokio::select! {
            Some(signal) = self.mailbox.recv() => self.handle(signal),
            Some(report) = self.reports.recv() => self.hear(report),
            _ = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
        }
    }

    fn drain(&mut self) {
        while let Ok(signal) = self.mailbox.try_recv() {
            self.handle(signal);
        }
        while let Ok(report) = self.reports.try_recv() {
            self.hear(report);
        }
    }
}

/// A failure that doubles the pause of the one before.
fn failure(reason: &'static str, message: String, before: Option<Nanos>, now: Nanos) -> Failure {
    let pause = before.map_or(FIRST_PAUSE, |before| (before * 2).min(LONGEST_PAUSE));
    Failure { reason, message, retry_at: now + pause, pause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_two_minutes() {
        let pause = |before| failure("FailedMount", String::new(), before, 0).pause / SECOND;
        assert_eq!([None, Some(SECOND), Some(64 * SECOND), Some(120 * SECOND)].map(pause), [1, 2, 120, 120]);
        assert_eq!(failure("FailedMount", String::new(), Some(SECOND), 5).retry_at, 5 + 2 * SECOND);
    }
}
