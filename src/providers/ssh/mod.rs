//! Machines that exist already: claimed by a file on each, reached by SSH, left as they were found.
//!
//! Truth is on the hosts: a claim on every machine (`record`), an NFS export for each filesystem (`shares`), and the cluster's records
//! (its writer's epoch, load balancers, what is under way) on one of them, where they stay. A look asks every listed host at once (`hosts`) and puts the answers together
//! (`world`): a host that does not answer keeps its machine. The operator comes with their own keys, the loop inside with the cluster's.

mod access;
pub(super) mod balance;
mod effects;
mod hosts;
mod networks;
mod preflight;
mod record;
mod shares;
mod survey;
pub(super) mod wish;
pub(super) mod world;

use crate::blueprint::Blueprint;
use crate::blueprint::providers::Ssh as Section;
use crate::engine::handoff::{Epoch, EpochStore};
use crate::engine::{Action, Cluster, Door, Inputs, MACHINE, Observed, Progress, Request, Resource, Verb};
use crate::error::{Context as _, Error, Kind, Result};
use crate::providers::resources::{self, FILESYSTEM, LOAD_BALANCER, NETWORK};
use crate::providers::{Context, Delivery, Fabric, Provider, Settings};
use crate::sys::paths;
use async_trait::async_trait;
use hosts::Hosts;
use parking_lot::Mutex;
use record::Reach;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use world::World;

/// The hosts of one cluster.
pub struct Machines {
    cluster: Cluster,
    hosts: Hosts,
    /// Where the records were found.
    keeper: Mutex<Option<String>>,
    /// The list of the last wish: who was taken out of it and does not answer is given up.
    wished: Mutex<Option<BTreeSet<String>>>,
    /// As the machines of the last wish lie.
    fabric: Mutex<Fabric>,
    /// Only the loop has them: what it was told, to tell it again.
    credentials: Option<Credentials>,
}

/// What the loop inside is told (its key is the cluster's own).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Credentials {
    cluster: Cluster,
    hosts: Vec<Reach>,
    #[serde(default)]
    addresses: Vec<String>,
}

impl Machines {
    pub fn connect(settings: &Settings, cluster: &Cluster) -> Result<Machines> {
        let section: Section = settings.own()?;
        let hosts = Hosts::of_operator(&paths::home(), section)?;
        Ok(Machines::new(cluster.clone(), hosts, None))
    }

    fn new(cluster: Cluster, hosts: Hosts, credentials: Option<Credentials>) -> Machines {
        let fabric = Mutex::new(Fabric::Routed);
        Machines { cluster, hosts, keeper: Mutex::default(), wished: Mutex::default(), fabric, credentials }
    }

    /// From inside the cluster, with what `loop_credentials` gave.
    pub fn from_credentials(credentials: &Value) -> Result<Machines> {
        let credentials: Credentials =
            serde_json::from_value(credentials.clone()).or_fail(Kind::Input, || "could not read how the hosts are reached")?;
        let hosts = Hosts::of_loop(Path::new(paths::DATA), credentials.hosts.clone(), credentials.addresses.clone())?;
        Ok(Machines::new(credentials.cluster.clone(), hosts, Some(credentials)))
    }

    /// Everything that can be known now.
    async fn world(&self) -> Result<World> {
        let known = self.keeper.lock().clone();
        let mut looks = self.hosts.look(&[]).await;
        let mut world = World::of(&self.cluster, &looks, known.as_deref())?;
        // Hosts that are no longer listed, or not yet known here, are on record.
        let listed: BTreeSet<&str> = looks.iter().map(|look| look.place.as_str()).collect();
        let recorded = world.records.values().filter_map(|record| record.reach.clone());
        let more = recorded.filter(|reach| !listed.contains(reach.place.as_str()));
        // Once each, however many records speak of it: two answers of one host would be two machines.
        let more: BTreeMap<String, Reach> = more.map(|reach| (reach.place.clone(), reach)).collect();
        let more: Vec<Reach> = more.into_values().collect();
        if !more.is_empty() {
            let places: BTreeSet<&str> = more.iter().map(|reach| reach.place.as_str()).collect();
            let further = self.hosts.look(&more).await;
            looks.extend(further.into_iter().filter(|look| places.contains(look.place.as_str())));
            world = World::of(&self.cluster, &looks, known.as_deref())?;
        }
        world.announce(&self.hosts.addresses);
        self.keeper.lock().clone_from(&world.anchor);
        Ok(world)
    }
}

/// Clusters that have claims or records on the hosts of these settings.
pub async fn clusters(settings: &Settings) -> Result<Vec<Cluster>> {
    let section: Section = settings.own()?;
    if section.hosts.is_empty() {
        return Ok(Vec::new());
    }
    let looks = Hosts::of_operator(&paths::home(), section)?.look(&[]).await;
    let found = looks.iter().filter_map(|look| look.seen.as_ref().ok()).flat_map(|seen| seen.clusters());
    let found: BTreeMap<String, Cluster> = found.map(|cluster| (cluster.uid.clone(), cluster)).collect();
    Ok(found.into_values().collect())
}

#[async_trait]
impl Door for Machines {
    fn kinds(&self) -> &'static [&'static str] {
        &[NETWORK, MACHINE, FILESYSTEM, LOAD_BALANCER]
    }

    async fn observe(&self, _known: &[Observed]) -> Result<Vec<Observed>> {
        let mut things = self.world().await?.things;
        balance::show_outside(&mut things);
        if self.hosts.is_behind().await {
            for balancer in things.iter_mut().filter(|thing| thing.id.kind == LOAD_BALANCER) {
                balancer.outputs["inside"] = json!(true);
            }
        }
        Ok(things)
    }

    fn render(&self, action: &Action, inputs: &Inputs) -> Result<Request> {
        let body = match action.verb {
            Verb::Delete => json!({}),
            _ => json!({"spec": action.spec, "outputs": effects::outputs(action, inputs)}),
        };
        Ok(Request::of(&self.cluster, action, body))
    }

    async fn execute(&self, request: &Request, progress: Progress<'_>) -> Result<Option<Observed>> {
        self.carry_out(request, progress).await
    }
}

#[async_trait]
impl Provider for Machines {
    fn name(&self) -> &'static str {
        "ssh"
    }

    async fn resources(&self, blueprint: &Blueprint, context: &Context) -> Result<Vec<Resource>> {
        let world = self.world().await?;
        let mut all = resources::expand(blueprint, context)?;
        // The loop's wish is the blueprint inside, which the operator may have changed since; without a list of its own, ours.
        let listed = Some(&blueprint.spec.providers.ssh.hosts).filter(|hosts| !hosts.is_empty()).cloned();
        let listed = listed.unwrap_or_else(|| self.hosts.listed());
        let listed_places: BTreeSet<String> = listed.iter().map(wish::place).collect();
        *self.wished.lock() = Some(listed_places.clone());
        let places = wish::assign(blueprint, &listed, &world.held())?;
        for machine in all.iter_mut().filter(|resource| resource.id.kind == MACHINE) {
            let place = places.get(&machine.id.name).cloned().unwrap_or_default();
            machine.summary = format!("{place}, at least {}", machine.summary);
            machine.spec["host"] = json!(place);
            machine.replace_on = vec!["role".into(), "host".into()];
        }
        for network in all.iter_mut().filter(|resource| resource.id.kind == NETWORK) {
            network.spec["sshPublicKey"] = json!(context.ssh_public_key.trim());
            network.summary = "the cluster's records on one of the hosts".into();
        }
        let said = &blueprint.spec.providers.ssh.filesystems;
        let wish = shares::Wish { cluster_uid: &self.cluster.uid, said, listed: &listed_places, world: &world };
        shares::place(&mut all, &wish)?;
        let on_machines: BTreeSet<String> = places.into_values().chain(world.held().into_values()).collect();
        *self.fabric.lock() =
            networks::fabric(blueprint.spec.providers.ssh.direct, on_machines.iter().map(String::as_str), &world.networks);
        balance::place(&mut all, &blueprint.spec.providers.ssh.addresses, &world)?;
        Ok(all)
    }

    async fn check(&self, resources: &[Resource]) -> Result<()> {
        self.preflight(resources).await
    }

    async fn prepare(&self, resources: &[Resource]) -> Result<()> {
        self.let_loop_in(resources).await
    }

    fn epochs(&self) -> &dyn EpochStore {
        self
    }

    fn fabric(&self) -> Fabric {
        *self.fabric.lock()
    }

    fn delivery(&self) -> Delivery {
        Delivery::Address
    }

    fn hold_key(&self, private_key: &str) {
        if let Err(error) = self.hosts.keep_key(private_key) {
            tracing::warn!("the cluster's key cannot be used: {}", error.chain());
        }
    }

    async fn admit_key(&self, machine: &Observed, public_key: &str) -> Result<()> {
        self.let_in(machine, public_key).await
    }

    async fn loop_credentials(&self) -> Result<Value> {
        let credentials = match &self.credentials {
            Some(credentials) => credentials.clone(),
            None => {
                let looks = self.hosts.look(&[]).await;
                let hosts = looks.into_iter().filter_map(|look| look.reach).collect();
                Credentials { cluster: self.cluster.clone(), hosts, addresses: self.hosts.addresses.clone() }
            }
        };
        serde_json::to_value(credentials).or_fail(Kind::Internal, || "could not write credentials")
    }

    async fn leftovers(&self) -> Vec<String> {
        self.sweep().await
    }
}

#[async_trait]
impl EpochStore for Machines {
    async fn read(&self) -> Result<Option<Epoch>> {
        let Some(value) = self.world().await?.epoch else { return Ok(None) };
        serde_json::from_value(value).or_fail(Kind::Host, || "could not read the writer's epoch")
    }

    async fn swap(&self, expected: Option<&Epoch>, next: &Epoch) -> Result<bool> {
        let world = self.world().await?;
        let keeper = world.anchor.or_else(|| self.hosts.first_keeper());
        let keeper = keeper.ok_or_else(|| Error::input("could not keep the writer's epoch: spec.providers.ssh.hosts names no machine"))?;
        let host = self.host(&keeper).await?;
        let text = |epoch: &Epoch| serde_json::to_string(epoch).or_fail(Kind::Internal, || "could not write the epoch");
        let expected = expected.map_or(Ok("-".to_string()), text)?;
        let name = serde_json::to_string(&self.cluster).or_fail(Kind::Internal, || "could not write the cluster's name")?;
        let answer = self.hosts.order(&host, "write the epoch on", &["epoch", &self.cluster.uid, &name, &expected, &text(next)?]).await?;
        Ok(answer.iter().any(|(key, _)| key == "swapped"))
    }
}
