//! Nodes that fall silent: conditions Unknown, taints, their pods out of the Services. When most are silent, the fault is ours: nothing is moved.
//!
//! Silence is measured by this process's own monotonic clock from the moment it saw a node's Lease (or heartbeat) change; times written by
//! other machines are never compared with ours.

use super::write::{Write, apply_all};
use super::{Clock, Context, Informers, each, pods, work};
use crate::error::Error;
use crate::orchestrator::api::kinds::taints::{NOT_READY, UNREACHABLE, UNSCHEDULABLE};
use crate::orchestrator::client::events::{Recorder, Subject};
use crate::orchestrator::client::{Client, Key, Object, Patch, Queue, path, time};
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// What is known of a node beyond its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// Not heard of for the grace period.
    pub silent: bool,
    /// Most nodes are silent.
    pub disrupted: bool,
}

/// The node's conditions and taints as they should be.
pub fn decide(node: &Node, view: View, now: Timestamp) -> Vec<Write> {
    let mut writes = Vec::new();
    let mut conditions = node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    if view.silent {
        let changed = silence(&mut conditions, now);
        if !changed.is_empty() {
            writes.push(Write::Patch {
                path: path::<Node>("", node.name(), "status"),
                kind: Patch::Strategic,
                body: json!({"metadata": {"resourceVersion": node.version()}, "status": {"conditions": changed}}),
            });
        }
    }
    let held = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let wanted = taints(node, &held, &conditions, view, now);
    if wanted != held {
        let taints = if wanted.is_empty() { Value::Null } else { json!(wanted) };
        // After a status patch the version has moved: the taints follow in the next turn.
        if writes.is_empty() {
            writes.push(Write::merge_at::<Node>(node, "", json!({"spec": {"taints": taints}})));
        }
    }
    writes
}

/// Sets what only the node itself could know to Unknown; returns the conditions that changed.
fn silence(conditions: &mut Vec<NodeCondition>, now: Timestamp) -> Vec<Value> {
    let mut changed = Vec::new();
    for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        let held = conditions.iter().position(|condition| condition.type_ == kind);
        if held.is_some_and(|at| conditions[at].status == "Unknown") {
            continue;
        }
        let (reason, message) = match held {
            Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
            None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
        };
        let condition =
            json!({"type": kind, "status": "Unknown", "reason": reason, "message": message, "lastTransitionTime": time::text(now)});
        let parsed: NodeCondition = serde_json::from_value(condition.clone()).expect("a condition");
        match held {
            Some(at) => conditions[at] = NodeCondition { last_heartbeat_time: conditions[at].last_heartbeat_time.clone(), ..parsed },
            None => conditions.push(parsed),
        }
        changed.push(condition);
    }
    changed
}

/// Ours are replaced, others are left alone.
fn taints(node: &Node, held: &[Taint], conditions: &[NodeCondition], view: View, now: Timestamp) -> Vec<Taint> {
    let status = |kind: &str| conditions.iter().find(|condition| condition.type_ == kind).map(|condition| condition.status.as_str());
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    match status("Ready") {
        Some("False") | None => wanted.extend([(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")]),
        Some("Unknown") => wanted.extend([(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")]),
        _ => {}
    }
    let rules = [
        ("MemoryPressure", "memory-pressure"),
        ("DiskPressure", "disk-pressure"),
        ("PIDPressure", "pid-pressure"),
        ("NetworkUnavailable", "network-unavailable"),
    ];
    let keys: Vec<(String, &str)> = rules.iter().map(|(kind, key)| (format!("node.kubernetes.io/{key}"), *kind)).collect();
    wanted.extend(keys.iter().filter(|(_, kind)| status(kind) == Some("True")).map(|(key, _)| (key.as_str(), "NoSchedule")));
    if node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    if view.disrupted && view.silent {
        wanted.retain(|(_, effect)| *effect != "NoExecute");
    }
    let ours = |taint: &Taint| {
        let own_key = [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&taint.key.as_str());
        own_key || keys.iter().any(|(key, _)| *key == taint.key)
    };
    let mut all: Vec<Taint> =
        held.iter().filter(|taint| !ours(taint) || wanted.contains(&(taint.key.as_str(), taint.effect.as_str()))).cloned().collect();
    for (key, effect) in wanted {
        if !all.iter().any(|taint| taint.key == key && taint.effect == effect) {
            let added = (effect == "NoExecute").then(|| time::text(now));
            let taint = serde_json::from_value(json!({"key": key, "effect": effect, "timeAdded": added})).expect("a taint");
            all.push(taint);
        }
    }
    all
}

/// Most nodes: more than 55 of 100, upstream's own threshold.
pub fn is_disrupted(silent: usize, nodes: usize) -> bool {
    silent * 100 > nodes * 55
}

/// When each node was last heard of, by this process's clock.
#[derive(Default)]
pub struct Heard {
    nodes: HashMap<String, (BTreeMap<&'static str, String>, Instant)>,
}

impl Heard {
    /// `sign` changes whenever the node speaks through `channel`. The first look counts as having heard of it.
    pub fn note(&mut self, node: &str, channel: &'static str, sign: &str, now: Instant) {
        let (signs, at) = self.nodes.entry(node.into()).or_insert_with(|| (BTreeMap::new(), now));
        if signs.get(channel).map(String::as_str) != Some(sign) {
            signs.insert(channel, sign.into());
            *at = now;
        }
    }
    pub fn forget(&mut self, node: &str) {
        self.nodes.remove(node);
    }
    pub fn silence(&self, node: &str, now: Instant) -> Duration {
        self.nodes.get(node).map_or(Duration::ZERO, |(_, at)| now.saturating_duration_since(*at))
    }
    /// How many have been quiet for at least that long.
    pub fn quiet(&self, at_least: Duration, now: Instant) -> usize {
        self.nodes.values().filter(|(_, at)| now.saturating_duration_since(*at) >= at_least).count()
    }
    pub fn count(&self) -> usize {
        self.nodes.len()
    }
}

/// What the node itself says about being ready; `Unknown` is our own word.
fn own_word(node: &Node) -> Option<String> {
    let mut conditions = node.status.as_ref()?.conditions.iter().flatten();
    let ready = conditions.find(|condition| condition.type_ == "Ready" && condition.status != "Unknown")?;
    Some(format!("{} {:?} {:?} {}", ready.status, ready.last_heartbeat_time, ready.last_transition_time, node.uid()))
}

struct Lifecycle {
    client: Client,
    informers: Informers,
    recorder: Recorder,
    clock: Clock,
    grace: Duration,
    heard: Mutex<Heard>,
    disrupted: Mutex<bool>,
    queue: Queue<Key>,
}

pub fn start(context: &Context, informers: &Informers, recorder: Recorder) {
    let this = Arc::new(Lifecycle {
        client: context.client.clone(),
        informers: informers.clone(),
        recorder,
        clock: context.clock.clone(),
        grace: Duration::from_secs(context.config.node_grace_seconds),
        heard: Mutex::new(Heard::default()),
        disrupted: Mutex::new(false),
        queue: Queue::new(),
    });
    {
        let this = this.clone();
        each(&context.cancel, informers.nodes.changes(), move |change| {
            if change.new.is_none() {
                this.heard.lock().forget(&change.key.name);
            }
            this.queue.add(change.key);
        });
    }
    {
        let this = this.clone();
        each(&context.cancel, informers.leases.changes(), move |change| this.queue.add(Key::new("", change.key.name)));
    }
    let queue = this.queue.clone();
    work(context, informers, queue, 4, move |key| {
        let this = this.clone();
        async move { this.sync(key).await }
    });
}

impl Lifecycle {
    async fn sync(&self, key: Key) -> Result<Option<Duration>, Error> {
        let Some(node) = self.informers.nodes.get_key(&key) else { return Ok(None) };
        let (view, left) = self.look(&node);
        let writes = decide(&node, view, (self.clock)());
        apply_all(&self.client, &writes).await?;
        if !writes.is_empty() && view.silent {
            self.recorder.normal(Subject::of(&*node), "NodeNotReady", format!("Node {} status is now: NodeNotReady", key.name));
        }
        if view.silent && !view.disrupted {
            self.take_out(&node).await?;
        }
        // Silent: nothing changes by time alone; its Lease or the others' silence will wake us.
        Ok((!view.silent).then_some(left))
    }

    /// Notes what the node says, and tells all nodes when the majority changes sides.
    fn look(&self, node: &Node) -> (View, Duration) {
        let now = Instant::now();
        let lease = self.informers.leases.get("kube-node-lease", node.name());
        let renewed = lease.and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref().map(|time| time.0));
        let mut heard = self.heard.lock();
        heard.note(node.name(), "lease", &format!("{renewed:?}"), now);
        if let Some(word) = own_word(node) {
            heard.note(node.name(), "status", &word, now);
        }
        let silence = heard.silence(node.name(), now);
        // A node that speaks every 10 s and is quiet for half the grace period is counted among the silent already: nodes that fall
        // silent together must not be taken for failing one by one.
        let disrupted = is_disrupted(heard.quiet(self.grace / 2, now), heard.count());
        let silent = silence >= self.grace;
        drop(heard);
        let before = std::mem::replace(&mut *self.disrupted.lock(), disrupted);
        if before != disrupted {
            tracing::warn!(disrupted, "most nodes are silent: {}", if disrupted { "nothing is evicted" } else { "no longer" });
            self.informers.nodes.list().iter().for_each(|node| self.queue.add(Key::of(&**node)));
        }
        (View { silent, disrupted }, self.grace.saturating_sub(silence) + Duration::from_millis(1))
    }

    /// Its pods are no longer ready, so Services stop sending to them.
    async fn take_out(&self, node: &Node) -> Result<(), Error> {
        for pod in self.informers.pods.by_index("node", node.name()).iter().filter(|pod| pods::is_ready(pod)) {
            let condition = json!({"type": "Ready", "status": "False", "lastTransitionTime": time::text((self.clock)())});
            let write = Write::Patch {
                path: path::<Pod>(pod.namespace(), pod.name(), "status"),
                kind: Patch::Strategic,
                body: json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [condition]}}),
            };
            match apply_all(&self.client, &[write]).await {
                Err(failure) if failure.is_conflict() => {}
                outcome => outcome?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: Option<&str>, taints: Value) -> Node {
        let conditions = ready.map(|status| json!([{"type": "Ready", "status": status}])).unwrap_or(json!([]));
        let object =
            json!({"metadata": {"name": "n", "resourceVersion": "3"}, "spec": {"taints": taints}, "status": {"conditions": conditions}});
        serde_json::from_value(object).unwrap()
    }

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    /// `key:Effect` of the node's taints once nothing more is to be written.
    fn check(mut node: Node, view: View, expected: &[&str]) -> Node {
        for _ in 0..4 {
            for write in decide(&node, view, now()) {
                let Write::Patch { body, kind, .. } = write else { panic!("only patches") };
                let mut value = json!(node);
                match kind {
                    Patch::Merge => json_patch::merge(&mut value, &body),
                    _ => {
                        let conditions = value["status"]["conditions"].as_array_mut().unwrap();
                        for condition in body["status"]["conditions"].as_array().unwrap() {
                            conditions.retain(|held| held["type"] != condition["type"]);
                            conditions.push(condition.clone());
                        }
                    }
                }
                node = serde_json::from_value(value).unwrap();
            }
        }
        assert_eq!(decide(&node, view, now()), [], "a second look changes nothing");
        let short = |taint: &Taint| format!("{}:{}", taint.key.rsplit('/').next().unwrap(), taint.effect);
        let taints: Vec<String> = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).map(short).collect();
        assert_eq!(taints, expected);
        node
    }

    const SPEAKS: View = View { silent: false, disrupted: false };
    const SILENT: View = View { silent: true, disrupted: false };

    #[test]
    fn a_silent_node_becomes_unknown_and_is_tainted() {
        let node = check(
            node(Some("True"), json!([{"key": "mine", "effect": "NoSchedule"}])),
            SILENT,
            &["mine:NoSchedule", "unreachable:NoSchedule", "unreachable:NoExecute"],
        );
        let conditions = node.status.unwrap().conditions.unwrap();
        assert_eq!(conditions.len(), 4);
        assert!(conditions.iter().all(|condition| condition.status == "Unknown"));
    }

    #[test]
    fn nothing_is_evicted_while_most_are_silent() {
        let disrupted = View { silent: true, disrupted: true };
        let silent = check(node(Some("True"), json!(null)), disrupted, &["unreachable:NoSchedule"]);
        check(silent.clone(), SILENT, &["unreachable:NoSchedule", "unreachable:NoExecute"]);
        let tainted = check(silent, SILENT, &["unreachable:NoSchedule", "unreachable:NoExecute"]);
        check(tainted, disrupted, &["unreachable:NoSchedule"]);
    }

    #[test]
    fn a_node_that_speaks_again_loses_our_taints_and_keeps_others() {
        let taints = json!([{"key": UNREACHABLE, "effect": "NoExecute"}, {"key": "mine", "effect": "NoExecute"}]);
        check(node(Some("True"), taints), SPEAKS, &["mine:NoExecute"]);
        check(node(Some("False"), json!(null)), SPEAKS, &["not-ready:NoSchedule", "not-ready:NoExecute"]);
        check(node(None, json!(null)), SPEAKS, &["not-ready:NoSchedule", "not-ready:NoExecute"]);
    }

    #[test]
    fn silence_is_measured_from_the_last_change_we_saw() {
        let mut heard = Heard::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        heard.note("a", "lease", "1", start);
        heard.note("b", "lease", "1", start);
        heard.note("a", "lease", "1", at(30));
        heard.note("b", "lease", "2", at(30));
        assert_eq!(heard.silence("a", at(40)), Duration::from_secs(40));
        assert_eq!(heard.silence("b", at(40)), Duration::from_secs(10));
        assert_eq!(heard.quiet(Duration::from_secs(20), at(40)), 1);
    }

    #[test]
    fn our_own_word_about_a_node_is_not_the_nodes() {
        assert_eq!(own_word(&node(Some("Unknown"), json!(null))), None);
        assert_eq!(own_word(&node(None, json!(null))), None);
        assert!(own_word(&node(Some("True"), json!(null))).is_some() && own_word(&node(Some("False"), json!(null))).is_some());
    }

    #[test]
    fn the_majority_rule() {
        assert!(!is_disrupted(0, 0));
        assert!(!is_disrupted(1, 2) && is_disrupted(2, 2) && is_disrupted(1, 1));
        assert!(!is_disrupted(1, 3) && is_disrupted(2, 3));
        assert!(!is_disrupted(55, 100) && is_disrupted(56, 100));
    }
}
