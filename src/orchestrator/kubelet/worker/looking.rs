//! Looking: what the runtime reports of the pod's sandboxes and containers, read into what decisions take.

use super::Worker;
use crate::orchestrator::kubelet::cri::Refusal;
use crate::orchestrator::kubelet::cri::messages::{self, ContainerStatus, Map, PodSandbox, SANDBOX_READY, container_state};
use crate::orchestrator::kubelet::fields::Facts;
use crate::orchestrator::kubelet::observed::*;
use crate::orchestrator::kubelet::sandbox::{self, uid};
use crate::orchestrator::kubelet::{container, resources, termination};
use std::path::PathBuf;
use std::time::Duration;

/// How long the runtime may lag behind its own exit event.
const LAG: Duration = Duration::from_secs(2);

impl Worker {
    pub(super) async fn observe(&mut self) -> Result<Observed, Refusal> {
        let mut lag = Duration::from_millis(5);
        let begun = tokio::time::Instant::now();
        loop {
            let labels: Map = [(LABEL_POD_UID.to_owned(), uid(&self.pod).to_owned())].into();
            let runtime = &self.context.runtime;
            let (sandboxes, containers) =
                futures::future::try_join(runtime.list_sandboxes(labels.clone()), runtime.list_containers(labels)).await?;
            let alive = |id: &String| {
                containers.iter().any(|container| container.id == *id && container.state == container_state::RUNNING)
                    || sandboxes.iter().any(|sandbox| sandbox.id == *id && sandbox.state == SANDBOX_READY)
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

    async fn read(&mut self, sandboxes: Vec<PodSandbox>, containers: Vec<messages::Container>) -> Result<Observed, Refusal> {
        let mut seen = Observed::default();
        for sandbox in sandboxes {
            let ready = sandbox.state == SANDBOX_READY;
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
            let container = match self.known.get(&listed.id).filter(|known| known.state == state(&listed)) {
                Some(known) => known.clone(),
                None => self.read_container(listed).await?,
            };
            seen.containers.push(container);
        }
        seen.sandboxes.sort_by_key(|sandbox| std::cmp::Reverse((sandbox.attempt, sandbox.created)));
        seen.containers.sort_by_key(|container| std::cmp::Reverse((container.attempt, container.created)));
        self.starved.retain(|id| seen.containers.iter().any(|container| container.id == *id));
        self.known = seen.containers.iter().map(|container| (container.id.clone(), container.clone())).collect();
        let mut owners = self.context.owners.lock();
        for id in seen.sandboxes.iter().map(|sandbox| &sandbox.id).chain(self.known.keys()) {
            owners.insert(id.clone(), uid(&self.pod).to_owned());
        }
        Ok(seen)
    }

    async fn read_container(&self, listed: messages::Container) -> Result<Container, Refusal> {
        let mut status = match self.context.runtime.container_status(&listed.id).await {
            Ok(status) => status,
            // Removed between the list and this question.
            Err(refusal) if refusal.is_not_found() => Default::default(),
            Err(refusal) => return Err(refusal),
        };
        if state(&listed) == State::Exited && status.message.is_empty() {
            status.message = self.last_words(&listed, status.exit_code);
        }
        let container = joined(listed, status, |id| self.starved.contains(id) || self.context.kernel_log.lock().has_killed(id));
        Ok(Container { ended: ended(container.finished, super::wall(), super::now()), ..container })
    }

    fn last_words(&self, listed: &messages::Container, exit_code: i32) -> String {
        let (name, attempt) = listed.metadata.as_ref().map_or(("", 0), |metadata| (&metadata.name, metadata.attempt));
        let policy = listed.annotations.get(ANNOTATION_TERMINATION_POLICY).map(String::as_str);
        let from_log = policy == Some("FallbackToLogsOnError") && exit_code != 0;
        let log = self.context.logs.join(sandbox::log_folder(&self.pod)).join(container::log_path(name, attempt));
        termination::read(&self.pod_folder(), name, attempt, &log, from_log)
    }

    pub(super) fn pod_folder(&self) -> PathBuf {
        self.context.volumes.pod_folder(uid(&self.pod))
    }

    pub(super) fn facts(&self, seen: &Observed) -> Facts {
        let host_ip = self.context.config.address.to_string();
        let own = seen.sandbox(&self.pod).map(|sandbox| sandbox.ips.clone()).unwrap_or_default();
        let pod_ips = if host_network(&self.pod) { vec![host_ip.clone()] } else { own };
        let size = self.context.size().allocatable();
        let node = resources::Amounts {
            cpu_limit_millis: Some(size.cpu_millis),
            memory_limit_bytes: Some(size.memory_bytes),
            ..Default::default()
        };
        Facts { host_ip, pod_ips, node }
    }
}

fn state(listed: &messages::Container) -> State {
    match listed.state {
        container_state::CREATED => State::Created,
        container_state::RUNNING => State::Running,
        _ => State::Exited,
    }
}

/// As long ago as it seems; an end that lies ahead was written before the clock was set back.
fn ended(finished: Nanos, wall: Nanos, now: Nanos) -> Nanos {
    now - (wall - finished).max(0)
}

/// What the runtime's list and its word on one container say together. A state that it does not know itself counts as killed. `starved`
/// is asked of one that failed: whether the kernel killed in it for memory.
fn joined(listed: messages::Container, status: ContainerStatus, starved: impl FnOnce(&str) -> bool) -> Container {
    let state = state(&listed);
    let unknown = listed.state != container_state::EXITED && state == State::Exited;
    let metadata = listed.metadata.unwrap_or_default();
    Container {
        attempt: metadata.attempt,
        sandbox: listed.pod_sandbox_id,
        state,
        created: listed.created_at,
        started: status.started_at,
        finished: if status.finished_at > 0 { status.finished_at } else { listed.created_at },
        exit_code: if unknown { 137 } else { status.exit_code },
        reason: match status.reason {
            _ if unknown => "ContainerStatusUnknown".to_owned(),
            _ if state == State::Exited && status.exit_code != 0 && starved(&listed.id) => "OOMKilled".to_owned(),
            reason => reason,
        },
        message: status.message,
        image: status.image.map(|image| image.image).unwrap_or_default(),
        image_ref: if status.image_ref.is_empty() { listed.image_ref } else { status.image_ref },
        hash: listed.annotations.get(ANNOTATION_HASH).cloned().unwrap_or_default(),
        id: listed.id,
        name: metadata.name,
        ended: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_the_kernel_killed_for_memory_says_so_before_the_runtime_does() {
        let reason = |listed_state: i32, exit_code: i32, starved: bool| {
            let listed = messages::Container { state: listed_state, ..Default::default() };
            let status = ContainerStatus { exit_code, reason: "Error".into(), ..Default::default() };
            joined(listed, status, |_| starved).reason
        };
        assert_eq!(reason(container_state::EXITED, 137, true), "OOMKilled");
        assert_eq!(reason(container_state::EXITED, 137, false), "Error");
        // A process of its was killed, and it went on.
        assert_eq!(reason(container_state::RUNNING, 0, true), "Error");
        assert_eq!(reason(container_state::EXITED, 0, true), "Error");
    }

    #[test]
    fn a_clock_that_is_set_neither_shortens_nor_prolongs_a_wait_by_more_than_itself() {
        let now = 1_000_000 * SECOND;
        assert_eq!(ended(now - 7 * SECOND, now, now), now - 7 * SECOND);
        assert_eq!(ended(now, now - 3600 * SECOND, now), now, "set back by an hour: the wait begins now, and is no longer than it was");
        let ahead = now + 3600 * SECOND;
        assert_eq!(ended(ahead - 7 * SECOND, ahead, now), now - 7 * SECOND, "set long before: only the difference counts");
    }

    #[test]
    fn a_container_whose_state_is_unknown_counts_as_killed() {
        let check = |state: i32, exit_code: i32, reason: &str| {
            let listed = messages::Container { state, created_at: 7, ..Default::default() };
            let read = joined(listed, ContainerStatus { exit_code: 3, reason: "Error".into(), ..Default::default() }, |_| false);
            assert_eq!((read.state, read.exit_code, read.reason.as_str(), read.finished), (State::Exited, exit_code, reason, 7));
        };
        check(container_state::EXITED, 3, "Error");
        check(9, 137, "ContainerStatusUnknown");
    }
}
