//! Acting: the decision's steps, carried out at the runtime; the long ones are begun.

use super::{Worker, failure, now};
use crate::orchestrator::kubelet::cri::messages::PodSandboxConfig;
use crate::orchestrator::kubelet::decide::{Op, Plan};
use crate::orchestrator::kubelet::observed::Observed;
use crate::orchestrator::kubelet::sandbox::{self, name, uid};
use crate::orchestrator::kubelet::{cgroups, container, logs, resources, termination};
use std::time::Duration;

impl Worker {
    /// True when the runtime looks different now.
    pub(super) async fn execute(&mut self, op: Op, seen: &Observed, plan: &Plan) -> bool {
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
            Op::RemoveContainer { id } => {
                let removed = runtime.remove_container(&id).await;
                if removed.is_ok() {
                    self.remove_traces(&id, seen);
                }
                removed
            }
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

    /// What a removed container has left on the disk: its logs and its last words. Without the container nobody asks for them, and a pod
    /// that restarts for weeks would fill the disk.
    fn remove_traces(&self, id: &str, seen: &Observed) {
        let Some(gone) = seen.containers.iter().find(|container| container.id == id) else { return };
        let log = self.context.logs.join(sandbox::log_folder(&self.pod)).join(container::log_path(&gone.name, gone.attempt));
        if let Err(error) = logs::rotate::remove(&log) {
            tracing::warn!(%error, log = %log.display(), "could not remove an ended container's log");
        }
        if let Err(error) = termination::remove(&self.pod_folder(), &gone.name, gone.attempt) {
            tracing::warn!(%error, pod = name(&self.pod), container = gone.name, "could not remove an ended container's last words");
        }
    }

    pub(super) fn sandbox_config(&self, attempt: u32) -> PodSandboxConfig {
        let parent = cgroups::parent(self.context.driver, resources::quality_of_service(&self.pod), uid(&self.pod));
        let host = host_resolv();
        sandbox::config(&self.pod, &self.context.config, attempt, &parent, &host, &self.context.logs)
    }

    async fn create_sandbox(&mut self, attempt: u32) {
        let config = self.sandbox_config(attempt);
        let parent = config.linux.as_ref().map(|linux| linux.cgroup_parent.clone()).unwrap_or_default();
        if let Err(error) = cgroups::make(&parent, resources::pod_amounts(&self.pod)).await {
            tracing::warn!(error = %error.chain(), parent, "a pod has no limits of its own");
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
                self.memory.sandbox_failure = Some(failure("ContainerCreating", refusal.message, before, now()));
            }
        }
    }
}

fn host_resolv() -> String {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    sandbox::reachable_resolv(text("/etc/resolv.conf"), || text("/run/systemd/resolve/resolv.conf"))
}
