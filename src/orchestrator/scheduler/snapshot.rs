//! The cluster as the scheduler sees it: nodes with what is taken on them, updated object by object. Pure.

use super::labels::Labels;
use super::pod::{Load, PodInfo, Resources, add, read};
use k8s_openapi::api::core::v1::{Node, NodeSelector, Taint};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

#[derive(Debug, Clone, Default)]
pub struct NodeInfo {
    pub name: String,
    pub labels: Labels,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    pub allocatable: Resources,
    pub taken: Resources,
    /// The sum of its pods' loads, kept beside `taken` so that scoring walks no pods.
    pub load: Load,
    pub pods: HashMap<(String, String), Arc<PodInfo>>,
    /// False until the Node object itself has been seen: pods may be heard of first.
    pub known: bool,
}

/// A claim as far as placement cares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClaimInfo {
    /// The bound volume's name.
    pub volume: Option<String>,
    /// The claim's class wants to know the pod's node before it binds.
    pub waits_for_consumer: bool,
    pub selected_node: Option<String>,
}

#[derive(Debug, Default)]
pub struct Snapshot {
    pub nodes: BTreeMap<String, NodeInfo>,
    /// (namespace, name) -> node, for every placed pod, so that moves and deletes find the old entry.
    placed: HashMap<(String, String), String>,
    pub claims: HashMap<(String, String), ClaimInfo>,
    /// Volume name -> where it can be reached from; absent means anywhere.
    pub volume_affinity: HashMap<String, NodeSelector>,
}

impl Snapshot {
    pub fn set_node(&mut self, node: &Node) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let spec = node.spec.clone().unwrap_or_default();
        let status = node.status.clone().unwrap_or_default();
        let entry = self.nodes.entry(name.clone()).or_default();
        entry.name = name;
        entry.labels = node.metadata.labels.clone().unwrap_or_default();
        entry.taints = spec.taints.unwrap_or_default();
        entry.unschedulable = spec.unschedulable.unwrap_or(false);
        entry.allocatable = read(&status.allocatable.or(status.capacity).unwrap_or_default());
        entry.known = true;
    }

    pub fn remove_node(&mut self, name: &str) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.known = false;
            if node.pods.is_empty() {
                self.nodes.remove(name);
            }
        }
    }

    /// Places a pod (bound, or assumed to be) on its node; again with the same node is no change.
    pub fn place(&mut self, pod: Arc<PodInfo>) {
        let key = pod.key();
        self.remove(&key);
        let Some(name) = pod.node.clone() else { return };
        let node = self.nodes.entry(name.clone()).or_insert_with(|| NodeInfo { name: name.clone(), ..NodeInfo::default() });
        add(&mut node.taken, &pod.requests);
        *node.taken.entry("pods".into()).or_default() += 1;
        let load = pod.load();
        node.load = Load { cpu: node.load.cpu.saturating_add(load.cpu), memory: node.load.memory.saturating_add(load.memory) };
        node.pods.insert(key.clone(), pod);
        self.placed.insert(key, name);
    }

    /// Forgets a pod; true when it had held something.
    pub fn remove(&mut self, key: &(String, String)) -> bool {
        let Some(name) = self.placed.remove(key) else { return false };
        let Some(node) = self.nodes.get_mut(&name) else { return false };
        let Some(pod) = node.pods.remove(key) else { return false };
        for (resource, amount) in pod.requests.iter().map(|(name, amount)| (name.as_str(), *amount)).chain([("pods", 1)]) {
            if let Some(taken) = node.taken.get_mut(resource) {
                *taken = taken.saturating_sub(amount);
            }
        }
        let load = pod.load();
        node.load = Load { cpu: node.load.cpu.saturating_sub(load.cpu), memory: node.load.memory.saturating_sub(load.memory) };
        if !node.known && node.pods.is_empty() {
            self.nodes.remove(&name);
        }
        true
    }

    /// This very pod (not only its name) is placed or assumed to be.
    pub fn holds(&self, pod: &PodInfo) -> bool {
        let key = pod.key();
        let node = self.placed.get(&key).and_then(|name| self.nodes.get(name));
        node.and_then(|node| node.pods.get(&key)).is_some_and(|held| held.uid == pod.uid)
    }

    pub fn known_node(&self, name: &str) -> Option<&NodeInfo> {
        self.nodes.get(name).filter(|node| node.known)
    }

    pub fn known_nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.nodes.values().filter(|node| node.known)
    }
}
