//! What should stand in the kernel's nftables table, as data, and the script that turns one table into another.
//!
//! The kernel's listing is never read back: its text form changes between versions of nft, and broke others that parsed it. What was
//! written last is remembered; whenever that is in doubt, the whole table is written anew.

use super::endpoints::{Port, Protocol};
use crate::orchestrator::config::{Fabric, HEALTH_PORT};
use crate::orchestrator::network::wanted::TUNNEL;
use ipnet::IpNet;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddrV4};

/// The proxy's own table; nothing outside of it is touched.
pub const TABLE: &str = "ip kprov";
/// Upstream's bit for "comes from outside: answers must return through this node".
const MASQUERADE: &str = "0x4000";

/// Where clouds tell a machine's credentials to whoever asks from it: no pod may. Some have their resolver there, too: names may be asked for.
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// The network as the rules need to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    pub pods: IpNet,
    pub services: IpNet,
    pub dns: std::net::IpAddr,
    /// Node ports answer on this address alone.
    pub node: std::net::IpAddr,
    pub fabric: Fabric,
}

/// One table. Everything is in the order of its name, so equal tables are equal scripts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Chains that are there for ports of services, with their rules.
    chains: BTreeMap<String, Vec<String>>,
    /// Which clients stick to an endpoint: set name -> seconds.
    affinity: BTreeMap<String, u32>,
    /// (map or set, key) -> value; a set's value is empty.
    elements: BTreeMap<(&'static str, String), String>,
}

const SERVICE_ADDRESSES: &str = "service-addresses";
const NODE_PORTS: &str = "node-ports";
const REFUSED_ADDRESSES: &str = "refused-addresses";
const REFUSED_NODE_PORTS: &str = "refused-node-ports";
const LOCAL_ENDPOINTS: &str = "local-endpoints";

/// What the ports of all services need.
pub fn ruleset(ports: &[Port], network: &Network) -> Ruleset {
    let mut rules = Ruleset::default();
    for port in ports {
        rules.add_port(port, network);
    }
    // A balancer that hands packets over as they are asks for a node's health at its own address, too. A service's own port comes first.
    for address in ports.iter().flat_map(|port| &port.external_ips) {
        rules.element(SERVICE_ADDRESSES, format!("{address} . tcp . {HEALTH_PORT}"), "goto health".into());
    }
    rules
}

impl Ruleset {
    fn add_port(&mut self, port: &Port, network: &Network) {
        let protocol = port.protocol.name();
        let id = identity(&format!("{}/{protocol}/{}", port.service, port.port));
        for endpoint in &port.local_endpoints {
            // A pod that reaches itself through its service must see another source address, or it answers itself directly.
            self.element(LOCAL_ENDPOINTS, format!("{0} . {0}", endpoint.ip()), String::new());
        }
        let all = format!("svc-{id}");
        let local = format!("local-{id}");
        if !port.endpoints.is_empty() {
            self.spread(&all, port, port.endpoints.iter());
        }
        if (port.external_local || port.internal_local) && !port.local_endpoints.is_empty() {
            self.spread(&local, port, port.local_endpoints.iter());
        }
        let (inside, inside_served) =
            if port.internal_local { (&local, !port.local_endpoints.is_empty()) } else { (&all, !port.endpoints.is_empty()) };
        if inside_served {
            self.element(SERVICE_ADDRESSES, format!("{} . {protocol} . {}", port.cluster_ip, port.port), format!("goto {inside}"));
        }
        // Without an element the packet keeps the service's address, and everything to the service range that was not rewritten is refused.
        if port.node_port.is_some() || !port.external_ips.is_empty() {
            self.add_external(port, network, &id, &all, &local);
        }
    }

    /// How traffic from outside reaches the port: by node port and by external addresses.
    fn add_external(&mut self, port: &Port, network: &Network, id: &str, all: &str, local: &str) {
        let protocol = port.protocol.name();
        let external = format!("ext-{id}");
        let verdict = match (port.endpoints.is_empty(), port.external_local, port.local_endpoints.is_empty()) {
            (true, _, _) => Err("goto refuse"),
            (false, false, _) => Ok(vec![format!("meta mark set meta mark | {MASQUERADE}"), format!("goto {all}")]),
            (false, true, here) => {
                // Pods and this node itself are inside: they may go anywhere.
                let mut rules = vec![
                    format!("ip saddr {} goto {all}", network.pods),
                    format!("fib saddr type local meta mark set meta mark | {MASQUERADE} goto {all}"),
                ];
                if !here {
                    rules.push(format!("goto {local}"));
                }
                Ok(rules)
            }
        };
        // A balancer must see that this node does not serve; silence is what upstream gives for the policy Local.
        let dropped = port.external_local && port.local_endpoints.is_empty() && verdict.is_ok();
        let refusal = match verdict {
            Ok(rules) => {
                self.chains.insert(external.clone(), rules);
                for address in &port.external_ips {
                    self.element(SERVICE_ADDRESSES, format!("{address} . {protocol} . {}", port.port), format!("goto {external}"));
                }
                if let Some(node_port) = port.node_port {
                    self.element(NODE_PORTS, format!("{protocol} . {node_port}"), format!("goto {external}"));
                }
                dropped.then_some("drop")
            }
            Err(refusal) => Some(refusal),
        };
        if let Some(refusal) = refusal {
            for address in &port.external_ips {
                self.element(REFUSED_ADDRESSES, format!("{address} . {protocol} . {}", port.port), refusal.into());
            }
            if let Some(node_port) = port.node_port {
                self.element(REFUSED_NODE_PORTS, format!("{protocol} . {node_port}"), refusal.into());
            }
        }
    }

    fn element(&mut self, holder: &'static str, key: String, value: String) {
        // The first service keeps an address or a node port that two claim; the API hands neither out twice.
        self.elements.entry((holder, key)).or_insert(value);
    }

    /// A chain that picks one of the endpoints.
    fn spread<'a>(&mut self, chain: &str, port: &Port, endpoints: impl ExactSizeIterator<Item = &'a SocketAddrV4>) {
        let rules = match port.affinity_seconds {
            Some(seconds) => self.sticky(port, seconds, endpoints),
            None => vec![rewrite(port.protocol, endpoints)],
        };
        self.chains.insert(chain.into(), rules);
    }

    /// With affinity every endpoint has a chain and a set of the clients that were sent to it.
    fn sticky<'a>(&mut self, port: &Port, seconds: u32, endpoints: impl ExactSizeIterator<Item = &'a SocketAddrV4>) -> Vec<String> {
        let protocol = port.protocol.name();
        let count = endpoints.len();
        let (mut known, mut choices) = (Vec::new(), Vec::new());
        for (index, endpoint) in endpoints.enumerate() {
            let id = identity(&format!("{}/{protocol}/{}/{endpoint}", port.service, port.port));
            let (chain, set) = (format!("ep-{id}"), format!("sticky-{id}"));
            known.push(format!("ip saddr @{set} goto {chain}"));
            choices.push(format!("{index} : goto {chain}"));
            let rules = vec![format!("update @{set} {{ ip saddr }}"), rewrite(port.protocol, std::iter::once(endpoint))];
            self.chains.insert(chain, rules);
            self.affinity.insert(set, seconds);
        }
        known.push(format!("numgen random mod {count} vmap {{ {} }}", choices.join(", ")));
        known
    }
}

fn rewrite<'a>(protocol: Protocol, endpoints: impl ExactSizeIterator<Item = &'a SocketAddrV4>) -> String {
    let protocol = protocol.name();
    let count = endpoints.len();
    let list: Vec<String> =
        endpoints.enumerate().map(|(index, endpoint)| format!("{index} : {} . {}", endpoint.ip(), endpoint.port())).collect();
    if count == 1 {
        let only = list[0].trim_start_matches("0 : ").replace(" . ", ":");
        return format!("meta l4proto {protocol} dnat to {only}");
    }
    format!("meta l4proto {protocol} dnat to numgen random mod {count} map {{ {} }}", list.join(", "))
}

/// A name that nft takes: a digest keeps it unique, the rest is for people and cut where the kernel's limit would be near.
fn identity(title: &str) -> String {
    let digest = hex::encode(Sha256::digest(title.as_bytes()));
    let readable: String = title
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() || letter == '/' || letter == '-' { letter } else { '.' })
        .take(90)
        .collect();
    format!("{}-{readable}", &digest[..10])
}

impl Ruleset {
    /// A script that puts this table in the place of whatever is there, in one transaction.
    pub fn replace(&self, network: &Network) -> String {
        // Adding first makes the deletion succeed where there is no table yet.
        let mut script = format!("add table {TABLE}\ndelete table {TABLE}\n{}", base(network));
        script.push_str(&Ruleset::default().update(self).unwrap_or_default());
        script
    }

    /// A script that turns this table into `new`; `None` when nothing differs.
    pub fn update(&self, new: &Ruleset) -> Option<String> {
        let mut script = String::new();
        let changed_set = |name: &String| new.affinity.get(name) != self.affinity.get(name);
        // 1. What new rules refer to must be there: sets, chains.
        for (set, seconds) in new.affinity.iter().filter(|(name, _)| !self.affinity.contains_key(*name)) {
            declare(&mut script, set, *seconds);
        }
        for chain in new.chains.keys().filter(|name| !self.chains.contains_key(*name)) {
            line(&mut script, format_args!("add chain {TABLE} {chain}"));
        }
        // 2. Rules. Old chains are emptied first, so that nothing refers to what goes away.
        let gone: Vec<&String> = self.chains.keys().filter(|name| !new.chains.contains_key(*name)).collect();
        let differs = |name: &String| self.chains.get(name).is_some_and(|rules| new.chains.get(name).is_some_and(|wanted| wanted != rules));
        let retimed: Vec<&String> = new.affinity.keys().filter(|name| self.affinity.contains_key(*name) && changed_set(name)).collect();
        // A set cannot change its time: the chains that use it are rewritten around its replacement.
        let uses_retimed = |rules: &Vec<String>| rules.iter().any(|rule| retimed.iter().any(|set| rule.contains(set.as_str())));
        let rewritten: Vec<&String> = new
            .chains
            .iter()
            .filter(|(name, rules)| self.chains.contains_key(*name) && (differs(name) || uses_retimed(rules)))
            .map(|(name, _)| name)
            .collect();
        for chain in gone.iter().chain(&rewritten) {
            line(&mut script, format_args!("flush chain {TABLE} {chain}"));
        }
        for set in &retimed {
            line(&mut script, format_args!("delete set {TABLE} {set}"));
            declare(&mut script, set, new.affinity[*set]);
        }
        for (chain, rules) in &new.chains {
            if !self.chains.contains_key(chain) || rewritten.contains(&chain) {
                for rule in rules {
                    line(&mut script, format_args!("add rule {TABLE} {chain} {rule}"));
                }
            }
        }
        // 3. Elements: those that go or change are taken out, then put in.
        let stale = self.elements.iter().filter(|(key, value)| new.elements.get(*key) != Some(*value));
        elements(&mut script, "delete", stale);
        let fresh = new.elements.iter().filter(|(key, value)| self.elements.get(*key) != Some(*value));
        elements(&mut script, "add", fresh);
        // 4. Now nothing refers to these.
        for chain in gone {
            line(&mut script, format_args!("delete chain {TABLE} {chain}"));
        }
        for set in self.affinity.keys().filter(|name| !new.affinity.contains_key(*name)) {
            line(&mut script, format_args!("delete set {TABLE} {set}"));
        }
        (!script.is_empty()).then_some(script)
    }
}

fn line(script: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(script, "{text}");
}

fn declare(script: &mut String, set: &str, seconds: u32) {
    line(script, format_args!("add set {TABLE} {set} {{ type ipv4_addr; size 65535; flags dynamic,timeout; timeout {seconds}s; }}"));
}

/// One command per holder: nft spends its time per command, not per element.
fn elements<'a>(script: &mut String, command: &str, list: impl Iterator<Item = (&'a (&'static str, String), &'a String)>) {
    let mut by_holder: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for ((holder, key), value) in list {
        by_holder.entry(holder).or_default().push(if value.is_empty() { key.clone() } else { format!("{key} : {value}") });
    }
    for (holder, items) in by_holder {
        line(script, format_args!("{command} element {TABLE} {holder} {{ {} }}", items.join(", ")));
    }
}

/// Everything that does not depend on services. The mark goes with its use: a packet in a tunnel would hand it to the outer one.
fn base(network: &Network) -> String {
    let Network { pods, services, dns, node, fabric } = network;
    // What a node's own process says to a service carries the node's address, and a pod's answer to that would go around the tunnel.
    let tunnelled = match fabric {
        Fabric::Switched => String::new(),
        Fabric::Routed => {
            format!("add rule {TABLE} postrouting oifname \"{TUNNEL}\" ip saddr != {pods} masquerade fully-random\n")
        }
    };
    // Multicast is not for one receiver: its source must stay.
    let multicast = Ipv4Addr::new(224, 0, 0, 0);
    format!(
        "add table {TABLE}
add map {TABLE} {SERVICE_ADDRESSES} {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
add map {TABLE} {NODE_PORTS} {{ type inet_proto . inet_service : verdict; }}
add map {TABLE} {REFUSED_ADDRESSES} {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
add map {TABLE} {REFUSED_NODE_PORTS} {{ type inet_proto . inet_service : verdict; }}
add set {TABLE} {LOCAL_ENDPOINTS} {{ type ipv4_addr . ipv4_addr; }}
add chain {TABLE} refuse
add rule {TABLE} refuse meta l4proto tcp reject with tcp reset
add rule {TABLE} refuse reject
add chain {TABLE} health
add rule {TABLE} health meta l4proto tcp redirect to :{HEALTH_PORT}
add chain {TABLE} services
add rule {TABLE} services ip daddr . meta l4proto . th dport vmap @{SERVICE_ADDRESSES}
add rule {TABLE} services ip daddr {node} meta l4proto . th dport vmap @{NODE_PORTS}
add chain {TABLE} unserved
add rule {TABLE} unserved ip daddr {dns} return
add rule {TABLE} unserved ip daddr {services} goto refuse
add rule {TABLE} unserved ip daddr . meta l4proto . th dport vmap @{REFUSED_ADDRESSES}
add chain {TABLE} prerouting {{ type nat hook prerouting priority dstnat; policy accept; }}
add rule {TABLE} prerouting jump services
add chain {TABLE} output {{ type nat hook output priority -100; policy accept; }}
add rule {TABLE} output jump services
add chain {TABLE} postrouting {{ type nat hook postrouting priority srcnat; policy accept; }}
add rule {TABLE} postrouting meta mark & {MASQUERADE} != 0 meta mark set meta mark ^ {MASQUERADE} masquerade fully-random
{tunnelled}add rule {TABLE} postrouting ip saddr . ip daddr @{LOCAL_ENDPOINTS} masquerade
add rule {TABLE} postrouting ip saddr {pods} ip daddr != {{ {pods}, {multicast}/4 }} masquerade fully-random
add chain {TABLE} forward-filter {{ type filter hook forward priority filter; policy accept; }}
add rule {TABLE} forward-filter ct state new ip saddr {pods} ip daddr {METADATA} meta l4proto {{ tcp, udp }} th dport 53 accept
add rule {TABLE} forward-filter ct state new ip saddr {pods} ip daddr {METADATA} goto refuse
add rule {TABLE} forward-filter ct state new jump unserved
add chain {TABLE} output-filter {{ type filter hook output priority filter; policy accept; }}
add rule {TABLE} output-filter ct state new jump unserved
add chain {TABLE} input-filter {{ type filter hook input priority filter; policy accept; }}
add rule {TABLE} input-filter ct state new ip daddr {node} meta l4proto . th dport vmap @{REFUSED_NODE_PORTS}
"
    )
}
