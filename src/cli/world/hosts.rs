//! What each machine is told when it becomes a host: joins bootstrap's files with the orchestrator's configuration.
//! The same code outside (`kprov up`) and inside (the loop), so both want the same host.

use super::blueprint_door::is_control_plane;
use super::images;
use crate::blueprint::{Blueprint, Role, schema::MachineGroup};
use crate::bootstrap::door::{HostSource, HostWish};
use crate::bootstrap::install::Program;
use crate::bootstrap::spec::{self, ControlPlane, HostSpec, Image, Node};
use crate::bootstrap::trust::{ServerNames, Trust};
use crate::engine::handoff;
use crate::engine::{Id, Inputs, MACHINE, Observed, Resource};
use crate::error::{Context, Error, Kind, Result};
use crate::orchestrator::config::{self, AgentConfig, FilesystemMount, ServerConfig};
use crate::providers::resources::FILESYSTEM;
use crate::providers::{self, Provider};
use crate::remote::{self, Side};
use crate::sys::executable::sha256;
use crate::sys::paths;
use async_trait::async_trait;
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

/// On the Node: which host specification its agent was started with, so that the loop sees drift without logging in.
pub const REVISION: &str = "kprov.dev/revision";
/// On the Node: when the first of its host's certificates is due for renewal, seconds since 1970.
pub const ROTATE_AT: &str = "kprov.dev/rotate-at";

/// Everything that hosts of one cluster are made from.
#[derive(Clone)]
pub struct Hosts {
    pub trust: Arc<Trust>,
    pub program: Arc<Program>,
    pub provider: Arc<dyn Provider>,
    /// The blueprint's own archives; kprov's image is packed on each machine. The loop inside changes them as the blueprint does.
    pub images: Arc<RwLock<Vec<Image>>>,
}

/// What all hosts of one wish have in common.
struct Shared<'a> {
    controls: &'a [String],
    images: &'a str,
    /// See [`mounted`].
    mounted: &'a str,
    filesystems: &'a [Id],
}

impl Hosts {
    /// One `host/<machine>` per machine, in the blueprint's order.
    /// `made` is what the provider makes: every host mounts the filesystems in it.
    pub fn resources(&self, blueprint: &Blueprint, made: &[Resource]) -> Vec<Resource> {
        let controls = machines_of(blueprint, Role::ControlPlane);
        let filesystems: Vec<Id> = made.iter().map(|thing| &thing.id).filter(|id| id.kind == FILESYSTEM).cloned().collect();
        let groups = blueprint.spec.machines.iter();
        let digests = images::digests(&blueprint.spec).join(" ");
        let shared = Shared { controls: &controls, images: &digests, mounted: &mounted(made), filesystems: &filesystems };
        let resource = |group: &MachineGroup, name: String| self.resource(&name, group.role, &shared);
        groups.flat_map(|group| group.machine_names().map(|name| resource(group, name)).collect::<Vec<_>>()).collect()
    }

    fn resource(&self, name: &str, role: Role, shared: &Shared<'_>) -> Resource {
        let Shared { controls, filesystems, .. } = shared;
        let wish = HostWish { role: role_name(role).into(), revision: self.revision(role, shared), node_name: name.into() };
        // Whoever joins must be told where the API is.
        let control = controls.iter().take(1).filter(|control| *control != name);
        wish.resource(name, control.map(|control| Id::new(MACHINE, control)).chain(filesystems.iter().cloned()).collect())
    }

    /// Changes when anything a host is told changes, but for what belongs to the machine itself (addresses, its certificate).
    fn revision(&self, role: Role, shared: &Shared<'_>) -> String {
        let fabric = format!("{:?}", fabric(self.provider.fabric()));
        let authority = sha256(self.trust.ca.certificate.as_bytes());
        let mut parts = vec![
            ("program", self.program.sha256()),
            ("authority", &authority),
            ("role", role_name(role)),
            ("service network", config::SERVICE_CIDR),
            ("pod network", config::POD_CIDR),
            ("fabric", &fabric),
        ];
        let more = [("images", shared.images), ("filesystems", shared.mounted)];
        parts.extend(more.into_iter().filter(|(_, names)| !names.is_empty()));
        spec::revision(&parts)
    }

    /// For the loop inside (a secret): lands on control planes only. The provider's name is around it, so that the loop knows whose it is.
    async fn provider_credentials(&self) -> Result<String> {
        let credentials = self.provider.loop_credentials().await?;
        encode(&serde_json::json!({"provider": self.provider.name(), "credentials": credentials}))
    }

    fn agent(&self, name: &str, address: IpAddr, api: IpAddr, is_control: bool, revision: &str, machine: &Observed) -> Result<AgentConfig> {
        let group = name.rsplit_once('-').map_or(name, |(group, _)| group);
        // Its role is not for a node to say (the API refuses it): the loop labels nodes with what the blueprint calls them.
        let mut labels: BTreeMap<String, String> = serde_json::from_value(machine.outputs["labels"].clone()).unwrap_or_default();
        labels.insert("kprov.dev/machine-group".to_string(), group.to_string());
        Ok(AgentConfig {
            node_name: name.into(),
            address,
            api: format!("https://{}", std::net::SocketAddr::new(api, config::API_PORT)),
            data: PathBuf::from(paths::DATA).join("agent"),
            pki: paths::PKI.into(),
            service_cidr: parse(config::SERVICE_CIDR)?,
            pod_cidr: parse(config::POD_CIDR)?,
            dns_address: parse(config::DNS_ADDRESS)?,
            cluster_domain: config::CLUSTER_DOMAIN.into(),
            containerd_socket: spec::CONTAINERD_SOCKET.into(),
            provider_id: format!("kprov-{}://{}/{name}", self.provider.name(), machine.handle),
            labels,
            taints: if is_control { vec!["node-role.kubernetes.io/control-plane=:NoSchedule".into()] } else { Vec::new() },
            annotations: BTreeMap::from([(REVISION.to_string(), revision.to_string())]),
            max_pods: 110,
            announce: serde_json::from_value(machine.outputs["announce"].clone()).unwrap_or_default(),
            fabric: fabric(self.provider.fabric()),
            filesystems: BTreeMap::new(),
            external_address: external_address(machine, address),
        })
    }

    fn server(&self, address: IpAddr) -> Result<ServerConfig> {
        Ok(ServerConfig {
            cluster_name: self.trust.cluster.name.clone(),
            cluster_uid: self.trust.cluster.uid.clone(),
            bind: IpAddr::from([0, 0, 0, 0]),
            port: config::API_PORT,
            advertise: address,
            data: PathBuf::from(paths::DATA).join("server"),
            pki: paths::PKI.into(),
            service_cidr: parse(config::SERVICE_CIDR)?,
            pod_cidr: parse(config::POD_CIDR)?,
            dns_address: parse(config::DNS_ADDRESS)?,
            cluster_domain: config::CLUSTER_DOMAIN.into(),
            node_grace_seconds: 40,
            eviction_seconds: 300,
        })
    }
}

#[async_trait]
impl HostSource for Hosts {
    /// The whole specification, with certificates: made when it is sent, never journalled.
    async fn host(&self, name: &str, wish: &HostWish, inputs: &Inputs) -> Result<HostSpec> {
        let machine = input(inputs, name)?;
        let address = remote::address(machine, Side::Inside)?;
        let is_control = wish.role == spec::CONTROL_PLANE;
        let api = if is_control { address } else { remote::address(control_plane(inputs)?, Side::Inside)? };
        let mut agent = self.agent(name, address, api, is_control, &wish.revision, machine)?;
        agent.filesystems = filesystems(inputs, &address)?;
        let node = Node {
            trust: &self.trust,
            name,
            address,
            revision: &wish.revision,
            generation: machine.generation,
            nfs: agent.filesystems.values().any(|mount| mount.r#type.starts_with("nfs")),
            agent_config: encode(&agent)?,
            images: self.images.read().clone(),
            files: Vec::new(),
        };
        if !is_control {
            return spec::worker(node, SystemTime::now());
        }
        let others: Vec<String> = machine.outputs["address"].as_str().map(str::to_string).into_iter().collect();
        let names = ServerNames {
            node: name,
            advertise: address,
            service: parse(config::KUBERNETES_ADDRESS)?,
            domain: config::CLUSTER_DOMAIN,
            others: &others,
        };
        let server_config = encode(&self.server(address)?)?;
        let provider = Some(self.provider_credentials().await?);
        spec::control_plane(node, ControlPlane { server_config, names, provider, port: config::API_PORT }, SystemTime::now())
    }

    fn reads(&self, machine: &str, input: &Observed) -> bool {
        reads(machine, input)
    }

    async fn fence(&self, epoch: u64) -> Result<()> {
        handoff::fence(self.provider.epochs(), epoch).await
    }
}

pub fn machines_of(blueprint: &Blueprint, role: Role) -> Vec<String> {
    blueprint.spec.machines.iter().filter(|group| group.role == role).flat_map(|group| group.machine_names().collect::<Vec<_>>()).collect()
}

pub fn all_machines(blueprint: &Blueprint) -> Vec<String> {
    blueprint.spec.machines.iter().flat_map(|group| group.machine_names().collect::<Vec<_>>()).collect()
}

/// The provider's word in the orchestrator's: the two rooms do not know each other.
fn fabric(fabric: providers::Fabric) -> config::Fabric {
    match fabric {
        providers::Fabric::Switched => config::Fabric::Switched,
        providers::Fabric::Routed => config::Fabric::Routed,
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::ControlPlane => spec::CONTROL_PLANE,
        Role::Worker => spec::WORKER,
    }
}

fn reads(machine: &str, input: &Observed) -> bool {
    input.id == Id::new(MACHINE, machine) || is_control_plane(input) || input.id.kind == FILESYSTEM
}

fn input<'a>(inputs: &'a Inputs, name: &str) -> Result<&'a Observed> {
    inputs.get(&Id::new(MACHINE, name)).ok_or_else(|| Error::internal(format!("machine {name} is not there, although its host needs it")))
}

fn control_plane(inputs: &Inputs) -> Result<&Observed> {
    let controls = inputs.values().filter(|input| is_control_plane(input));
    controls.min_by(|a, b| a.id.cmp(&b.id)).ok_or_else(|| Error::internal("no control plane machine is there to join"))
}

/// Where the operator reaches the machine, when the other machines reach it elsewhere.
fn external_address(machine: &Observed, internal: IpAddr) -> Option<IpAddr> {
    machine.outputs["privateAddress"].as_str()?;
    remote::address(machine, Side::Outside).ok().filter(|address| *address != internal)
}

/// Names of the filesystems, with their sources where these are known beforehand: one that moves is mounted anew.
fn mounted(made: &[Resource]) -> String {
    let filesystems = made.iter().filter(|thing| thing.id.kind == FILESYSTEM);
    let name = |thing: &Resource| match thing.spec["source"].as_str() {
        Some(source) => format!("{}={source}", thing.id.name),
        None => thing.id.name.clone(),
    };
    filesystems.map(name).collect::<Vec<_>>().join(" ")
}

/// What every host mounts; a folder that the machine has in its place already needs nothing, and its own export none either.
fn filesystems(inputs: &Inputs, own: &IpAddr) -> Result<BTreeMap<String, FilesystemMount>> {
    let own = if own.is_ipv6() { format!("[{own}]:/") } else { format!("{own}:/") };
    let mut mounts = BTreeMap::new();
    for filesystem in inputs.values().filter(|input| input.id.kind == FILESYSTEM) {
        let name = &filesystem.id.name;
        let mut mount: FilesystemMount = serde_json::from_value(filesystem.outputs["mount"].clone())
            .or_fail(Kind::Provider, || format!("could not find out how to mount {}", filesystem.id))?;
        // A machine that mounts from itself by NFS can wait for itself for ever when memory runs out.
        if let Some(folder) = mount.source.strip_prefix(&own).filter(|_| mount.r#type.starts_with("nfs")) {
            mount = FilesystemMount { r#type: "bind".into(), source: format!("/{folder}") };
        }
        if mount.r#type != "bind" || mount.source != format!("{}/filesystems/{name}", paths::DATA) {
            mounts.insert(name.clone(), mount);
        }
    }
    Ok(mounts)
}

fn parse<T: std::str::FromStr>(text: &str) -> Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    text.parse().or_fail(Kind::Internal, || format!("could not read {text:?}"))
}

fn encode(config: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string_pretty(config).or_fail(Kind::Internal, || "could not encode a configuration")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn observed(kind: &'static str, name: &str, outputs: serde_json::Value) -> Observed {
        let spec = serde_json::Value::Null;
        let phase = crate::engine::Phase::Ready;
        Observed { id: Id::new(kind, name), handle: "h".into(), generation: 1, phase, spec, outputs, needs: Vec::new() }
    }

    #[test]
    fn hosts_mount_what_their_machines_do_not_have_already() {
        let share = observed(FILESYSTEM, "media", serde_json::json!({"mount": {"type": "nfs4", "source": "fs-1.example:/"}}));
        let there =
            observed(FILESYSTEM, "bound", serde_json::json!({"mount": {"type": "bind", "source": "/var/lib/kprov/filesystems/bound"}}));
        let machine = observed(MACHINE, "worker-1", serde_json::json!({"address": "192.0.2.1", "privateAddress": "10.0.0.5"}));
        let inputs: Inputs = [share, there, machine].into_iter().map(|one| (one.id.clone(), one)).collect();
        let mounts = filesystems(&inputs, &"10.0.0.5".parse().unwrap()).unwrap();
        assert_eq!(mounts.keys().collect::<Vec<_>>(), ["media"]);
        assert_eq!(mounts["media"].source, "fs-1.example:/");
        let dumb = observed(FILESYSTEM, "dumb", serde_json::json!({}));
        let own = "10.0.0.5".parse().unwrap();
        assert!(filesystems(&[(dumb.id.clone(), dumb)].into(), &own).is_err());
        let kept = observed(FILESYSTEM, "kept", serde_json::json!({"mount": {"type": "nfs4", "source": "10.0.0.5:/data/kept"}}));
        let mounts = filesystems(&[(kept.id.clone(), kept)].into(), &own).unwrap();
        assert_eq!((mounts["kept"].r#type.as_str(), mounts["kept"].source.as_str()), ("bind", "/data/kept"));
    }

    #[test]
    fn a_node_has_an_external_address_only_where_it_differs() {
        let check = |outputs: serde_json::Value, expected: Option<&str>| {
            let machine = observed(MACHINE, "worker-1", outputs);
            let internal = remote::address(&machine, Side::Inside).unwrap();
            assert_eq!(external_address(&machine, internal), expected.map(|text| text.parse().unwrap()));
        };
        check(serde_json::json!({"address": "192.0.2.1", "privateAddress": "10.0.0.5"}), Some("192.0.2.1"));
        check(serde_json::json!({"address": "10.0.0.5", "privateAddress": "10.0.0.5"}), None);
        check(serde_json::json!({"address": "10.0.0.5"}), None);
    }

    #[test]
    fn a_hosts_request_holds_what_its_specification_is_made_of_and_not_the_whole_cluster() {
        let machine = |name: &str, role: &str| Observed { spec: serde_json::json!({"role": role}), ..observed(MACHINE, name, Value::Null) };
        assert!(reads("worker-1", &machine("worker-1", "worker")));
        assert!(reads("worker-1", &machine("control-1", "control-plane")));
        assert!(reads("worker-1", &observed(FILESYSTEM, "media", Value::Null)));
        assert!(!reads("worker-1", &machine("worker-2", "worker")));
        assert!(!reads("worker-1", &observed("network", "shop", Value::Null)));
    }

    #[test]
    fn the_pods_network_has_a_range_for_every_machine_that_a_blueprint_may_name() {
        let all: ipnet::Ipv4Net = config::POD_CIDR.parse().unwrap();
        assert!(all.subnets(24).unwrap().count() >= crate::blueprint::schema::MOST_MACHINES as usize);
    }

    #[test]
    fn what_providers_let_through_is_what_nodes_use() {
        assert_eq!((providers::VXLAN_PORT, providers::HEALTH_PORT), (config::VXLAN_PORT, config::HEALTH_PORT));
        assert_eq!((providers::POD_NETWORK, providers::SERVICE_NETWORK), (config::POD_CIDR, config::SERVICE_CIDR));
    }
}
