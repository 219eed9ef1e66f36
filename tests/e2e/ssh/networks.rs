//! Machines with a router between them.

use super::assert_same;
use crate::harness::{Operated, json, until};
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

    // Pods everywhere: now and then an answer comes from beyond the router.
    hosts.kubectl_ok(&["scale", "deployment/web", "-n", "shop", "--replicas=0"]);
    until("no pod of the shop is left", || hosts.kubectl_ok(&["get", "pods", "-n", "shop", "-o", "name"]).is_empty());
    hosts.kubectl_ok(&["scale", "deployment/web", "-n", "shop", "--replicas=3"]);
    hosts.kubectl_ok(&["rollout", "status", "deployment/web", "-n", "shop", "--timeout=60s"]);
    let names = hosts.kubectl_ok(&["get", "pods", "-n", "shop", "-o", "jsonpath={range .items[*]}{.metadata.name}={.spec.nodeName} {end}"]);
    let beyond = names.split(' ').find_map(|pod| pod.strip_suffix("=worker-3")).unwrap_or_else(|| panic!("no pod is there: {names}"));
    until("a pod beyond the router answers", || {
        hosts.http_get("10.99.0.200:80", "/").is_ok_and(|answer| answer.contains(&format!("Hello from {beyond}")))
    });
    let files = "ls /var/lib/kprov/filesystems/media/*";
    until("pods beyond the router write to the share", || {
        String::from_utf8_lossy(&hosts.machines.inside("host-94", files).stdout).matches(".replica").count() == 3
    });

    let has = |host: &str| hosts.has_address(host, "10.99.0.200");
    let (holder, other) = if has("host-92") { ("host-92", "host-93") } else { ("host-93", "host-92") };
    assert!(has(holder) && !has("host-94"));
    hosts.signal_agent(holder, "STOP");
    until("the other host on the link takes the address", || has(other));
    assert!(!has("host-94"), "nobody hears it beyond the router");
    hosts.signal_agent(holder, "CONT");
    hosts.ok(&["down", file, "--yes"]);
    assert_same(&before, &hosts.inventories());
}
