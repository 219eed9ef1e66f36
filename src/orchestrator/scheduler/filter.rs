//! Can this pod run on this node? Each filter answers with upstream's words when it cannot. Pure.

use super::labels::{node_selector_matches, selector_matches};
use super::pod::PodInfo;
use super::snapshot::{NodeInfo, Snapshot};
use crate::orchestrator::api::kinds::taints::UNSCHEDULABLE;
use k8s_openapi::api::core::v1::{PodAffinityTerm, Taint, Toleration, TopologySpreadConstraint};
use std::collections::BTreeMap;

/// Facts about the whole cluster that several filters share; computed once per pod, not once per node.
pub struct Cluster<'a> {
    snapshot: &'a Snapshot,
    spread: Vec<SpreadState<'a>>,
    affinity: Vec<TermState<'a>>,
    anti_affinity: Vec<TermState<'a>>,
    /// Topology pairs that some running pod's own anti-affinity closes to this pod.
    repelled: Vec<(&'a str, &'a str)>,
}

struct SpreadState<'a> {
    constraint: &'a TopologySpreadConstraint,
    counts: BTreeMap<&'a str, i64>,
}

struct TermState<'a> {
    term: &'a PodAffinityTerm,
    /// Values of the term's topology key where a matching pod runs.
    domains: Vec<&'a str>,
    /// The pod matches its own term: the first of a group may go anywhere.
    matches_self: bool,
}

impl<'a> Cluster<'a> {
    pub fn new(pod: &'a PodInfo, snapshot: &'a Snapshot) -> Self {
        Cluster {
            snapshot,
            spread: pod
                .spread
                .iter()
                .filter(|constraint| constraint.when_unsatisfiable == "DoNotSchedule")
                .map(|constraint| SpreadState { constraint, counts: spread_counts(pod, constraint, snapshot) })
                .collect(),
            affinity: pod.affinity.iter().map(|term| term_state(pod, term, snapshot)).collect(),
            anti_affinity: pod.anti_affinity.iter().map(|term| term_state(pod, term, snapshot)).collect(),
            repelled: repelled(pod, snapshot),
        }
    }
}

/// `None` = it fits; else the reason, as `kubectl describe pod` shows it.
pub fn reason_against(pod: &PodInfo, node: &NodeInfo, cluster: &Cluster<'_>) -> Option<String> {
    unschedulable(pod, node)
        .or_else(|| untolerated(pod, node))
        .or_else(|| node_affinity(pod, node))
        .or_else(|| volumes(pod, node, cluster.snapshot))
        .or_else(|| ports(pod, node))
        .or_else(|| resources(pod, node))
        .or_else(|| pod_affinity(pod, node, cluster))
        .or_else(|| spread(pod, node, cluster))
}

/// Whether the node by itself would have the pod: what is on it and elsewhere is left aside.
pub fn admits(pod: &PodInfo, node: &NodeInfo) -> bool {
    unschedulable(pod, node).or_else(|| untolerated(pod, node)).or_else(|| node_affinity(pod, node)).is_none()
}

fn unschedulable(pod: &PodInfo, node: &NodeInfo) -> Option<String> {
    let taint = Taint { key: UNSCHEDULABLE.into(), effect: "NoSchedule".into(), ..Taint::default() };
    (node.unschedulable && !tolerated(&pod.tolerations, &taint)).then(|| "node(s) were unschedulable".into())
}

fn untolerated(pod: &PodInfo, node: &NodeInfo) -> Option<String> {
    let taint = node.taints.iter().find(|taint| taint.effect != "PreferNoSchedule" && !tolerated(&pod.tolerations, taint))?;
    Some(format!("node(s) had untolerated taint {{{}: {}}}", taint.key, taint.value.as_deref().unwrap_or("")))
}

pub fn tolerated(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|toleration| tolerates(toleration, taint))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or("");
    let key = toleration.key.as_deref().unwrap_or("");
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "Equal" | "" => !key.is_empty() && toleration.value.as_deref().unwrap_or("") == taint.value.as_deref().unwrap_or(""),
        _ => false,
    }
}

pub fn node_affinity(pod: &PodInfo, node: &NodeInfo) -> Option<String> {
    let by_selector = pod.node_selector.iter().all(|(key, value)| node.labels.get(key) == Some(value));
    let by_affinity = pod.node_affinity.as_ref().is_none_or(|selector| node_selector_matches(selector, &node.name, &node.labels));
    (!by_selector || !by_affinity).then(|| "node(s) didn't match Pod's node affinity/selector".into())
}

fn volumes(pod: &PodInfo, node: &NodeInfo, snapshot: &Snapshot) -> Option<String> {
    let conflict = pod.claims.iter().any(|claim| {
        let claim = snapshot.claims.get(&(pod.namespace.clone(), claim.clone()));
        let affinity = claim.and_then(|claim| claim.volume.as_ref()).and_then(|volume| snapshot.volume_affinity.get(volume));
        let elsewhere =
            claim.is_some_and(|claim| claim.volume.is_none() && claim.selected_node.as_ref().is_some_and(|name| *name != node.name));
        elsewhere || affinity.is_some_and(|selector| !node_selector_matches(selector, &node.name, &node.labels))
    });
    conflict.then(|| "node(s) had volume node affinity conflict".into())
}

fn ports(pod: &PodInfo, node: &NodeInfo) -> Option<String> {
    let any = |address: &str| address == "0.0.0.0" || address == "::";
    let clash = pod.host_ports.iter().any(|(address, port, protocol)| {
        node.pods.values().flat_map(|other| &other.host_ports).any(|(their_address, their_port, their_protocol)| {
            port == their_port && protocol == their_protocol && (address == their_address || any(address) || any(their_address))
        })
    });
    clash.then(|| "node(s) didn't have free ports for the requested pod ports".into())
}

fn resources(pod: &PodInfo, node: &NodeInfo) -> Option<String> {
    let free = |resource: &str| {
        let allocatable = node.allocatable.get(resource).copied().unwrap_or(0);
        allocatable.saturating_sub(node.taken.get(resource).copied().unwrap_or(0))
    };
    if free("pods") < 1 {
        return Some("Too many pods".into());
    }
    let (resource, _) = pod.requests.iter().find(|(resource, asked)| **asked > 0 && **asked > free(resource))?;
    Some(format!("Insufficient {resource}"))
}

fn pod_affinity(pod: &PodInfo, node: &NodeInfo, cluster: &Cluster<'_>) -> Option<String> {
    let domain = |term: &PodAffinityTerm| node.labels.get(&term.topology_key).map(String::as_str);
    let nobody_yet = cluster.affinity.iter().all(|state| state.domains.is_empty() && state.matches_self);
    let wanted = cluster.affinity.iter().all(|state| match domain(state.term) {
        Some(value) => nobody_yet || state.domains.contains(&value),
        None => false,
    });
    if !wanted {
        return Some("node(s) didn't match pod affinity rules".into());
    }
    let unwanted = cluster.anti_affinity.iter().any(|state| domain(state.term).is_some_and(|value| state.domains.contains(&value)));
    if unwanted {
        return Some("node(s) didn't match pod anti-affinity rules".into());
    }
    let repelled = cluster.repelled.iter().any(|(key, value)| node.labels.get(*key).map(String::as_str) == Some(value));
    let _ = pod;
    repelled.then(|| "node(s) didn't satisfy existing pods anti-affinity rules".into())
}

fn spread(pod: &PodInfo, node: &NodeInfo, cluster: &Cluster<'_>) -> Option<String> {
    cluster.spread.iter().find_map(|state| {
        let Some(domain) = node.labels.get(&state.constraint.topology_key) else {
            return Some("node(s) didn't match pod topology spread constraints (missing required label)".to_string());
        };
        let lowest = state.counts.values().min().copied().unwrap_or(0);
        let itself = i64::from(selector_matches(state.constraint.label_selector.as_ref(), &pod.labels));
        let here = state.counts.get(domain.as_str()).copied().unwrap_or(0);
        (here + itself - lowest > i64::from(state.constraint.max_skew))
            .then(|| "node(s) didn't match pod topology spread constraints".to_string())
    })
}

/// Matching pods per domain that are to stay, over the domains that this pod could use at all.
pub fn spread_counts<'a>(pod: &PodInfo, constraint: &TopologySpreadConstraint, snapshot: &'a Snapshot) -> BTreeMap<&'a str, i64> {
    let mut counts = BTreeMap::new();
    for node in snapshot.known_nodes().filter(|node| node_affinity(pod, node).is_none()) {
        let Some(domain) = node.labels.get(&constraint.topology_key) else { continue };
        let matching = node
            .pods
            .values()
            .filter(|other| !other.leaving && other.namespace == pod.namespace)
            .filter(|other| selector_matches(constraint.label_selector.as_ref(), &other.labels))
            .count() as i64;
        *counts.entry(domain.as_str()).or_insert(0) += matching;
    }
    counts
}

fn term_state<'a>(pod: &PodInfo, term: &'a PodAffinityTerm, snapshot: &'a Snapshot) -> TermState<'a> {
    let mut domains = Vec::new();
    for node in snapshot.known_nodes() {
        let Some(domain) = node.labels.get(&term.topology_key) else { continue };
        if !domains.contains(&domain.as_str()) && node.pods.values().any(|other| term_matches(term, &pod.namespace, other)) {
            domains.push(domain.as_str());
        }
    }
    TermState { term, domains, matches_self: term_matches(term, &pod.namespace, pod) }
}

/// `namespaceSelector` is read as "all namespaces" when empty; a selector by namespace labels is refused on the safe side (no match).
fn term_matches(term: &PodAffinityTerm, own_namespace: &str, other: &PodInfo) -> bool {
    let listed = term.namespaces.as_deref().unwrap_or_default();
    let everywhere = term.namespace_selector.as_ref().is_some_and(|selector| selector_matches(Some(selector), &BTreeMap::new()));
    let namespace = everywhere || listed.contains(&other.namespace) || listed.is_empty() && other.namespace == own_namespace;
    namespace && selector_matches(term.label_selector.as_ref(), &other.labels)
}

fn repelled<'a>(pod: &PodInfo, snapshot: &'a Snapshot) -> Vec<(&'a str, &'a str)> {
    let mut pairs = Vec::new();
    for node in snapshot.known_nodes() {
        for term in node.pods.values().flat_map(|other| other.anti_affinity.iter().map(move |term| (other, term))) {
            let (other, term) = term;
            if let Some(value) = node.labels.get(&term.topology_key)
                && term_matches(term, &other.namespace, pod)
            {
                pairs.push((term.topology_key.as_str(), value.as_str()));
            }
        }
    }
    pairs
}
