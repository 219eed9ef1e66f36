//! What Google is asked for: the neutral kinds in Google's words, one resource per object of Google's. Pure.

use super::names::SSH_USER;
use super::settings::Settings;
use super::sizes;
use crate::blueprint::Blueprint;
use crate::blueprint::schema::Access;
use crate::engine::{Id, Resource};
use crate::error::Result;
use crate::providers::firewall::{self, From, Protocol, Rule};
use crate::providers::resources::{self as neutral, FILESYSTEM, FilesystemSpec, LOAD_BALANCER, LoadBalancerSpec, MACHINE, MachineSpec};
use crate::providers::{Context, Delivery, HEALTH_PORT};
use ipnet::{IpNet, Ipv4Net};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

pub const SUBNETWORK: &str = "subnetwork";
pub const FIREWALL: &str = "firewall";
pub const INSTANCE_GROUP: &str = "instance-group";
pub const ADDRESS: &str = "address";
pub const HEALTH_CHECK: &str = "health-check";
pub const BACKEND_SERVICE: &str = "backend-service";

/// Beside the pods' and the services' ranges; room for 4,092 machines.
pub const MACHINES_RANGE: &str = "10.128.0.0/20";
/// Where filesystems have their addresses, beside the machines', the pods' and the services' ranges: Google would choose any range that its
/// network does not have, and it knows nothing of pods and services.
const FILESYSTEMS_RANGE: &str = "10.160.0.0/16";
/// What a basic instance of Filestore takes.
const FILESYSTEM_PREFIX: u8 = 29;
/// From where Google looks whether a machine behind a passthrough load balancer is well.
const HEALTH_RANGES: [&str; 3] = ["209.85.152.0/22", "209.85.204.0/22", "35.191.0.0/16"];
const HEALTH_PATH: &str = "/healthz";
/// More zones make a cluster no safer, and traffic between zones is paid for.
const MOST_ZONES: usize = 3;

/// What expansion needs to know of Google.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    /// The region's zones, sorted.
    pub zones: Vec<String>,
    /// By machine type: the zones that have it.
    pub offers: BTreeMap<String, BTreeSet<String>>,
    /// By machine type, as quotas count them.
    pub cores: BTreeMap<String, u64>,
    /// By machine: the zone it is in. A machine stays where it is, whatever the region's zones become.
    pub placed: BTreeMap<String, String>,
    /// By filesystem: the addresses that it has. They never change.
    pub reserved: BTreeMap<String, Ipv4Net>,
}

/// In an order where needs come first.
pub fn expand(blueprint: &Blueprint, context: &Context, settings: &Settings, catalog: &Catalog) -> Result<Vec<Resource>> {
    let mut all = neutral::expand(blueprint, context)?;
    let take = |all: &mut Vec<Resource>, kind: &str| all.extract_if(.., |resource| resource.id.kind == kind).collect::<Vec<_>>();
    let (machines, balancers, filesystems) = (take(&mut all, MACHINE), take(&mut all, LOAD_BALANCER), take(&mut all, FILESYSTEM));
    let network = all[0].id.clone();
    let summary = format!("{MACHINES_RANGE} in {}", settings.region);
    let subnetwork = Resource {
        replace_on: vec!["range".into()],
        ..resource(Id::new(SUBNETWORK, &context.cluster.name), json!({"range": MACHINES_RANGE}), vec![network.clone()], summary)
    };
    let machines = machines.into_iter().map(|one| machine(one, settings)).collect::<Result<Vec<_>>>()?;
    let zones = zones(catalog, &machines);
    let balancers: Vec<LoadBalancerSpec> = balancers.iter().map(|one| balancer(one, &machines)).collect();
    let firewalls = firewalls(&blueprint.spec.access, &balancers, &network);
    all.push(subnetwork.clone());
    all.extend(firewalls.iter().cloned());
    all.extend(filesystems_of(filesystems, &zones, &context.cluster.uid, &catalog.reserved));
    let ground: Vec<Id> = [&subnetwork].into_iter().chain(&firewalls).map(|resource| resource.id.clone()).collect();
    let machines: Vec<Resource> = machines.into_iter().map(|one| place(one, &zones, catalog, &ground)).collect();
    let groups = if balancers.is_empty() { Vec::new() } else { groups(&machines, &balancers[0].machines, &network) };
    all.extend(machines);
    all.extend(groups.iter().cloned());
    all.extend(balancers.iter().flat_map(|spec| balancer_parts(spec, &groups, &network)));
    Ok(all)
}

/// The machine types that a blueprint comes to: what the catalog is asked for.
pub fn types(blueprint: &Blueprint, settings: &Settings) -> Result<BTreeSet<String>> {
    let groups = blueprint.spec.machines.iter().filter(|group| group.count > 0);
    groups.map(|group| machine_type(settings, &group.name, group.size.cpu_millis(), group.size.memory_bytes())).collect()
}

fn machine_type(settings: &Settings, group: &str, cpu_millis: u64, memory_bytes: u64) -> Result<String> {
    settings.machine_types.get(group).map_or_else(|| sizes::machine_type(cpu_millis, memory_bytes), |named| Ok(named.clone()))
}

/// The machine type is what counts; cpu and memory are only how it was found.
fn machine(mut wish: Resource, settings: &Settings) -> Result<Resource> {
    let spec: MachineSpec = serde_json::from_value(wish.spec.clone()).expect("a neutral machine");
    let kind = machine_type(settings, &spec.group, spec.cpu_millis, spec.memory_bytes)?;
    wish.spec["diskBytes"] = json!(sizes::disk_gib(spec.disk_bytes) << 30);
    wish.spec["machineType"] = json!(kind);
    wish.spec["image"] = json!(settings.image);
    wish.spec["serviceAccount"] = if spec.role == "control-plane" { json!(settings.service_account) } else { Value::Null };
    wish.replace_on = ["role", "machineType", "diskBytes"].map(String::from).to_vec();
    Ok(wish)
}

/// Where new machines go: the first zones that have all types. Without such a zone every zone is named, and the check says what is wrong.
fn zones(catalog: &Catalog, machines: &[Resource]) -> Vec<String> {
    let has = |zone: &String, machine: &Resource| {
        let kind = machine.spec["machineType"].as_str().unwrap_or_default();
        catalog.offers.get(kind).is_some_and(|zones| zones.contains(zone))
    };
    let good: Vec<String> = catalog.zones.iter().filter(|zone| machines.iter().all(|machine| has(zone, machine))).cloned().collect();
    let mut zones = if good.is_empty() { catalog.zones.clone() } else { good };
    zones.truncate(MOST_ZONES);
    zones
}

/// Round robin by the number at the end of the machine's name, so that one more machine moves no other.
fn place(mut machine: Resource, zones: &[String], catalog: &Catalog, ground: &[Id]) -> Resource {
    let name = &machine.id.name;
    let number: usize = name.rsplit_once('-').and_then(|(_, number)| number.parse().ok()).unwrap_or(1);
    let chosen = zones.get((number.max(1) - 1) % zones.len().max(1)).cloned().unwrap_or_default();
    let zone = catalog.placed.get(name).cloned().unwrap_or(chosen);
    let kind = machine.spec["machineType"].as_str().unwrap_or_default();
    let disk = machine.spec["diskBytes"].as_u64().unwrap_or_default();
    let image = machine.spec["image"].as_str().unwrap_or_default();
    let price = sizes::machine_price(kind, disk).map(|price| format!(", about ${price:.3} an hour")).unwrap_or_default();
    let account = account(&machine).map(|account| format!(", acts as {account}")).unwrap_or_default();
    machine.summary = format!("{kind} in {zone}, {} GiB disk, {image}{account}{price}", disk >> 30);
    machine.spec["zone"] = json!(zone);
    machine.needs.extend(ground.iter().cloned());
    machine
}

/// Who a machine is to Google, in the plan's words; most are nobody.
fn account(machine: &Resource) -> Option<&str> {
    let account = machine.spec["serviceAccount"].as_str()?;
    Some(if account == "default" { "the project's default service account" } else { account })
}

/// Each with addresses of its own, which nobody else's choice moves: taken ones are left out, and those that exist keep theirs.
fn filesystems_of(wishes: Vec<Resource>, zones: &[String], uid: &str, reserved: &BTreeMap<String, Ipv4Net>) -> Vec<Resource> {
    let mut taken: BTreeSet<Ipv4Net> = reserved.values().copied().collect();
    let one = |wish: Resource| {
        let range = reserved.get(&wish.id.name).copied().unwrap_or_else(|| free_range(uid, &wish.id.name, &taken));
        taken.insert(range);
        filesystem(wish, zones, range)
    };
    wishes.into_iter().map(one).collect()
}

/// The first block that is free from the place on that the name says: whoever asks again gets the same.
fn free_range(uid: &str, name: &str, taken: &BTreeSet<Ipv4Net>) -> Ipv4Net {
    let all: Ipv4Net = FILESYSTEMS_RANGE.parse().expect("a range");
    let blocks: Vec<Ipv4Net> = all.subnets(FILESYSTEM_PREFIX).expect("smaller blocks").collect();
    let digest = Sha256::digest(format!("{uid}\n{name}"));
    let start = usize::from(u16::from_be_bytes([digest[0], digest[1]])) % blocks.len();
    let from_there = blocks.iter().cycle().skip(start).take(blocks.len());
    from_there.copied().find(|block| !taken.contains(block)).unwrap_or(blocks[start])
}

fn filesystem(mut wish: Resource, zones: &[String], range: Ipv4Net) -> Resource {
    let spec: FilesystemSpec = serde_json::from_value(wish.spec.clone()).expect("a neutral filesystem");
    let gib = sizes::share_gib(spec.size_bytes);
    wish.spec = json!({"sizeBytes": gib << 30, "zone": zones.first(), "range": range.to_string()});
    wish.summary = format!("Filestore, basic HDD, {gib} GiB (its smallest is 1024)");
    wish
}

/// Every load balancer sends to every machine that serves: a machine can be in one load-balanced group only.
fn balancer(wish: &Resource, machines: &[Resource]) -> LoadBalancerSpec {
    let mut spec: LoadBalancerSpec = serde_json::from_value(wish.spec.clone()).expect("a neutral load balancer");
    let named = |role: &str| machines.iter().filter(|one| one.spec["role"] == role).map(|one| one.id.name.clone()).collect::<Vec<_>>();
    let workers = named("worker");
    spec.machines = if workers.is_empty() { named("control-plane") } else { workers };
    spec.machines.sort();
    // Packets arrive with the listener's own port: what nobody uses must not look like a difference.
    spec.listeners.iter_mut().for_each(|listener| listener.node_port = 0);
    spec.listeners.sort_by_key(|listener| (listener.protocol.clone(), listener.port));
    spec
}

fn firewalls(access: &Access, balancers: &[LoadBalancerSpec], network: &Id) -> Vec<Resource> {
    let rules = firewall::machines(access, balancers, Delivery::Address);
    let mut all: Vec<Resource> = rules.iter().filter_map(|rule| firewall_rule(rule, network)).collect();
    if !balancers.is_empty() {
        let spec = json!({"ranges": HEALTH_RANGES, "protocol": "tcp", "ports": [HEALTH_PORT.to_string()]});
        all.push(resource(Id::new(FIREWALL, "health"), spec, vec![network.clone()], "Google's health checks"));
    }
    all
}

/// Machines have IPv4 addresses only; a rule without such a range lets nobody in and is left out.
fn firewall_rule(rule: &Rule, network: &Id) -> Option<Resource> {
    let mut ranges: Vec<String> = match &rule.from {
        From::Ranges(ranges) => ranges.iter().filter(|range| matches!(range, IpNet::V4(_))).map(IpNet::to_string).collect(),
        From::Cluster => Vec::new(),
        // Packets of a passthrough load balancer keep their sender.
        From::Balancers => vec!["0.0.0.0/0".into()],
    };
    if ranges.is_empty() && rule.from != From::Cluster {
        return None;
    }
    ranges.sort();
    let protocol = match rule.protocol {
        Protocol::Any => "all",
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    let ports: Vec<String> = rule.ports.iter().map(u16::to_string).collect();
    let summary = if rule.from == From::Cluster { rule.why.into() } else { format!("{} from {}", ports.join(", "), ranges.join(", ")) };
    let spec = json!({"ranges": ranges, "protocol": protocol, "ports": ports});
    Some(resource(Id::new(FIREWALL, rule.name), spec, vec![network.clone()], summary))
}

/// One per zone with machines that serve.
fn groups(machines: &[Resource], serving: &[String], network: &Id) -> Vec<Resource> {
    let mut by_zone: BTreeMap<&str, Vec<&Id>> = BTreeMap::new();
    for machine in machines.iter().filter(|machine| serving.contains(&machine.id.name)) {
        by_zone.entry(machine.spec["zone"].as_str().unwrap_or_default()).or_default().push(&machine.id);
    }
    let group = |(zone, mut members): (&str, Vec<&Id>)| {
        members.sort();
        let names: Vec<&str> = members.iter().map(|id| id.name.as_str()).collect();
        let needs = std::iter::once(network).chain(members.iter().copied()).cloned().collect();
        resource(Id::new(INSTANCE_GROUP, zone), json!({"machines": names}), needs, names.join(", "))
    };
    by_zone.into_iter().map(group).collect()
}

fn balancer_parts(spec: &LoadBalancerSpec, groups: &[Resource], network: &Id) -> Vec<Resource> {
    let id = |kind: &str| Id::new(kind, &spec.name);
    let group_ids: Vec<Id> = groups.iter().map(|group| group.id.clone()).collect();
    let zones: Vec<&str> = group_ids.iter().map(|group| group.name.as_str()).collect();
    let backends: Vec<Id> = group_ids.iter().cloned().chain([id(HEALTH_CHECK)]).collect();
    let ports: Vec<String> = spec.listeners.iter().map(|listener| format!("{}/{}", listener.port, listener.protocol)).collect();
    let needs = vec![network.clone(), id(ADDRESS), id(BACKEND_SERVICE)];
    vec![
        resource(id(ADDRESS), json!({}), vec![], "static, external"),
        // The node's word for whether it serves, whatever the listeners' protocols; asked at the load balancer's own address.
        resource(id(HEALTH_CHECK), json!({"port": HEALTH_PORT, "path": HEALTH_PATH}), vec![], format!("HTTP {HEALTH_PORT}{HEALTH_PATH}")),
        resource(id(BACKEND_SERVICE), json!({"zones": zones}), backends, zones.join(", ")),
        resource(id(LOAD_BALANCER), json!(spec), needs, format!("passthrough, {}", ports.join(", "))),
    ]
}

fn resource(id: Id, spec: Value, needs: Vec<Id>, summary: impl Into<String>) -> Resource {
    Resource { id, spec, needs, replace_on: vec![], summary: summary.into() }
}

/// A line of an instance's `ssh-keys`.
pub fn ssh_key_line(public_key: &str) -> String {
    format!("{SSH_USER}:{public_key}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Cluster;

    fn settings() -> Settings {
        Settings {
            project: "p".into(),
            region: "europe-west1".into(),
            endpoint: None,
            file_endpoint: None,
            image: "debian-cloud/debian-12".into(),
            machine_types: BTreeMap::new(),
            service_account: "default".into(),
        }
    }

    fn catalog() -> Catalog {
        let zones: Vec<String> = ["b", "c", "d", "f"].map(|letter| format!("europe-west1-{letter}")).to_vec();
        let all: BTreeSet<String> = zones.iter().cloned().collect();
        let offers = [("e2-medium".to_string(), all.clone()), ("e2-standard-2".to_string(), all)];
        Catalog { zones, offers: offers.into(), ..Catalog::default() }
    }

    fn blueprint(workers: u32) -> Blueprint {
        let value = json!({
            "apiVersion": "kprov.dev/v1", "kind": "Blueprint", "metadata": {"name": "shop"},
            "spec": {
                "provider": "gcp", "location": "eu-west", "access": {"from": ["192.0.2.0/24", "2001:db8::/32"]},
                "machines": [
                    {"name": "control", "role": "control-plane", "count": 1},
                    {"name": "worker", "role": "worker", "count": workers, "size": {"cpu": 2, "memory": "8Gi", "disk": "20Gi"}},
                ],
                "loadBalancers": [{"name": "web", "listeners": [{"port": 443, "service": "web"}, {"port": 80, "service": "web"}]}],
                "filesystems": [{"name": "media", "size": "5Gi"}],
            },
        });
        serde_json::from_value(value).expect("a blueprint")
    }

    fn expanded(workers: u32, catalog: &Catalog) -> Vec<Resource> {
        let cluster = Cluster { name: "shop".into(), uid: "u-1".into() };
        let context = Context { cluster, ssh_public_key: "ssh-ed25519 AAAA".into(), service_load_balancers: vec![] };
        expand(&blueprint(workers), &context, &settings(), catalog).expect("a good blueprint")
    }

    #[test]
    fn a_blueprint_becomes_googles_objects_in_the_order_of_their_needs() {
        let all = expanded(2, &catalog());
        let lines: Vec<String> = all.iter().map(|one| format!("{}: {}", one.id, one.summary)).collect();
        assert_eq!(
            lines,
            [
                "network/shop: private to the cluster",
                "subnetwork/shop: 10.128.0.0/20 in europe-west1",
                "firewall/cluster: machines of the cluster reach each other",
                "firewall/ssh: 22 from 192.0.2.0/24",
                "firewall/api: 6443 from 192.0.2.0/24",
                "firewall/listeners-tcp: 80, 443 from 0.0.0.0/0",
                "firewall/health: Google's health checks",
                "filesystem/media: Filestore, basic HDD, 1024 GiB (its smallest is 1024)",
                "machine/control-1: e2-medium in europe-west1-b, 10 GiB disk, debian-cloud/debian-12, acts as the project's default service account, about $0.040 an hour",
                "machine/worker-1: e2-standard-2 in europe-west1-b, 20 GiB disk, debian-cloud/debian-12, about $0.075 an hour",
                "machine/worker-2: e2-standard-2 in europe-west1-c, 20 GiB disk, debian-cloud/debian-12, about $0.075 an hour",
                "instance-group/europe-west1-b: worker-1",
                "instance-group/europe-west1-c: worker-2",
                "address/web: static, external",
                "health-check/web: HTTP 10256/healthz",
                "backend-service/web: europe-west1-b, europe-west1-c",
                "load-balancer/web: passthrough, 80/TCP, 443/TCP",
            ]
        );
        for (position, one) in all.iter().enumerate() {
            assert!(one.needs.iter().all(|need| all[..position].iter().any(|other| other.id == *need)), "{} comes after its needs", one.id);
        }
    }

    #[test]
    fn a_machine_stays_in_its_zone_and_new_ones_go_where_their_type_is_sold() {
        let mut catalog = catalog();
        catalog.placed = BTreeMap::from([("worker-1".into(), "europe-west1-f".into())]);
        for zones in catalog.offers.values_mut() {
            zones.remove("europe-west1-b");
        }
        let zone = |name: &str| {
            let all = expanded(2, &catalog);
            all.iter().find(|one| one.id == Id::new(MACHINE, name)).expect("a machine").spec["zone"].as_str().expect("a zone").to_string()
        };
        assert_eq!(["worker-1", "worker-2", "control-1"].map(zone), ["europe-west1-f", "europe-west1-d", "europe-west1-c"]);
    }

    #[test]
    fn filesystems_have_ranges_of_their_own_beside_all_other_networks_and_keep_them() {
        let parse = |text: &str| text.parse::<Ipv4Net>().expect("a range");
        let names: Vec<String> = (0..200).map(|number| format!("fs-{number}")).collect();
        let ranges = |names: &[String], reserved: &BTreeMap<String, Ipv4Net>| -> BTreeMap<String, Ipv4Net> {
            let wish = |name: &String| resource(Id::new(FILESYSTEM, name), json!({"name": name, "sizeBytes": 1}), vec![], "");
            let all = filesystems_of(names.iter().map(wish).collect(), &["z".into()], "u-1", reserved);
            all.iter().map(|one| (one.id.name.clone(), parse(one.spec["range"].as_str().expect("a range")))).collect()
        };
        let first = ranges(&names, &BTreeMap::new());
        assert_eq!(first.values().collect::<BTreeSet<_>>().len(), 200, "no two have the same, also where names fall together");
        let others = [MACHINES_RANGE, "10.96.0.0/16", "10.244.0.0/14", "172.17.0.0/16"].map(parse);
        for range in first.values() {
            assert_eq!(range.prefix_len(), 29);
            assert!(others.iter().all(|other| !other.contains(range) && !range.contains(other)), "{range}");
        }
        assert_eq!(ranges(&names, &BTreeMap::new()), first, "whoever asks again gets the same");
        let (last, there) = (&names[199..], BTreeMap::from([("fs-7".to_string(), first["fs-199"])]));
        assert_eq!(ranges(&names[7..8], &there)["fs-7"], first["fs-199"], "what exists keeps its range");
        assert_ne!(ranges(last, &there)["fs-199"], first["fs-199"], "and nobody else gets it");
    }

    #[test]
    fn only_control_planes_act_as_a_service_account() {
        let all = expanded(1, &catalog());
        let account =
            |name: &str| all.iter().find(|one| one.id == Id::new(MACHINE, name)).expect("a machine").spec["serviceAccount"].clone();
        assert_eq!((account("control-1"), account("worker-1")), (json!("default"), Value::Null));
        let own = Settings { service_account: "loop@p.iam.gserviceaccount.com".into(), ..settings() };
        let cluster = Cluster { name: "shop".into(), uid: "u-1".into() };
        let context = Context { cluster, ssh_public_key: "ssh-ed25519 AAAA".into(), service_load_balancers: vec![] };
        let all = expand(&blueprint(1), &context, &own, &catalog()).expect("a good blueprint");
        let said: Vec<bool> =
            all.iter().filter(|one| one.id.kind == MACHINE).map(|one| one.summary.contains(", acts as loop@p.iam.")).collect();
        assert_eq!(said, [true, false], "the plan says so");
    }

    #[test]
    fn without_workers_the_control_plane_serves() {
        let group = expanded(0, &catalog()).into_iter().find(|one| one.id.kind == INSTANCE_GROUP).expect("a group");
        assert_eq!(group.spec, json!({"machines": ["control-1"]}));
    }
}
