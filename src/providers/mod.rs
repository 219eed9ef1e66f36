//! Where machines, load balancers and filesystems come from: the contract, and the one list that names the providers.

pub mod conformance;
#[cfg(test)]
pub mod fake;
pub mod local;
pub mod resources;

use crate::blueprint::{Blueprint, ProviderName};
use crate::engine::handoff::EpochStore;
use crate::engine::{Cluster, Door, Observed, Resource};
use crate::error::{Error, Result};
use async_trait::async_trait;
use serde_json::Value;
use std::sync::Arc;

/// The providers of this build.
pub const ALL: &[ProviderName] = &[ProviderName::Local];

/// The one list that names them: the provider of a cluster, for the command line.
pub fn connect(name: ProviderName, cluster: &Cluster) -> Result<Arc<dyn Provider>> {
    match name {
        ProviderName::Local => Ok(Arc::new(local::Local::connect(cluster))),
        other => Err(absent(other)),
    }
}

/// The same for the loop inside the cluster, from what `loop_credentials` gave.
pub fn from_credentials(credentials: &Value) -> Result<Arc<dyn Provider>> {
    match credentials["provider"].as_str() {
        Some("local") => Ok(Arc::new(local::Local::from_credentials(&credentials["credentials"])?)),
        other => Err(Error::input(format!("could not use the credentials of provider {other:?}: this build does not have it"))),
    }
}

/// Clusters that exist there, found by kprov's own tags alone.
pub fn clusters(name: ProviderName) -> Result<Vec<Cluster>> {
    match name {
        ProviderName::Local => Ok(local::clusters()),
        other => Err(absent(other)),
    }
}

pub fn find(name: ProviderName, cluster: &str) -> Result<Option<Cluster>> {
    let mut found = clusters(name)?.into_iter().filter(|one| one.name == cluster);
    match (found.next(), found.next()) {
        (Some(one), Some(other)) => Err(Error::conflict(format!("two clusters are called {cluster}: {} and {}", one.uid, other.uid))
            .hint("kprov list shows them; the state folder of the one that is meant names its uid")),
        (first, _) => Ok(first),
    }
}

fn absent(name: ProviderName) -> Error {
    Error::input(format!("provider {} is not in this build", format!("{name:?}").to_lowercase())).hint("use provider: local")
}

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
    async fn loop_credentials(&self) -> Result<Value>;

    /// Returns when something of the cluster is no longer as `seen` (empty at first) names it, with the name of what is now: the loop
    /// sees a dead machine at once. A provider that cannot tell never returns; the loop looks from time to time anyway.
    async fn changed(&self, seen: &str) -> Result<String> {
        let _ = seen;
        std::future::pending().await
    }

    /// Lets this public key log in to the machine for a moment, beside the cluster's own: how an operator whose state is lost gets back.
    async fn admit_key(&self, machine: &Observed, public_key: &str) -> Result<()> {
        let _ = public_key;
        Err(Error::provider(format!("could not get back into {}: this provider has no way for it", machine.id))
            .hint("restore the state folder, or use kprov down and up"))
    }

    /// What `observe` cannot see but `down` must not leave: asked once, at its end.
    async fn leftovers(&self) -> Vec<String> {
        Vec::new()
    }
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
