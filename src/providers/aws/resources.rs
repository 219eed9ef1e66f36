//! What AWS makes for a blueprint: the neutral things, and all that they stand on here. Pure.

use super::given::Given;
use super::images::{self, Image};
use super::names::*;
use super::{iam, sizes};
use crate::blueprint::Blueprint;
use crate::blueprint::counted;
use crate::engine::{Id, Resource};
use crate::error::{Error, Result};
use crate::providers::firewall::{self, From, Protocol, Rule};
use crate::providers::resources::{self as neutral, FILESYSTEM, LOAD_BALANCER, ListenerSpec, LoadBalancerSpec, MACHINE, NETWORK};
use crate::providers::{Context, Delivery, HEALTH_PORT};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Apart from the pods' 10.244/14 and the services' 10.96/16; clusters are alone in their networks.
const NETWORK_CIDR: &str = "10.42.0.0/16";
/// One load balancer reaches machines in as many zones; more would only thin them out.
pub const ZONES: usize = 3;
/// Asked at [`HEALTH_PORT`].
pub const HEALTH_PATH: &str = "/healthz";
/// AWS's word for a listener of both protocols.
const BOTH: &str = "TCP_UDP";

/// What the account's region offers to the types in use.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Catalog {
    /// Sorted; at most [`ZONES`] in a network of our own, unless more are named or there.
    pub zones: Vec<String>,
    /// Of those in which there is a subnet of our own: its addresses, which it keeps.
    pub ranges: BTreeMap<String, String>,
    /// By type, those of `zones` that have it.
    pub offered: BTreeMap<String, BTreeSet<String>>,
    /// By architecture.
    pub images: BTreeMap<String, Image>,
    /// Instead of a network of our own; its zones are `zones`.
    pub given: Option<Given>,
}

/// The instance type of every group.
pub fn types(blueprint: &Blueprint) -> Result<BTreeMap<String, String>> {
    let own = &blueprint.spec.providers.aws.instance_types;
    let of = |group: &crate::blueprint::MachineGroup| match own.get(&group.name) {
        Some(own) => Ok((group.name.clone(), own.clone())),
        None => Ok((group.name.clone(), sizes::instance_type(sizes::OURS, group.size.cpu_millis(), group.size.memory_bytes())?)),
    };
    blueprint.spec.machines.iter().map(of).collect()
}

pub fn expand(blueprint: &Blueprint, context: &Context, region: &str, catalog: &Catalog) -> Result<Vec<Resource>> {
    let types = types(blueprint)?;
    let all = neutral::expand(blueprint, context)?;
    let of = |kind: &'static str| all.iter().filter(move |resource| resource.id.kind == kind).cloned();
    let balancers: Vec<LoadBalancerSpec> = of(LOAD_BALANCER).filter_map(|balancer| serde_json::from_value(balancer.spec).ok()).collect();
    let mut made = ground(blueprint, context, region, catalog, &balancers);
    let base: Vec<Id> = made.iter().map(|resource| resource.id.clone()).collect();
    let filesystems: Vec<Resource> = of(FILESYSTEM).collect();
    for filesystem in &filesystems {
        made.push(Resource { needs: vec![], ..filesystem.clone() });
    }
    for filesystem in &filesystems {
        made.extend(catalog.zones.iter().map(|zone| mount(&filesystem.id.name, zone, catalog)));
    }
    let mounts = made.iter().map(|resource| resource.id.clone()).filter(|id| matches!(id.kind.as_str(), MOUNT | FILESYSTEM));
    let needs: Vec<Id> = base.iter().cloned().chain(mounts).collect();
    for (number, machine) in of(MACHINE).enumerate() {
        made.push(Resource {
            needs: needs.clone(),
            ..machine_of(machine, number, &types, images::wanted(&blueprint.spec.providers.aws), catalog)?
        });
    }
    let network = network(context, catalog);
    let balancers: Vec<LoadBalancerSpec> =
        balancers.into_iter().map(|balancer| LoadBalancerSpec { listeners: merged(&balancer.listeners), ..balancer }).collect();
    for balancer in &balancers {
        made.extend(balancer.listeners.iter().map(|listener| target_group(&network, balancer, listener, catalog)));
    }
    for (mut resource, spec) in of(LOAD_BALANCER).zip(&balancers) {
        let groups =
            spec.listeners.iter().map(|listener| Id::new(TARGETS, target_name(&spec.name, &listener.protocol, listener.node_port)));
        let under = base.iter().filter(|id| matches!(id.kind.as_str(), NETWORK | SUBNET | GATEWAY) || id.name == BALANCERS).cloned();
        let needs = under.chain(resource.needs.iter().filter(|id| id.kind == MACHINE).cloned()).chain(groups).collect();
        resource.spec["listeners"] = by_port(spec.listeners.iter().map(|listener| json!(listener)).collect()).into();
        if let Some(given) = &catalog.given {
            (resource.spec["subnets"], resource.spec["internal"]) = (json!(given.subnets), json!(given.private));
        }
        made.push(Resource { needs, ..resource });
    }
    Ok(made)
}

/// The one that is made, and so needed; a given one is there.
fn network(context: &Context, catalog: &Catalog) -> Option<Id> {
    catalog.given.is_none().then(|| Id::new(NETWORK, &context.cluster.name))
}

/// Says which given network, or which subnet of it, a thing is in. One of our own is referred to by what was made.
fn placed(mut spec: Value, catalog: &Catalog, zone: Option<&str>) -> Value {
    if let Some(given) = &catalog.given {
        match zone {
            Some(zone) => spec["subnet"] = json!(given.subnets.get(zone)),
            None => spec["vpc"] = json!(given.vpc),
        }
    }
    spec
}

/// A node port may be two, one of each protocol.
pub fn target_name(balancer: &str, protocol: &str, node_port: u16) -> String {
    match protocol {
        "TCP" => format!("{balancer}-{node_port}"),
        other => format!("{balancer}-{node_port}-{}", other.to_lowercase().replace('_', "-")),
    }
}

/// TCP and UDP at one port and one node port are one listener to AWS.
fn merged(listeners: &[ListenerSpec]) -> Vec<ListenerSpec> {
    let has_twin = |one: &ListenerSpec| {
        listeners.iter().any(|other| (other.port, other.node_port) == (one.port, one.node_port) && other.protocol != one.protocol)
    };
    let (twins, single): (Vec<_>, Vec<_>) = listeners.iter().cloned().partition(has_twin);
    let both = twins.into_iter().filter(|one| one.protocol == "TCP").map(|one| ListenerSpec { protocol: BOTH.into(), ..one });
    single.into_iter().chain(both).collect()
}

/// How listeners are wished for and read back: AWS tells them in no order.
pub fn by_port(mut listeners: Vec<Value>) -> Vec<Value> {
    listeners.sort_by_key(|listener| (listener["port"].as_u64(), listener["protocol"].as_str().map(String::from)));
    listeners
}

/// A load balancer of AWS's listens once at a port, for both protocols only if they lead to one node port.
pub fn crossed(balancer: &Value) -> Option<Error> {
    let listeners = by_port(balancer["listeners"].as_array().cloned().unwrap_or_default());
    let (name, port) =
        (balancer["name"].as_str().unwrap_or_default(), listeners.windows(2).find(|pair| pair[0]["port"] == pair[1]["port"]));
    let port = &port?[0]["port"];
    Some(
        Error::input(format!("could not listen at port {port} of {name} for TCP and UDP: their node ports differ"))
            .hint("give both ports of the Service the same nodePort: then one listener carries both; or make it two Services"),
    )
}

fn resource(id: Id, spec: Value, needs: Vec<Id>, replace_on: &[&str], summary: impl Into<String>) -> Resource {
    Resource { id, spec, needs, replace_on: replace_on.iter().map(ToString::to_string).collect(), summary: summary.into() }
}

/// Network, access and identity: what every machine stands on.
fn ground(blueprint: &Blueprint, context: &Context, region: &str, catalog: &Catalog, balancers: &[LoadBalancerSpec]) -> Vec<Resource> {
    let network = network(context, catalog);
    let mut made = network.iter().flat_map(|network| land(network, catalog)).collect::<Vec<_>>();
    made.extend(groups(blueprint, balancers, &network, catalog));
    let key = context.ssh_public_key.trim();
    // Kept before it is used: whoever comes after a lost state folder finds the key of all that is there.
    let secret = Id::new(SECRET, "ssh-key");
    made.push(resource(secret.clone(), json!({}), vec![], &[], "the way back in, in Parameter Store"));
    made.push(resource(Id::new(KEY_PAIR, MAIN), json!({"publicKey": key}), vec![secret], &["publicKey"], "the cluster's SSH key"));
    let role = Id::new(ROLE, CONTROL_PLANE);
    let document = iam::loop_policy(&context.cluster, region, &blueprint.spec.providers.aws);
    let spec = json!({"policy": iam::digest_of(&document), "document": document});
    made.push(resource(role.clone(), spec, vec![], &[], "what the loop inside may do"));
    made.push(resource(Id::new(PROFILE, CONTROL_PLANE), json!({}), vec![role], &[], "gives the control plane its role"));
    made
}

/// A network of the cluster's own, with a subnet in each zone and a way out.
fn land(network: &Id, catalog: &Catalog) -> Vec<Resource> {
    let (gateway, only_network) = (Id::new(GATEWAY, MAIN), vec![network.clone()]);
    let mut made = vec![resource(network.clone(), json!({"cidr": NETWORK_CIDR, "dnsHostnames": true}), vec![], &["cidr"], NETWORK_CIDR)];
    let mut free =
        (0..).map(|number| format!("10.42.{}.0/20", number * 16)).filter(|range| catalog.ranges.values().all(|its| its != range));
    for zone in &catalog.zones {
        let cidr = catalog.ranges.get(zone).cloned().or_else(|| free.next()).unwrap_or_default();
        let summary = format!("{cidr} in {zone}");
        made.push(resource(Id::new(SUBNET, zone), json!({"zone": zone, "cidr": cidr}), only_network.clone(), &["zone", "cidr"], summary));
    }
    made.push(resource(gateway.clone(), json!({}), only_network.clone(), &[], "to the internet"));
    let subnets: Vec<Id> = catalog.zones.iter().map(|zone| Id::new(SUBNET, zone)).collect();
    let routed = [network.clone(), gateway].into_iter().chain(subnets).collect();
    made.push(resource(Id::new(ROUTES, MAIN), json!({"internet": true, "subnets": catalog.zones}), routed, &[], "subnets to the gateway"));
    made
}

fn groups(blueprint: &Blueprint, balancers: &[LoadBalancerSpec], network: &Option<Id>, catalog: &Catalog) -> [Resource; 2] {
    let outer = rules(&firewall::listeners(balancers, Delivery::Address), true);
    let inner = rules(&firewall::machines(&blueprint.spec.access, balancers, Delivery::NodePort), false);
    let (first, second) = (Id::new(GROUP, BALANCERS), Id::new(GROUP, MACHINES));
    let summary = |rules: &[String]| if rules.is_empty() { "lets nothing in".into() } else { rules.join(", ") };
    let spec = |rules: &[String]| placed(json!({"rules": rules}), catalog, None);
    let needs = |more: Option<&Id>| network.iter().chain(more).cloned().collect();
    [
        resource(first.clone(), spec(&outer), needs(None), &[], summary(&outer)),
        resource(second, spec(&inner), needs(Some(&first)), &[], summary(&inner)),
    ]
}

/// "tcp 22 from 192.0.2.0/24", sorted: how a rule is wished for and read back. Balancers are named by their group; to those
/// themselves everybody comes.
fn rules(policy: &[Rule], at_balancers: bool) -> Vec<String> {
    let mut lines = BTreeSet::new();
    for rule in policy {
        let sources: Vec<String> = match &rule.from {
            From::Ranges(ranges) => ranges.iter().map(ToString::to_string).collect(),
            From::Cluster => vec![MACHINES.into()],
            From::Balancers if at_balancers => vec!["0.0.0.0/0".into()],
            From::Balancers => vec![BALANCERS.into()],
        };
        let protocol = match rule.protocol {
            Protocol::Any => "all",
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        for source in sources {
            match rule.protocol {
                Protocol::Any => lines.extend([format!("all from {source}")]),
                _ => lines.extend(rule.ports.iter().map(|port| format!("{protocol} {port} from {source}"))),
            }
        }
    }
    lines.into_iter().collect()
}

fn mount(filesystem: &str, zone: &str, catalog: &Catalog) -> Resource {
    let subnet = catalog.given.is_none().then(|| Id::new(SUBNET, zone));
    let needs = [Id::new(FILESYSTEM, filesystem), Id::new(GROUP, MACHINES)].into_iter().chain(subnet).collect();
    let spec = placed(json!({"filesystem": filesystem, "zone": zone}), catalog, Some(zone));
    resource(Id::new(MOUNT, format!("{filesystem}-{zone}")), spec, needs, &[], format!("{filesystem} in {zone}"))
}

fn machine_of(machine: Resource, number: usize, types: &BTreeMap<String, String>, wanted: &str, catalog: &Catalog) -> Result<Resource> {
    let mut machine = machine;
    let kind = &types[machine.spec["group"].as_str().unwrap_or_default()];
    let nowhere = BTreeSet::new();
    let zones: Vec<&String> = catalog.offered.get(kind).unwrap_or(&nowhere).iter().collect();
    if zones.is_empty() {
        return Err(Error::input(format!("could not find {kind} in {}", catalog.zones.join(", "))).hint(
            "name another type in spec.providers.aws.instanceTypes, zones that have it in spec.providers.aws.zones, or another region",
        ));
    }
    let architecture = sizes::architecture(kind);
    let image = catalog.images.get(architecture).ok_or_else(|| {
        Error::input(format!("could not find image {wanted} for {kind}: this region and account have none of it for {architecture}")).hint(
            "spec.providers.aws.image names another: debian-12, ubuntu-24.04, ami-..., or <owner>/<pattern of names>; ids differ by region",
        )
    })?;
    let zone = zones[number % zones.len()];
    let disk = sizes::disk_of(&machine.spec).max(image.root_gib);
    let price = sizes::machine_price(kind, disk);
    let price = price.map(|price| format!(", about ${price:.3} an hour")).unwrap_or_default();
    let place = catalog.given.as_ref().and_then(|given| given.subnets.get(zone)).unwrap_or(zone);
    let private = catalog.given.as_ref().is_some_and(|given| given.private);
    let inside = if private { " without a public address" } else { "" };
    machine.summary = format!("{kind}, {disk} GiB, {}, {place}{inside}{price}", image.name);
    machine.replace_on = ["role", "instanceType", "diskBytes"].map(String::from).to_vec();
    let fields = [("instanceType", kind), ("zone", zone), ("image", &image.id), ("rootDevice", &image.root_device), ("user", &image.user)];
    for (field, value) in fields {
        machine.spec[field] = json!(value);
    }
    machine.spec["diskGib"] = json!(disk);
    if private {
        machine.spec["private"] = json!(true);
    }
    machine.spec = placed(machine.spec, catalog, Some(zone));
    Ok(machine)
}

fn target_group(network: &Option<Id>, balancer: &LoadBalancerSpec, listener: &ListenerSpec, catalog: &Catalog) -> Resource {
    let machines = balancer.machines.iter().map(|name| Id::new(MACHINE, name));
    let mut spec =
        json!({"balancer": balancer.name, "protocol": listener.protocol, "port": listener.node_port, "machines": balancer.machines});
    // UDP says nothing of whether somebody is there.
    if listener.protocol != "TCP" {
        spec["health"] = json!(HEALTH_PORT.to_string());
    }
    let id = Id::new(TARGETS, target_name(&balancer.name, &listener.protocol, listener.node_port));
    let needs = network.iter().cloned().chain(machines).collect();
    let summary = format!("{} {} on {}", listener.protocol, listener.node_port, counted(balancer.machines.len(), "machine"));
    resource(id, placed(spec, catalog, None), needs, &["protocol", "port", "health"], summary)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Cluster;
    use crate::engine::lint::lint;
    use crate::engine::plan::plan;

    fn shop() -> Blueprint {
        let text = include_str!("../../../blueprints/shop.yaml").replace("provider: local", "provider: aws");
        let file = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/blueprints/shop.yaml"));
        crate::blueprint::from_text(&text, file, &crate::blueprint::load::Disk).expect("the example").blueprint
    }

    fn made(given: Option<Given>) -> Vec<Resource> {
        expanded(given, BTreeMap::new(), &[])
    }

    /// With subnets that are there, and one load balancer for a Service with these ports.
    fn expanded(given: Option<Given>, ranges: BTreeMap<String, String>, ports: &[(u16, &str, u16)]) -> Vec<Resource> {
        let zones: Vec<String> = ["eu-west-1a", "eu-west-1b"].map(String::from).into();
        let offered = types(&shop()).expect("types").into_values().map(|kind| (kind, zones.iter().cloned().collect())).collect();
        let image =
            Image { id: "ami-1".into(), name: "debian-12".into(), root_device: "/dev/xvda".into(), root_gib: 30, user: "admin".into() };
        let catalog = Catalog { zones, ranges, offered, images: [(sizes::architecture(sizes::OURS).to_string(), image)].into(), given };
        let cluster = Cluster { name: "shop".into(), uid: "u-1".into() };
        let listener = |(port, protocol, node_port): &(u16, &str, u16)| ListenerSpec {
            port: *port,
            protocol: (*protocol).into(),
            node_port: *node_port,
        };
        let wish = LoadBalancerSpec { name: "svc-1".into(), listeners: ports.iter().map(listener).collect(), machines: vec![] };
        let service_load_balancers = if ports.is_empty() { vec![] } else { vec![wish] };
        let context = Context { cluster, ssh_public_key: "ssh-ed25519 AAAA".into(), service_load_balancers };
        expand(&shop(), &context, "eu-west-1", &catalog).expect("resources")
    }

    fn given(private: bool) -> Given {
        let subnets = [("eu-west-1a", "subnet-a"), ("eu-west-1b", "subnet-b")].map(|(zone, id)| (zone.to_string(), id.to_string()));
        Given { vpc: "vpc-1".into(), subnets: subnets.into(), private }
    }

    #[test]
    fn in_a_given_network_only_what_lies_in_it_is_made() {
        let made = made(Some(given(false)));
        assert!(made.iter().all(|wish| ![NETWORK, SUBNET, GATEWAY, ROUTES].contains(&wish.id.kind.as_str())));
        assert_eq!(lint(&plan(&made, &[], &BTreeMap::new()), &made, &[]), []);
        let of = |kind: &str| made.iter().filter(|wish| wish.id.kind == kind).map(|wish| &wish.spec).collect::<Vec<_>>();
        assert!(of(GROUP).iter().chain(&of(TARGETS)).all(|spec| spec["vpc"] == "vpc-1"));
        let subnets: BTreeSet<&str> = of(MACHINE).into_iter().chain(of(MOUNT)).filter_map(|spec| spec["subnet"].as_str()).collect();
        assert_eq!(subnets, ["subnet-a", "subnet-b"].into());
        assert_eq!((&of(LOAD_BALANCER)[0]["internal"], of(MACHINE)[0].get("private")), (&json!(false), None));
        assert!(of(ROLE)[0]["document"].as_str().is_some_and(|policy| policy.contains("ec2:RunInstances")));
    }

    #[test]
    fn where_no_subnet_leads_to_an_internet_gateway_nothing_has_a_public_address() {
        let made = made(Some(given(true)));
        assert!(made.iter().filter(|wish| wish.id.kind == MACHINE).all(|wish| wish.spec["private"] == true));
        assert!(made.iter().filter(|wish| wish.id.kind == LOAD_BALANCER).all(|wish| wish.spec["internal"] == true));
    }

    #[test]
    fn a_network_of_its_own_is_referred_to_by_what_is_made() {
        let made = made(None);
        assert!(made.iter().any(|wish| wish.id.kind == NETWORK));
        assert!(made.iter().all(|wish| {
            ["vpc", "subnet", "subnets", "private"].iter().all(|field| wish.id.kind == ROUTES || wish.spec.get(field).is_none())
        }));
    }

    fn one<'a>(made: &'a [Resource], kind: &str, name: &str) -> &'a Resource {
        made.iter().find(|wish| wish.id == Id::new(kind, name)).unwrap_or_else(|| panic!("no {kind}/{name}"))
    }

    #[test]
    fn listeners_are_wished_for_in_the_order_they_are_read_back_in() {
        let made = expanded(None, BTreeMap::new(), &[(443, "TCP", 30001), (53, "UDP", 30003), (80, "TCP", 30002)]);
        let wished = one(&made, LOAD_BALANCER, "svc-1").spec["listeners"].as_array().expect("listeners").clone();
        assert_eq!(wished.iter().map(|listener| listener["port"].as_u64()).collect::<Vec<_>>(), [Some(53), Some(80), Some(443)]);
        let observed = by_port(wished.iter().rev().cloned().collect());
        assert_eq!(observed, wished);
    }

    #[test]
    fn both_protocols_at_one_port_are_one_listener_if_they_have_one_node_port() {
        let same = expanded(None, BTreeMap::new(), &[(53, "UDP", 30053), (53, "TCP", 30053)]);
        let spec = &one(&same, LOAD_BALANCER, "svc-1").spec;
        assert_eq!(spec["listeners"], json!([{"port": 53, "protocol": "TCP_UDP", "nodePort": 30053}]));
        assert!(crossed(spec).is_none());
        assert_eq!(one(&same, TARGETS, "svc-1-30053-tcp-udp").spec["protocol"], "TCP_UDP");
        assert_eq!(lint(&plan(&same, &[], &BTreeMap::new()), &same, &[]), []);
        let other = expanded(None, BTreeMap::new(), &[(53, "UDP", 30053), (53, "TCP", 30054)]);
        let error = crossed(&one(&other, LOAD_BALANCER, "svc-1").spec).expect("no listener carries both");
        assert!(error.to_string().contains("port 53 of svc-1 for TCP and UDP"), "{error}");
        let apart = expanded(None, BTreeMap::new(), &[(53, "UDP", 30053), (80, "TCP", 30053)]);
        assert!(crossed(&one(&apart, LOAD_BALANCER, "svc-1").spec).is_none());
        assert_eq!(lint(&plan(&apart, &[], &BTreeMap::new()), &apart, &[]), []);
    }

    #[test]
    fn targets_of_udp_are_asked_where_machines_answer_and_balancers_may_ask_there() {
        let made = expanded(None, BTreeMap::new(), &[(53, "UDP", 30053)]);
        assert_eq!(one(&made, TARGETS, "svc-1-30053-udp").spec["health"], "10256");
        assert_eq!(one(&made, TARGETS, "web-32000").spec.get("health"), None);
        let rules = |made: &[Resource]| one(made, GROUP, MACHINES).spec["rules"].as_array().expect("rules").clone();
        assert!(rules(&made).contains(&json!("tcp 10256 from balancers")) && rules(&made).contains(&json!("udp 30053 from balancers")));
        assert!(!rules(&super::tests::made(None)).contains(&json!("tcp 10256 from balancers")));
    }

    #[test]
    fn a_subnet_keeps_its_addresses_when_zones_join() {
        let range = |made: &[Resource], zone: &str| one(made, SUBNET, zone).spec["cidr"].as_str().map(String::from);
        let first = made(None);
        assert_eq!(
            (range(&first, "eu-west-1a").as_deref(), range(&first, "eu-west-1b").as_deref()),
            (Some("10.42.0.0/20"), Some("10.42.16.0/20"))
        );
        let later = expanded(None, [("eu-west-1b".to_string(), "10.42.0.0/20".to_string())].into(), &[]);
        assert_eq!(
            (range(&later, "eu-west-1a").as_deref(), range(&later, "eu-west-1b").as_deref()),
            (Some("10.42.16.0/20"), Some("10.42.0.0/20"))
        );
    }

    #[test]
    fn a_disk_is_as_large_as_its_image_and_the_wish_stays_what_is_compared() {
        let made = made(None);
        let machine = one(&made, MACHINE, "worker-1");
        assert_eq!((&machine.spec["diskGib"], &machine.spec["diskBytes"]), (&json!(30), &json!(8u64 << 30)));
        assert!(machine.summary.contains("30 GiB") && !machine.replace_on.contains(&"diskGib".to_string()), "{}", machine.summary);
    }
}
