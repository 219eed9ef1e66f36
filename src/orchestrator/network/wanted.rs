//! What this node's network should be, from the cluster's Nodes alone: routes to the other nodes' pods and the CNI configuration.

use crate::orchestrator::config::AgentConfig;
use ipnet::{IpNet, Ipv4Net};
use k8s_openapi::api::core::v1::Node;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

/// Where packets of a route go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    /// The node that has these pods, on the same network. A node behind a router would get a tunnel device here instead (VXLAN);
    /// nothing else of this room would change.
    Via(Ipv4Addr),
    /// The loopback device: it makes service addresses routable, so that a packet lives long enough to be rewritten. The address is
    /// what this node's own processes appear as.
    Loopback(Ipv4Addr),
}

pub type Routes = BTreeMap<Ipv4Net, Hop>;

/// One route for each other node that has pods and an address, one for all services.
pub fn routes<'a>(nodes: impl IntoIterator<Item = &'a Node>, config: &AgentConfig) -> Routes {
    let mut routes = Routes::new();
    for node in nodes {
        if node.metadata.name.as_deref() == Some(&config.node_name) || node.metadata.deletion_timestamp.is_some() {
            continue;
        }
        if let (Some(pods), Some(address)) = (pod_cidr(node), internal_address(node)) {
            routes.insert(pods, Hop::Via(address));
        }
    }
    if let (IpNet::V4(services), IpAddr::V4(address)) = (config.service_cidr, config.address) {
        routes.insert(services.trunc(), Hop::Loopback(address));
    }
    routes
}

/// The node's IPv4 range for pods.
pub fn pod_cidr(node: &Node) -> Option<Ipv4Net> {
    let spec = node.spec.as_ref()?;
    let ranges = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr);
    ranges.filter_map(|range| range.parse::<Ipv4Net>().ok()).map(|range| range.trunc()).next()
}

fn internal_address(node: &Node) -> Option<Ipv4Addr> {
    let addresses = node.status.as_ref()?.addresses.iter().flatten();
    addresses.filter(|address| address.type_ == "InternalIP").find_map(|address| address.address.parse().ok())
}

/// The CNI network list for containerd: a veth pair per pod with the node as its router. No bridge, so no bridge netfilter either.
pub fn conflist(pods: Ipv4Net, mtu: u32, port_mapping: bool) -> String {
    let mut plugins = vec![json!({
        "type": "ptp",
        // Masquerading is the service proxy's: it does it with nftables, the plugin would need iptables.
        "ipMasq": false,
        "mtu": mtu,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": pods.to_string()}]], "routes": [{"dst": "0.0.0.0/0"}]},
    })];
    if port_mapping {
        plugins.push(json!({"type": "portmap", "capabilities": {"portMappings": true}}));
    }
    let list = json!({"cniVersion": "1.0.0", "name": "kprov", "plugins": plugins});
    format!("{list:#}\n")
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn config() -> AgentConfig {
        serde_json::from_value(json!({
            "nodeName": "worker-1", "address": "10.88.0.11", "api": "https://10.88.0.10:6443", "data": "/var/lib/kprov", "pki": "/etc/kprov/pki",
            "serviceCidr": "10.96.0.0/16", "podCidr": "10.244.0.0/16", "dnsAddress": "10.96.0.10", "clusterDomain": "cluster.local",
            "containerdSocket": "/run/containerd/containerd.sock", "providerId": "kprov-local://shop/worker-1"
        }))
        .expect("a whole configuration")
    }

    fn node(name: &str, pods: &str, address: &str) -> Node {
        let mut object = json!({"metadata": {"name": name}, "spec": {}, "status": {"addresses": [{"type": "Hostname", "address": name}]}});
        if !pods.is_empty() {
            object["spec"] = json!({"podCIDR": pods, "podCIDRs": [pods]});
        }
        if !address.is_empty() {
            object["status"]["addresses"].as_array_mut().expect("a list").push(json!({"type": "InternalIP", "address": address}));
        }
        serde_json::from_value(object).expect("a node")
    }

    fn check(nodes: &[Node], expected: &[(&str, Hop)]) {
        let mut expected: Routes = expected.iter().map(|(range, hop)| (range.parse().expect("a range"), *hop)).collect();
        expected.insert("10.96.0.0/16".parse().expect("a range"), Hop::Loopback(Ipv4Addr::new(10, 88, 0, 11)));
        assert_eq!(routes(nodes, &config()), expected);
    }

    #[test]
    fn every_other_node_with_pods_and_an_address_gets_a_route() {
        let via = |last| Hop::Via(Ipv4Addr::new(10, 88, 0, last));
        check(&[], &[]);
        check(
            &[
                node("worker-1", "10.244.1.0/24", "10.88.0.11"),
                node("worker-2", "10.244.2.0/24", "10.88.0.12"),
                node("control-1", "10.244.0.0/24", "10.88.0.10"),
                node("young", "", "10.88.0.13"),
                node("nowhere", "10.244.4.0/24", ""),
                node("odd", "fd00::/64", "fd01::1"),
            ],
            &[("10.244.0.0/24", via(10)), ("10.244.2.0/24", via(12))],
        );
    }

    #[test]
    fn a_node_being_removed_loses_its_route() {
        let mut leaving = node("worker-2", "10.244.2.0/24", "10.88.0.12");
        leaving.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
        check(&[leaving], &[]);
    }

    #[test]
    fn containerd_is_told_this_nodes_range() {
        let list: serde_json::Value = serde_json::from_str(&conflist("10.244.1.0/24".parse().expect("a range"), 1450, true)).expect("JSON");
        assert_eq!(list["plugins"][0]["ipam"]["ranges"][0][0]["subnet"], "10.244.1.0/24");
        assert_eq!(list["plugins"][0]["mtu"], 1450);
        assert_eq!(list["plugins"][1]["type"], "portmap");
        assert!(!conflist("10.244.1.0/24".parse().expect("a range"), 1450, false).contains("portmap"));
    }
}
