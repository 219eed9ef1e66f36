//! Exactly what a person may write, as types: the source of the JSON Schema, of the reader and of the object in the cluster.

use super::providers::Providers;
use super::quantity::{self, Quantity};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

pub const API_VERSION: &str = "kprov.dev/v1";
pub const KIND: &str = "Blueprint";

/// One desired architecture: machines, load balancers, filesystems, workloads. Cluster-scoped in the cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Blueprint {
    #[schemars(extend("const" = API_VERSION))]
    pub api_version: String,
    #[schemars(extend("const" = KIND))]
    pub kind: String,
    pub metadata: Metadata,
    pub spec: Spec,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// The cluster's name: a DNS label of at most 40 characters.
    #[schemars(length(min = 1, max = 40), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// Where the machines come from: the one line to change.
    pub provider: ProviderName,
    /// Provider-neutral place; each provider maps it and has a default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    #[serde(default)]
    pub access: Access,
    /// Groups of equal machines, each with a name, a role and a count.
    #[schemars(length(min = 1))]
    pub machines: Vec<MachineGroup>,
    /// Addresses that lead to services of the cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub load_balancers: Vec<LoadBalancer>,
    /// Shared storage for claims of the workloads.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filesystems: Vec<Filesystem>,
    /// OCI archives pushed to the nodes, relative to the blueprint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    /// Kubernetes manifests: files or folders relative to the blueprint (strings), or inline objects.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub workloads: Vec<Value>,
    /// What only one provider needs, by its name; the others ignore it.
    #[serde(default, skip_serializing_if = "Providers::is_empty")]
    pub providers: Providers,
}

/// Where machines, load balancers and filesystems come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProviderName {
    Local,
    Aws,
    Gcp,
    Ssh,
}

impl ProviderName {
    pub const ALL: [ProviderName; 4] = [ProviderName::Local, ProviderName::Aws, ProviderName::Gcp, ProviderName::Ssh];
}

/// As it is written in a blueprint.
impl fmt::Display for ProviderName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            ProviderName::Local => "local",
            ProviderName::Aws => "aws",
            ProviderName::Gcp => "gcp",
            ProviderName::Ssh => "ssh",
        })
    }
}

/// Who may reach SSH and the API from outside. Nothing is open by default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Access {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    /// Address ranges in CIDR notation, for instance 192.0.2.0/24.
    #[schemars(with = "Vec<String>")]
    pub from: Vec<IpNet>,
}

/// What a machine does in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    ControlPlane,
    Worker,
}

/// `count` machines of one role and size, named `<name>-1` ... `<name>-<count>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MachineGroup {
    #[schemars(length(min = 1, max = 58), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    pub role: Role,
    #[schemars(range(max = MOST_MACHINES))]
    pub count: u32,
    #[serde(default)]
    pub size: Size,
}

/// Provider-neutral size, in Kubernetes quantities ("1", "500m", "1Gi").
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Size {
    /// Cores: a number or a quantity.
    #[schemars(with = "NumberOrText")]
    pub cpu: Value,
    /// Bytes: "512Mi", "1Gi".
    pub memory: String,
    /// Bytes: "10Gi".
    pub disk: String,
}

/// How `cpu` may be written.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
#[allow(dead_code, reason = "only its schema is used")]
enum NumberOrText {
    Number(f64),
    Text(String),
}

impl Default for Size {
    fn default() -> Self {
        Size { cpu: Value::from(1), memory: "1Gi".into(), disk: "10Gi".into() }
    }
}

/// One address of the provider's, with a listener per port.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadBalancer {
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    #[schemars(length(min = 1))]
    pub listeners: Vec<Listener>,
}

/// Traffic to `port` of the load balancer reaches the service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Listener {
    #[schemars(range(min = 1))]
    pub port: u16,
    /// `namespace/service`; a service alone is in namespace `default`.
    pub service: String,
    /// The service's port; 80 unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub target_port: Option<u16>,
}

/// Shared, read-write-many: a StorageClass of this name; claims bind to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Filesystem {
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Bytes: "5Gi".
    pub size: String,
}

/// Machines of one blueprint: the most that the API server is measured with.
pub const MOST_MACHINES: u32 = 1000;
/// Names of load balancers that are a Service's (type LoadBalancer) begin so, and no blueprint's own do.
pub const OF_SERVICE: &str = "svc-";

/// Node ports end here, so a blueprint has room for 768 listeners.
pub const LAST_NODE_PORT: u16 = 32767;

/// The blueprint's JSON Schema (draft 2020-12): what `kprov schema` prints and what the reader checks files against.
pub fn json_schema() -> Value {
    schemars::schema_for!(Blueprint).to_value()
}

/// Node ports of the blueprint's listeners start here; services of people are given 30000-31999.
pub const FIRST_NODE_PORT: u16 = 32000;

impl Spec {
    /// Every listener with the node port that carries it on the machines: 32000 + its index over the whole blueprint.
    pub fn node_ports(&self) -> impl Iterator<Item = (&LoadBalancer, &Listener, u16)> {
        let listeners = self.load_balancers.iter().flat_map(|balancer| balancer.listeners.iter().map(move |listener| (balancer, listener)));
        listeners.zip(FIRST_NODE_PORT..).map(|((balancer, listener), node_port)| (balancer, listener, node_port))
    }
}

impl MachineGroup {
    /// `<group>-1` ... `<group>-<count>`.
    pub fn machine_names(&self) -> impl Iterator<Item = String> {
        (1..=self.count).map(|number| format!("{}-{number}", self.name))
    }
}

impl Size {
    /// Millicores; the default size's when the text is not a quantity (a checked blueprint never is).
    pub fn cpu_millis(&self) -> u64 {
        Quantity::from_value(&self.cpu).map_or(1000, |cpu| cpu.millis().unsigned_abs())
    }
    pub fn memory_bytes(&self) -> u64 {
        quantity::bytes(&self.memory).map_or(1 << 30, i64::unsigned_abs)
    }
    pub fn disk_bytes(&self) -> u64 {
        quantity::bytes(&self.disk).map_or(10 << 30, i64::unsigned_abs)
    }
}

impl Filesystem {
    pub fn size_bytes(&self) -> u64 {
        quantity::bytes(&self.size).map_or(1 << 30, i64::unsigned_abs)
    }
}

impl Listener {
    pub fn service_port(&self) -> u16 {
        self.target_port.unwrap_or(80)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_numbered_over_the_whole_blueprint() {
        let listener = |port| Listener { port, service: "shop/web".into(), target_port: None };
        let balancer =
            |name: &str, ports: &[u16]| LoadBalancer { name: name.into(), listeners: ports.iter().copied().map(listener).collect() };
        let spec = Spec {
            provider: ProviderName::Local,
            location: None,
            access: Access::default(),
            machines: vec![MachineGroup { name: "worker".into(), role: Role::Worker, count: 2, size: Size::default() }],
            load_balancers: vec![balancer("web", &[80, 443]), balancer("other", &[80])],
            filesystems: vec![],
            images: vec![],
            workloads: vec![],
            providers: Providers::default(),
        };
        let ports: Vec<_> =
            spec.node_ports().map(|(balancer, listener, node_port)| (balancer.name.as_str(), listener.port, node_port)).collect();
        assert_eq!(ports, [("web", 80, 32000), ("web", 443, 32001), ("other", 80, 32002)]);
        assert_eq!(spec.machines[0].machine_names().collect::<Vec<_>>(), ["worker-1", "worker-2"]);
    }
}
