//! The one firewall policy of every cloud: what may reach a cluster's machines, and why. Pure; each provider writes it in its own words.

use super::resources::LoadBalancerSpec;
use super::{Delivery, HEALTH_PORT};
use crate::blueprint::schema::Access;
use crate::error::{Error, Result};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::BTreeSet;

pub const SSH_PORT: u16 = 22;
pub const API_PORT: u16 = 6443;

/// Something that may come in; everything else may not. Answers always go out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Unique in the policy, fit for a cloud's names.
    pub name: &'static str,
    pub from: From,
    pub protocol: Protocol,
    /// Sorted; all ports for `Protocol::Any`.
    pub ports: Vec<u16>,
    pub why: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// `spec.access.from`.
    Ranges(Vec<IpNet>),
    /// The cluster's own machines.
    Cluster,
    /// Whoever the load balancers serve: everybody, or what stands for the balancers themselves where a cloud can name that.
    Balancers,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Any,
    Tcp,
    Udp,
}

/// Both families: everybody.
pub fn everybody() -> Vec<IpNet> {
    vec![IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())]
}

/// What the machines let in. Nothing is open that the blueprint does not name.
pub fn machines(access: &Access, balancers: &[LoadBalancerSpec], delivery: Delivery) -> Vec<Rule> {
    let ranges: BTreeSet<IpNet> = access.from.iter().map(IpNet::trunc).collect();
    let from = || From::Ranges(ranges.iter().copied().collect());
    let mut rules = vec![Rule {
        name: "cluster",
        from: From::Cluster,
        protocol: Protocol::Any,
        ports: vec![],
        why: "machines of the cluster reach each other",
    }];
    if !ranges.is_empty() {
        rules.push(Rule { name: "ssh", from: from(), protocol: Protocol::Tcp, ports: vec![SSH_PORT], why: "spec.access.from: SSH" });
        rules.push(Rule { name: "api", from: from(), protocol: Protocol::Tcp, ports: vec![API_PORT], why: "spec.access.from: the API" });
    }
    rules.extend(listeners(balancers, delivery));
    // One that sends to node ports asks at the machines' own addresses; a node port of UDP cannot be asked.
    if delivery == Delivery::NodePort && rules.iter().any(|rule| rule.protocol == Protocol::Udp) {
        rules.push(Rule {
            name: "health",
            from: From::Balancers,
            protocol: Protocol::Tcp,
            ports: vec![HEALTH_PORT],
            why: "load balancers ask whether a machine serves UDP",
        });
    }
    rules
}

/// What the load balancers' listeners let in: one rule per protocol in use. `delivery` says which port a packet still carries.
pub fn listeners(balancers: &[LoadBalancerSpec], delivery: Delivery) -> Vec<Rule> {
    let of = |protocol: &'static str| {
        let listeners = balancers.iter().flat_map(|balancer| &balancer.listeners).filter(move |listener| listener.protocol == protocol);
        let ports: BTreeSet<u16> = listeners
            .map(|listener| match delivery {
                Delivery::NodePort => listener.node_port,
                Delivery::Address => listener.port,
            })
            .collect();
        ports.into_iter().collect::<Vec<u16>>()
    };
    let rule =
        |name, protocol, ports| Rule { name, from: From::Balancers, protocol, ports, why: "what the load balancers' listeners carry" };
    let both = [rule("listeners-tcp", Protocol::Tcp, of("TCP")), rule("listeners-udp", Protocol::Udp, of("UDP"))];
    both.into_iter().filter(|rule| !rule.ports.is_empty()).collect()
}

/// A cloud's machines are reached over the internet: with nobody let in, kprov itself could not reach them either.
pub fn check(access: &Access) -> Result<()> {
    if !access.from.is_empty() {
        return Ok(());
    }
    Err(Error::input("could not reach the machines: spec.access.from is empty, so nothing may connect to SSH and the API")
        .hint("add this host's public address to the blueprint, e.g. access: {from: [192.0.2.7/32]}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::resources::ListenerSpec;

    fn balancer(ports: &[(u16, &str, u16)]) -> LoadBalancerSpec {
        let listener = |(port, protocol, node_port): &(u16, &str, u16)| ListenerSpec {
            port: *port,
            protocol: (*protocol).into(),
            node_port: *node_port,
        };
        LoadBalancerSpec { name: "web".into(), listeners: ports.iter().map(listener).collect(), machines: vec![] }
    }

    fn access(ranges: &[&str]) -> Access {
        Access { from: ranges.iter().map(|range| range.parse().expect("a range")).collect() }
    }

    /// One line per rule: name, from, protocol, ports.
    fn check_lines(rules: &[Rule], expected: &[&str]) {
        let line = |rule: &Rule| {
            let from = match &rule.from {
                From::Ranges(ranges) => ranges.iter().map(IpNet::to_string).collect::<Vec<_>>().join(","),
                From::Cluster => "cluster".into(),
                From::Balancers => "balancers".into(),
            };
            format!("{} {from} {:?} {:?}", rule.name, rule.protocol, rule.ports)
        };
        assert_eq!(rules.iter().map(line).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn only_what_the_blueprint_names_comes_in() {
        let access = access(&["192.0.2.9/24", "2001:db8::/32"]);
        let balancers = [balancer(&[(443, "TCP", 32001), (80, "TCP", 32000), (53, "UDP", 30053)])];
        let cluster = "cluster cluster Any []";
        let ssh = "ssh 192.0.2.0/24,2001:db8::/32 Tcp [22]";
        let api = "api 192.0.2.0/24,2001:db8::/32 Tcp [6443]";
        let node_ports = ["listeners-tcp balancers Tcp [32000, 32001]", "listeners-udp balancers Udp [30053]"];
        let health = "health balancers Tcp [10256]";
        check_lines(&machines(&access, &balancers, Delivery::NodePort), &[cluster, ssh, api, node_ports[0], node_ports[1], health]);
        check_lines(
            &machines(&access, &[balancer(&[(80, "TCP", 32000)])], Delivery::NodePort),
            &[cluster, ssh, api, "listeners-tcp balancers Tcp [32000]"],
        );
        check_lines(
            &listeners(&balancers, Delivery::Address),
            &["listeners-tcp balancers Tcp [80, 443]", "listeners-udp balancers Udp [53]"],
        );
    }

    #[test]
    fn without_access_only_the_cluster_reaches_itself_and_check_says_so() {
        let nobody = access(&[]);
        check_lines(&machines(&nobody, &[], Delivery::NodePort), &["cluster cluster Any []"]);
        let error = check(&nobody).expect_err("nobody could connect");
        assert_eq!(error.kind, crate::error::Kind::Input);
        assert!(!error.hints().is_empty() && check(&access(&["192.0.2.1/32"])).is_ok());
    }
}
