//! Where machines, load balancers and filesystems come from: the contract, and the one list that names the providers.

pub mod conformance;
#[cfg(test)]
pub mod fake;
pub mod local;
pub mod resources;

use crate::blueprint::Blueprint;
use crate::engine::handoff::EpochStore;
use crate::engine::{Cluster, Door, Resource};
use crate::error::Result;
use async_trait::async_trait;

/// A cloud, or what stands in for one. Everything that exists or happens goes through its [`Door`] half.
///
/// Outputs that every provider gives (see `engine::Observed::outputs`):
/// - `machine`: `{address: "10.0.0.5", sshPort: 22, sshUser: "root", hostKeys: ["ssh-ed25519 AAAA..."], privateAddress: "10.0.0.5"}`
/// - `load-balancer`: `{address: "10.0.0.100"}` (IP or DNS name)
/// - `filesystem`: `{mount: {type: "bind"|"nfs4", source: "..."}}`: what a node mounts
#[async_trait]
pub trait Provider: Door {
    fn name(&self) -> &'static str;

    /// Pure: what this provider would make for the blueprint, in neutral kinds plus its own (network, ...).
    fn resources(&self, blueprint: &Blueprint, context: &Context) -> Result<Vec<Resource>>;

    /// Credentials, quota, names, sizes, host abilities: everything that can be known before the first create. All problems at once.
    async fn check(&self, resources: &[Resource]) -> Result<()>;

    /// Where the writer's epoch of this cluster is kept.
    fn epochs(&self) -> &dyn EpochStore;

    /// What the loop inside the cluster needs to act as this provider, written 0600 to the control plane (secret).
    async fn loop_credentials(&self) -> Result<serde_json::Value>;
}

/// What resources are made from beside the blueprint.
#[derive(Debug, Clone)]
pub struct Context {
    pub cluster: Cluster,
    /// The cluster's public SSH key, one OpenSSH line.
    pub ssh_public_key: String,
    /// Load balancers asked for by Services of type LoadBalancer inside the cluster, beside the blueprint's.
    pub service_load_balancers: Vec<resources::LoadBalancerSpec>,
}
