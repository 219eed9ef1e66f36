//! The two configuration files on machines (JSON): what `kprov server` and `kprov agent` are told.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

/// The cluster's inner networks and names. One setting for all clusters: they are private to each.
pub const SERVICE_CIDR: &str = "10.96.0.0/16";
/// A /24 for each of a thousand nodes, and a few to spare.
pub const POD_CIDR: &str = "10.244.0.0/14";
pub const KUBERNETES_ADDRESS: &str = "10.96.0.1";
pub const DNS_ADDRESS: &str = "10.96.0.10";
pub const CLUSTER_DOMAIN: &str = "cluster.local";
pub const API_PORT: u16 = 6443;
/// Where VXLAN packets arrive (UDP). Not IANA's 4789: VMware's networks keep that for themselves and swallow their guests' packets, and
/// Docker's swarm uses it on hosts that already exist; 8472 is Linux's own default and what flannel, Cilium and k3s use.
pub const VXLAN_PORT: u16 = 8472;
/// `/healthz` of the service proxy (upstream's port): load balancers ask it whether a node serves.
pub const HEALTH_PORT: u16 = 10256;

/// `/etc/kprov/server.json`. Files in `pki` (PEM unless said otherwise): `ca.crt` `ca.key`; `server.crt` `server.key` (serving);
/// `kubelet-client.crt` `kubelet-client.key` (API server to kubelets, O=system:masters is not used: CN=kprov:api-server);
/// `sa.key` `sa.pub` (service account tokens, ECDSA P-256, PKCS#8 and SPKI); `encryption.key` (32 raw bytes: Secrets at rest).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerConfig {
    pub cluster_name: String,
    pub cluster_uid: String,
    /// Where the API listens, e.g. 0.0.0.0.
    pub bind: IpAddr,
    /// 6443 unless said otherwise.
    pub port: u16,
    /// The address nodes and kubectl use.
    pub advertise: IpAddr,
    /// The store's folder, e.g. /var/lib/kprov/server.
    pub data: PathBuf,
    pub pki: PathBuf,
    pub service_cidr: IpNet,
    pub pod_cidr: IpNet,
    /// The cluster DNS service's address, inside `service_cidr`.
    pub dns_address: IpAddr,
    /// e.g. cluster.local
    pub cluster_domain: String,
    /// A node silent for this long is NotReady.
    #[serde(default = "default_node_grace_seconds")]
    pub node_grace_seconds: u64,
    /// Pods of a NotReady node are replaced elsewhere after this long (the default toleration added to pods).
    #[serde(default = "default_eviction_seconds")]
    pub eviction_seconds: u64,
}

/// `/etc/kprov/agent.json`. Files in `pki`: `ca.crt`; `node.crt` `node.key` (client and kubelet serving certificate in one:
/// CN=system:node:NAME, O=system:nodes, with the node's name and address as SANs).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentConfig {
    pub node_name: String,
    pub address: IpAddr,
    /// Where the world reaches this machine, when that is another address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_address: Option<IpAddr>,
    /// e.g. https://10.88.0.10:6443
    pub api: String,
    pub data: PathBuf,
    pub pki: PathBuf,
    pub service_cidr: IpNet,
    pub pod_cidr: IpNet,
    pub dns_address: IpAddr,
    pub cluster_domain: String,
    /// e.g. /run/containerd/containerd.sock
    pub containerd_socket: PathBuf,
    /// Sets Node.spec.providerID, e.g. kprov-local://shop/worker-1
    pub provider_id: String,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// `key=value:Effect`
    #[serde(default)]
    pub taints: Vec<String>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// How many pods this node takes (Node.status.capacity.pods).
    #[serde(default = "default_max_pods")]
    pub max_pods: u32,
    /// Addresses (`a` or `a-b`) that services may have and nodes announce themselves: where no cloud leads them here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub announce: Vec<String>,
    /// How pods reach pods on other nodes.
    #[serde(default)]
    pub fabric: Fabric,
    /// Shared filesystems mounted on this node by the agent: storage class name -> what to mount.
    #[serde(default)]
    pub filesystems: BTreeMap<String, FilesystemMount>,
}

/// What lies between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fabric {
    /// A network that carries pods' addresses too: a route per node.
    #[default]
    Switched,
    /// One that carries nodes' addresses only: pods travel in VXLAN.
    Routed,
}

/// What a node mounts for a shared filesystem.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FilesystemMount {
    /// `bind` (the source is a folder on the machine), `nfs4`, or `nfs` (its third version).
    pub r#type: String,
    pub source: String,
}

fn default_node_grace_seconds() -> u64 {
    40
}
fn default_eviction_seconds() -> u64 {
    300
}
fn default_max_pods() -> u32 {
    110
}
