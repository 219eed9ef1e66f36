//! Which machines share a link, and what follows from it: how pods travel, and where a load balancer's address can live. Pure.

use crate::blueprint::hosts::range;
use crate::providers::Fabric;
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// The link that each host's own address is on, by its place; hosts that never answered are left out.
pub type Networks = BTreeMap<String, Ipv4Net>;

/// Tunnels work everywhere: many a virtual machine's network drops all addresses but the machine's own, and says nothing. `direct`: this
/// one does not, and machines on one link hand pods' packets to each other; as soon as one is beyond a router, all of them use tunnels.
pub fn fabric<'a>(direct: bool, hosts: impl IntoIterator<Item = &'a str>, networks: &Networks) -> Fabric {
    let links: BTreeSet<&Ipv4Net> = hosts.into_iter().filter_map(|host| networks.get(host)).collect();
    if direct && links.len() <= 1 { Fabric::Switched } else { Fabric::Routed }
}

/// Whether a machine on one of these links can announce the address. What is on nobody's link is led to the machines by something else.
pub fn reaches<'a>(address: Ipv4Addr, links: impl IntoIterator<Item = &'a Ipv4Net>, networks: &Networks) -> bool {
    links.into_iter().any(|link| link.contains(&address)) || !networks.values().any(|link| link.contains(&address))
}

/// Of `addresses` (single ones, or ranges `a-b`), what the host may announce.
pub fn announced(addresses: &[String], host: &str, networks: &Networks) -> Vec<String> {
    let Some(own) = networks.get(host) else { return addresses.to_vec() };
    let of_text = |text: &String| {
        let all = range(text).unwrap_or_default();
        let some: Vec<String> =
            all.iter().filter(|address| reaches(**address, [own], networks)).map(|address| address.to_string()).collect();
        if some.len() == all.len() { vec![text.clone()] } else { some }
    };
    addresses.iter().flat_map(of_text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks() -> Networks {
        let all = [("a", "10.0.0.0/24"), ("b", "10.0.0.0/24"), ("c", "10.0.1.0/24"), ("d", "192.0.2.7/32")];
        all.into_iter().map(|(host, link)| (host.to_string(), link.parse().unwrap())).collect()
    }

    #[test]
    fn pods_travel_in_tunnels_unless_one_link_carries_them_as_they_are() {
        let check = |hosts: &[&str], expected| {
            assert_eq!(fabric(true, hosts.iter().copied(), &networks()), expected, "{hosts:?}");
            assert_eq!(fabric(false, hosts.iter().copied(), &networks()), Fabric::Routed, "{hosts:?}");
        };
        check(&["a", "b"], Fabric::Switched);
        check(&["a", "b", "unknown"], Fabric::Switched);
        check(&["a", "b", "c"], Fabric::Routed);
        check(&["a", "d"], Fabric::Routed);
    }

    #[test]
    fn an_address_is_announced_by_machines_on_its_link_alone() {
        let check = |host: &str, addresses: &[&str], expected: &[&str]| {
            let addresses: Vec<String> = addresses.iter().map(|text| text.to_string()).collect();
            assert_eq!(announced(&addresses, host, &networks()), expected, "{host}");
        };
        check("a", &["10.0.0.40-10.0.0.49", "10.0.1.40"], &["10.0.0.40-10.0.0.49"]);
        check("c", &["10.0.0.40-10.0.0.49", "10.0.1.40"], &["10.0.1.40"]);
        check("c", &["10.0.0.254-10.0.1.1"], &["10.0.1.0", "10.0.1.1"]);
        check("c", &["198.51.100.1-198.51.100.9"], &["198.51.100.1-198.51.100.9"]);
        check("unknown", &["10.0.0.40"], &["10.0.0.40"]);
    }
}
