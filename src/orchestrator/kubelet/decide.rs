//! One pod's next steps: a pure function of the pod, what the runtime shows, what the worker remembers, and the time.

use super::observed::*;
use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod};
use std::collections::BTreeMap;

/// The first pause of a container that ends again and again; doubles up to the longest (upstream's figures).
const FIRST_PAUSE: Nanos = 10 * SECOND;
const LONGEST_PAUSE: Nanos = 300 * SECOND;
/// A container that ran this long starts afresh: its next restart is immediate.
const STABLE: Nanos = 600 * SECOND;
/// The grace of a pod that does not name one.
const DEFAULT_GRACE_SECONDS: i64 = 30;

#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// Makes and fills the volumes; runs beside the worker.
    PrepareVolumes,
    CreateSandbox {
        attempt: u32,
    },
    /// Ends everything in the sandbox and frees its address.
    StopSandbox {
        id: String,
    },
    RemoveSandbox {
        id: String,
    },
    /// Looks for the image and pulls it by policy; runs beside the worker.
    EnsureImage {
        container: String,
    },
    Start {
        container: String,
        attempt: u32,
        sandbox: String,
    },
    /// preStop hook, stop signal, kill; runs beside the worker. `message` is the event's text.
    Stop {
        id: String,
        name: String,
        until: Nanos,
        message: String,
    },
    RemoveContainer {
        id: String,
    },
    /// Volumes, sandboxes, cgroups and the checkpoint of an ending pod.
    CleanUp,
    /// Nothing of the pod is left here: the API may forget it.
    Finish,
}

/// Why a container waits, as `kubectl` shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Waiting {
    pub reason: String,
    pub message: String,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    pub ops: Vec<Op>,
    /// When to look again even if nothing happens.
    pub wake_at: Option<Nanos>,
    /// By container name.
    pub waiting: BTreeMap<String, Waiting>,
    /// Back-off pauses to remember for the next exit, by container name.
    pub backoff: BTreeMap<String, Nanos>,
}

impl Plan {
    fn wake(&mut self, at: Nanos) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }
    fn wait(&mut self, name: &str, reason: &str, message: impl Into<String>) {
        self.waiting.insert(name.to_owned(), Waiting { reason: reason.to_owned(), message: message.into() });
    }
}

/// See the module text.
pub fn sync(pod: &Pod, seen: &Observed, memory: &Memory, now: Nanos) -> Plan {
    let mut plan = Plan::default();
    if let Some(ending) = &memory.ending {
        end(pod, seen, memory, ending, &mut plan);
    } else if memory.rejected.is_some() || is_finished(pod, seen) {
        stop_all(pod, seen, memory, now + grace(pod) * SECOND, "Stopping container {}", &mut plan);
        if seen.running().next().is_none() {
            stop_sandboxes(seen.sandboxes.iter(), memory, &mut plan);
        }
    } else {
        run(pod, seen, memory, now, &mut plan);
        prune(pod, seen, memory, &mut plan);
    }
    plan
}

pub fn grace(pod: &Pod) -> i64 {
    pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(DEFAULT_GRACE_SECONDS)
}

fn end(pod: &Pod, seen: &Observed, memory: &Memory, ending: &Ending, plan: &mut Plan) {
    let until = ending.since + ending.grace_seconds.max(0) * SECOND;
    stop_all(pod, seen, memory, until, "Stopping container {}", plan);
    if seen.running().next().is_some() {
        return;
    }
    if seen.sandboxes.iter().any(|sandbox| !memory.stopped.contains(&sandbox.id)) {
        return stop_sandboxes(seen.sandboxes.iter(), memory, plan);
    }
    plan.ops.push(if memory.cleaned { Op::Finish } else { Op::CleanUp });
}

fn stop_sandboxes<'a>(sandboxes: impl Iterator<Item = &'a Sandbox>, memory: &Memory, plan: &mut Plan) {
    let left = sandboxes.filter(|sandbox| !memory.stopped.contains(&sandbox.id));
    plan.ops.extend(left.map(|sandbox| Op::StopSandbox { id: sandbox.id.clone() }));
}

/// Main containers first; sidecars serve them to their end.
fn stop_all(pod: &Pod, seen: &Observed, memory: &Memory, until: Nanos, message: &str, plan: &mut Plan) {
    let sidecar = |container: &&Container| init_containers(pod).iter().any(|spec| spec.name == container.name && is_sidecar(spec));
    let (sidecars, main): (Vec<_>, Vec<_>) = seen.running().partition(sidecar);
    for container in if main.is_empty() { sidecars } else { main } {
        stop(container, memory, until, &message.replace("{}", &container.name), plan);
    }
}

/// A stop that is under way is only hurried, never prolonged; a second of slack keeps equal deadlines equal.
fn stop(container: &Container, memory: &Memory, until: Nanos, message: &str, plan: &mut Plan) {
    if memory.stopping.get(&container.id).is_none_or(|before| until + SECOND < *before) {
        plan.ops.push(Op::Stop { id: container.id.clone(), name: container.name.clone(), until, message: message.to_owned() });
    }
}

/// Nothing will run again: every main container ended and the policy leaves it so, or an init container failed for good.
pub fn is_finished(pod: &Pod, seen: &Observed) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") {
        return true;
    }
    let policy = restart_policy(pod);
    if policy == "Always" {
        return false;
    }
    let ended_for_good = |container: &Container| container.state == State::Exited && (policy == "Never" || container.exit_code == 0);
    let failed_init = |spec: &&ContainerSpec| {
        let newest = seen.newest(&spec.name);
        !is_sidecar(spec) && newest.is_some_and(|container| container.state == State::Exited && container.exit_code != 0)
    };
    if policy == "Never" && init_containers(pod).iter().any(|spec| failed_init(&spec)) {
        return true;
    }
    containers(pod).iter().all(|spec| seen.newest(&spec.name).is_some_and(ended_for_good))
}

fn run(pod: &Pod, seen: &Observed, memory: &Memory, now: Nanos, plan: &mut Plan) {
    let first = if init_containers(pod).is_empty() { "ContainerCreating" } else { "PodInitializing" };
    for spec in init_containers(pod).iter().chain(containers(pod)) {
        plan.wait(&spec.name, first, "");
    }
    match &memory.volumes {
        Step::Undone => plan.ops.push(Op::PrepareVolumes),
        Step::Failed(failure) if failure.retry_at <= now => plan.ops.push(Op::PrepareVolumes),
        Step::Failed(failure) => plan.wake(failure.retry_at),
        Step::Busy | Step::Done => {}
    }
    let Some(sandbox) = seen.sandbox(pod) else {
        return renew_sandbox(pod, seen, memory, now, plan);
    };
    let initialized = containers(pod).iter().any(|spec| seen.newest_in(&sandbox.id, &spec.name).is_some());
    let mut scene = Scene { pod, seen, memory, now, sandbox, plan };
    for spec in init_containers(pod) {
        if !scene.init(spec, initialized) && !initialized {
            return;
        }
    }
    for spec in containers(pod) {
        scene.main(spec);
    }
}

/// The sandbox died (or never was): what still runs in its ruins is stopped, then a new one is made.
fn renew_sandbox(pod: &Pod, seen: &Observed, memory: &Memory, now: Nanos, plan: &mut Plan) {
    let until = now + grace(pod) * SECOND;
    for container in seen.running() {
        stop(container, memory, until, "Pod sandbox changed, it will be killed and re-created.", plan);
    }
    if seen.running().next().is_some() {
        return;
    }
    stop_sandboxes(seen.sandboxes.iter(), memory, plan);
    if let Some(failure) = memory.sandbox_failure.as_ref().filter(|failure| failure.retry_at > now) {
        return plan.wake(failure.retry_at);
    }
    plan.ops.push(Op::CreateSandbox { attempt: seen.sandboxes.first().map_or(0, |sandbox| sandbox.attempt + 1) });
}

struct Scene<'a> {
    pod: &'a Pod,
    seen: &'a Observed,
    memory: &'a Memory,
    now: Nanos,
    sandbox: &'a Sandbox,
    plan: &'a mut Plan,
}

impl Scene<'_> {
    /// True when what comes after this init container may start.
    fn init(&mut self, spec: &ContainerSpec, initialized: bool) -> bool {
        let current = self.seen.newest_in(&self.sandbox.id, &spec.name);
        match (current, is_sidecar(spec)) {
            (None, false) if initialized => true,
            (None, _) => {
                self.start(spec, None);
                false
            }
            (Some(container), true) => {
                self.keep_running(spec, container, "Always");
                container.state == State::Running && self.memory.started.contains(&container.id)
            }
            (Some(container), false) => match container.state {
                State::Exited if container.exit_code == 0 || initialized => true,
                State::Exited => {
                    self.restart(spec, container);
                    false
                }
                _ => {
                    self.keep_running(spec, container, "Never");
                    false
                }
            },
        }
    }

    fn main(&mut self, spec: &ContainerSpec) {
        let policy = restart_policy(self.pod).to_owned();
        match self.seen.newest_in(&self.sandbox.id, &spec.name) {
            Some(container) => self.keep_running(spec, container, &policy),
            None => {
                let before = self.seen.newest(&spec.name);
                // It ended for good in an earlier sandbox: a new one does not bring it back.
                let over = before.is_some_and(|container| policy == "Never" || (policy == "OnFailure" && container.exit_code == 0));
                if over { drop(self.plan.waiting.remove(&spec.name)) } else { self.start(spec, None) }
            }
        }
    }

    fn keep_running(&mut self, spec: &ContainerSpec, container: &Container, policy: &str) {
        match container.state {
            State::Running => {
                self.plan.waiting.remove(&spec.name);
                self.judge(spec, container);
            }
            // Created but never started: its start failed or the agent died in between.
            State::Created => self.plan.ops.push(Op::RemoveContainer { id: container.id.clone() }),
            State::Exited if policy == "Always" || (policy == "OnFailure" && container.exit_code != 0) => self.restart(spec, container),
            State::Exited => drop(self.plan.waiting.remove(&spec.name)),
        }
    }

    fn judge(&mut self, spec: &ContainerSpec, container: &Container) {
        let name = &spec.name;
        let why = match self.memory.unhealthy.get(&container.id) {
            Some(Unhealthy::Liveness) => format!("Container {name} failed liveness probe, will be restarted"),
            Some(Unhealthy::Startup) => format!("Container {name} failed startup probe, will be restarted"),
            Some(Unhealthy::PostStart) => "FailedPostStartHook".to_owned(),
            None if container.hash != hash(spec) => format!("Container {name} definition changed, will be restarted"),
            None => return,
        };
        let probe = match self.memory.unhealthy.get(&container.id) {
            Some(Unhealthy::Liveness) => spec.liveness_probe.as_ref(),
            Some(Unhealthy::Startup) => spec.startup_probe.as_ref(),
            _ => None,
        };
        let grace = probe.and_then(|probe| probe.termination_grace_period_seconds).unwrap_or(grace(self.pod));
        stop(container, self.memory, self.now + grace * SECOND, &why, self.plan);
    }

    /// The first restart is immediate, later ones wait ever longer after the exit.
    fn restart(&mut self, spec: &ContainerSpec, container: &Container) {
        let pause = pause_after(container, self.memory.backoff.get(&spec.name).copied());
        let at = container.ended + pause;
        if at > self.now {
            let meta = &self.pod.metadata;
            let (pod, namespace) = (meta.name.as_deref().unwrap_or_default(), meta.namespace.as_deref().unwrap_or_default());
            let uid = meta.uid.as_deref().unwrap_or_default();
            let seconds = k8s_openapi::jiff::SignedDuration::from_nanos(pause).as_secs();
            let message =
                format!("back-off {} restarting failed container={} pod={pod}_{namespace}({uid})", in_minutes(seconds), spec.name);
            self.plan.wait(&spec.name, "CrashLoopBackOff", message);
            return self.plan.wake(at);
        }
        self.start(spec, Some((pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE)));
    }

    /// Starts when volumes and image are there; `next_pause` is what the next exit will wait.
    fn start(&mut self, spec: &ContainerSpec, next_pause: Option<Nanos>) {
        let name = &spec.name;
        if let Some(failure) = self.memory.failures.get(name).filter(|failure| failure.retry_at > self.now) {
            self.plan.wait(name, failure.reason, &failure.message);
            return self.plan.wake(failure.retry_at);
        }
        let mut may_start = self.memory.volumes == Step::Done;
        match self.memory.images.get(name).unwrap_or(&Step::Undone) {
            Step::Done => {}
            Step::Busy => may_start = false,
            Step::Failed(failure) if failure.retry_at > self.now => {
                self.plan.wait(name, failure.reason, &failure.message);
                self.plan.wake(failure.retry_at);
                may_start = false;
            }
            Step::Undone | Step::Failed(_) => {
                self.plan.ops.push(Op::EnsureImage { container: name.clone() });
                may_start = false;
            }
        }
        if let Some(Failure { reason, message, .. }) = self.memory.failures.get(name) {
            self.plan.wait(name, reason, message);
        }
        if !may_start {
            return;
        }
        let attempt = next_attempt(self.pod, self.seen, name);
        self.plan.ops.push(Op::Start { container: name.clone(), attempt, sandbox: self.sandbox.id.clone() });
        if let Some(pause) = next_pause {
            self.plan.backoff.insert(name.clone(), pause);
        }
    }
}

fn in_minutes(seconds: i64) -> String {
    match (seconds / 60, seconds % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}

/// What the worker remembers, or, after an agent restart, what the number of attempts tells.
fn pause_after(container: &Container, remembered: Option<Nanos>) -> Nanos {
    if container.started > 0 && container.finished - container.started >= STABLE {
        return 0;
    }
    remembered.unwrap_or_else(|| match container.attempt {
        0 => 0,
        attempt => FIRST_PAUSE.saturating_mul(1 << (attempt - 1).min(10)).min(LONGEST_PAUSE),
    })
}

/// Counts on from what runs here, or from what the API remembers when the runtime forgot.
fn next_attempt(pod: &Pod, seen: &Observed, name: &str) -> u32 {
    if let Some(newest) = seen.newest(name) {
        return newest.attempt + 1;
    }
    let status = pod.status.as_ref();
    let lists =
        [status.and_then(|status| status.container_statuses.as_ref()), status.and_then(|status| status.init_container_statuses.as_ref())];
    let known = lists.into_iter().flatten().flatten().find(|status| status.name == name);
    known.filter(|status| status.container_id.is_some()).map_or(0, |status| status.restart_count as u32 + 1)
}

/// Of each container the newest and one dead predecessor stay (its log is `kubectl logs --previous`); sandboxes stay while theirs do.
fn prune(pod: &Pod, seen: &Observed, memory: &Memory, plan: &mut Plan) {
    let mut kept: BTreeMap<&str, usize> = BTreeMap::new();
    let mut in_use: Vec<&str> = seen.sandbox(pod).map(|sandbox| sandbox.id.as_str()).into_iter().collect();
    for container in &seen.containers {
        let count = kept.entry(&container.name).or_default();
        *count += 1;
        if *count > 2 && container.state == State::Exited {
            plan.ops.push(Op::RemoveContainer { id: container.id.clone() });
        } else {
            in_use.push(&container.sandbox);
        }
    }
    for sandbox in seen.sandboxes.iter().skip(1) {
        if !in_use.contains(&sandbox.id.as_str()) && memory.stopped.contains(&sandbox.id) {
            plan.ops.push(Op::RemoveSandbox { id: sandbox.id.clone() });
        }
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
