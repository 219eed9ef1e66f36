//! Stopping a container, and what is cleared away when nothing of the pod runs any more.

use super::telling::subject;
use super::{Signal, Worker, now};

use crate::orchestrator::kubelet::observed::*;
use crate::orchestrator::kubelet::probes::Kind;
use crate::orchestrator::kubelet::sandbox::{self, name, uid};
use crate::orchestrator::kubelet::{cgroups, handlers, resources};
use std::time::Duration;

/// A process whose preStop hook used up the grace still gets this much after its stop signal (upstream's figure).
const AFTER_HOOK: Duration = Duration::from_secs(2);

impl Worker {
    /// preStop hook, then the stop signal with what is left of the grace, then the kill.
    pub(super) fn stop(&mut self, id: String, container: String, until: Nanos, message: String, seen: &Observed) {
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
                    if let Err(message) = handlers::hook(&context.runtime, &pod, &spec, &target, &hook, left()).await {
                        context.recorder.warning(subject(&pod, &spec.name), "FailedPreStopHook", message);
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

    pub(super) async fn clean_up(&mut self, seen: &Observed) {
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
        cgroups::remove(&parent).await;
        let _ = std::fs::remove_dir_all(self.context.logs.join(sandbox::log_folder(&self.pod)));
        self.context.owners.lock().retain(|_, owner| owner != uid(&self.pod));
        self.memory.cleaned = true;
    }

    pub(super) async fn finish(mut self) {
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
