//! The neutral kinds: what a machine, a load balancer and a filesystem are to every provider, and how a blueprint becomes them. Pure.

use super::Context;
use crate::blueprint::quantity::{format_bytes, format_cpu};
use crate::blueprint::{Blueprint, Role};
use crate::engine::{HOST, Id, Observed, Resource};
use crate::error::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use crate::engine::MACHINE;

pub const LOAD_BALANCER: &str = "load-balancer";
pub const FILESYSTEM: &str = "filesystem";
pub const NETWORK: &str = "network";

/// Spec of kind `machine`; the id's name is `<group>-<n>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineSpec {
    /// `control-plane` or `worker`.
    pub role: String,
    pub group: String,
    /// Thousandths of a core.
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
    /// OpenSSH public key line that may log in; can change in place.
    pub ssh_public_key: String,
}

/// Spec of kind `load-balancer`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerSpec {
    pub name: String,
    pub listeners: Vec<ListenerSpec>,
    /// Logical names of the machines that serve; their addresses are inputs.
    pub machines: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenerSpec {
    pub port: u16,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// The port on every machine that leads to the service.
    pub node_port: u16,
}

/// Spec of kind `filesystem`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FilesystemSpec {
    pub size_bytes: u64,
}

/// Where the people outside reach a load balancer, be it by a name.
pub fn served_at(balancer: &Observed) -> Option<&str> {
    let of = |field: &str| balancer.outputs[field].as_str().filter(|text| !text.is_empty());
    of("outsideAddress").or_else(|| of("address"))
}

/// What every provider makes for a blueprint, in an order where needs come first. A provider may then change specs (its own fields),
/// `replace_on` (what it can change in place) and add resources of its own.
pub fn expand(blueprint: &Blueprint, context: &Context) -> Result<Vec<Resource>> {
    let network = Id::new(NETWORK, &context.cluster.name);
    let mut all = vec![Resource {
        id: network.clone(),
        spec: json!({}),
        needs: vec![],
        replace_on: vec![],
        summary: "private to the cluster".into(),
    }];
    let filesystems = blueprint.spec.filesystems.iter().map(|filesystem| {
        let size_bytes = filesystem.size_bytes();
        resource(
            Id::new(FILESYSTEM, &filesystem.name),
            &FilesystemSpec { size_bytes },
            vec![network.clone()],
            format!("{} shared", format_bytes(size_bytes as i64)),
        )
    });
    all.extend(filesystems);
    let mut machine_needs = vec![network.clone()];
    machine_needs.extend(all.iter().filter(|resource| resource.id.kind == FILESYSTEM).map(|resource| resource.id.clone()));
    all.extend(machines(blueprint, context).map(|(name, spec)| {
        let summary = format!("{} cpu, {} memory", format_cpu(spec.cpu_millis as i64), format_bytes(spec.memory_bytes as i64));
        let replace_on = ["role", "cpuMillis", "memoryBytes", "diskBytes"].map(String::from).to_vec();
        Resource { replace_on, ..resource(Id::new(MACHINE, name), &spec, machine_needs.clone(), summary) }
    }));
    let serving = serving_machines(blueprint);
    all.extend(load_balancers(blueprint, context, &serving).map(|(spec, summary)| {
        let needs = std::iter::once(network.clone()).chain(spec.machines.iter().map(|name| Id::new(MACHINE, name))).collect();
        resource(Id::new(LOAD_BALANCER, &spec.name), &spec, needs, summary)
    }));
    Ok(all)
}

/// A host per machine, with the spec that `spec` makes for it: what bootstrap installs.
pub fn hosts(resources: &[Resource], mut spec: impl FnMut(&str, &MachineSpec) -> Value) -> Vec<Resource> {
    let machines = resources.iter().filter(|resource| resource.id.kind == MACHINE);
    machines
        .filter_map(|machine| {
            let neutral: MachineSpec = serde_json::from_value(machine.spec.clone()).ok()?;
            let (id, needs) = (Id::new(HOST, &machine.id.name), vec![machine.id.clone()]);
            Some(Resource { spec: spec(&machine.id.name, &neutral), id, needs, replace_on: vec![], summary: neutral.role })
        })
        .collect()
}

fn resource(id: Id, spec: &impl Serialize, needs: Vec<Id>, summary: String) -> Resource {
    let spec = serde_json::to_value(spec).expect("a spec is plain data");
    Resource { id, spec, needs, replace_on: vec![], summary }
}

fn machines<'a>(blueprint: &'a Blueprint, context: &'a Context) -> impl Iterator<Item = (String, MachineSpec)> + 'a {
    blueprint.spec.machines.iter().flat_map(move |group| {
        let role = if group.role == Role::ControlPlane { "control-plane" } else { "worker" };
        let spec = MachineSpec {
            role: role.into(),
            group: group.name.clone(),
            cpu_millis: group.size.cpu_millis(),
            memory_bytes: group.size.memory_bytes(),
            disk_bytes: group.size.disk_bytes(),
            ssh_public_key: context.ssh_public_key.trim().into(),
        };
        group.machine_names().map(move |name| (name, spec.clone()))
    })
}

/// All workers; without workers, everybody serves.
fn serving_machines(blueprint: &Blueprint) -> Vec<String> {
    let groups = || blueprint.spec.machines.iter();
    let of = |role: Role| groups().filter(move |group| group.role == role && group.count > 0);
    let everybody = of(Role::Worker).next().is_none();
    groups().filter(|group| everybody || group.role == Role::Worker).flat_map(|group| group.machine_names()).collect()
}

/// The blueprint's, then those that Services inside the cluster ask for, with what people read of each.
fn load_balancers<'a>(
    blueprint: &'a Blueprint,
    context: &'a Context,
    serving: &'a [String],
) -> impl Iterator<Item = (LoadBalancerSpec, String)> + 'a {
    let listens = |balancer: &'a str| blueprint.spec.node_ports().filter(move |(other, ..)| other.name == balancer);
    let ours = blueprint.spec.load_balancers.iter().map(move |balancer| {
        let listeners =
            listens(&balancer.name).map(|(_, listener, node_port)| ListenerSpec { port: listener.port, protocol: "TCP".into(), node_port });
        let services: Vec<String> =
            balancer.listeners.iter().map(|listener| format!("{} to {}", listener.port, listener.service)).collect();
        let spec = LoadBalancerSpec { name: balancer.name.clone(), listeners: listeners.collect(), machines: serving.to_vec() };
        (spec, services.join(", "))
    });
    let theirs = context.service_load_balancers.iter().map(move |wish| {
        let machines = if wish.machines.is_empty() { serving.to_vec() } else { wish.machines.clone() };
        let spec = LoadBalancerSpec { machines, ..wish.clone() };
        let ports: Vec<String> = spec.listeners.iter().map(|listener| listener.port.to_string()).collect();
        (spec, format!("{} for a Service", ports.join(", ")))
    });
    ours.chain(theirs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Cluster;

    fn context() -> Context {
        Context {
            cluster: Cluster { name: "shop".into(), uid: "u-1".into() },
            ssh_public_key: "ssh-ed25519 AAAA".into(),
            service_load_balancers: vec![LoadBalancerSpec {
                name: "svc-12345678".into(),
                listeners: vec![ListenerSpec { port: 443, protocol: "TCP".into(), node_port: 30100 }],
                machines: vec![],
            }],
        }
    }

    fn blueprint(workers: u32) -> Blueprint {
        let value = json!({
            "apiVersion": "kprov.dev/v1", "kind": "Blueprint", "metadata": {"name": "shop"},
            "spec": {
                "provider": "local",
                "machines": [
                    {"name": "control", "role": "control-plane", "count": 1},
                    {"name": "worker", "role": "worker", "count": workers, "size": {"cpu": "500m", "memory": "2Gi", "disk": "10Gi"}},
                ],
                "loadBalancers": [{"name": "web", "listeners": [{"port": 80, "service": "shop/web"}]}],
                "filesystems": [{"name": "media", "size": "5Gi"}],
            },
        });
        serde_json::from_value(value).expect("a blueprint")
    }

    /// One line per resource: id, what people read, what it needs.
    fn check(blueprint: &Blueprint, expected: &[&str]) {
        let resources = expand(blueprint, &context()).expect("a good blueprint");
        let line = |resource: &Resource| {
            let needs: Vec<String> = resource.needs.iter().map(Id::to_string).collect();
            format!("{}: {} <- {}", resource.id, resource.summary, needs.join(" "))
        };
        assert_eq!(resources.iter().map(line).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_blueprint_becomes_neutral_resources_that_name_what_they_need() {
        check(
            &blueprint(2),
            &[
                "network/shop: private to the cluster <- ",
                "filesystem/media: 5Gi shared <- network/shop",
                "machine/control-1: 1 cpu, 1Gi memory <- network/shop filesystem/media",
                "machine/worker-1: 500m cpu, 2Gi memory <- network/shop filesystem/media",
                "machine/worker-2: 500m cpu, 2Gi memory <- network/shop filesystem/media",
                "load-balancer/web: 80 to shop/web <- network/shop machine/worker-1 machine/worker-2",
                "load-balancer/svc-12345678: 443 for a Service <- network/shop machine/worker-1 machine/worker-2",
            ],
        );
    }

    #[test]
    fn without_workers_the_control_plane_serves() {
        let resources = expand(&blueprint(0), &context()).expect("a good blueprint");
        let balancer: LoadBalancerSpec = serde_json::from_value(resources[3].spec.clone()).expect("a load balancer");
        assert_eq!(balancer.machines, ["control-1"]);
        assert_eq!(balancer.listeners, [ListenerSpec { port: 80, protocol: "TCP".into(), node_port: 32000 }]);
    }

    #[test]
    fn every_machine_gets_a_host_that_needs_it() {
        let resources = expand(&blueprint(1), &context()).expect("a good blueprint");
        let hosts = hosts(&resources, |name, machine| json!({"name": name, "role": machine.role}));
        assert_eq!(hosts.len(), 2);
        assert_eq!((&hosts[1].id, &hosts[1].needs[0]), (&Id::new(HOST, "worker-1"), &Id::new(MACHINE, "worker-1")));
        assert_eq!(hosts[0].spec, json!({"name": "control-1", "role": "control-plane"}));
    }
}
