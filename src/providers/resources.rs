//! The neutral kinds: what a machine, a load balancer and a filesystem are to every provider, and how a blueprint becomes them. Pure.

use super::Context;
use crate::blueprint::quantity::{format_bytes, format_cpu};
use crate::blueprint::{Blueprint, Role};
use crate::engine::{Id, Resource};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub const MACHINE: &str = "machine";
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

/// The machines, filesystems and load balancers of a blueprint; all need `network`, the provider's own. A provider adds what only it
/// has. Load balancers send to the workers, or to every machine when there are none.
pub fn expand(blueprint: &Blueprint, context: &Context, network: &Id) -> Vec<Resource> {
    let spec = &blueprint.spec;
    let mut resources = Vec::new();
    for group in &spec.machines {
        let role = match group.role {
            Role::ControlPlane => "control-plane",
            Role::Worker => "worker",
        };
        let (cpu_millis, memory_bytes, disk_bytes) = (group.size.cpu_millis(), group.size.memory_bytes(), group.size.disk_bytes());
        let ssh_public_key = context.ssh_public_key.trim().to_string();
        let machine = MachineSpec { role: role.into(), group: group.name.clone(), cpu_millis, memory_bytes, disk_bytes, ssh_public_key };
        let summary = format!("{} cpu, {} memory", format_cpu(cpu_millis as i64), format_bytes(memory_bytes as i64));
        let wish = |name| Resource {
            id: Id::new(MACHINE, name),
            spec: value(&machine),
            needs: vec![network.clone()],
            replace_on: vec!["role".into()],
            summary: summary.clone(),
        };
        resources.extend(group.machine_names().map(wish));
    }
    for filesystem in &spec.filesystems {
        resources.push(Resource {
            id: Id::new(FILESYSTEM, &filesystem.name),
            spec: value(&FilesystemSpec { size_bytes: filesystem.size_bytes() }),
            needs: vec![network.clone()],
            replace_on: Vec::new(),
            summary: format!("{} shared", filesystem.size),
        });
    }
    let of_role = |wanted: Option<Role>| spec.machines.iter().filter(move |group| wanted.is_none_or(|role| group.role == role));
    let workers: Vec<String> = of_role(Some(Role::Worker)).flat_map(|group| group.machine_names()).collect();
    let serving = if workers.is_empty() { of_role(None).flat_map(|group| group.machine_names()).collect() } else { workers };
    let mut balancers: Vec<LoadBalancerSpec> = Vec::new();
    for (balancer, listener, node_port) in spec.node_ports() {
        let listener = ListenerSpec { port: listener.port, protocol: "TCP".into(), node_port };
        match balancers.last_mut().filter(|last| last.name == balancer.name) {
            Some(last) => last.listeners.push(listener),
            None => balancers.push(LoadBalancerSpec { name: balancer.name.clone(), listeners: vec![listener], machines: serving.clone() }),
        }
    }
    balancers.extend(context.service_load_balancers.iter().cloned());
    for balancer in balancers {
        let ports: Vec<String> = balancer.listeners.iter().map(|listener| listener.port.to_string()).collect();
        let machines = balancer.machines.iter().map(|name| Id::new(MACHINE, name));
        resources.push(Resource {
            id: Id::new(LOAD_BALANCER, &balancer.name),
            spec: value(&balancer),
            needs: [network.clone()].into_iter().chain(machines).collect(),
            replace_on: Vec::new(),
            summary: format!("port {}", ports.join(", ")),
        });
    }
    resources
}

fn value(spec: &impl Serialize) -> Value {
    serde_json::to_value(spec).expect("plain data")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blueprint::schema::FIRST_NODE_PORT;
    use crate::engine::Cluster;

    fn check(machines: &str, expected_machines: &[&str], expected_backends: &[&str]) {
        let text = format!(
            "{{apiVersion: kprov.dev/v1, kind: Blueprint, metadata: {{name: shop}}, spec: {{provider: local, machines: {machines}, \
             loadBalancers: [{{name: web, listeners: [{{port: 80, service: shop/web}}, {{port: 443, service: shop/web}}]}}]}}}}"
        );
        let blueprint: Blueprint = serde_saphyr::from_str(&text).unwrap();
        let cluster = Cluster { name: "shop".into(), uid: "u".into() };
        let context = Context { cluster, ssh_public_key: "ssh-ed25519 A\n".into(), service_load_balancers: Vec::new() };
        let resources = expand(&blueprint, &context, &Id::new(NETWORK, "fabric"));
        let names: Vec<&str> = resources.iter().filter(|found| found.id.kind == MACHINE).map(|found| found.id.name.as_str()).collect();
        assert_eq!(names, expected_machines);
        let balancer = resources.iter().find(|found| found.id.kind == LOAD_BALANCER).unwrap();
        let spec: LoadBalancerSpec = serde_json::from_value(balancer.spec.clone()).unwrap();
        assert_eq!(spec.machines, expected_backends);
        let ports: Vec<_> = spec.listeners.iter().map(|listener| (listener.port, listener.node_port)).collect();
        assert_eq!(ports, [(80, FIRST_NODE_PORT), (443, FIRST_NODE_PORT + 1)]);
        assert_eq!(balancer.needs.len(), 1 + expected_backends.len());
    }

    #[test]
    fn load_balancers_send_to_workers_and_to_all_machines_when_there_are_none() {
        let control = "{name: control, role: control-plane, count: 1}";
        check(&format!("[{control}, {{name: w, role: worker, count: 2}}]"), &["control-1", "w-1", "w-2"], &["w-1", "w-2"]);
        check(&format!("[{control}]"), &["control-1"], &["control-1"]);
    }
}
