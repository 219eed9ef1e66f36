//! Replies -> what is observed: phase, spec as it is, outputs. Pure; tested on what the API answers.

use super::names::{self, SSH_USER};
use super::operations::last;
use super::request::{SHARE, handle_of};
use super::resources::*;
use crate::engine::{Id, Observed, Phase};
use crate::providers::ownership::Mark;
use crate::providers::resources::{FILESYSTEM, LOAD_BALANCER, ListenerSpec, MACHINE, NETWORK};
use ipnet::Ipv4Net;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What a thing's own reply does not say.
#[derive(Debug, Clone, Default)]
pub struct Beside {
    /// An instance's, from its guest attributes.
    pub host_keys: Vec<String>,
    /// Why nobody may read those.
    pub refused: Option<String>,
    /// An instance group's members, by machine name.
    pub members: Vec<String>,
}

/// One thing of ours; `None` for what is not.
pub fn observed(uid: &str, thing: &Value, beside: &Beside) -> Option<Observed> {
    let Mark { cluster, id, generation } = names::mark(uid, thing)?;
    let network = Id::new(NETWORK, &cluster.name);
    let subnetwork = Id::new(SUBNETWORK, &cluster.name);
    let (phase, spec, outputs, needs) = match id.kind.as_str() {
        NETWORK => (Phase::Ready, json!({}), json!({}), vec![]),
        SUBNETWORK => (Phase::Ready, json!({"range": thing["ipCidrRange"]}), json!({}), vec![network]),
        FIREWALL => (Phase::Ready, firewall(thing), json!({}), vec![network]),
        MACHINE => (machine_phase(thing, &beside.host_keys), machine(thing), machine_outputs(thing, beside), vec![network, subnetwork]),
        FILESYSTEM => return filesystem(uid, thing),
        INSTANCE_GROUP => {
            let needs = std::iter::once(network).chain(beside.members.iter().map(|name| Id::new(MACHINE, name))).collect();
            (Phase::Ready, json!({"machines": beside.members}), json!({}), needs)
        }
        ADDRESS => {
            let phase = if thing["status"] == "RESERVING" { Phase::Pending } else { Phase::Ready };
            (phase, json!({}), json!({"address": thing["address"]}), vec![])
        }
        HEALTH_CHECK => {
            let asked = &thing["httpHealthCheck"];
            (Phase::Ready, json!({"port": asked["port"], "path": asked["requestPath"]}), json!({}), vec![])
        }
        BACKEND_SERVICE => {
            let zones = backend_zones(thing);
            let groups = zones.iter().map(|zone| Id::new(INSTANCE_GROUP, zone));
            let needs = groups.chain([Id::new(HEALTH_CHECK, &id.name)]).collect();
            (Phase::Ready, json!({"zones": zones}), json!({}), needs)
        }
        _ => return None,
    };
    Some(Observed { id, handle: handle_of(thing), generation, phase, spec, outputs, needs })
}

/// The load balancers that these forwarding rules make up; what they send to is in the instance groups.
pub fn balancers(uid: &str, rules: &[Value], serving: &[String]) -> Vec<Observed> {
    let mut by_id: BTreeMap<Id, Vec<(&Value, Mark)>> = BTreeMap::new();
    for rule in rules {
        if let Some(mark) = names::mark(uid, rule).filter(|mark| mark.id.kind == LOAD_BALANCER) {
            by_id.entry(mark.id.clone()).or_default().push((rule, mark));
        }
    }
    by_id.into_values().map(|rules| balancer(&rules, serving)).collect()
}

fn balancer(rules: &[(&Value, Mark)], serving: &[String]) -> Observed {
    let mark = &rules[0].1;
    let mut listeners: Vec<ListenerSpec> = rules.iter().filter_map(|(rule, _)| listener(rule)).collect();
    listeners.sort_by_key(|listener| (listener.protocol.clone(), listener.port));
    let name = &mark.id.name;
    let mut machines = serving.to_vec();
    machines.sort();
    Observed {
        id: mark.id.clone(),
        handle: names::name(&mark.cluster, &mark.id),
        generation: rules.iter().map(|(_, mark)| mark.generation).max().unwrap_or(1),
        phase: Phase::Ready,
        spec: json!({"name": name, "listeners": listeners, "machines": machines}),
        outputs: json!({"address": rules[0].0["IPAddress"]}),
        needs: vec![Id::new(NETWORK, &mark.cluster.name), Id::new(ADDRESS, name), Id::new(BACKEND_SERVICE, name)],
    }
}

fn listener(rule: &Value) -> Option<ListenerSpec> {
    let port = rule["ports"][0].as_str()?.parse().ok()?;
    Some(ListenerSpec { port, protocol: rule["IPProtocol"].as_str()?.into(), node_port: 0 })
}

/// A rule that somebody switched off is not as wished.
fn firewall(thing: &Value) -> Value {
    let mut ranges = strings(&thing["sourceRanges"]);
    // Google returns them in its own order.
    ranges.sort();
    let allowed = &thing["allowed"][0];
    let disabled = thing["disabled"] == true;
    let protocol = if disabled { json!("disabled") } else { allowed["IPProtocol"].clone() };
    json!({"ranges": ranges, "protocol": protocol, "ports": strings(&allowed["ports"])})
}

/// Ready only when it can be reached: running, with its address and its host keys known.
fn machine_phase(thing: &Value, host_keys: &[String]) -> Phase {
    match thing["status"].as_str().unwrap_or_default() {
        "RUNNING" if host_keys.is_empty() || thing["networkInterfaces"][0]["networkIP"].is_null() => Phase::Pending,
        "RUNNING" => Phase::Ready,
        "PROVISIONING" | "STAGING" | "REPAIRING" | "PENDING" => Phase::Pending,
        "STOPPING" | "PENDING_STOP" | "SUSPENDING" | "DEPROVISIONING" => Phase::Deleting,
        status => Phase::Broken(format!("the instance is {status}")),
    }
}

fn machine(thing: &Value) -> Value {
    let texts = names::described(thing);
    let boot = thing["disks"].as_array().into_iter().flatten().find(|disk| disk["boot"] == true);
    let mut spec = json!({
        "role": texts.get("role"),
        "group": texts.get("group"),
        "machineType": thing["machineType"].as_str().map(last),
        "sshPublicKey": public_key(thing),
    });
    if let Some(gib) = boot.and_then(|disk| number(&disk["diskSizeGb"])) {
        spec["diskBytes"] = json!(gib << 30);
    }
    spec
}

/// The cluster's own key: of our user, and not one that was let in for a moment.
fn public_key(thing: &Value) -> Option<String> {
    let items = thing["metadata"]["items"].as_array().into_iter().flatten();
    let lines = items.filter(|item| item["key"] == "ssh-keys").flat_map(|item| item["value"].as_str().unwrap_or_default().lines());
    let ours = lines.filter_map(|line| line.strip_prefix(SSH_USER)?.strip_prefix(':'));
    ours.filter(|key| !key.contains("google-ssh")).map(str::to_string).next()
}

fn machine_outputs(thing: &Value, beside: &Beside) -> Value {
    let interface = &thing["networkInterfaces"][0];
    let private = &interface["networkIP"];
    let public = &interface["accessConfigs"][0]["natIP"];
    let mut outputs = json!({
        "address": if public.is_null() { private } else { public },
        "privateAddress": private,
        "sshPort": 22,
        "sshUser": SSH_USER,
        "hostKeys": beside.host_keys,
        "zone": thing["zone"].as_str().map(last),
    });
    if let Some(why) = &beside.refused {
        outputs["hostKeysRefused"] = json!(why);
    }
    outputs
}

/// `ssh-ed25519 AAAA...` lines out of the guest attributes below `hostkeys/`.
pub fn host_keys(attributes: &Value) -> Vec<String> {
    let items = attributes["queryValue"]["items"].as_array().into_iter().flatten().filter(|item| item["namespace"] == "hostkeys");
    let mut keys: Vec<String> =
        items.filter_map(|item| Some(format!("{} {}", item["key"].as_str()?, item["value"].as_str()?.trim()))).collect();
    keys.sort();
    keys
}

/// Filestore's names are paths: `projects/p/locations/zone/instances/name`.
fn filesystem(uid: &str, thing: &Value) -> Option<Observed> {
    let Mark { cluster, id, generation } = names::mark(uid, thing)?;
    let mut parts = thing["name"].as_str().unwrap_or_default().rsplit('/');
    let (name, zone) = (parts.next()?, parts.nth(1)?);
    let phase = match enumerated(&thing["state"], &FILESTORE_STATES) {
        "READY" => Phase::Ready,
        "CREATING" | "REPAIRING" | "RESTORING" | "RESUMING" => Phase::Pending,
        "DELETING" => Phase::Deleting,
        state => Phase::Broken(format!("the instance is {state}")),
    };
    let address = thing["networks"][0]["ipAddresses"][0].as_str().unwrap_or_default();
    let share = thing["fileShares"][0]["name"].as_str().unwrap_or(SHARE);
    Some(Observed {
        handle: format!("{zone}/{name}"),
        generation,
        phase,
        spec: json!({"sizeBytes": number(&thing["fileShares"][0]["capacityGb"]).map(|gib| gib << 30)}),
        outputs: json!({"mount": {"type": "nfs", "source": format!("{address}:/{share}")}}),
        needs: vec![Id::new(NETWORK, &cluster.name)],
        id,
    })
}

/// A filesystem of ours and its range of addresses.
pub fn reserved(uid: &str, thing: &Value) -> Option<(String, Ipv4Net)> {
    let mark = names::mark(uid, thing)?;
    Some((mark.id.name, thing["networks"][0]["reservedIpRange"].as_str()?.parse().ok()?))
}

/// The SDK gives Filestore's enumerations by number.
const FILESTORE_STATES: [&str; 14] = [
    "unspecified",
    "CREATING",
    "READY",
    "REPAIRING",
    "DELETING",
    "5",
    "ERROR",
    "RESTORING",
    "SUSPENDED",
    "SUSPENDING",
    "RESUMING",
    "11",
    "REVERTING",
    "PROMOTING",
];

fn enumerated<'a>(value: &'a Value, names: &[&'a str]) -> &'a str {
    match value {
        Value::String(name) => name,
        other => other.as_u64().and_then(|number| names.get(number as usize).copied()).unwrap_or("unknown"),
    }
}

/// The zones whose groups a backend service sends to.
fn backend_zones(thing: &Value) -> Vec<String> {
    let groups = thing["backends"].as_array().into_iter().flatten().filter_map(|backend| backend["group"].as_str());
    let mut zones: Vec<String> = groups.filter_map(|group| group.split("/zones/").nth(1)?.split('/').next().map(str::to_string)).collect();
    zones.sort();
    zones
}

/// 64-bit numbers travel as texts.
pub fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|item| item.as_str().map(str::to_string)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Cluster;

    fn described(kind: &str, name: &str, more: &[(&str, &str)]) -> String {
        let cluster = Cluster { name: "shop".into(), uid: "u-1".into() };
        names::description(&Mark::new(&cluster, &Id::new(kind, name), 2), more)
    }

    fn instance(status: &str) -> Value {
        json!({
            "name": "kprov-x-machine-worker-1", "status": status,
            "zone": "https://www.googleapis.com/compute/v1/projects/p/zones/europe-west1-b",
            "machineType": "https://www.googleapis.com/compute/v1/projects/p/zones/europe-west1-b/machineTypes/e2-medium",
            "description": described(MACHINE, "worker-1", &[("role", "worker"), ("group", "worker")]),
            "disks": [{"boot": true, "diskSizeGb": "20"}],
            "metadata": {"fingerprint": "x", "items": [
                {"key": "ssh-keys", "value": "kprov:ssh-ed25519 BBBB google-ssh {\"expireOn\":\"x\"}\nkprov:ssh-ed25519 AAAA\nother:ssh-rsa C"},
            ]},
            "networkInterfaces": [{"networkIP": "10.128.0.2", "accessConfigs": [{"natIP": "203.0.113.7"}]}],
        })
    }

    fn beside() -> Beside {
        Beside { host_keys: vec!["ssh-ed25519 HHHH".into()], ..Beside::default() }
    }

    #[test]
    fn an_instance_is_read_back_as_it_is() {
        let machine = observed("u-1", &instance("RUNNING"), &beside()).expect("ours");
        assert_eq!((machine.id, machine.generation, machine.phase), (Id::new(MACHINE, "worker-1"), 2, Phase::Ready));
        assert_eq!(machine.handle, "europe-west1-b/kprov-x-machine-worker-1");
        assert_eq!(
            machine.spec,
            json!({"role": "worker", "group": "worker", "machineType": "e2-medium", "sshPublicKey": "ssh-ed25519 AAAA", "diskBytes": 20u64 << 30})
        );
        assert_eq!((&machine.outputs["address"], &machine.outputs["privateAddress"]), (&json!("203.0.113.7"), &json!("10.128.0.2")));
    }

    #[test]
    fn a_machine_is_ready_when_its_host_keys_are_known() {
        let phase = |status: &str, beside: &Beside| observed("u-1", &instance(status), beside).expect("ours").phase;
        assert_eq!(phase("RUNNING", &Beside::default()), Phase::Pending);
        assert_eq!(phase("STAGING", &beside()), Phase::Pending);
        assert_eq!(phase("STOPPING", &beside()), Phase::Deleting);
        assert_eq!(phase("SUSPENDING", &beside()), Phase::Deleting);
        assert_eq!(phase("SUSPENDED", &beside()), Phase::Broken("the instance is SUSPENDED".into()));
        assert_eq!(phase("TERMINATED", &beside()), Phase::Broken("the instance is TERMINATED".into()));
    }

    #[test]
    fn what_is_not_ours_is_not_seen_however_alike_its_name() {
        let mut stranger = instance("RUNNING");
        stranger["description"] = json!("kprov-x-machine-worker-1");
        assert_eq!(observed("u-1", &stranger, &beside()), None);
        assert_eq!(observed("u-2", &instance("RUNNING"), &beside()), None);
    }

    #[test]
    fn forwarding_rules_of_one_name_are_one_load_balancer() {
        let rule = |port: &str, protocol: &str| json!({"name": "r", "IPAddress": "203.0.113.9", "IPProtocol": protocol, "ports": [port], "description": described(LOAD_BALANCER, "web", &[])});
        let seen = balancers("u-1", &[rule("53", "UDP"), rule("443", "TCP"), rule("80", "TCP")], &["worker-2".into(), "worker-1".into()]);
        assert_eq!(seen.len(), 1);
        let ports: Vec<&Value> = seen[0].spec["listeners"].as_array().expect("listeners").iter().map(|one| &one["port"]).collect();
        assert_eq!(ports, [80, 443, 53]);
        assert_eq!((&seen[0].spec["machines"], &seen[0].outputs["address"]), (&json!(["worker-1", "worker-2"]), &json!("203.0.113.9")));
    }

    #[test]
    fn a_filesystem_says_what_to_mount() {
        let thing = json!({
            "name": "projects/p/locations/europe-west1-b/instances/kprov-x-filesystem-media", "state": 2,
            "description": described(FILESYSTEM, "media", &[]),
            "fileShares": [{"name": "share", "capacityGb": "1024"}], "networks": [{"ipAddresses": ["10.1.2.3"]}],
        });
        let seen = observed("u-1", &thing, &Beside::default()).expect("ours");
        assert_eq!((seen.handle.as_str(), seen.phase), ("europe-west1-b/kprov-x-filesystem-media", Phase::Ready));
        assert_eq!(seen.outputs, json!({"mount": {"type": "nfs", "source": "10.1.2.3:/share"}}));
        assert_eq!(seen.spec, json!({"sizeBytes": 1u64 << 40}));
    }

    #[test]
    fn a_rule_that_was_switched_off_shows_as_a_difference() {
        let rule = |disabled: bool| {
            json!({"name": "f", "description": described(FIREWALL, "ssh", &[]), "sourceRanges": ["b", "a"], "disabled": disabled,
                   "allowed": [{"IPProtocol": "tcp", "ports": ["22"]}]})
        };
        let spec = |disabled: bool| observed("u-1", &rule(disabled), &Beside::default()).expect("ours").spec;
        assert_eq!(spec(false), json!({"ranges": ["a", "b"], "protocol": "tcp", "ports": ["22"]}));
        assert_ne!(spec(true), spec(false));
    }

    #[test]
    fn host_keys_come_from_guest_attributes() {
        let attributes = json!({"queryPath": "hostkeys/", "queryValue": {"items": [
            {"namespace": "hostkeys", "key": "ssh-rsa", "value": "RRRR"},
            {"namespace": "hostkeys", "key": "ssh-ed25519", "value": "EEEE"},
            {"namespace": "guestInventory", "key": "ssh-ed25519", "value": "not a key"},
        ]}});
        assert_eq!(host_keys(&attributes), ["ssh-ed25519 EEEE", "ssh-rsa RRRR"]);
    }
}
