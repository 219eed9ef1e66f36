//! The pod's volumes: made ready beside the worker, kept fresh, mounted into its containers.

use super::{Signal, Worker, failure, now, wall};
use crate::orchestrator::client::time;
use crate::orchestrator::kubelet::cri::messages::{KeyValue, Mount};
use crate::orchestrator::kubelet::fields::Facts;
use crate::orchestrator::kubelet::observed::*;
use crate::orchestrator::kubelet::volumes::{self, Prepared};
use crate::orchestrator::kubelet::{sandbox, termination};
use k8s_openapi::api::core::v1::Container as ContainerSpec;
use k8s_openapi::jiff::Timestamp;
use std::fs;

impl Worker {
    pub(super) fn prepare_volumes(&mut self, seen: &Observed) {
        self.memory.volumes = Step::Busy;
        let (volumes, pod, facts, own) = (self.context.volumes.clone(), self.pod.clone(), self.facts(seen), self.own.clone());
        let task = tokio::spawn(async move { drop(own.send(Signal::Volumes(volumes.prepare(&pod, &facts).await))) });
        self.tasks.insert("volumes".into(), task.abort_handle());
    }

    pub(super) fn volumes_prepared(&mut self, outcome: Result<Prepared, String>) {
        match outcome {
            Ok(prepared) => {
                self.prepared = prepared;
                self.memory.volumes = Step::Done;
            }
            Err(message) => {
                self.warning("FailedMount", &message);
                // Volumes that are in use stay as they are; only a pod that waits for them waits on.
                if self.memory.volumes == Step::Done || !self.prepared.folders.is_empty() {
                    self.memory.volumes = Step::Done;
                    self.prepared.renew_at = self.prepared.renew_at.map(|_| later(30));
                } else {
                    let failure = failure("FailedMount", message, self.volumes_pause, now());
                    self.volumes_pause = Some(failure.pause);
                    self.memory.volumes = Step::Failed(failure);
                }
            }
        }
    }

    /// Files of running pods follow their sources; tokens are renewed in time.
    pub(super) fn refresh_volumes(&mut self, seen: &Observed) {
        let due = self.prepared.renew_at.is_some_and(|at| at.as_nanosecond() as Nanos <= wall());
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

    pub(super) fn mounts(&self, spec: &ContainerSpec, attempt: u32, facts: &Facts, variables: &[KeyValue]) -> Result<Vec<Mount>, String> {
        let look = |name: &str| variables.iter().find(|variable| variable.key == name).map(|variable| variable.value.clone());
        let mut mounts = self.context.volumes.mounts(&self.pod, spec, &self.prepared, look)?;
        if mounts.iter().all(|mount| mount.container_path != "/etc/hosts") {
            mounts.push(self.hosts_file(facts)?);
        }
        let last_words = termination::prepare(&self.pod_folder(), spec, attempt)
            .map_err(|error| format!("failed to make the termination log: {error}"))?;
        mounts.push(last_words);
        Ok(mounts)
    }

    fn hosts_file(&self, facts: &Facts) -> Result<Mount, String> {
        let host_file = if host_network(&self.pod) { fs::read_to_string("/etc/hosts").unwrap_or_default() } else { String::new() };
        let text = sandbox::hosts(&self.pod, &facts.pod_ips, &self.context.config.cluster_domain, &host_file);
        let folder = self.pod_folder();
        let file = folder.join("etc-hosts");
        let written = fs::create_dir_all(&folder).and_then(|()| fs::write(&file, text));
        written.map_err(|error| format!("failed to write the hosts file: {error}"))?;
        Ok(Mount { container_path: "/etc/hosts".into(), host_path: file.to_string_lossy().into_owned(), ..Default::default() })
    }
}

fn later(seconds: i64) -> Timestamp {
    let now = time::now();
    Timestamp::from_second(now.as_second() + seconds).unwrap_or(now)
}
