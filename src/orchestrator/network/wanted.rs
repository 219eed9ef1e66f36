//! What this node's network should be, from the cluster's Nodes alone: routes to the other nodes' pods, the tunnel that carries them where
//! the network between nodes does not, and the CNI configuration.

use crate::orchestrator::config::{AgentConfig, Fabric};
use ipnet::{IpNet, Ipv4Net};
use k8s_openapi::api::core::v1::Node;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

/// Where packets of a route go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    /// The node that has these pods, on the same network.
    Via(Ipv4Addr),
    /// The tunnel's end on the node that has these pods.
    Tunnel(Ipv4Addr),
    /// The loopback device: it makes service addresses routable, so that a packet lives long enough to be rewritten. The address is
    /// what this node's own processes appear as.
    Loopback(Ipv4Addr),
}

pub type Routes = BTreeMap<Ipv4Net, Hop>;

/// A point-to-multipoint VXLAN device: each node's end has the network address of its pods' range, which no pod can have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// This node's own address: outer packets come from there.
    pub node: Ipv4Addr,
    /// This node's end: what its own processes appear as to pods elsewhere, so that answers come back through the tunnel.
    pub end: Ipv4Addr,
    /// The other ends, with the node that each is on.
    pub peers: BTreeMap<Ipv4Addr, Ipv4Addr>,
}

/// The tunnel's name on every node.
pub const TUNNEL: &str = "kprov-vxlan";
/// Outer IPv4, UDP and VXLAN headers, and the inner Ethernet header.
pub const TUNNEL_OVERHEAD: u32 = 50;

/// The Ethernet address of a node's end: everybody can work it out, so nobody has to announce it. Locally administered, unicast.
pub fn hardware_address(node: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = node.octets();
    [0x0a, b'k', a, b, c, d]
}

/// The tunnel that this node should have; none on a network that carries pods by itself, nor before this node has pods.
pub fn tunnel<'a>(nodes: impl IntoIterator<Item = &'a Node>, own: Option<Ipv4Net>, config: &AgentConfig) -> Option<Tunnel> {
    let IpAddr::V4(node) = config.address else { return None };
    let end = own.filter(|_| config.fabric == Fabric::Routed)?.network();
    let peers = peers(nodes, config).map(|(pods, address)| (pods.network(), address)).collect();
    Some(Tunnel { node, end, peers })
}

/// One route for each other node that has pods and an address, one for all services.
pub fn routes<'a>(nodes: impl IntoIterator<Item = &'a Node>, own: Option<Ipv4Net>, config: &AgentConfig) -> Routes {
    let hop = |(pods, address): (Ipv4Net, Ipv4Addr)| match config.fabric {
        Fabric::Switched => Some((pods, Hop::Via(address))),
        Fabric::Routed => own.map(|_| (pods, Hop::Tunnel(pods.network()))),
    };
    let mut routes: Routes = peers(nodes, config).filter_map(hop).collect();
    if let (IpNet::V4(services), IpAddr::V4(address)) = (config.service_cidr, config.address) {
        routes.insert(services.trunc(), Hop::Loopback(address));
    }
    routes
}

/// Every other node that stays, has pods and an address.
fn peers<'a>(nodes: impl IntoIterator<Item = &'a Node>, config: &AgentConfig) -> impl Iterator<Item = (Ipv4Net, Ipv4Addr)> {
    let other = |node: &&Node| node.metadata.name.as_deref() != Some(&config.node_name) && node.metadata.deletion_timestamp.is_none();
    nodes.into_iter().filter(other).filter_map(|node| Some((pod_cidr(node)?, internal_address(node)?)))
}

/// The node's IPv4 range for pods.
pub fn pod_cidr(node: &Node) -> Option<Ipv4Net> {
    let spec = node.spec.as_ref()?;
    let ranges = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr);
    ranges.filter_map(|range| range.parse::<Ipv4Net>().ok()).map(|range| range.trunc()).next()
}

pub fn internal_address(node: &Node) -> Option<Ipv4Addr> {
    let addresses = node.status.as_ref()?.addresses.iter().flatten();
    addresses.filter(|address| address.type_ == "InternalIP").find_map(|address| address.address.parse().ok())
}

/// What the plugins of Ubuntu 22.04 (0.9) speak, and all newer ones.
const CNI_VERSION: &str = "0.4.0";
/// Which pod has which address: a file each.
const ADDRESSES: &str = "/var/lib/kprov/cni";

/// The CNI network list for containerd: a veth pair per pod with the node as its router. No bridge, so no bridge netfilter either.
pub fn conflist(pods: Ipv4Net, mtu: u32, port_mapping: bool) -> String {
    let mut plugins = vec![json!({
        "type": "ptp",
        // Masquerading is the service proxy's: it does it with nftables, the plugin would need iptables.
        "ipMasq": false,
        "mtu": mtu,
        "ipam": {"type": "host-local", "dataDir": ADDRESSES, "ranges": [[{"subnet": pods.to_string()}]], "routes": [{"dst": "0.0.0.0/0"}]},
    })];
    if port_mapping {
        plugins.push(json!({"type": "portmap", "capabilities": {"portMappings": true}}));
    }
    let list = json!({"cniVersion": CNI_VERSION, "name": "kprov", "plugins": plugins});
    format!("{list:#}\n")
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn config() -> AgentConfig {
        serde_json::from_value(json!({
            "nodeName": "worker-1", "address": "10.88.0.11", "api": "https://10.88.0.10:6443", "data": "/var/lib/kprov", "pki": "/etc/kprov/pki",
            "serviceCidr": "10.96.0.0/16", "podCidr": "10.244.0.0/16", "dnsAddress": "10.96.0.10", "clusterDomain": "cluster.local",
            "containerdSocket": "/run/kprov/containerd/containerd.sock", "providerId": "kprov-local://shop/worker-1"
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
        assert_eq!(routes(nodes, OWN.parse().ok(), &config()), expected);
    }

    const OWN: &str = "10.244.1.0/24";

    #[test]
    fn where_the_network_carries_nodes_only_pods_travel_between_the_tunnels_ends() {
        let routed = AgentConfig { fabric: Fabric::Routed, ..config() };
        let nodes = [
            node("worker-1", OWN, "10.88.0.11"),
            node("worker-2", "10.244.2.0/24", "10.88.1.12"),
            node("young", "", "10.88.1.13"),
            node("nowhere", "10.244.4.0/24", ""),
        ];
        let own = OWN.parse().ok();
        let end = |third| Ipv4Addr::new(10, 244, third, 0);
        let expected =
            Tunnel { node: Ipv4Addr::new(10, 88, 0, 11), end: end(1), peers: BTreeMap::from([(end(2), Ipv4Addr::new(10, 88, 1, 12))]) };
        assert_eq!(tunnel(&nodes, own, &routed), Some(expected));
        assert_eq!(tunnel(&nodes, own, &config()), None, "a switched network needs none");
        assert_eq!(tunnel(&nodes, None, &routed), None, "a node without pods has no end yet");
        let pods = "10.244.2.0/24".parse().expect("a range");
        assert_eq!(routes(&nodes, own, &routed)[&pods], Hop::Tunnel(end(2)));
        assert!(!routes(&nodes, None, &routed).contains_key(&pods));
        assert_eq!(hardware_address(Ipv4Addr::new(10, 88, 1, 12)), [0x0a, 0x6b, 10, 88, 1, 12]);
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
