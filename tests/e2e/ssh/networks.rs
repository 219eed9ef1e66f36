//! Machines with a router between them.

use super::{assert_same, json};
use crate::rig::hosts::Hosts;

#[test]
fn machines_beyond_a_router_serve_too_and_an_address_stays_on_its_own_link() {
    let mut hosts = Hosts::new("routed");
    for last in [91, 92, 93] {
        hosts.root(last);
    }
    hosts.beyond(94);
    let before = hosts.inventories();
    let file = hosts.example(3, "      addresses: [10.99.0.200-10.99.0.201]\n");
    let file = file.to_str().expect("path");
    let up = json(&hosts.ok(&["up", file, "--yes", "-o", "json"]));
    assert_eq!(up["loadBalancers"][0]["address"], "10.99.0.200");

    // One pod on each machine: every answer crosses to the pod that gives it.
    let mut served = std::collections::BTreeSet::new();
    hosts.until(|| {
        let answer = hosts.http_get("10.99.0.200:80", "/").unwrap_or_default();
        if let Some(node) = answer.lines().find_map(|line| line.split_once(" on ")).map(|(_, node)| node.trim_end_matches('.')) {
            served.insert(node.to_string());
        }
        served.len() == 3
    });
    let answer = hosts.http_get("10.99.0.200:80", "/").expect("it answers");
    assert!(answer.split_once("Sharing /media with: ").is_some_and(|(_, names)| names.matches("web-").count() == 3), "{answer}");

    let has = |host: &str| !hosts.machines.inside(host, "ip -4 -o addr show to 10.99.0.200").stdout.is_empty();
    let agent = |host: &str, signal: &str| {
        let find = "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -q '^/usr/local/bin/kprov agent' && kill -SIGNAL ${p#/proc/}; done; true";
        hosts.machines.inside(host, &find.replace("SIGNAL", signal));
    };
    let (holder, other) = if has("host-92") { ("host-92", "host-93") } else { ("host-93", "host-92") };
    assert!(has(holder) && !has("host-94"));
    agent(holder, "STOP");
    hosts.until(|| has(other));
    assert!(!has("host-94"), "nobody hears it beyond the router");
    agent(holder, "CONT");
    hosts.ok(&["down", file, "--yes"]);
    assert_same(&before, &hosts.inventories());
}
