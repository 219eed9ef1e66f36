//! Probing: running containers get their probes, and what those report is remembered.

use super::Worker;
use crate::orchestrator::kubelet::handlers;
use crate::orchestrator::kubelet::observed::*;
use crate::orchestrator::kubelet::probes::{self, Kind, Report};
use k8s_openapi::api::core::v1::{Container as ContainerSpec, ContainerStatus, PodStatus};
use std::collections::BTreeSet;

impl Worker {
    /// Running containers get their probes; the ones that an earlier run of the agent left ready stay ready until a probe says no.
    pub(super) fn adopt(&mut self, seen: &Observed) {
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
        self.adopted.retain(|id| ids.contains(id));
        forget_gone(&mut self.memory, seen);
        for container in seen.running() {
            if self.memory.hooks.contains(&container.id) || !self.adopted.insert(container.id.clone()) {
                continue;
            }
            let Some(spec) = find_container(&self.pod, &container.name).cloned() else { continue };
            let known = told(&before, &container.id).filter(|_| first);
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

    pub(super) fn target(&self, container_id: &str, seen: &Observed) -> handlers::Target {
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

    pub(super) fn hear(&mut self, report: Report) {
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
            (Kind::Startup, Some(true)) => self.started_up(&container),
        }
    }

    fn started_up(&mut self, container: &Container) {
        self.memory.started.insert(container.id.clone());
        let Some(spec) = find_container(&self.pod, &container.name).cloned() else { return };
        if spec.readiness_probe.is_none() {
            self.memory.ready.insert(container.id.clone());
        }
        let ips = self.ips.get(&container.sandbox).cloned().unwrap_or_default();
        let sandbox = Sandbox { id: container.sandbox.clone(), ready: true, ips, ..Default::default() };
        let seen = Observed { sandboxes: vec![sandbox], containers: Vec::new() };
        self.probe(container, &spec, Kind::Liveness, &seen);
        self.probe(container, &spec, Kind::Readiness, &seen);
    }
}

/// Forgets what was known of containers that run no more and of sandboxes that are gone.
fn forget_gone(memory: &mut Memory, seen: &Observed) {
    let runs: BTreeSet<&String> = seen.running().map(|container| &container.id).collect();
    memory.started.retain(|id| runs.contains(id));
    memory.ready.retain(|id| runs.contains(id));
    memory.hooks.retain(|id| runs.contains(id));
    memory.stopping.retain(|id, _| runs.contains(id));
    memory.unhealthy.retain(|id, _| runs.contains(id));
    memory.stopped.retain(|id| seen.sandboxes.iter().any(|sandbox| sandbox.id == *id));
}

/// What the API was last told of a container.
fn told<'a>(status: &'a PodStatus, id: &str) -> Option<&'a ContainerStatus> {
    let id = format!("containerd://{id}");
    let mut all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    all.rfind(|status| status.container_id.as_ref() == Some(&id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_still_runs_is_remembered() {
        let container = |id: &str, state| Container { id: id.into(), state, ..Default::default() };
        let sandbox = Sandbox { id: "s2".into(), ..Default::default() };
        let seen = Observed { sandboxes: vec![sandbox], containers: vec![container("b", State::Running), container("a", State::Exited)] };
        let ids = |list: &[&str]| list.iter().map(|id| (*id).to_owned()).collect::<BTreeSet<String>>();
        let mut memory = Memory { started: ids(&["a", "b"]), ready: ids(&["a"]), stopped: ids(&["s1", "s2"]), ..Default::default() };
        memory.unhealthy = [("a".to_owned(), Unhealthy::Liveness), ("b".to_owned(), Unhealthy::Startup)].into();
        forget_gone(&mut memory, &seen);
        assert_eq!((memory.started, memory.ready, memory.stopped), (ids(&["b"]), ids(&[]), ids(&["s2"])));
        assert_eq!(memory.unhealthy, [("b".to_owned(), Unhealthy::Startup)].into());
    }
}
