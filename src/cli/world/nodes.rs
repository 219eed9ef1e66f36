//! The cluster's Nodes as the host door needs them: who is there at which revision, and how one is drained before its machine goes.

use super::hosts::{REVISION, ROTATE_AT};
use super::waiting::is_ready;
use crate::blueprint::counted;
use crate::engine::{HOST, Id, MACHINE, Observed, Phase};
use crate::error::{Error, Kind, Result};
use crate::orchestrator::client::{Client, Delete, Patch, Selector, path};
use futures::FutureExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// How long pods may take to leave a node that goes away; after that the machine goes with them, as at the end of a grace period.
const DRAIN_LIMIT: Duration = Duration::from_secs(120);

/// Hosts as the API knows them: no login needed, so the loop can look as often as it likes.
pub fn observed(nodes: &[Node], machines: &[Observed], now: SystemTime) -> Vec<Observed> {
    nodes.iter().filter_map(|node| host(node, machines, now)).collect()
}

/// Whether the host's certificates have lived two thirds of their life.
fn is_due(node: &Node, now: SystemTime) -> bool {
    let told = node.metadata.annotations.as_ref().and_then(|annotations| annotations.get(ROTATE_AT)?.parse::<u64>().ok());
    told.is_some_and(|seconds| now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() >= seconds)
}

fn host(node: &Node, machines: &[Observed], now: SystemTime) -> Option<Observed> {
    let name = node.metadata.name.clone()?;
    let revision = node.metadata.annotations.as_ref()?.get(REVISION)?.clone();
    let machine = machines.iter().find(|machine| machine.id.kind == MACHINE && machine.id.name == name);
    let phase = match machine {
        // The machine is down, or another one than the Node speaks of: its own repair comes first.
        Some(machine) if machine.phase != Phase::Ready => Phase::Pending,
        _ if is_ready(node) && is_due(node, now) => Phase::Broken("certificates are due for renewal".into()),
        _ if is_ready(node) => Phase::Ready,
        _ => Phase::Broken("the node is not ready".into()),
    };
    Some(Observed {
        id: Id::new(HOST, &name),
        handle: node.metadata.uid.clone().unwrap_or_default(),
        generation: machine.map_or(1, |machine| machine.generation),
        phase,
        spec: json!({"role": machine.map_or("worker", |machine| machine.spec["role"].as_str().unwrap_or("worker")), "revision": revision, "nodeName": name}),
        outputs: json!({"nodeName": name}),
        needs: vec![Id::new(MACHINE, &name)],
    })
}

/// What the loop goes by of a Node; another one is a reason to look.
#[derive(Debug, PartialEq)]
pub struct Standing {
    name: Option<String>,
    uid: Option<String>,
    is_ready: bool,
    revision: Option<String>,
    rotate_at: Option<String>,
    labels: Option<BTreeMap<String, String>>,
}

impl Standing {
    pub fn of(node: &Node) -> Standing {
        let metadata = &node.metadata;
        let annotation = |name: &str| metadata.annotations.as_ref().and_then(|annotations| annotations.get(name)).cloned();
        Standing {
            name: metadata.name.clone(),
            uid: metadata.uid.clone(),
            is_ready: is_ready(node),
            revision: annotation(REVISION),
            rotate_at: annotation(ROTATE_AT),
            labels: metadata.labels.clone(),
        }
    }
}

/// Nodes that lack the label of their role, with it: `kubectl get nodes` shows it, and selectors may ask for it.
pub fn unlabelled(nodes: &[Arc<Node>], machines: &[Observed]) -> Vec<(String, String)> {
    let missing = |node: &Arc<Node>| {
        let name = node.metadata.name.clone()?;
        let machine = machines.iter().find(|machine| machine.id.kind == MACHINE && machine.id.name == name)?;
        let label = format!("node-role.kubernetes.io/{}", machine.spec["role"].as_str()?);
        let has = node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(&label));
        (!has).then_some((name, label))
    };
    nodes.iter().filter_map(missing).collect()
}

/// Cordons the node, moves its pods away, and removes it from the cluster. Safe to repeat; a node that is gone is done.
pub async fn drain(client: &Client, name: &str, moves_pods: bool, progress: &(dyn Fn(&str) + Send + Sync)) -> Result<()> {
    if client.get::<Node>("", name).await?.is_none() {
        return Ok(());
    }
    progress("cordoning");
    client.patch::<Node>("", name, "", Patch::Merge, &json!({"spec": {"unschedulable": true}})).await?;
    if moves_pods {
        empty(client, name, progress).await?;
    }
    progress("removing the node");
    client.delete::<Node>("", name, &Delete::default()).await?;
    Ok(())
}

/// Evicts what must leave, and waits until it has left or its time is over.
async fn empty(client: &Client, name: &str, progress: &(dyn Fn(&str) + Send + Sync)) -> Result<()> {
    let deadline = Instant::now() + DRAIN_LIMIT;
    let selector = Selector::fields(format!("spec.nodeName={name}"));
    loop {
        let leaving: Vec<Pod> = client.list::<Pod>("", &selector).await?.items.into_iter().filter(must_leave).collect();
        if leaving.is_empty() {
            break;
        }
        progress(&format!("moving {} away", counted(leaving.len(), "pod")));
        for pod in leaving.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
            evict(client, pod).await?;
        }
        if !await_change(client, &selector, deadline).await? {
            progress("pods did not leave in time; the machine goes with them");
            break;
        }
    }
    Ok(())
}

/// Pods of a DaemonSet would come straight back; mirror pods belong to the machine.
fn must_leave(pod: &Pod) -> bool {
    let by_daemon_set = pod.metadata.owner_references.iter().flatten().any(|owner| owner.kind == "DaemonSet");
    let finished =
        pod.status.as_ref().and_then(|status| status.phase.as_deref()).is_some_and(|phase| phase == "Succeeded" || phase == "Failed");
    !by_daemon_set && !finished
}

async fn evict(client: &Client, pod: &Pod) -> Result<()> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace}});
    match client.create_sub(&format!("{}/eviction", path::<Pod>(namespace, name, "")), &eviction).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(Error::new(Kind::Transient, format!("could not evict pod {namespace}/{name}")).because(error)),
    }
}

/// Waits for anything to happen to the pods of the selector; false when the deadline came first.
async fn await_change(client: &Client, selector: &Selector, deadline: Instant) -> Result<bool> {
    let cancel = tokio_util::sync::CancellationToken::new();
    let _stop = cancel.clone().drop_guard();
    let informer = crate::orchestrator::client::Informer::<Pod>::start(client.clone(), selector.clone(), &cancel);
    informer.synced().await;
    let mut changed = informer.changed();
    // What was there at the start is no change.
    let _ = changed.wait().now_or_never();
    if informer.list().iter().all(|pod| !must_leave(pod)) {
        return Ok(true);
    }
    Ok(tokio::time::timeout_at(deadline, changed.wait()).await.is_ok() && Instant::now() < deadline)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_only_reports_itself_stands_as_before() {
        let standing = |metadata: serde_json::Value, ready: &str, heartbeat: &str| {
            let conditions = json!([{"type": "Ready", "status": ready, "lastHeartbeatTime": heartbeat}]);
            Standing::of(&serde_json::from_value(json!({"metadata": metadata, "status": {"conditions": conditions}})).unwrap())
        };
        let (at, later) = ("2026-01-01T00:00:00Z", "2026-01-01T00:05:00Z");
        let before = standing(json!({"name": "worker-1", "uid": "u1", "resourceVersion": "7"}), "True", at);
        assert_eq!(standing(json!({"name": "worker-1", "uid": "u1", "resourceVersion": "8"}), "True", later), before);
        for other in [
            standing(json!({"name": "worker-1", "uid": "u1"}), "Unknown", at),
            standing(json!({"name": "worker-1", "uid": "u2"}), "True", at),
            standing(json!({"name": "worker-1", "uid": "u1", "annotations": {REVISION: "r2"}}), "True", at),
            standing(json!({"name": "worker-1", "uid": "u1", "annotations": {ROTATE_AT: "1000"}}), "True", at),
            standing(json!({"name": "worker-1", "uid": "u1", "labels": {"a": "b"}}), "True", at),
        ] {
            assert_ne!(other, before);
        }
    }

    #[test]
    fn a_host_is_due_when_the_first_of_its_certificates_is() {
        let check = |rotate_at: &str, seconds: u64, expected: Phase| {
            let node = serde_json::from_value(json!({
                "metadata": {"name": "worker-1", "annotations": {REVISION: "r1", ROTATE_AT: rotate_at}},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]},
            }))
            .unwrap();
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(observed(&[node], &[], now)[0].phase, expected, "{rotate_at} at {seconds}");
        };
        check("1000", 999, Phase::Ready);
        check("1000", 1000, Phase::Broken("certificates are due for renewal".into()));
        check("nonsense", 1000, Phase::Ready);
    }
}
