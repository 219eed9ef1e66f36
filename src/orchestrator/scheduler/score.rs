//! Which of the fitting nodes is best? Each score is 0..=100; the weights are upstream's. Pure.

use super::filter::{spread_counts, tolerated};
use super::labels::node_term_matches;
use super::pod::PodInfo;
use super::snapshot::{NodeInfo, Snapshot};
use std::collections::BTreeMap;

/// Higher is better. `nodes` are the candidates; scores that compare nodes with each other are normalised over them.
pub fn totals(pod: &PodInfo, nodes: &[&NodeInfo], snapshot: &Snapshot) -> Vec<i64> {
    let preferred = normalised(nodes.iter().map(|node| preferred_nodes(pod, node)).collect(), false);
    let taints = normalised(nodes.iter().map(|node| disliked_taints(pod, node)).collect(), true);
    let siblings = normalised(nodes.iter().map(|node| siblings(pod, node)).collect(), true);
    let soft = soft_spread(pod, snapshot);
    let spread = normalised(nodes.iter().map(|node| spread(node, &soft)).collect(), true);
    nodes
        .iter()
        .enumerate()
        .map(|(at, node)| {
            least_allocated(pod, node) + balanced(pod, node) + 2 * preferred[at] + 3 * taints[at] + 2 * siblings[at] + 2 * spread[at]
        })
        .collect()
}

/// The share of cpu and memory that stays free, so that load spreads.
fn least_allocated(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let (cpu, memory) = used_shares(pod, node);
    let free = |used: f64| (100.0 * (1.0 - used)) as i64;
    (free(cpu) + free(memory)) / 2
}

/// Cpu and memory used in equal shares leaves no node with one of them stranded.
fn balanced(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let (cpu, memory) = used_shares(pod, node);
    (100.0 * (1.0 - (cpu - memory).abs())) as i64
}

/// How much of the node's cpu and memory is used once the pod is there, as shares of one; what the node does not offer is all used.
fn used_shares(pod: &PodInfo, node: &NodeInfo) -> (f64, f64) {
    let asked = pod.load();
    let share = |used: u64, resource: &str| match node.allocatable.get(resource).copied().unwrap_or(0) {
        0 => 1.0,
        allocatable => (used as f64 / allocatable as f64).min(1.0),
    };
    (share(node.load.cpu.saturating_add(asked.cpu), "cpu"), share(node.load.memory.saturating_add(asked.memory), "memory"))
}

fn preferred_nodes(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let matching = pod.preferred_nodes.iter().filter(|term| node_term_matches(&term.preference, &node.name, &node.labels));
    matching.map(|term| i64::from(term.weight)).sum()
}

fn disliked_taints(pod: &PodInfo, node: &NodeInfo) -> i64 {
    node.taints.iter().filter(|taint| taint.effect == "PreferNoSchedule" && !tolerated(&pod.tolerations, taint)).count() as i64
}

/// Replicas of one controller already here, and to stay.
fn siblings(pod: &PodInfo, node: &NodeInfo) -> i64 {
    node.pods.values().filter(|other| pod.owner.is_some() && other.owner == pod.owner && !other.leaving).count() as i64
}

/// Per `ScheduleAnyway` constraint its topology key and the matching pods per domain: they are the same for every candidate, and counting
/// looks at all pods, so it is done once.
fn soft_spread<'a>(pod: &'a PodInfo, snapshot: &'a Snapshot) -> Vec<(&'a str, BTreeMap<&'a str, i64>)> {
    let soft = pod.spread.iter().filter(|constraint| constraint.when_unsatisfiable == "ScheduleAnyway");
    soft.map(|constraint| (constraint.topology_key.as_str(), spread_counts(pod, constraint, snapshot))).collect()
}

fn spread(node: &NodeInfo, soft: &[(&str, BTreeMap<&str, i64>)]) -> i64 {
    let here = soft.iter().filter_map(|(key, counts)| counts.get(node.labels.get(*key)?.as_str()));
    here.sum()
}

/// Stretches raw counts over 0..=100; with `reverse`, less is better. All equal is 0 (or 100): no node gains over another.
fn normalised(raw: Vec<i64>, reverse: bool) -> Vec<i64> {
    let highest = raw.iter().max().copied().unwrap_or(0);
    let scaled = |value: i64| if highest == 0 { 0 } else { value * 100 / highest };
    raw.into_iter().map(|value| if reverse { 100 - scaled(value) } else { scaled(value) }).collect()
}
