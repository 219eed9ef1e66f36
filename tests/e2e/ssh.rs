//! Machines that exist already: claimed, served from, and left exactly as they were found.

use crate::harness::text;
use crate::rig::hosts::Hosts;
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("not JSON ({error}): {text}"))
}

/// Line by line, so that a failure names what is too much or missing.
fn assert_same(before: &[String], after: &[String]) {
    for (before, after) in before.iter().zip(after) {
        let lines = |text: &str| text.lines().map(str::to_string).collect::<Vec<_>>();
        let (before, after) = (lines(before), lines(after));
        let more: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
        let less: Vec<_> = before.iter().filter(|line| !after.contains(line)).collect();
        assert!(more.is_empty() && less.is_empty(), "left behind: {more:#?}\ntaken along: {less:#?}");
    }
}

fn three_hosts(name: &str) -> Hosts {
    let mut hosts = Hosts::new(name);
    for last in [11, 12, 13] {
        hosts.root(last);
    }
    hosts
}

#[test]
fn hosts_become_a_serving_cluster_and_are_left_as_they_were() {
    let hosts = three_hosts("own");
    let before = hosts.inventories();
    let blueprint = hosts.example(2, "");
    let file = blueprint.to_str().expect("path");
    let up = json(&hosts.ok(&["up", file, "--yes", "-o", "json"]));
    assert_eq!(up["cluster"], hosts.name.as_str());
    let nodes = hosts.kubectl_ok(&["get", "nodes", "--no-headers"]);
    assert_eq!(nodes.lines().filter(|line| line.contains(" Ready ")).count(), 3, "{nodes}");
    let pods = hosts.kubectl_ok(&["get", "pods", "-n", "shop", "--no-headers"]);
    assert_eq!(pods.lines().filter(|line| line.contains("1/1") && line.contains("Running")).count(), 3, "{pods}");
    let again = hosts.kprov(&["plan", file, "--exit-code"]);
    assert_eq!(again.status.code(), Some(0), "plan after up is empty: {}", text(&again));
    hosts.ok(&["down", &hosts.name, "--yes"]);
    assert_same(&before, &hosts.inventories());
}
