//! One pod's worker: looks, decides, acts, tells; then sleeps until something happens. Long steps run beside it and report back.

use super::cri::messages::{Image, Map, PodSandboxConfig, container_state};
use super::decide::{self, Op, Plan};
use super::environment::{self, Sources};
use super::fields::Facts;
use super::observed::*;
use super::probes::{self, Kind, Report};
use super::publish::Publisher;
use super::sandbox::{name, namespace, uid};
use super::volumes::Prepared;
use super::{Context, cgroups, container, handlers, images, resources, sandbox, status, termination, volumes};
use crate::orchestrator::client::events::Subject;
use k8s_openapi::api::core::v1::{Container as ContainerSpec, LifecycleHandler, Pod, PodStatus};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
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
/// How long the runtime may lag behind its own exit event.
const LAG: Duration = Duration::from_secs(2);

/// A process whose preStop hook used up the grace still gets this much after its stop signal (upstream's figure).
const AFTER_HOOK: Duration = Duration::from_secs(2);

pub fn now() -> Nanos {
    crate::orchestrator::client::time::now().as_nanosecond() as Nanos
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

    // --- looking ---

    async fn observe(&mut self) -> Result<Observed, super::cri::Refusal> {
        let mut lag = Duration::from_millis(5);
        let begun = tokio::time::Instant::now();
        loop {
            let labels: Map = [(LABEL_POD_UID.to_owned(), uid(&self.pod).to_owned())].into();
            let runtime = &self.context.runtime;
            let (sandboxes, containers) =
                futures::future::try_join(runtime.list_sandboxes(labels.clone()), runtime.list_containers(labels)).await?;
            let alive = |id: &String| {
                containers.iter().any(|container| container.id == *id && container.state == container_state::RUNNING)
                    || sandboxes.iter().any(|sandbox| sandbox.id == *id && sandbox.state == super::cri::messages::SANDBOX_READY)
            };
            // The exit event overtakes the runtime's own books by a few milliseconds.
            if self.exited.iter().any(alive) && begun.elapsed() < LAG {
                tokio::time::sleep(lag).await;
                lag *= 2;
                continue;
            }
            self.exited.clear();
            return self.read(sandboxes, containers).await;
        }
    }

    async fn read(
        &mut self,
        sandboxes: Vec<super::cri::messages::PodSandbox>,
        containers: Vec<super::cri::messages::Container>,
    ) -> Result<Observed, super::cri::Refusal> {
        let mut seen = Observed::default();
        for sandbox in sandboxes {
            let ready = sandbox.state == super::cri::messages::SANDBOX_READY;
            if ready && !self.ips.contains_key(&sandbox.id) {
                let network = self.context.runtime.sandbox_status(&sandbox.id).await?.network.unwrap_or_default();
                let ips = [network.ip].into_iter().chain(network.additional_ips.into_iter().map(|ip| ip.ip));
                self.ips.insert(sandbox.id.clone(), ips.filter(|ip| !ip.is_empty()).collect());
            }
            seen.sandboxes.push(Sandbox {
                attempt: sandbox.metadata.map_or(0, |metadata| metadata.attempt),
                ready,
                created: sandbox.created_at,
                ips: self.ips.get(&sandbox.id).filter(|_| ready).cloned().unwrap_or_default(),
                id: sandbox.id,
            });
        }
        for listed in containers {
            let state = match listed.state {
                container_state::CREATED => State::Created,
                container_state::RUNNING => State::Running,
                _ => State::Exited,
            };
            let container = match self.known.get(&listed.id).filter(|known| known.state == state) {
                Some(known) => known.clone(),
                None => self.read_container(listed, state).await?,
            };
            seen.containers.push(container);
        }
        seen.sandboxes.sort_by_key(|sandbox| std::cmp::Reverse((sandbox.attempt, sandbox.created)));
        seen.containers.sort_by_key(|container| std::cmp::Reverse((container.attempt, container.created)));
        self.known = seen.containers.iter().map(|container| (container.id.clone(), container.clone())).collect();
        let mut owners = self.context.owners.lock();
        for id in seen.sandboxes.iter().map(|sandbox| &sandbox.id).chain(self.known.keys()) {
            owners.insert(id.clone(), uid(&self.pod).to_owned());
        }
        Ok(seen)
    }

    async fn read_container(&self, listed: super::cri::messages::Container, state: State) -> Result<Container, super::cri::Refusal> {
        let status = match self.context.runtime.container_status(&listed.id).await {
            Ok(status) => status,
            // Removed between the list and this question.
            Err(refusal) if refusal.is_not_found() => Default::default(),
            Err(refusal) => return Err(refusal),
        };
        let metadata = listed.metadata.unwrap_or_default();
        let name = metadata.name;
        let mut message = status.message;
        if state == State::Exited && message.is_empty() {
            let policy = listed.annotations.get(ANNOTATION_TERMINATION_POLICY).map(String::as_str);
            let from_log = policy == Some("FallbackToLogsOnError") && status.exit_code != 0;
            let log = self.context.logs.join(sandbox::log_folder(&self.pod)).join(container::log_path(&name, metadata.attempt));
            message = termination::read(&self.pod_folder(), &name, metadata.attempt, &log, from_log);
        }
        let unknown = listed.state != container_state::EXITED && state == State::Exited;
        Ok(Container {
            attempt: metadata.attempt,
            sandbox: listed.pod_sandbox_id,
            state,
            created: listed.created_at,
            started: status.started_at,
            finished: if status.finished_at > 0 { status.finished_at } else { listed.created_at },
            exit_code: if unknown { 137 } else { status.exit_code },
            reason: if unknown { "ContainerStatusUnknown".to_owned() } else { status.reason },
            message,
            image: status.image.map(|image| image.image).unwrap_or_default(),
            image_ref: if status.image_ref.is_empty() { listed.image_ref } else { status.image_ref },
            hash: listed.annotations.get(ANNOTATION_HASH).cloned().unwrap_or_default(),
            id: listed.id,
            name,
        })
    }

    fn pod_folder(&self) -> std::path::PathBuf {
        self.context.volumes.pod_folder(uid(&self.pod))
    }

    fn facts(&self, seen: &Observed) -> Facts {
        let host_ip = self.context.config.address.to_string();
        let own = seen.sandbox(&self.pod).map(|sandbox| sandbox.ips.clone()).unwrap_or_default();
        let pod_ips = if host_network(&self.pod) { vec![host_ip.clone()] } else { own };
        let size = self.context.size.allocatable();
        let node = resources::Amounts {
            cpu_limit_millis: Some(size.cpu_millis),
            memory_limit_bytes: Some(size.memory_bytes),
            ..Default::default()
        };
        Facts { host_ip, pod_ips, node }
    }

    // --- remembering ---

    fn notice_ending(&mut self) {
        let meta = &self.pod.metadata;
        let wanted = match (&meta.deletion_timestamp, self.removed) {
            (None, false) => return,
            (Some(_), false) => meta.deletion_grace_period_seconds.unwrap_or_else(|| decide::grace(&self.pod)),
            (_, true) => meta.deletion_grace_period_seconds.unwrap_or_else(|| decide::grace(&self.pod)),
        };
        let ending = self.memory.ending.get_or_insert(Ending { since: now(), grace_seconds: wanted });
        ending.grace_seconds = ending.grace_seconds.min(wanted);
    }

    /// A pod that was active for longer than it may.
    fn check_deadline(&mut self) {
        let deadline = self.pod.spec.as_ref().and_then(|spec| spec.active_deadline_seconds);
        let start = self.pod.status.as_ref().and_then(|status| status.start_time.as_ref());
        let (Some(deadline), Some(start)) = (deadline, start) else { return };
        if now() >= (start.0.as_second() + deadline) * SECOND && self.memory.rejected.is_none() {
            let message = "Pod was active on the node longer than the specified deadline".to_owned();
            self.warning("DeadlineExceeded", &message);
            self.memory.rejected = Some(("DeadlineExceeded".into(), message));
        }
    }

    /// Running containers get their probes; the ones that an earlier run of the agent left ready stay ready until a probe says no.
    fn adopt(&mut self, seen: &Observed) {
        let first = std::mem::take(&mut self.first_look);
        let before = self.pod.status.clone().unwrap_or_default();
        let ids: BTreeSet<&String> = seen.running().map(|container| &container.id).collect();
        self.tasks.retain(|key, task| {
            let alive = key.split(' ').next().is_some_and(|id| ids.contains(&id.to_owned()) || id == "volumes");
            if !alive {
                task.abort();
            }
            alive
        });
        let keep = |set: &mut BTreeSet<String>| set.retain(|id| ids.contains(id));
        keep(&mut self.memory.started);
        keep(&mut self.memory.ready);
        keep(&mut self.memory.hooks);
        keep(&mut self.adopted);
        self.memory.stopping.retain(|id, _| ids.contains(id));
        self.memory.unhealthy.retain(|id, _| ids.contains(id));
        self.memory.stopped.retain(|id| seen.sandboxes.iter().any(|sandbox| sandbox.id == *id));
        for container in seen.running() {
            if self.memory.hooks.contains(&container.id) || !self.adopted.insert(container.id.clone()) {
                continue;
            }
            let Some(spec) = find_container(&self.pod, &container.name).cloned() else { continue };
            let known = before.container_statuses.iter().chain(&before.init_container_statuses).flatten();
            let mut known = known.filter(|status| status.container_id.as_deref() == Some(&format!("containerd://{}", container.id)));
            let known = known.next_back().filter(|_| first);
            if spec.startup_probe.is_none() || known.is_some_and(|status| status.started == Some(true)) {
                self.memory.started.insert(container.id.clone());
                if spec.readiness_probe.is_none() || known.is_some_and(|status| status.ready) {
                    self.memory.ready.insert(container.id.clone());
                }
                self.probe(container, &spec, Kind::Liveness, seen);
                self.probe(container, &spec, Kind::Readiness, seen);
            } else {
                self.probe(container, &spec, Kind::Startup, seen);
            }
        }
    }

    fn target(&self, container_id: &str, seen: &Observed) -> handlers::Target {
        handlers::Target { container_id: container_id.to_owned(), pod_ip: self.facts(seen).pod_ips.first().cloned().unwrap_or_default() }
    }

    fn probe(&mut self, container: &Container, spec: &ContainerSpec, kind: Kind, seen: &Observed) {
        if probes::of(spec, kind).is_none() || (self.memory.ending.is_some() && kind != Kind::Readiness) {
            return;
        }
        let target = self.target(&container.id, seen);
        let task = probes::run(self.context.runtime.clone(), self.pod.clone(), spec.clone(), target, kind, self.report.clone());
        let key = format!("{} {}", container.id, kind.name());
        if let Some(before) = self.tasks.insert(key, tokio::spawn(task).abort_handle()) {
            before.abort();
        }
    }

    fn hear(&mut self, report: Report) {
        let Some(container) = self.known.get(&report.container_id).cloned() else { return };
        if let Some(complaint) = report.complaint {
            self.container_event(&container.name, true, "Unhealthy", &complaint);
        }
        let id = report.container_id;
        match (report.kind, report.verdict) {
            (_, None) => {}
            (Kind::Readiness, Some(true)) => drop(self.memory.ready.insert(id)),
            (Kind::Readiness, Some(false)) => drop(self.memory.ready.remove(&id)),
            (Kind::Liveness, Some(false)) => drop(self.memory.unhealthy.insert(id, Unhealthy::Liveness)),
            (Kind::Liveness, Some(true)) => {}
            (Kind::Startup, Some(false)) => drop(self.memory.unhealthy.insert(id, Unhealthy::Startup)),
            (Kind::Startup, Some(true)) => {
                self.memory.started.insert(id.clone());
                let Some(spec) = find_container(&self.pod, &container.name).cloned() else { return };
                if spec.readiness_probe.is_none() {
                    self.memory.ready.insert(id);
                }
                let ips = self.ips.get(&container.sandbox).cloned().unwrap_or_default();
                let sandbox = Sandbox { id: container.sandbox.clone(), ready: true, ips, ..Default::default() };
                let seen = Observed { sandboxes: vec![sandbox], containers: Vec::new() };
                self.probe(&container, &spec, Kind::Liveness, &seen);
                self.probe(&container, &spec, Kind::Readiness, &seen);
            }
        }
    }

    /// The pod's specification on disk: enough to keep the pod when the agent restarts while the API is away.
    fn checkpoint(&self) {
        let folder = self.pod_folder();
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(&folder)?;
            crate::sys::files::write_atomic(&folder.join("pod.json"), &serde_json::to_vec(&*self.pod)?, 0o600)
        };
        if let Err(error) = write() {
            tracing::warn!(pod = name(&self.pod), %error, "could not write a pod's checkpoint");
        }
    }

    // --- sleeping and hearing ---

    async fn sleep(&mut self, wake_at: Option<Nanos>) {
        let mut wake_at = wake_at;
        if let Some(deadline) =
            self.pod.spec.as_ref().and_then(|spec| spec.active_deadline_seconds).filter(|_| self.memory.rejected.is_none())
        {
            let start =
                self.pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map_or(now() / SECOND, |start| start.0.as_second());
            let at = (start + deadline) * SECOND;
            wake_at = Some(wake_at.map_or(at, |other| other.min(at)));
        }
        if let Some(renew) = self.prepared.renew_at {
            let renew = renew.as_nanosecond() as Nanos;
            wake_at = Some(wake_at.map_or(renew, |other| other.min(renew)));
        }
        // The cap makes a clock that was set back harmless.
        let pause = wake_at.map(|at| Duration::from_nanos((at - now()).clamp(SECOND / 100, 600 * SECOND) as u64));
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

    fn handle(&mut self, signal: Signal) {
        match signal {
            Signal::Pod(pod) => {
                let (old, new) = (&self.pod.metadata, &pod.metadata);
                self.refresh |= old.labels != new.labels || old.annotations != new.annotations;
                let changed = old.generation != new.generation || old.deletion_timestamp != new.deletion_timestamp || self.refresh;
                self.pod = pod;
                if changed {
                    self.checkpoint();
                }
            }
            Signal::Removed => self.removed = true,
            Signal::Wake => {}
            Signal::Exited(id) => drop(self.exited.insert(id)),
            Signal::OutOfMemory(id) => drop(self.known.remove(&id)),
            Signal::Objects => {
                self.refresh = true;
                // What was missing may be there now.
                if let Step::Failed(failure) = &mut self.memory.volumes {
                    failure.retry_at = 0;
                }
                self.memory.failures.retain(|_, failure| failure.reason != "CreateContainerConfigError");
            }
            Signal::Volumes(Ok(prepared)) => {
                self.prepared = prepared;
                self.memory.volumes = Step::Done;
            }
            Signal::Volumes(Err(message)) => {
                self.warning("FailedMount", &message);
                // Volumes that are in use stay as they are; only a pod that waits for them waits on.
                if self.memory.volumes == Step::Done || !self.prepared.folders.is_empty() {
                    self.memory.volumes = Step::Done;
                    self.prepared.renew_at = self.prepared.renew_at.map(|_| later(30));
                } else {
                    let failure = failure("FailedMount", message, self.volumes_pause);
                    self.volumes_pause = Some(failure.pause);
                    self.memory.volumes = Step::Failed(failure);
                }
            }
            Signal::Image(container, Ok(image)) => {
                self.images.insert(container.clone(), image);
                self.memory.images.insert(container, Step::Done);
            }
            Signal::Image(container, Err(failure)) => drop(self.memory.images.insert(container, Step::Failed(failure))),
            Signal::Stopped { id, failed: true } => drop(self.memory.stopping.remove(&id)),
            Signal::Stopped { id, failed: false } => drop(self.exited.insert(id)),
            Signal::Hook { id, container, failure } => {
                self.memory.hooks.remove(&id);
                if let Some(message) = failure {
                    self.container_event(&container, true, "FailedPostStartHook", &message);
                    self.memory.unhealthy.insert(id, Unhealthy::PostStart);
                }
            }
        }
    }

    // --- telling ---

    fn publish(&mut self, seen: &Observed, plan: &Plan) {
        let Some(publisher) = &self.publisher else { return };
        // Our own last words are newer than what the informer shows; conditions of others are newest there.
        let mut before = self.pod.status.clone().unwrap_or_default();
        let told: Option<PodStatus> = publisher.last().and_then(|status| serde_json::from_value(status).ok());
        if let Some(told) = told {
            let foreign = before.conditions.take().unwrap_or_default();
            let mut conditions = told.conditions.unwrap_or_default();
            conditions.retain(|condition| status::is_own(&condition.type_));
            conditions.extend(foreign.into_iter().filter(|condition| !status::is_own(&condition.type_)));
            before.conditions = Some(conditions);
            before.start_time = told.start_time.or(before.start_time);
        }
        let address = self.context.config.address.to_string();
        publisher.status(status::compute(&self.pod, &before, seen, &self.memory, plan, &status::Node { address: &address }, now()));
    }

    fn tell_back_off(&mut self, plan: &Plan) {
        for (container, waiting) in &plan.waiting {
            if waiting.reason == "CrashLoopBackOff"
                && self.told.insert(container.clone(), waiting.message.clone()).as_ref() != Some(&waiting.message)
            {
                let pod = format!("{}_{}({})", name(&self.pod), namespace(&self.pod), uid(&self.pod));
                self.container_event(container, true, "BackOff", &format!("Back-off restarting failed container {container} in pod {pod}"));
            }
        }
    }

    fn warning(&self, reason: &str, message: &str) {
        self.context.recorder.warning(Subject::of(&*self.pod), reason, message);
    }

    fn container_event(&self, container: &str, warning: bool, reason: &str, message: &str) {
        let list = if init_containers(&self.pod).iter().any(|spec| spec.name == container) { "initContainers" } else { "containers" };
        let subject = Subject::of(&*self.pod).field(format!("spec.{list}{{{container}}}"));
        if warning {
            self.context.recorder.warning(subject, reason, message);
        } else {
            self.context.recorder.normal(subject, reason, message);
        }
    }

    // --- acting ---

    /// True when the runtime looks different now.
    async fn execute(&mut self, op: Op, seen: &Observed, plan: &Plan) -> bool {
        let runtime = self.context.runtime.clone();
        let result = match op {
            Op::PrepareVolumes => {
                self.prepare_volumes(seen);
                return false;
            }
            Op::EnsureImage { container } => {
                self.ensure_image(container);
                return false;
            }
            Op::Stop { id, name, until, message } => {
                self.stop(id, name, until, message, seen);
                return false;
            }
            Op::CreateSandbox { attempt } => {
                self.create_sandbox(attempt).await;
                // A failure leaves a retry time behind, so this cannot spin.
                return true;
            }
            Op::Start { container, attempt, sandbox } => {
                self.start(&container, attempt, &sandbox, seen, plan).await;
                return true;
            }
            Op::StopSandbox { id } => {
                let stopped = runtime.stop_sandbox(&id).await;
                if stopped.is_ok() {
                    self.ips.remove(&id);
                    self.memory.stopped.insert(id);
                }
                stopped
            }
            Op::RemoveSandbox { id } => runtime.remove_sandbox(&id).await,
            Op::RemoveContainer { id } => runtime.remove_container(&id).await,
            Op::CleanUp => {
                self.clean_up(seen).await;
                return true;
            }
            Op::Finish => return false,
        };
        if let Err(refusal) = result {
            tracing::warn!(pod = name(&self.pod), %refusal, "could not tidy up after a pod's containers; trying again");
            // One failed step must not become a busy loop.
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        true
    }

    fn prepare_volumes(&mut self, seen: &Observed) {
        self.memory.volumes = Step::Busy;
        let (volumes, pod, facts, own) = (self.context.volumes.clone(), self.pod.clone(), self.facts(seen), self.own.clone());
        let task = tokio::spawn(async move { drop(own.send(Signal::Volumes(volumes.prepare(&pod, &facts).await))) });
        self.tasks.insert("volumes".into(), task.abort_handle());
    }

    /// Files of running pods follow their sources; tokens are renewed in time.
    fn refresh_volumes(&mut self, seen: &Observed) {
        let due = self.prepared.renew_at.is_some_and(|at| at.as_nanosecond() as Nanos <= now());
        if self.memory.volumes != Step::Done || !(self.refresh || due) || self.memory.ending.is_some() {
            return;
        }
        self.refresh = false;
        if volumes::has_live_files(&self.pod) {
            // Not busy in the decision's eyes: containers start with what is there.
            let (volumes, pod, facts, own) = (self.context.volumes.clone(), self.pod.clone(), self.facts(seen), self.own.clone());
            self.prepared.renew_at = self.prepared.renew_at.map(|_| later(60));
            tokio::spawn(async move { drop(own.send(Signal::Volumes(volumes.prepare(&pod, &facts).await))) });
        }
    }

    fn ensure_image(&mut self, container: String) {
        let Some(spec) = find_container(&self.pod, &container).cloned() else { return };
        let before = match self.memory.images.get(&container) {
            Some(Step::Failed(failure)) => Some(failure.clone()),
            _ => None,
        };
        let image = spec.image.clone().unwrap_or_default();
        if let Some((failure, talk)) = images::back_off(before.as_ref(), &image, now()) {
            self.talk(&container, talk);
            self.memory.images.insert(container, Step::Failed(failure));
            self.own.send(Signal::Wake).ok();
            return;
        }
        self.memory.images.insert(container.clone(), Step::Busy);
        let (context, own, pod) = (self.context.clone(), self.own.clone(), self.pod.clone());
        tokio::spawn(async move {
            let mut secrets = Vec::new();
            for reference in pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten()) {
                let found = context.volumes.objects.secret(uid(&pod), namespace(&pod), &reference.name).await;
                secrets.extend(found.ok().flatten());
            }
            let auth = images::credentials(&secrets, &image);
            let (result, talk) = images::ensure(&context.runtime, &spec, auth, before.map(|failure| failure.pause), now()).await;
            let subject = Subject::of(&*pod).field(format!("spec.containers{{{container}}}"));
            for (reason, message, warning) in talk {
                match warning {
                    true => context.recorder.warning(subject.clone(), reason, message),
                    false => context.recorder.normal(subject.clone(), reason, message),
                }
            }
            own.send(Signal::Image(container, result)).ok();
        });
    }

    fn talk(&self, container: &str, talk: images::Talk) {
        for (reason, message, warning) in talk {
            self.container_event(container, warning, reason, &message);
        }
    }

    fn sandbox_config(&self, attempt: u32) -> PodSandboxConfig {
        let parent = cgroups::parent(self.context.driver, resources::quality_of_service(&self.pod), uid(&self.pod));
        let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        sandbox::config(&self.pod, &self.context.config, attempt, &parent, &host, &self.context.logs)
    }

    async fn create_sandbox(&mut self, attempt: u32) {
        let config = self.sandbox_config(attempt);
        let parent = config.linux.as_ref().map(|linux| linux.cgroup_parent.clone()).unwrap_or_default();
        if self.context.driver == cgroups::Driver::Files
            && let Err(error) = cgroups::make(&parent, resources::pod_amounts(&self.pod))
        {
            tracing::debug!(%error, parent, "could not make a pod's cgroup");
        }
        if let Err(error) = std::fs::create_dir_all(&config.log_directory) {
            tracing::warn!(%error, folder = config.log_directory, "could not make a pod's log folder");
        }
        match self.context.runtime.run_sandbox(config, "").await {
            Ok(id) => {
                self.memory.sandbox_failure = None;
                self.context.owners.lock().insert(id, uid(&self.pod).to_owned());
            }
            Err(refusal) => {
                self.warning("FailedCreatePodSandBox", &format!("Failed to create pod sandbox: {refusal}"));
                let before = self.memory.sandbox_failure.as_ref().map(|failure| failure.pause);
                self.memory.sandbox_failure = Some(failure("ContainerCreating", refusal.message, before));
            }
        }
    }

    async fn start(&mut self, container: &str, attempt: u32, sandbox: &str, seen: &Observed, plan: &Plan) {
        let Some(spec) = find_container(&self.pod, container).cloned() else { return };
        match self.create_and_start(&spec, attempt, sandbox, seen).await {
            Ok(id) => {
                self.memory.failures.remove(container);
                self.told.remove(container);
                if let Some(pause) = plan.backoff.get(container) {
                    self.memory.backoff.insert(container.to_owned(), *pause);
                }
                if let Some(hook) = spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.clone()) {
                    self.post_start(id, spec.clone(), hook, seen);
                }
            }
            Err((reason, message)) => {
                self.container_event(container, true, "Failed", &format!("Error: {message}"));
                let before = self.memory.failures.get(container).map(|failure| failure.pause);
                self.memory.failures.insert(container.to_owned(), failure(reason, message, before));
            }
        }
        // The next start looks at the pull policy again.
        self.memory.images.remove(container);
    }

    async fn create_and_start(
        &mut self,
        spec: &ContainerSpec,
        attempt: u32,
        sandbox: &str,
        seen: &Observed,
    ) -> Result<String, (&'static str, String)> {
        let misconfigured = |message: String| ("CreateContainerConfigError", message);
        let facts = self.facts(seen);
        let sources = self.sources(spec).await.map_err(misconfigured)?;
        let variables = environment::build(&self.pod, spec, &facts, &sources).map_err(misconfigured)?;
        let mounts = self.mounts(spec, attempt, &facts, &variables).map_err(misconfigured)?;
        let image = self.images.get(&spec.name).cloned().unwrap_or_default();
        let inputs = container::Inputs { attempt, variables, mounts, image: &image, memory_capacity_bytes: self.context.size.memory_bytes };
        let config = container::config(&self.pod, spec, inputs).map_err(misconfigured)?;
        let sandbox_attempt = seen.sandbox(&self.pod).map_or(0, |sandbox| sandbox.attempt);
        let created = self.context.runtime.create_container(sandbox, config, self.sandbox_config(sandbox_attempt)).await;
        let id = created.map_err(|refusal| ("CreateContainerError", refusal.message))?;
        self.context.owners.lock().insert(id.clone(), uid(&self.pod).to_owned());
        self.container_event(&spec.name, false, "Created", &format!("Created container: {}", spec.name));
        match self.context.runtime.start_container(&id).await {
            Ok(()) => {
                self.container_event(&spec.name, false, "Started", &format!("Started container {}", spec.name));
                Ok(id)
            }
            // The container has ended with the reason StartError; restart policy and back-off apply as to any end.
            Err(refusal) => {
                self.container_event(&spec.name, true, "Failed", &format!("Error: {}", refusal.message));
                self.exited.insert(id.clone());
                Ok(id)
            }
        }
    }

    async fn sources(&self, spec: &ContainerSpec) -> Result<Sources, String> {
        let (config_maps, secrets) = environment::references(spec);
        let objects = &self.context.volumes.objects;
        let mut sources = Sources::default();
        for name in config_maps {
            let map = objects.config_map(uid(&self.pod), namespace(&self.pod), &name).await.map_err(|error| error.to_string())?;
            sources.config_maps.insert(name, map);
        }
        for name in secrets {
            let secret = objects.secret(uid(&self.pod), namespace(&self.pod), &name).await.map_err(|error| error.to_string())?;
            sources.secrets.insert(name, secret);
        }
        let services = &self.context.services;
        // Only right after the agent's start; a node that is cut off goes on with what it has.
        let _ = tokio::time::timeout(Duration::from_secs(5), services.synced()).await;
        sources.services = services.list_in(namespace(&self.pod));
        sources.services.extend(services.get("default", "kubernetes").filter(|_| namespace(&self.pod) != "default"));
        Ok(sources)
    }

    fn mounts(
        &self,
        spec: &ContainerSpec,
        attempt: u32,
        facts: &Facts,
        variables: &[super::cri::messages::KeyValue],
    ) -> Result<Vec<super::cri::messages::Mount>, String> {
        let look = |name: &str| variables.iter().find(|variable| variable.key == name).map(|variable| variable.value.clone());
        let mut mounts = self.context.volumes.mounts(&self.pod, spec, &self.prepared, look)?;
        let folder = self.pod_folder();
        if mounts.iter().all(|mount| mount.container_path != "/etc/hosts") {
            let host_file = if host_network(&self.pod) { std::fs::read_to_string("/etc/hosts").unwrap_or_default() } else { String::new() };
            let text = sandbox::hosts(&self.pod, &facts.pod_ips, &self.context.config.cluster_domain, &host_file);
            let file = folder.join("etc-hosts");
            let written = std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&file, text));
            written.map_err(|error| format!("failed to write the hosts file: {error}"))?;
            let host_path = file.to_string_lossy().into_owned();
            mounts.push(super::cri::messages::Mount { container_path: "/etc/hosts".into(), host_path, ..Default::default() });
        }
        let last_words =
            termination::prepare(&folder, spec, attempt).map_err(|error| format!("failed to make the termination log: {error}"))?;
        mounts.push(last_words);
        Ok(mounts)
    }

    fn post_start(&mut self, id: String, spec: ContainerSpec, hook: LifecycleHandler, seen: &Observed) {
        self.memory.hooks.insert(id.clone());
        let (context, pod, target, own) = (self.context.clone(), self.pod.clone(), self.target(&id, seen), self.own.clone());
        tokio::spawn(async move {
            let failure = run_hook(&context, &pod, &spec, &target, &hook, Duration::from_secs(3600)).await.err();
            own.send(Signal::Hook { id, container: spec.name, failure }).ok();
        });
    }

    /// preStop hook, then the stop signal with what is left of the grace, then the kill.
    fn stop(&mut self, id: String, container: String, until: Nanos, message: String, seen: &Observed) {
        let hurried = self.memory.stopping.insert(id.clone(), until).is_some();
        if !hurried {
            self.container_event(&container, false, "Killing", &message);
        }
        let hook = find_container(&self.pod, &container).and_then(|spec| spec.lifecycle.as_ref()?.pre_stop.clone()).filter(|_| !hurried);
        let spec = find_container(&self.pod, &container).cloned().unwrap_or_default();
        for kind in [Kind::Liveness, Kind::Startup] {
            if let Some(task) = self.tasks.remove(&format!("{id} {}", kind.name())) {
                task.abort();
            }
        }
        let (context, pod, target, own) = (self.context.clone(), self.pod.clone(), self.target(&id, seen), self.own.clone());
        let task = tokio::spawn({
            let id = id.clone();
            async move {
                let left = || Duration::from_nanos((until - now()).max(0) as u64);
                let mut least = Duration::ZERO;
                // A forced end (no grace at all) has no time for a hook.
                if let Some(hook) = hook.filter(|_| !left().is_zero()) {
                    if let Err(message) = run_hook(&context, &pod, &spec, &target, &hook, left()).await {
                        let subject = Subject::of(&*pod).field(format!("spec.containers{{{}}}", spec.name));
                        context.recorder.warning(subject, "FailedPreStopHook", message);
                    }
                    least = AFTER_HOOK;
                }
                let grace = left().max(least).as_secs_f64().ceil() as i64;
                let stopped = context.runtime.stop_container(&id, grace).await;
                let failed = stopped.is_err();
                if let Err(refusal) = stopped {
                    tracing::warn!(pod = name(&pod), container = spec.name, %refusal, "could not stop a container; trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                own.send(Signal::Stopped { id, failed }).ok();
            }
        });
        if let Some(before) = self.tasks.insert(format!("{id} stop"), task.abort_handle()) {
            before.abort();
        }
    }

    async fn clean_up(&mut self, seen: &Observed) {
        for sandbox in &seen.sandboxes {
            if let Err(refusal) = self.context.runtime.remove_sandbox(&sandbox.id).await {
                tracing::warn!(pod = name(&self.pod), %refusal, "could not remove a sandbox; trying again");
                return tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
        if let Err(error) = self.context.volumes.clean(uid(&self.pod)).await {
            self.warning("FailedUnMount", &format!("could not remove the pod's volumes: {error}"));
            return tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let parent = cgroups::parent(self.context.driver, resources::quality_of_service(&self.pod), uid(&self.pod));
        if self.context.driver == cgroups::Driver::Files {
            cgroups::remove(&parent).await;
        }
        let _ = std::fs::remove_dir_all(self.context.logs.join(sandbox::log_folder(&self.pod)));
        self.context.owners.lock().retain(|_, owner| owner != uid(&self.pod));
        self.memory.cleaned = true;
    }

    async fn finish(mut self) {
        let Some(publisher) = self.publisher.take().filter(|_| !self.removed) else { return };
        let told = publisher.finish();
        tokio::pin!(told);
        loop {
            tokio::select! {
                () = &mut told => return,
                // Somebody else made the API forget it meanwhile.
                signal = self.mailbox.recv() => if matches!(signal, Some(Signal::Removed) | None) { return },
            }
        }
    }
}

/// A failure that doubles the pause of the one before.
fn failure(reason: &'static str, message: String, before: Option<Nanos>) -> Failure {
    let pause = before.map_or(FIRST_PAUSE, |before| (before * 2).min(LONGEST_PAUSE));
    Failure { reason, message, retry_at: now() + pause, pause }
}

fn later(seconds: i64) -> k8s_openapi::jiff::Timestamp {
    let now = crate::orchestrator::client::time::now();
    k8s_openapi::jiff::Timestamp::from_second(now.as_second() + seconds).unwrap_or(now)
}

async fn run_hook(
    context: &Context,
    pod: &Pod,
    spec: &ContainerSpec,
    target: &handlers::Target,
    hook: &LifecycleHandler,
    timeout: Duration,
) -> Result<(), String> {
    let timeout = timeout.max(Duration::from_secs(1));
    if let Some(action) = &hook.exec {
        let command = action.command.as_deref().unwrap_or_default();
        return handlers::exec(&context.runtime, target, command, timeout).await.map(drop);
    }
    if let Some(action) = &hook.http_get {
        return handlers::http(pod, spec, target, action, timeout).await.map(drop);
    }
    if let Some(action) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(action.seconds.max(0) as u64).min(timeout)).await;
    }
    Ok(())
}
