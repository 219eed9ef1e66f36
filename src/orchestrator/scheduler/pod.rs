//! What the scheduler remembers of a pod: read once, small, compared often. Pure.

use super::labels::Labels;
use crate::blueprint::quantity;
use k8s_openapi::api::core::v1::{
    Affinity, Container, NodeSelector, Pod, PodAffinityTerm, PreferredSchedulingTerm, Toleration, TopologySpreadConstraint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// Amounts by resource name: `cpu` in thousandths of a core, everything else in bytes or pieces.
pub type Resources = BTreeMap<String, u64>;

/// Cpu in thousandths of a core, memory in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    pub cpu: u64,
    pub memory: u64,
}

#[derive(Debug, Clone, Default)]
pub struct PodInfo {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub labels: Labels,
    pub node: Option<String>,
    pub priority: i32,
    pub requests: Resources,
    pub host_ports: Vec<(String, i32, String)>,
    pub tolerations: Vec<Toleration>,
    pub node_selector: Labels,
    pub node_affinity: Option<NodeSelector>,
    pub preferred_nodes: Vec<PreferredSchedulingTerm>,
    pub affinity: Vec<PodAffinityTerm>,
    pub anti_affinity: Vec<PodAffinityTerm>,
    pub spread: Vec<TopologySpreadConstraint>,
    pub claims: Vec<String>,
    /// The controller's uid: siblings are spread even where nobody asked for it.
    pub owner: Option<String>,
    /// It ends soon: it still holds what it asked for, and no longer stands for its kind.
    pub leaving: bool,
}

impl PodInfo {
    pub fn read(pod: &Pod) -> PodInfo {
        let spec = pod.spec.clone().unwrap_or_default();
        let Affinity { node_affinity, pod_affinity, pod_anti_affinity } = spec.affinity.clone().unwrap_or_default();
        let node_affinity = node_affinity.unwrap_or_default();
        PodInfo {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            node: spec.node_name.clone().filter(|node| !node.is_empty()),
            priority: spec.priority.unwrap_or(0),
            requests: requests(&spec.containers, spec.init_containers.as_deref().unwrap_or_default(), spec.overhead.as_ref()),
            host_ports: host_ports(&spec.containers),
            tolerations: spec.tolerations.unwrap_or_default(),
            node_selector: spec.node_selector.unwrap_or_default(),
            node_affinity: node_affinity.required_during_scheduling_ignored_during_execution,
            preferred_nodes: node_affinity.preferred_during_scheduling_ignored_during_execution.unwrap_or_default(),
            affinity: pod_affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution).unwrap_or_default(),
            anti_affinity: pod_anti_affinity
                .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution)
                .unwrap_or_default(),
            spread: spec.topology_spread_constraints.unwrap_or_default(),
            claims: spec
                .volumes
                .iter()
                .flatten()
                .filter_map(|volume| volume.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.clone()))
                .collect(),
            owner: pod
                .metadata
                .owner_references
                .iter()
                .flatten()
                .find(|owner| owner.controller == Some(true))
                .map(|owner| owner.uid.clone()),
            leaving: pod.metadata.deletion_timestamp.is_some(),
        }
    }

    /// What it weighs when load is compared. A pod that asks for nothing still costs something: upstream's 100m and 200Mi stand in, or all
    /// of them would pile up on one node.
    pub fn load(&self) -> Load {
        let asked = |resource: &str, floor: u64| self.requests.get(resource).copied().filter(|amount| *amount > 0).unwrap_or(floor);
        Load { cpu: asked("cpu", 100), memory: asked("memory", 200 << 20) }
    }

    pub fn key(&self) -> (String, String) {
        (self.namespace.clone(), self.name.clone())
    }
}

/// Finished pods hold nothing.
pub fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The sum over containers, or the largest init container where that is more: init containers run one after another, before the others.
/// Init containers that restart always (sidecars) run beside everything after them.
fn requests(containers: &[Container], init: &[Container], overhead: Option<&BTreeMap<String, Quantity>>) -> Resources {
    let mut running = Resources::new();
    let mut peak = Resources::new();
    for container in init {
        let asked = container_requests(container);
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut running, &asked);
            raise(&mut peak, &running);
        } else {
            let mut moment = running.clone();
            add(&mut moment, &asked);
            raise(&mut peak, &moment);
        }
    }
    for container in containers {
        add(&mut running, &container_requests(container));
    }
    raise(&mut running, &peak);
    if let Some(overhead) = overhead {
        add(&mut running, &read(overhead));
    }
    running
}

fn container_requests(container: &Container) -> Resources {
    let resources = container.resources.clone().unwrap_or_default();
    let mut asked = read(&resources.limits.unwrap_or_default());
    asked.extend(read(&resources.requests.unwrap_or_default()));
    asked
}

/// Quantities that do not parse were refused by validation; what slips through counts as nothing.
pub fn read(quantities: &BTreeMap<String, Quantity>) -> Resources {
    quantities.iter().map(|(name, quantity)| (name.clone(), amount(name, &quantity.0).unwrap_or(0))).collect()
}

fn amount(resource: &str, text: &str) -> Option<u64> {
    let amount = if resource == "cpu" { quantity::cpu_millis(text) } else { quantity::bytes(text) };
    amount.ok().and_then(|amount| u64::try_from(amount).ok())
}

pub fn add(total: &mut Resources, more: &Resources) {
    for (name, amount) in more {
        let entry = total.entry(name.clone()).or_default();
        *entry = entry.saturating_add(*amount);
    }
}

fn raise(total: &mut Resources, at_least: &Resources) {
    for (name, amount) in at_least {
        let entry = total.entry(name.clone()).or_default();
        *entry = (*entry).max(*amount);
    }
}

fn host_ports(containers: &[Container]) -> Vec<(String, i32, String)> {
    containers
        .iter()
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let host_port = port.host_port.filter(|port| *port > 0)?;
            let address = port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
            Some((address, host_port, port.protocol.clone().unwrap_or_else(|| "TCP".into())))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn init_containers_count_by_their_peak_and_sidecars_by_their_sum() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {
            "initContainers": [
                {"name": "once", "resources": {"requests": {"cpu": "500m"}}},
                {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
                {"name": "late", "resources": {"requests": {"cpu": "300m"}}}],
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "200m", "memory": "1Mi"}}},
                           {"name": "b", "resources": {"limits": {"memory": "2Mi"}}}]}}))
        .expect("pod");
        let info = PodInfo::read(&pod);
        assert_eq!(info.requests["cpu"], 500, "the first init container's peak is above sidecar and containers together");
        assert_eq!(info.requests["memory"], 3 << 20, "a limit without a request is the request");
    }
}
