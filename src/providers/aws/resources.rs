//! What AWS makes for a blueprint: the neutral things, and all that they stand on here. Pure.

use super::names::*;
use super::settings::Settings;
use super::sizes;
use crate::blueprint::Blueprint;
use crate::blueprint::counted;
use crate::engine::{Id, Resource};
use crate::error::{Error, Result};
use crate::providers::firewall::{self, From, Protocol, Rule};
use crate::providers::resources::{self as neutral, FILESYSTEM, LOAD_BALANCER, LoadBalancerSpec, MACHINE, NETWORK};
use crate::providers::{Context, Delivery};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Apart from the pods' 10.244/16 and the services' 10.96/16; clusters are alone in their networks.
const NETWORK_CIDR: &str = "10.42.0.0/16";
/// One load balancer reaches machines in as many zones; more would only thin them out.
pub const ZONES: usize = 3;

/// What the account's region offers to the types in use.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Catalog {
    /// Sorted, at most [`ZONES`].
    pub zones: Vec<String>,
    /// By type, those of `zones` that have it.
    pub offered: BTreeMap<String, BTreeSet<String>>,
    /// Id and name, by architecture.
    pub images: BTreeMap<String, (String, String)>,
}

/// The instance type of every group.
pub fn types(blueprint: &Blueprint, settings: &Settings) -> Result<BTreeMap<String, String>> {
    let of = |group: &crate::blueprint::MachineGroup| match settings.instance_types.get(&group.name) {
        Some(own) => Ok((group.name.clone(), own.clone())),
        None => Ok((group.name.clone(), sizes::instance_type(group.size.cpu_millis(), group.size.memory_bytes())?)),
    };
    blueprint.spec.machines.iter().map(of).collect()
}

pub fn expand(blueprint: &Blueprint, context: &Context, settings: &Settings, catalog: &Catalog) -> Result<Vec<Resource>> {
    let types = types(blueprint, settings)?;
    let all = neutral::expand(blueprint, context)?;
    let of = |kind: &'static str| all.iter().filter(move |resource| resource.id.kind == kind).cloned();
    let balancers: Vec<LoadBalancerSpec> = of(LOAD_BALANCER).filter_map(|balancer| serde_json::from_value(balancer.spec).ok()).collect();
    let mut made = ground(blueprint, context, settings, catalog, &balancers);
    let base: Vec<Id> = made.iter().map(|resource| resource.id.clone()).collect();
    let filesystems: Vec<Resource> = of(FILESYSTEM).collect();
    for filesystem in &filesystems {
        made.push(Resource { needs: vec![], ..filesystem.clone() });
    }
    for filesystem in &filesystems {
        made.extend(catalog.zones.iter().map(|zone| mount(&filesystem.id.name, zone)));
    }
    let mounts = made.iter().map(|resource| resource.id.clone()).filter(|id| matches!(id.kind.as_str(), MOUNT | FILESYSTEM));
    let needs: Vec<Id> = base.iter().cloned().chain(mounts).collect();
    for (number, machine) in of(MACHINE).enumerate() {
        made.push(Resource { needs: needs.clone(), ..machine_of(machine, number, &types, catalog)? });
    }
    let network = Id::new(NETWORK, &context.cluster.name);
    for balancer in &balancers {
        made.extend(balancer.listeners.iter().map(|listener| target_group(&network, balancer, listener)));
    }
    for (resource, spec) in of(LOAD_BALANCER).zip(&balancers) {
        let groups = spec.listeners.iter().map(|listener| Id::new(TARGETS, target_name(&spec.name, listener.node_port)));
        let under = base.iter().filter(|id| matches!(id.kind.as_str(), NETWORK | SUBNET | GATEWAY) || id.name == BALANCERS).cloned();
        let needs = under.chain(resource.needs.iter().filter(|id| id.kind == MACHINE).cloned()).chain(groups).collect();
        made.push(Resource { needs, ..resource });
    }
    Ok(made)
}

pub fn target_name(balancer: &str, node_port: u16) -> String {
    format!("{balancer}-{node_port}")
}

fn resource(id: Id, spec: Value, needs: Vec<Id>, replace_on: &[&str], summary: impl Into<String>) -> Resource {
    Resource { id, spec, needs, replace_on: replace_on.iter().map(ToString::to_string).collect(), summary: summary.into() }
}

/// Network, access and identity: what every machine stands on.
fn ground(
    blueprint: &Blueprint,
    context: &Context,
    settings: &Settings,
    catalog: &Catalog,
    balancers: &[LoadBalancerSpec],
) -> Vec<Resource> {
    let network = Id::new(NETWORK, &context.cluster.name);
    let (gateway, only_network) = (Id::new(GATEWAY, MAIN), vec![network.clone()]);
    let mut made = vec![resource(network.clone(), json!({"cidr": NETWORK_CIDR, "dnsHostnames": true}), vec![], &["cidr"], NETWORK_CIDR)];
    for (number, zone) in catalog.zones.iter().enumerate() {
        let cidr = format!("10.42.{}.0/20", number * 16);
        let summary = format!("{cidr} in {zone}");
        made.push(resource(Id::new(SUBNET, zone), json!({"zone": zone, "cidr": cidr}), only_network.clone(), &["zone", "cidr"], summary));
    }
    made.push(resource(gateway.clone(), json!({}), only_network.clone(), &[], "to the internet"));
    let subnets: Vec<Id> = catalog.zones.iter().map(|zone| Id::new(SUBNET, zone)).collect();
    let routed = [network.clone(), gateway].into_iter().chain(subnets).collect();
    made.push(resource(Id::new(ROUTES, MAIN), json!({"internet": true, "subnets": catalog.zones}), routed, &[], "subnets to the gateway"));
    made.extend(groups(blueprint, balancers, &network));
    let key = context.ssh_public_key.trim();
    // Kept before it is used: whoever comes after a lost state folder finds the key of all that is there.
    let secret = Id::new(SECRET, "ssh-key");
    made.push(resource(secret.clone(), json!({}), vec![], &[], "the way back in, in Parameter Store"));
    made.push(resource(Id::new(KEY_PAIR, MAIN), json!({"publicKey": key}), vec![secret], &["publicKey"], "the cluster's SSH key"));
    let role = Id::new(ROLE, CONTROL_PLANE);
    let policy = super::iam::digest(&context.cluster, settings.region.as_deref().unwrap_or_default());
    made.push(resource(role.clone(), json!({"policy": policy}), vec![], &[], "what the loop inside may do"));
    made.push(resource(Id::new(PROFILE, CONTROL_PLANE), json!({}), vec![role], &[], "gives the control plane its role"));
    made
}

fn groups(blueprint: &Blueprint, balancers: &[LoadBalancerSpec], network: &Id) -> [Resource; 2] {
    let outer = rules(&firewall::listeners(balancers, Delivery::Address), true);
    let inner = rules(&firewall::machines(&blueprint.spec.access, balancers, Delivery::NodePort), false);
    let (first, second) = (Id::new(GROUP, BALANCERS), Id::new(GROUP, MACHINES));
    let summary = |rules: &[String]| if rules.is_empty() { "lets nothing in".into() } else { rules.join(", ") };
    [
        resource(first.clone(), json!({"rules": outer}), vec![network.clone()], &[], summary(&outer)),
        resource(second, json!({"rules": inner}), vec![network.clone(), first], &[], summary(&inner)),
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

fn mount(filesystem: &str, zone: &str) -> Resource {
    let needs = vec![Id::new(FILESYSTEM, filesystem), Id::new(SUBNET, zone), Id::new(GROUP, MACHINES)];
    let spec = json!({"filesystem": filesystem, "zone": zone});
    resource(Id::new(MOUNT, format!("{filesystem}-{zone}")), spec, needs, &[], format!("{filesystem} in {zone}"))
}

fn machine_of(machine: Resource, number: usize, types: &BTreeMap<String, String>, catalog: &Catalog) -> Result<Resource> {
    let mut machine = machine;
    let kind = &types[machine.spec["group"].as_str().unwrap_or_default()];
    let nowhere = BTreeSet::new();
    let zones: Vec<&String> = catalog.offered.get(kind).unwrap_or(&nowhere).iter().collect();
    if zones.is_empty() {
        return Err(Error::input(format!("could not find {kind} in {}", catalog.zones.join(", ")))
            .hint("name another type in spec.providers.aws.instanceTypes, or another region"));
    }
    let (image, image_name) = catalog.images.get(sizes::architecture(kind)).cloned().ok_or_else(|| {
        Error::provider(format!("could not find a Debian 12 image for {kind}")).hint("does the region have Debian's public images?")
    })?;
    let zone = zones[number % zones.len()];
    let disk = sizes::disk_gib(machine.spec["diskBytes"].as_u64().unwrap_or_default());
    let price = sizes::machine_price(kind, machine.spec["diskBytes"].as_u64().unwrap_or_default());
    let price = price.map(|price| format!(", about ${price:.3} an hour")).unwrap_or_default();
    machine.summary = format!("{kind}, {disk} GiB, {image_name}, {zone}{price}");
    machine.replace_on = ["role", "instanceType", "diskBytes"].map(String::from).to_vec();
    for (field, value) in [("instanceType", json!(kind)), ("zone", json!(zone)), ("image", json!(image))] {
        machine.spec[field] = value;
    }
    Ok(machine)
}

fn target_group(network: &Id, balancer: &LoadBalancerSpec, listener: &neutral::ListenerSpec) -> Resource {
    let machines = balancer.machines.iter().map(|name| Id::new(MACHINE, name));
    let spec = json!({"balancer": balancer.name, "protocol": listener.protocol, "port": listener.node_port, "machines": balancer.machines});
    let id = Id::new(TARGETS, target_name(&balancer.name, listener.node_port));
    let needs = std::iter::once(network.clone()).chain(machines).collect();
    let summary = format!("{} {} on {}", listener.protocol, listener.node_port, counted(balancer.machines.len(), "machine"));
    resource(id, spec, needs, &["protocol", "port"], summary)
}
