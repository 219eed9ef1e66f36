//! Three nodes behind a router that knows nothing of pods: packets between pods, to and from nodes, a lost device, a node that leaves.

use super::carry;
use super::door::{Door, enable_forwarding};
use super::testing::{Spaces, ask, inside, serve, sh};
use super::wanted::tests::config;
use crate::orchestrator::config::{AgentConfig, Fabric};
use k8s_openapi::api::core::v1::Node;
use serde_json::json;
use std::time::Duration;

/// Node `number` is 10.<number>.0.2 in a network of its own; its pods are 10.244.<number>.0/24.
fn configured(number: u32, fabric: Fabric) -> AgentConfig {
    AgentConfig {
        node_name: format!("node-{number}"),
        address: format!("10.{number}.0.2").parse().expect("an address"),
        fabric,
        ..config()
    }
}

fn node(number: u32) -> Node {
    let pods = format!("10.244.{number}.0/24");
    serde_json::from_value(json!({
        "metadata": {"name": format!("node-{number}")}, "spec": {"podCIDR": pods, "podCIDRs": [pods]},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("10.{number}.0.2")}]},
    }))
    .expect("a node")
}

async fn carried(door: &Door, number: u32, fabric: Fabric, cluster: &[Node]) {
    let own = format!("10.244.{number}.0/24").parse().ok();
    let outcome = carry(door, cluster.iter(), own, 1450, &configured(number, fabric)).await;
    outcome.unwrap_or_else(|error| panic!("{}", error.chain()));
}

/// As a part of the agent on that node would do it once.
fn settle(space: &str, number: u32, fabric: Fabric, cluster: &[Node]) {
    let cluster = cluster.to_vec();
    inside(space, async move {
        let door = Door::open().await.expect("netlink");
        enable_forwarding();
        carried(&door, number, fabric, &cluster).await;
    });
}

fn wire(router: &str, space: &str, pod: &str, number: u32) {
    sh(&format!("ip -n {router} link add n{number} type veth peer name eth0 netns {space}"));
    sh(&format!("ip -n {router} address add 10.{number}.0.1/24 dev n{number}"));
    sh(&format!("ip -n {router} link set n{number} up"));
    sh(&format!("ip -n {space} address add 10.{number}.0.2/24 dev eth0"));
    sh(&format!("ip -n {space} link set eth0 up"));
    sh(&format!("ip -n {space} route add default via 10.{number}.0.1"));
    // As the ptp plugin makes a pod.
    sh(&format!("ip -n {space} link add pod type veth peer name eth0 netns {pod}"));
    sh(&format!("ip -n {space} address add 10.244.{number}.1/32 dev pod"));
    sh(&format!("ip -n {space} link set pod up"));
    sh(&format!("ip -n {space} route add 10.244.{number}.5/32 dev pod"));
    sh(&format!("ip -n {pod} address add 10.244.{number}.5/32 dev eth0"));
    sh(&format!("ip -n {pod} link set eth0 up"));
    sh(&format!("ip -n {pod} route add 10.244.{number}.1 dev eth0 scope link"));
    sh(&format!("ip -n {pod} route add default via 10.244.{number}.1"));
}

#[test]
fn pods_reach_pods_through_a_network_that_carries_nodes_only() {
    let Some(spaces) = Spaces::make(&["router", "node1", "node2", "node3", "pod1", "pod2", "pod3"]) else { return };
    let name = |index: usize| spaces.0[index].as_str();
    sh(&format!("ip netns exec {} sysctl -qw net.ipv4.ip_forward=1", name(0)));
    for number in 1..=3 {
        wire(name(0), name(number), name(number + 3), number as u32);
        serve(name(number + 3), &format!("10.244.{number}.5:8080"), "pod");
    }
    let cluster = [node(1), node(2), node(3)];
    assert_ne!(ask(name(4), "10.244.2.5:8080"), "pod 10.244.1.5", "the router leads nowhere");
    for number in 1..=3 {
        settle(name(number), number as u32, Fabric::Routed, &cluster);
    }
    assert_eq!(ask(name(4), "10.244.2.5:8080"), "pod 10.244.1.5");
    assert_eq!(ask(name(6), "10.244.1.5:8080"), "pod 10.244.3.5");
    assert_eq!(ask(name(1), "10.244.3.5:8080"), "pod 10.244.1.0", "a node speaks as its end, which answers come back to");
    let shown = sh(&format!("ip -n {} -d link show kprov-vxlan", name(1)));
    for part in ["mtu 1450", "0a:6b:0a:01:00:02", "vxlan id 1 local 10.1.0.2", "dstport 8472 nolearning"] {
        assert!(shown.contains(part), "{part}:\n{shown}");
    }

    // What is whole is not touched; what somebody took away comes back by the kernel's own notice.
    let (space, all) = (name(1).to_string(), cluster.to_vec());
    inside(name(1), async move {
        let mut door = Door::open().await.expect("netlink");
        carried(&door, 1, Fabric::Routed, &all).await;
        let quiet = async |door: &mut Door| {
            tokio::time::sleep(Duration::from_millis(50)).await;
            door.forget_changes();
        };
        quiet(&mut door).await;
        carried(&door, 1, Fabric::Routed, &all).await;
        assert!(tokio::time::timeout(Duration::from_millis(50), door.changed()).await.is_err(), "nothing was there to do");
        for harm in [
            "link del kprov-vxlan",
            "neigh del 10.244.2.0 dev kprov-vxlan",
            "link set kprov-vxlan down",
            "address del 10.244.1.0/32 dev kprov-vxlan",
        ] {
            quiet(&mut door).await;
            sh(&format!("ip -n {space} {harm}"));
            tokio::time::timeout(Duration::from_secs(5), door.changed()).await.unwrap_or_else(|_| panic!("no notice of: {harm}"));
            carried(&door, 1, Fabric::Routed, &all).await;
            assert!(
                sh(&format!("ip -n {space} neigh show dev kprov-vxlan")).contains("10.244.2.0 lladdr 0a:6b:0a:02:00:02 PERMANENT"),
                "{harm}"
            );
        }
        quiet(&mut door).await;
        sh(&format!("bridge -n {space} fdb del 0a:6b:0a:02:00:02 dev kprov-vxlan dst 10.2.0.2"));
        tokio::time::timeout(Duration::from_secs(5), door.changed()).await.expect("a notice");
        carried(&door, 1, Fabric::Routed, &all).await;
    });
    assert_eq!(ask(name(4), "10.244.2.5:8080"), "pod 10.244.1.5");

    // A node that is gone is forgotten; the others go on.
    settle(name(1), 1, Fabric::Routed, &cluster[..2]);
    let fdb = sh(&format!("bridge -n {} fdb show dev kprov-vxlan", name(1)));
    assert!(fdb.contains("dst 10.2.0.2") && !fdb.contains("dst 10.3.0.2"), "{fdb}");
    assert!(!sh(&format!("ip -n {} route", name(1))).contains("10.244.3.0"));
    assert_eq!(ask(name(4), "10.244.2.5:8080"), "pod 10.244.1.5");

    // The other mode takes the device away and leaves others' things alone; and back.
    sh(&format!("ip -n {} route add 10.250.0.0/24 via 10.1.0.1", name(1)));
    settle(name(1), 1, Fabric::Switched, &[node(1)]);
    assert!(!sh(&format!("ip -n {} link", name(1))).contains("kprov-vxlan"));
    assert!(sh(&format!("ip -n {} route", name(1))).contains("10.250.0.0/24 via 10.1.0.1"));
    settle(name(1), 1, Fabric::Routed, &cluster);
    assert_eq!(ask(name(4), "10.244.3.5:8080"), "pod 10.244.1.5");
}

#[test]
fn a_nodes_own_call_to_a_service_comes_back_through_the_tunnel() {
    let Some(spaces) = Spaces::make(&["router", "node1", "node2", "pod1", "pod2"]) else { return };
    let name = |index: usize| spaces.0[index].as_str();
    sh(&format!("ip netns exec {} sysctl -qw net.ipv4.ip_forward=1", name(0)));
    for number in 1..=2 {
        wire(name(0), name(number), name(number + 2), number as u32);
        settle(name(number), number as u32, Fabric::Routed, &[node(1), node(2)]);
    }
    serve(name(4), "10.244.2.5:8080", "pod");
    crate::orchestrator::proxy::tests::serve_one(name(1), "10.1.0.2", "10.96.0.80", "10.244.2.5", Fabric::Routed);
    assert_eq!(ask(name(1), "10.96.0.80:80"), "pod 10.244.1.0");
    assert_eq!(ask(name(3), "10.96.0.80:80"), "pod 10.244.1.5");
    // By node port, from outside: hidden behind the node, in a tunnel whose outer packets are the node's own.
    assert_eq!(ask(name(0), "10.1.0.2:32000"), "pod 10.244.1.0");
}
