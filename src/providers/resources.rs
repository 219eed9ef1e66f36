//! The neutral kinds: what a machine, a load balancer and a filesystem are to every provider, and how a blueprint becomes them. Pure.

use serde::{Deserialize, Serialize};

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
