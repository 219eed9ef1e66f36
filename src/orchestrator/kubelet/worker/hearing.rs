//! Hearing: what happened to the pod and its steps, kept in the worker's memory for the next decision.

use super::{Signal, Worker, now, wall};
use crate::orchestrator::kubelet::decide;
use crate::orchestrator::kubelet::observed::*;
use crate::orchestrator::kubelet::sandbox::name;
use k8s_openapi::api::core::v1::Pod;
use std::io;
use std::sync::Arc;

impl Worker {
    pub(super) fn handle(&mut self, signal: Signal) {
        match signal {
            Signal::Pod(pod) => self.pod_changed(pod),
            Signal::Removed => self.removed = true,
            Signal::Wake => {}
            Signal::Exited(id) => drop(self.exited.insert(id)),
            Signal::OutOfMemory(id) => {
                self.known.remove(&id);
                self.starved.insert(id);
            }
            Signal::Objects => self.objects_changed(),
            Signal::Volumes(outcome) => self.volumes_prepared(outcome),
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

    fn pod_changed(&mut self, pod: Arc<Pod>) {
        let (old, new) = (&self.pod.metadata, &pod.metadata);
        self.refresh |= old.labels != new.labels || old.annotations != new.annotations;
        let changed = old.generation != new.generation || old.deletion_timestamp != new.deletion_timestamp || self.refresh;
        self.pod = pod;
        if changed {
            self.checkpoint();
        }
    }

    fn objects_changed(&mut self) {
        self.refresh = true;
        // What was missing may be there now.
        if let Step::Failed(failure) = &mut self.memory.volumes {
            failure.retry_at = 0;
        }
        self.memory.failures.retain(|_, failure| failure.reason != "CreateContainerConfigError");
    }

    pub(super) fn notice_ending(&mut self) {
        self.memory.ending = ending(&self.pod, self.removed, self.memory.ending.take(), now());
    }

    /// A pod that was active for longer than it may.
    pub(super) fn check_deadline(&mut self) {
        let wall = wall();
        if deadline(&self.pod, wall).is_some_and(|deadline| wall >= deadline) && self.memory.rejected.is_none() {
            let message = "Pod was active on the node longer than the specified deadline".to_owned();
            self.warning("DeadlineExceeded", &message);
            self.memory.rejected = Some(("DeadlineExceeded".into(), message));
        }
    }

    /// The pod's specification on disk: enough to keep the pod when the agent restarts while the API is away.
    pub(super) fn checkpoint(&self) {
        let folder = self.pod_folder();
        let write = || -> io::Result<()> {
            std::fs::create_dir_all(&folder)?;
            crate::sys::files::write_atomic(&folder.join("pod.json"), &serde_json::to_vec(&*self.pod)?, 0o600)
        };
        if let Err(error) = write() {
            tracing::warn!(pod = name(&self.pod), %error, "could not write a pod's checkpoint");
        }
    }
}

/// The ending of a pod that is deleted, or unknown to the API: it began once, and its grace may be cut short but never grows.
fn ending(pod: &Pod, removed: bool, begun: Option<Ending>, now: Nanos) -> Option<Ending> {
    if pod.metadata.deletion_timestamp.is_none() && !removed {
        return begun;
    }
    let wanted = pod.metadata.deletion_grace_period_seconds.unwrap_or_else(|| decide::grace(pod));
    let begun = begun.unwrap_or(Ending { since: now, grace_seconds: wanted });
    Some(Ending { grace_seconds: begun.grace_seconds.min(wanted), ..begun })
}

/// Until when the pod may be active (the API lets no deadline be shorter than a second); one without a start may from now on.
pub(super) fn deadline(pod: &Pod, now: Nanos) -> Option<Nanos> {
    let seconds = pod.spec.as_ref()?.active_deadline_seconds?;
    let start = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    Some((start.map_or(now / SECOND, |start| start.0.as_second()) + seconds) * SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: Nanos = 1_000 * SECOND;

    fn pod(object: Value) -> Pod {
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn an_ending_begins_once_and_its_grace_only_shrinks() {
        let alive = pod(json!({"spec": {"containers": [], "terminationGracePeriodSeconds": 7}}));
        assert_eq!(ending(&alive, false, None, NOW), None);
        assert_eq!(ending(&alive, true, None, NOW), Some(Ending { since: NOW, grace_seconds: 7 }));
        let deleted =
            |grace: i64| pod(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": grace}}));
        let begun = ending(&deleted(30), false, None, NOW);
        assert_eq!(begun, Some(Ending { since: NOW, grace_seconds: 30 }));
        let hurried = ending(&deleted(1), false, begun, NOW + SECOND);
        assert_eq!(hurried, Some(Ending { since: NOW, grace_seconds: 1 }));
        assert_eq!(ending(&deleted(60), false, hurried.clone(), NOW + SECOND), hurried);
    }

    #[test]
    fn a_deadline_counts_from_the_start() {
        let spec = json!({"containers": [], "activeDeadlineSeconds": 10});
        assert_eq!(deadline(&pod(json!({"spec": {"containers": []}})), NOW), None);
        assert_eq!(deadline(&pod(json!({"spec": spec})), NOW), Some(NOW + 10 * SECOND));
        assert_eq!(deadline(&pod(json!({"spec": spec, "status": {"startTime": "1970-01-01T00:10:00Z"}})), NOW), Some(610 * SECOND));
    }
}
