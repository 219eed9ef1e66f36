//! The scheduler's door: informers in, bindings out. One task decides; the writes run beside it.

use super::decide::{Decision, schedule};
use super::filter::admits;
use super::pod::{PodInfo, is_finished};
use super::queue::{Key, Queue};
use super::snapshot::{ClaimInfo, Snapshot};
use crate::orchestrator::client::events::{Recorder, Subject};
use crate::orchestrator::client::{Change, Client, Failure, Informer, Patch, time};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// Enough to keep the API's group commit full; more would only queue there.
const PARALLEL_WRITES: usize = 64;

/// Decisions between two looks at the informers, so that a burst of pods does not decide on an old picture for long.
const BATCH: usize = 256;

/// And no longer than this: the API and the controllers share the process, and deciding never waits for anything by itself.
const BATCH_TIME: Duration = Duration::from_millis(20);

/// The server's shared informers, as far as the scheduler reads them.
#[derive(Clone)]
pub struct Watches {
    pub pods: Informer<Pod>,
    pub nodes: Informer<Node>,
    pub claims: Informer<PersistentVolumeClaim>,
    pub volumes: Informer<PersistentVolume>,
    pub classes: Informer<StorageClass>,
}

/// How a write ended.
enum Done {
    Bound(Key),
    Failed(Key, String),
}

pub async fn run(client: Client, watches: Watches, cancel: CancellationToken) {
    let mut pods = watches.pods.changes();
    let mut nodes = watches.nodes.changes();
    let mut claims = watches.claims.changes();
    let mut volumes = watches.volumes.changes();
    let mut classes = watches.classes.changes();
    watches.nodes.synced().await;
    let (done, mut finished) = mpsc::unbounded_channel();
    let mut scheduler = Scheduler {
        random: SmallRng::seed_from_u64(client.seed()),
        recorder: Recorder::start(client.clone(), "default-scheduler", "", &cancel),
        client,
        watches,
        snapshot: Snapshot::default(),
        queue: Queue::default(),
        writes: Arc::new(Semaphore::new(PARALLEL_WRITES)),
        done,
    };
    loop {
        let more = scheduler.queue.has_ready();
        if more {
            // More than one batch: other tasks have their turn first.
            tokio::task::yield_now().await;
        }
        let due = scheduler.queue.next_due();
        tokio::select! {
            () = cancel.cancelled() => return,
            () = std::future::ready(()), if more => {}
            () = async { sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {}
            Some(change) = pods.recv() => scheduler.pod_changed(change),
            Some(change) = nodes.recv() => scheduler.node_changed(change),
            Some(change) = claims.recv() => scheduler.claim_changed(change),
            Some(change) = volumes.recv() => scheduler.volume_changed(change),
            Some(change) = classes.recv() => scheduler.class_changed(change),
            Some(end) = finished.recv() => scheduler.written(end),
        }
        // Take in what else has already arrived, then decide once on the newest picture.
        while let Ok(change) = nodes.try_recv() {
            scheduler.node_changed(change);
        }
        while let Ok(change) = pods.try_recv() {
            scheduler.pod_changed(change);
        }
        while let Ok(end) = finished.try_recv() {
            scheduler.written(end);
        }
        scheduler.decide_some();
    }
}

struct Scheduler {
    client: Client,
    watches: Watches,
    recorder: Recorder,
    snapshot: Snapshot,
    queue: Queue,
    random: SmallRng,
    writes: Arc<Semaphore>,
    done: mpsc::UnboundedSender<Done>,
}

impl Scheduler {
    fn pod_changed(&mut self, change: Change<Pod>) {
        let key = (change.key.namespace, change.key.name);
        let Some(pod) = change.new else {
            self.queue.remove(&key);
            self.freed(&key);
            return;
        };
        let info = PodInfo::read(&pod);
        if is_finished(&pod) {
            self.queue.remove(&key);
            self.freed(&key);
        } else if info.node.is_some() {
            self.queue.remove(&key);
            self.snapshot.place(Arc::new(info));
        } else if !is_ours(&pod) {
            self.queue.remove(&key);
        } else if !self.queue.is_in_flight(&key) && !self.queue.is_parked_unchanged(&info) && !self.snapshot.holds(&info) {
            // A pod that the snapshot holds was bound a moment ago: this is an older picture of it.
            self.queue.add(info);
        }
    }

    /// Whatever ended, other pods may fit now.
    fn freed(&mut self, key: &Key) {
        if self.snapshot.remove(key) {
            self.queue.wake_parked();
        }
    }

    fn node_changed(&mut self, change: Change<Node>) {
        match &change.new {
            Some(node) => self.snapshot.set_node(node),
            None => self.snapshot.remove_node(&change.key.name),
        }
        let (old, new) = (change.old.as_deref(), change.new.as_deref());
        // Heartbeats change nothing that placement reads.
        let placement =
            |node: &Node| (node.spec.clone(), node.metadata.labels.clone(), node.status.as_ref().map(|s| s.allocatable.clone()));
        if old.map(placement) == new.map(placement) {
            return;
        }
        // A node that is only joining admits nobody yet: a try now would be in vain.
        if let Some(node) = self.snapshot.known_node(&change.key.name) {
            self.queue.wake_afresh(|pod| admits(pod, node));
        }
        // A topology domain may be gone or another one: that counts for pods on other nodes too.
        let labels = |node: &Node| node.metadata.labels.clone();
        if old.is_some() && old.map(labels) != new.map(labels) {
            self.queue.wake_parked();
        }
    }

    fn claim_changed(&mut self, change: Change<PersistentVolumeClaim>) {
        let key = (change.key.namespace, change.key.name);
        let Some(claim) = change.new else {
            self.snapshot.claims.remove(&key);
            return;
        };
        let info = self.read_claim(&claim);
        // A claim comes once and is bound once: its pods need no pause against these. Who is told a node, and told again, needs one.
        let bound = info.volume.is_some();
        let old = self.snapshot.claims.insert(key.clone(), info.clone());
        if old.as_ref() != Some(&info) {
            self.queue.wake_users_of(&key.0, &key.1, bound || old.is_none());
        }
    }

    fn read_claim(&self, claim: &PersistentVolumeClaim) -> ClaimInfo {
        let spec = claim.spec.clone().unwrap_or_default();
        let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        let class = spec.storage_class_name.as_deref().and_then(|class| self.watches.classes.get("", class));
        let annotations = claim.metadata.annotations.as_ref();
        ClaimInfo {
            volume: spec.volume_name.filter(|name| bound && !name.is_empty()),
            waits_for_consumer: class.is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")),
            selected_node: annotations.and_then(|annotations| annotations.get("volume.kubernetes.io/selected-node").cloned()),
        }
    }

    fn volume_changed(&mut self, change: Change<PersistentVolume>) {
        let affinity = change.new.as_ref().and_then(|volume| volume.spec.as_ref()?.node_affinity.as_ref()?.required.clone());
        match affinity {
            Some(selector) => self.snapshot.volume_affinity.insert(change.key.name, selector),
            None => self.snapshot.volume_affinity.remove(&change.key.name),
        };
    }

    /// A class may be made after its claims: read them again.
    fn class_changed(&mut self, _: Change<StorageClass>) {
        for claim in self.watches.claims.list() {
            let key = (claim.metadata.namespace.clone().unwrap_or_default(), claim.metadata.name.clone().unwrap_or_default());
            let info = self.read_claim(&claim);
            self.snapshot.claims.insert(key, info);
        }
        self.queue.wake_parked();
    }

    fn decide_some(&mut self) {
        let start = Instant::now();
        self.queue.expire(start);
        let mut decided = 0;
        while !is_batch_over(decided, start.elapsed())
            && let Some(pod) = self.queue.pop(Instant::now())
        {
            decided += 1;
            match schedule(&pod, &self.snapshot, self.random.random()) {
                Decision::Bind { node } => self.bind(&pod, node),
                Decision::Announce { node, claims } => self.announce(&pod, node, claims),
                Decision::Unschedulable { message } => self.park(&pod, message),
            }
        }
    }

    /// Assumed at once, so that the next decision sees the room taken; given back if the write fails.
    fn bind(&mut self, pod: &Arc<PodInfo>, node: String) {
        self.snapshot.place(Arc::new(PodInfo { node: Some(node.clone()), ..(**pod).clone() }));
        let (namespace, name) = pod.key();
        let body = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name, "namespace": namespace, "uid": pod.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        let object = self.watches.pods.get(&namespace, &name);
        let recorder = self.recorder.clone();
        let client = self.client.clone();
        self.write(pod.key(), async move {
            client.create_sub(&format!("/api/v1/namespaces/{namespace}/pods/{name}/binding"), &body).await?;
            if let Some(object) = object {
                let message = format!("Successfully assigned {namespace}/{name} to {node}");
                recorder.normal(Subject::of(&*object), "Scheduled", message);
            }
            Ok(())
        });
    }

    fn announce(&mut self, pod: &Arc<PodInfo>, node: String, claims: Vec<String>) {
        let client = self.client.clone();
        let namespace = pod.namespace.clone();
        self.queue.park(&pod.key());
        tokio::spawn(async move {
            let patch = json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": node}}});
            for claim in claims {
                if let Err(error) = client.patch::<PersistentVolumeClaim>(&namespace, &claim, "", Patch::Merge, &patch).await {
                    tracing::warn!("could not tell claim {namespace}/{claim} its node: {error}");
                }
            }
        });
    }

    /// Says why on the pod, once per reason.
    fn park(&mut self, pod: &Arc<PodInfo>, message: String) {
        let key = pod.key();
        self.queue.park(&key);
        let Some(object) = self.watches.pods.get(&key.0, &key.1) else { return };
        let said = object.status.iter().flat_map(|status| status.conditions.iter().flatten());
        if said.into_iter().any(|condition| condition.type_ == "PodScheduled" && condition.message.as_deref() == Some(message.as_str())) {
            return;
        }
        self.recorder.warning(Subject::of(&*object), "FailedScheduling", message.clone());
        let client = self.client.clone();
        tokio::spawn(async move {
            let patch = json!({"metadata": {"uid": object.metadata.uid}, "status": {"conditions": [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
                "lastTransitionTime": time::now_text(),
            }]}});
            if let Err(error) = client.patch::<Pod>(&key.0, &key.1, "status", Patch::Strategic, &patch).await {
                tracing::debug!("could not write why {}/{} is not scheduled: {error}", key.0, key.1);
            }
        });
    }

    fn write(&self, key: Key, work: impl Future<Output = Result<(), Failure>> + Send + 'static) {
        let (writes, done) = (self.writes.clone(), self.done.clone());
        tokio::spawn(async move {
            let _permit = writes.acquire().await;
            let end = match work.await {
                Ok(()) => Done::Bound(key),
                Err(error) => Done::Failed(key, error.to_string()),
            };
            let _ = done.send(end);
        });
    }

    fn written(&mut self, end: Done) {
        match end {
            // The informer will tell that it is bound; until then the assumption stands.
            Done::Bound(key) => self.queue.remove(&key),
            Done::Failed(key, error) => {
                tracing::warn!("could not bind {}/{}: {error}", key.0, key.1);
                self.snapshot.remove(&key);
                self.retry_later(key);
            }
        }
    }

    fn retry_later(&mut self, key: Key) {
        // Deleted or bound by somebody else meanwhile: the informer has said or will say so.
        if self.watches.pods.get(&key.0, &key.1).is_none_or(|pod| PodInfo::read(&pod).node.is_some()) {
            return self.queue.remove(&key);
        }
        self.queue.back_off(&key);
    }
}

/// Whether others must have their turn, after that many decisions in that time.
fn is_batch_over(decided: usize, spent: Duration) -> bool {
    decided >= BATCH || spent >= BATCH_TIME
}

/// Pods that ask for another scheduler, are gated, or are already leaving are not ours to place.
fn is_ours(pod: &Pod) -> bool {
    let Some(spec) = pod.spec.as_ref() else { return false };
    let scheduler = spec.scheduler_name.as_deref().unwrap_or("default-scheduler");
    let gated = spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
    scheduler == "default-scheduler" && !gated && pod.metadata.deletion_timestamp.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_ends_by_number_or_by_time() {
        assert!(!is_batch_over(0, Duration::ZERO));
        assert!(!is_batch_over(BATCH - 1, BATCH_TIME - Duration::from_micros(1)));
        assert!(is_batch_over(BATCH, Duration::ZERO), "by number");
        assert!(is_batch_over(1, BATCH_TIME), "one slow decision is enough");
    }
}
