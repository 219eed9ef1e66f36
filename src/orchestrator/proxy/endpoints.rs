//! Services and EndpointSlices -> where each port of each service leads, as seen from this node.

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

/// The label that names a slice's service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// A service with this label is served by somebody else.
const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    fn parse(text: Option<&str>) -> Option<Protocol> {
        match text.unwrap_or("TCP") {
            "TCP" => Some(Protocol::Tcp),
            "UDP" => Some(Protocol::Udp),
            "SCTP" => Some(Protocol::Sctp),
            _ => None,
        }
    }
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

/// One port of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// `shop/web`.
    pub service: String,
    pub protocol: Protocol,
    pub cluster_ip: Ipv4Addr,
    pub port: u16,
    pub node_port: Option<u16>,
    /// External and load balancer addresses that lead here too.
    pub external_ips: BTreeSet<Ipv4Addr>,
    /// Seconds for which a client keeps its endpoint.
    pub affinity_seconds: Option<u32>,
    /// Traffic from outside the cluster stays on the node it reached, and keeps its client address.
    pub external_local: bool,
    /// Traffic from inside the cluster stays on its node.
    pub internal_local: bool,
    /// Ready ones anywhere; where there are none, those that end but still serve.
    pub endpoints: BTreeSet<SocketAddrV4>,
    /// The same, of this node alone.
    pub local_endpoints: BTreeSet<SocketAddrV4>,
}

/// Every port that needs serving. `hidden` is the address of the cluster's DNS, which each node answers itself.
pub fn ports(services: &[Arc<Service>], slices: &[Arc<EndpointSlice>], node: &str, hidden: std::net::IpAddr) -> Vec<Port> {
    let mut by_service: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices {
        let name = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
        if let (Some(namespace), Some(name), "IPv4") = (&slice.metadata.namespace, name, slice.address_type.as_str()) {
            by_service.entry((namespace, name)).or_default().push(slice);
        }
    }
    let mut ports = Vec::new();
    for service in services {
        let (Some(namespace), Some(name)) = (&service.metadata.namespace, &service.metadata.name) else { continue };
        let slices = by_service.get(&(namespace.as_str(), name.as_str())).map_or(&[][..], Vec::as_slice);
        ports.extend(service_ports(service, &format!("{namespace}/{name}"), slices, node, hidden));
    }
    ports
}

fn service_ports(service: &Service, title: &str, slices: &[&EndpointSlice], node: &str, hidden: std::net::IpAddr) -> Vec<Port> {
    let Some(spec) = &service.spec else { return vec![] };
    let elsewhere = service.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(OTHER_PROXY));
    // Headless services ("None") and names for external hosts have no address of their own.
    let Some(cluster_ip) = spec.cluster_ip.as_deref().and_then(|address| address.parse::<Ipv4Addr>().ok()) else { return vec![] };
    if elsewhere || hidden == cluster_ip || spec.type_.as_deref() == Some("ExternalName") {
        return vec![];
    }
    let ingress = service.status.as_ref().and_then(|status| status.load_balancer.as_ref()).and_then(|balancer| balancer.ingress.as_ref());
    // A balancer that wants to see the traffic itself says ipMode Proxy.
    let ingress = ingress
        .into_iter()
        .flatten()
        .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip.as_ref());
    let external_ips: BTreeSet<Ipv4Addr> =
        spec.external_ips.iter().flatten().chain(ingress).filter_map(|address| address.parse().ok()).collect();
    let affinity = spec.session_affinity.as_deref() == Some("ClientIP");
    let seconds = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
    let make = |port: &ServicePort| {
        let all = endpoints(slices, port, |_| true);
        let local = endpoints(slices, port, |endpoint| endpoint.node_name.as_deref() == Some(node));
        Some(Port {
            service: title.into(),
            protocol: Protocol::parse(port.protocol.as_deref())?,
            cluster_ip,
            port: u16::try_from(port.port).ok()?,
            node_port: port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0),
            external_ips: external_ips.clone(),
            // Three hours are upstream's default.
            affinity_seconds: affinity.then(|| seconds.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(10_800)),
            external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            endpoints: all,
            local_endpoints: local,
        })
    };
    spec.ports.iter().flatten().filter_map(make).collect()
}

/// The usable endpoints of one port among those that `wanted` picks.
fn endpoints(slices: &[&EndpointSlice], port: &ServicePort, wanted: impl Fn(&Endpoint) -> bool) -> BTreeSet<SocketAddrV4> {
    let (mut ready, mut ending) = (BTreeSet::new(), BTreeSet::new());
    for slice in slices {
        let same = |candidate: &&k8s_openapi::api::discovery::v1::EndpointPort| {
            candidate.name.as_deref().unwrap_or("") == port.name.as_deref().unwrap_or("")
                && Protocol::parse(candidate.protocol.as_deref()) == Protocol::parse(port.protocol.as_deref())
        };
        let number = slice.ports.iter().flatten().find(same).and_then(|port| u16::try_from(port.port?).ok());
        let Some(number) = number else { continue };
        for endpoint in slice.endpoints.iter().filter(|endpoint| wanted(endpoint)) {
            let Some(address) = endpoint.addresses.first().and_then(|address| address.parse().ok()) else { continue };
            let conditions = endpoint.conditions.as_ref();
            let is_ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
            let is_serving = conditions.and_then(|conditions| conditions.serving).unwrap_or(is_ready);
            let is_ending = conditions.and_then(|conditions| conditions.terminating).unwrap_or(false);
            if is_ready {
                ready.insert(SocketAddrV4::new(address, number));
            } else if is_serving && is_ending {
                ending.insert(SocketAddrV4::new(address, number));
            }
        }
    }
    if ready.is_empty() { ending } else { ready }
}
