//! Where machines, load balancers and filesystems come from: the contract, and the one list that names the providers.

#[cfg(feature = "aws")]
pub mod aws;
pub mod conformance;
#[cfg(test)]
pub mod fake;
pub mod firewall;
#[cfg(feature = "gcp")]
pub mod gcp;
pub mod local;
pub mod ownership;
pub mod resources;
pub mod ssh;

use crate::blueprint::{Blueprint, ProviderName};
use crate::engine::handoff::EpochStore;
use crate::engine::{Cluster, Door, Id, Observed, Resource};
use crate::error::{Context as _, Error, Kind, Result};
use async_trait::async_trait;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;

/// Which provider, and what it needs to be found: from the blueprint, kept in the operator's record, given to the loop inside.
/// Nothing secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    pub provider: ProviderName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// `spec.providers.<name>` of the blueprint, as checked by the provider's own schema.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub own: Value,
}

impl Settings {
    pub fn of(blueprint: &Blueprint) -> Self {
        let provider = blueprint.spec.provider;
        let sections = serde_json::to_value(&blueprint.spec.providers).unwrap_or_default();
        Settings { provider, location: blueprint.spec.location.clone(), own: sections[provider.to_string()].clone() }
    }

    /// Without a blueprint: the provider's defaults (its usual environment and configuration files).
    pub fn plain(provider: ProviderName) -> Self {
        Settings { provider, location: None, own: Value::Null }
    }

    /// The provider's own section as its type; one that is absent reads as its default.
    pub fn own<T: DeserializeOwned + Default>(&self) -> Result<T> {
        if self.own.is_null() {
            return Ok(T::default());
        }
        T::deserialize(&self.own).or_fail(Kind::Input, || format!("could not read spec.providers.{}", self.provider))
    }
}

/// The one list that names them: the provider of a cluster, for the command line.
pub async fn connect(settings: &Settings, cluster: &Cluster) -> Result<Arc<dyn Provider>> {
    match settings.provider {
        ProviderName::Local => Ok(Arc::new(local::Local::connect(cluster))),
        ProviderName::Ssh => Ok(Arc::new(ssh::Machines::connect(settings, cluster)?)),
        #[cfg(feature = "gcp")]
        ProviderName::Gcp => Ok(Arc::new(gcp::connect(settings, cluster).await?)),
        #[cfg(feature = "aws")]
        ProviderName::Aws => Ok(Arc::new(aws::connect(settings, cluster).await?)),
        #[cfg(not(all(feature = "aws", feature = "gcp")))]
        other => Err(absent(other)),
    }
}

/// The same for the loop inside the cluster, from what `loop_credentials` gave.
pub async fn from_credentials(credentials: &Value) -> Result<Arc<dyn Provider>> {
    match credentials["provider"].as_str() {
        #[cfg(feature = "aws")]
        Some("aws") => Ok(Arc::new(aws::from_credentials(&credentials["credentials"]).await?)),
        Some("ssh") => Ok(Arc::new(ssh::Machines::from_credentials(&credentials["credentials"])?)),
        Some("local") => Ok(Arc::new(local::Local::from_credentials(&credentials["credentials"])?)),
        #[cfg(feature = "gcp")]
        Some("gcp") => Ok(Arc::new(gcp::from_credentials(&credentials["credentials"]).await?)),
        other => Err(Error::input(format!("could not use the credentials of provider {other:?}: this build does not have it"))),
    }
}

/// Clusters that exist there, found by kprov's own tags alone.
pub async fn clusters(settings: &Settings) -> Result<Vec<Cluster>> {
    match settings.provider {
        ProviderName::Local => local::clusters(),
        ProviderName::Ssh => ssh::clusters(settings).await,
        #[cfg(feature = "gcp")]
        ProviderName::Gcp => gcp::clusters(settings).await,
        #[cfg(feature = "aws")]
        ProviderName::Aws => aws::clusters(settings).await,
        #[cfg(not(all(feature = "aws", feature = "gcp")))]
        other => Err(absent(other)),
    }
}

/// By its name, or by its uid where two have one name.
pub async fn find(settings: &Settings, cluster: &str) -> Result<Option<Cluster>> {
    let mut found = clusters(settings).await?.into_iter().filter(|one| one.name == cluster || one.uid == cluster);
    match (found.next(), found.next()) {
        (Some(one), Some(other)) => Err(Error::conflict(format!("two clusters are called {cluster}: {} and {}", one.uid, other.uid))
            .hint(format!("name the one that is meant by its uid, e.g. kprov down {} --provider {}", other.uid, settings.provider))),
        (first, _) => Ok(first),
    }
}

#[cfg(not(all(feature = "aws", feature = "gcp")))]
fn absent(name: ProviderName) -> Error {
    Error::input(format!("provider {name} is not in this build"))
        .hint("build kprov with its cargo features for the clouds, or use provider: local or ssh")
}

/// A cloud, or what stands in for one. Everything that exists or happens goes through its [`Door`] half.
///
/// Outputs that every provider gives (see `engine::Observed::outputs`):
/// - `machine`: `{address: "192.0.2.7", sshPort: 22, sshUser: "root", hostKeys: ["ssh-ed25519 AAAA..."], privateAddress: "10.0.0.5"}`:
///   `address` is where the operator reaches it, `privateAddress` where the other machines do (the same when absent)
/// - `load-balancer`: `{address: "10.0.0.100"}` (IP or DNS name), and `outsideAddress` where those outside reach it elsewhere
/// - `filesystem`: `{mount: {type: "bind"|"nfs4", source: "..."}}`: what a node mounts
#[async_trait]
pub trait Provider: Door {
    fn name(&self) -> &'static str;

    /// Where clusters live that are reached with these settings and credentials, in the provider's own words; a cluster is where it was
    /// made. Empty: there is one place only.
    async fn place(&self) -> Result<String> {
        Ok(String::new())
    }

    /// What this provider would make for the blueprint, in neutral kinds plus its own (network, ...). Reads the provider's catalog at
    /// most (sizes, images, places); the rest is pure, and equal catalogs give equal answers.
    async fn resources(&self, blueprint: &Blueprint, context: &Context) -> Result<Vec<Resource>>;

    /// Credentials, quota, names, sizes, host abilities: everything that can be known before the first create. All problems at once.
    async fn check(&self, resources: &[Resource]) -> Result<()>;

    /// What only the operator can do before the loop inside carries out a wish: letting it into machines that it cannot reach by itself.
    async fn prepare(&self, resources: &[Resource]) -> Result<()> {
        let _ = resources;
        Ok(())
    }

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

    /// How pods reach pods on other machines.
    fn fabric(&self) -> Fabric {
        Fabric::Switched
    }

    /// Where packets for a load balancer's listener arrive on a machine.
    fn delivery(&self) -> Delivery {
        Delivery::NodePort
    }

    /// The cluster's SSH key, before anything is made: a provider that can keep a secret where only the account's owner gets it back
    /// makes that one of its resources, and gives it back by `kept_key`.
    fn hold_key(&self, private_key: &str) {
        let _ = private_key;
    }

    async fn kept_key(&self) -> Result<Option<String>> {
        Ok(None)
    }

    /// About how many US dollars an hour a thing of this spec costs as long as it is there; `None` where that is nothing, or not known.
    fn price(&self, id: &Id, spec: &Value) -> Option<f64> {
        let _ = (id, spec);
        None
    }

    /// What `observe` cannot see but `down` must not leave: asked once, at its end.
    async fn leftovers(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What lies between the machines of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fabric {
    /// One network segment that carries any address: a route per node is enough.
    Switched,
    /// Carries the machines' own addresses only (every cloud's network): pods travel in VXLAN, UDP [`VXLAN_PORT`] between machines.
    Routed,
}

pub const VXLAN_PORT: u16 = 8472;
/// Addresses of pods and services: no network that machines are in may have them.
pub const POD_NETWORK: &str = "10.244.0.0/14";
pub const SERVICE_NETWORK: &str = "10.96.0.0/16";
/// Of every machine that is a node: `GET /healthz` answers 200 while it serves what load balancers send, at its own addresses and at
/// those of load balancers that deliver with their own address.
pub const HEALTH_PORT: u16 = 10256;

/// How a provider's load balancer hands packets to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// To the machine's own address, at the listener's node port.
    NodePort,
    /// To the load balancer's address, at the listener's port, unchanged: nodes must know that address.
    Address,
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
