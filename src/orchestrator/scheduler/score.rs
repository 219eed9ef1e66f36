//! Which of the fitting nodes is best? Each score is 0..=100; the weights are upstream's. Pure.

use super::filter::{spread_counts, tolerated};
use super::labels::node_term_matches;
use super::pod::PodInfo;
use super::snapshot::{NodeInfo, Snapshot};

/// Higher is better. `nodes` are the candidates; scores that compare nodes with each other are normalised over them.
pub fn totals(pod: &PodInfo, nodes: &[&NodeInfo], snapshot: &Snapshot) -> Vec<i64> {
    let preferred = normalised(nodes.iter().map(|node| preferred_nodes(pod, node)).collect(), false);
    let taints = normalised(nodes.iter().map(|node| disliked_taints(pod, node)).collect(), true);
    let siblings = normalised(nodes.iter().map(|node| siblings(pod, node)).collect(), true);
    let spread = normalised(nodes.iter().map(|node| spread(pod, node, snapshot)).collect(), true);
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
    let shares: Vec<i64> = ["cpu", "memory"].iter().map(|resource| (100.0 * (1.0 - used_share(pod, node, resource))) as i64).collect();
    shares.iter().sum::<i64>() / shares.len() as i64
}

/// Cpu and memory used in equal shares leaves no node with one of them stranded.
fn balanced(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let difference = (used_share(pod, node, "cpu") - used_share(pod, node, "memory")).abs();
    (100.0 * (1.0 - difference)) as i64
}

/// Pods that ask for nothing still cost something: upstream's 100m and 200Mi stand in, or all of them would pile up on one node.
fn used_share(pod: &PodInfo, node: &NodeInfo, resource: &str) -> f64 {
    let floor = if resource == "cpu" { 100 } else { 200 << 20 };
    let asked = |pod: &PodInfo| pod.requests.get(resource).copied().filter(|amount| *amount > 0).unwrap_or(floor);
    let allocatable = node.allocatable.get(resource).copied().unwrap_or(0);
    if allocatable == 0 {
        return 1.0;
    }
    let taken: u64 = node.pods.values().map(|other| asked(other)).sum();
    ((taken + asked(pod)) as f64 / allocatable as f64).min(1.0)
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

fn spread(pod: &PodInfo, node: &NodeInfo, snapshot: &Snapshot) -> i64 {
    pod.spread
        .iter()
        .filter(|constraint| constraint.when_unsatisfiable == "ScheduleAnyway")
        .filter_map(|constraint| {
            let domain = node.labels.get(&constraint.topology_key)?;
            spread_counts(pod, constraint, snapshot).get(domain.as_str()).copied()
        })
        .sum()
}

/// Stretches raw counts over 0..=100; with `reverse`, less is better. All equal is 0 (or 100): no node gains over another.
fn normalised(raw: Vec<i64>, reverse: bool) -> Vec<i64> {
    let highest = raw.iter().max().copied().unwrap_or(0);
    let scaled = |value: i64| if highest == 0 { 0 } else { value * 100 / highest };
    raw.into_iter().map(|value| if reverse { 100 - scaled(value) } else { scaled(value) }).collect()
}
