//! What the engine's actions do to hosts: claim, release, and the records of what has no machine of its own.

use super::hosts::Host;
use super::record::{Claim, Record};
use super::world::World;
use super::{Machines, balance};
use crate::engine::{Action, Id, Inputs, MACHINE, Observed, Phase, Progress, Request, Resource, Verb};
use crate::error::{Context as _, Error, Kind, Result};
use crate::providers::resources::{FILESYSTEM, LOAD_BALANCER, NETWORK};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};

/// A host whose doors were opened for the loop, by its alias; no resource of the engine's.
pub const ADMISSION: &str = "admission";
/// How long a key that was let in for recovery may log in.
const ADMITTED: Duration = Duration::from_secs(300);

/// What is known of a thing when it is about to be made. Pure.
pub fn outputs(action: &Action, inputs: &Inputs) -> Value {
    match balance::address(&action.spec, |id| inputs.get(id)) {
        Some(address) if action.id.kind == LOAD_BALANCER => json!({ "address": address }),
        _ => json!({}),
    }
}

impl Machines {
    pub(super) async fn host(&self, place: &str) -> Result<Host> {
        let known = self.hosts.find(place).await;
        known.ok_or_else(|| {
            Error::host(format!("could not reach host {place}: it is not in the list"))
                .hint("list it in spec.providers.ssh.hosts and run kprov up: only the operator can let the cluster in")
        })
    }

    pub(super) async fn carry_out(&self, request: &Request, progress: Progress<'_>) -> Result<Option<Observed>> {
        let world = self.world().await?;
        self.fence(&world, request)?;
        match (request.verb, request.id.kind.as_str()) {
            (Verb::Delete, MACHINE) => self.release(&world, request, progress).await,
            (Verb::Delete, FILESYSTEM) => self.unshare(&world, request, progress).await,
            (Verb::Delete, _) => self.drop_record(&world, request).await,
            (_, MACHINE) => self.claim(&world, request, progress).await,
            (_, FILESYSTEM) => self.share(&world, request, progress).await,
            _ => self.keep_record(&world, request).await,
        }
    }

    /// A writer that was overtaken does nothing any more.
    fn fence(&self, world: &World, request: &Request) -> Result<()> {
        let current = world.epoch.as_ref().and_then(|epoch| epoch["epoch"].as_u64()).unwrap_or(0);
        if request.epoch >= current {
            return Ok(());
        }
        Err(Error::conflict(format!("could not {} {}: another writer took the cluster over", request.verb, request.id))
            .hint("is another `kprov` at work on this cluster?"))
    }

    async fn keeper(&self, world: &World) -> Result<Host> {
        let place = world.anchor.clone().or_else(|| self.hosts.first_keeper());
        self.host(&place.ok_or_else(|| Error::input("could not keep records: spec.providers.ssh.hosts names no machine"))?).await
    }

    /// Intent on record, then the claim: killed between the two, the next run finds both hosts.
    async fn claim(&self, world: &World, request: &Request, progress: Progress<'_>) -> Result<Option<Observed>> {
        let spec = &request.body["spec"];
        let place = spec["host"].as_str().unwrap_or_default();
        let held = world.thing(&request.id);
        if let Some(other) = held.filter(|held| held.handle != place && request.verb == Verb::Create) {
            return Err(Error::conflict(format!("could not claim {place} as {}: it is on {}", request.id, other.handle)));
        }
        let host = self.host_on_record(world, place).await?;
        progress("claiming the host");
        let look = self.hosts.look_at(place.into(), Ok(host.clone())).await;
        if let Err(why) = &look.seen {
            return Err(Error::transient(format!("could not claim {place}: it does not answer: {why}")));
        }
        let record = Record { reach: look.reach.clone(), ..World::first(&request.id, request.generation, &request.token, spec) };
        self.put(world, &record, "").await?;
        let claim = Claim {
            cluster_uid: self.cluster.uid.clone(),
            cluster: self.cluster.name.clone(),
            machine: request.id.name.clone(),
            generation: request.generation,
            token: request.token.clone(),
            spec: spec.clone(),
        };
        let text = json_line(&claim)?;
        let key = self.key_line(spec["sshPublicKey"].as_str().unwrap_or_default());
        let data = ["claim", &self.cluster.uid, &claim.machine, &host.target.ssh_user, &key, &text];
        let answer = self.hosts.order(&host, "claim", &data).await?;
        if let Some((_, theirs)) = answer.iter().find(|(key, _)| key == "taken") {
            self.unput(world, &request.id).await?;
            return Err(taken(place, theirs));
        }
        let (id, handle, generation) = (request.id.clone(), place.to_string(), request.generation);
        let mut outputs = look.outputs;
        outputs["announce"] = json!(super::networks::announced(&self.hosts.addresses, place, &world.networks));
        let needs = world.mounted().chain([Id::new(NETWORK, &self.cluster.name)]).collect();
        Ok(Some(Observed { id, handle, generation, phase: Phase::Ready, spec: spec.clone(), outputs, needs }))
    }

    /// The loop's key for the hosts that it is about to claim, and how it reaches them.
    pub(super) async fn let_loop_in(&self, resources: &[Resource]) -> Result<()> {
        let world = self.world().await?;
        let has_its_host = |machine: &Resource| world.thing(&machine.id).is_some_and(|thing| machine.spec["host"] == thing.handle.as_str());
        for machine in resources.iter().filter(|resource| resource.id.kind == MACHINE && !has_its_host(resource)) {
            let place = machine.spec["host"].as_str().unwrap_or_default();
            let host = self.host(place).await?;
            let look = self.hosts.look_at(place.into(), Ok(host.clone())).await;
            let id = Id::new(ADMISSION, super::access::alias(place));
            // On record first: whoever is let in here is found again and sent away.
            self.put(&world, &Record { reach: look.reach, ..World::first(&id, 1, "", &json!({"host": place})) }, "").await?;
            let line = self.key_line(machine.spec["sshPublicKey"].as_str().unwrap_or_default());
            self.hosts.order(&host, "admit the cluster's key to", &["admit", &self.cluster.uid, &host.target.ssh_user, &line]).await?;
        }
        Ok(())
    }

    /// What kprov installed goes first, the claim after it, the record last.
    async fn release(&self, world: &World, request: &Request, progress: Progress<'_>) -> Result<Option<Observed>> {
        let Some(machine) = world.thing(&request.id).filter(|thing| request.handle.as_ref() == Some(&thing.handle)) else {
            return Ok(None);
        };
        progress("taking kprov off the host");
        let host = self.host_on_record(world, &machine.handle).await?;
        let data = ["release", &self.cluster.uid, &request.id.name, &host.target.ssh_user];
        match self.hosts.order(&host, "release", &data).await {
            Err(error) if matches!(machine.phase, Phase::Broken(_)) && self.is_given_up(&machine.handle) => {
                tracing::warn!("{} is forgotten: it is no longer listed and does not answer ({})", machine.handle, error.chain());
            }
            released => {
                drop(released.map_err(|error| error.hint("a host that is gone for good: take it out of the list, and it is forgotten"))?)
            }
        }
        self.unput(world, &request.id).await?;
        Ok(None)
    }

    /// The operator's word that a host is no more: it is not in the list.
    pub(super) fn is_given_up(&self, place: &str) -> bool {
        let listed = || self.hosts.listed().iter().map(super::wish::place).collect();
        !self.wished.lock().clone().unwrap_or_else(listed).contains(place)
    }

    /// A host that is no longer listed is known by what was remembered of it.
    pub(super) async fn host_on_record(&self, world: &World, place: &str) -> Result<Host> {
        if let Some(host) = self.hosts.find(place).await {
            return Ok(host);
        }
        let reach = world.records.values().filter_map(|record| record.reach.as_ref()).find(|reach| reach.place == place);
        reach.map(super::hosts::of_reach).ok_or_else(|| {
            Error::host(format!("could not reach host {place}: it is not known here"))
                .hint("list it in spec.providers.ssh.hosts and run kprov up: only the operator can let the cluster in")
        })
    }

    /// The records go, and with them the keys of whoever was let in without a claim.
    async fn farewell(&self, world: &World) -> Result<()> {
        let keeper = self.keeper(world).await?;
        let elsewhere = |record: &&Record| record.id.kind == ADMISSION && record.spec["host"] != keeper.place.as_str();
        for admission in world.records.values().filter(elsewhere) {
            let place = admission.spec["host"].as_str().unwrap_or_default();
            let host = self.host_on_record(world, place).await?;
            let sent_away =
                self.hosts.order(&host, "send the cluster away from", &["forget", &self.cluster.uid, &host.target.ssh_user]).await;
            if sent_away.is_err() && self.is_given_up(place) {
                continue;
            }
            sent_away?;
        }
        self.hosts.order(&keeper, "forget the cluster on", &["forget", &self.cluster.uid, &keeper.target.ssh_user]).await?;
        self.keeper.lock().take();
        Ok(())
    }

    async fn keep_record(&self, world: &World, request: &Request) -> Result<Option<Observed>> {
        let (spec, outputs) = (request.body["spec"].clone(), request.body["outputs"].clone());
        let kept = world.records.get(&request.id);
        let generation = kept.map_or(request.generation, |kept| kept.generation);
        let record = Record { outputs, ..World::first(&request.id, generation, &request.token, &spec) };
        let key = if request.id.kind == NETWORK { self.key_line(spec["sshPublicKey"].as_str().unwrap_or_default()) } else { String::new() };
        self.put(world, &record, &key).await?;
        let after = self.world().await?;
        Ok(after.thing(&request.id).cloned())
    }

    async fn drop_record(&self, world: &World, request: &Request) -> Result<Option<Observed>> {
        let Some(thing) = world.thing(&request.id).filter(|thing| request.handle.as_ref() == Some(&thing.handle)) else {
            return Ok(None);
        };
        let users: Vec<String> =
            world.things.iter().filter(|other| other.needs.contains(&thing.id)).map(|other| other.id.to_string()).collect();
        if !users.is_empty() {
            return Err(Error::provider(format!("could not delete {}: {} still needs it", thing.id, users.join(", "))));
        }
        if request.id.kind != NETWORK {
            self.unput(world, &request.id).await?;
            return Ok(None);
        }
        self.farewell(world).await?;
        Ok(None)
    }

    pub(super) async fn put(&self, world: &World, record: &Record, key: &str) -> Result<()> {
        let keeper = self.keeper(world).await?;
        let cluster = json_line(&self.cluster)?;
        let user = keeper.target.ssh_user.clone();
        if world.anchor.is_none() {
            self.hosts
                .order(&keeper, "write a record on", &["put", &self.cluster.uid, super::record::CLUSTER, &user, "", &cluster])
                .await?;
        }
        let (file, text) = (Record::file(&record.id), json_line(record)?);
        self.hosts.order(&keeper, "write a record on", &["put", &self.cluster.uid, &file, &user, key, &text]).await.map(drop)
    }

    pub(super) async fn unput(&self, world: &World, id: &Id) -> Result<()> {
        if world.anchor.is_none() {
            return Ok(());
        }
        let keeper = self.keeper(world).await?;
        self.hosts.order(&keeper, "drop a record on", &["drop", &self.cluster.uid, &Record::file(id)]).await.map(drop)
    }

    /// One line of authorized_keys, marked as this cluster's.
    fn key_line(&self, public_key: &str) -> String {
        let key = public_key.trim();
        if key.is_empty() { String::new() } else { format!("{key} kprov:{}", self.cluster.uid) }
    }

    /// sshd itself ends it; the release takes the line away.
    pub(super) async fn let_in(&self, machine: &Observed, public_key: &str) -> Result<()> {
        let failed = || format!("could not admit a key to {}", machine.id);
        let host = self.host(&machine.handle).await?;
        let until = (SystemTime::now() + ADMITTED).duration_since(SystemTime::UNIX_EPOCH).or_fail(Kind::Host, failed)?;
        let until = Timestamp::from_second(until.as_secs() as i64).map_err(|error| Error::host(failed()).because(error.to_string()))?;
        let line = format!("expiry-time=\"{}\" {}", until.strftime("%Y%m%d%H%M%SZ"), self.key_line(public_key));
        self.hosts.order(&host, "admit a key to", &["admit", &self.cluster.uid, &host.target.ssh_user, &line]).await.map(drop)
    }

    /// After everything is gone: an epoch that nothing else ever followed goes as well; what cannot be known is said.
    pub(super) async fn sweep(&self) -> Vec<String> {
        let world = match self.world().await {
            Ok(world) => world,
            Err(error) => return vec![error.chain()],
        };
        let mut left: Vec<String> = world.silent.iter().map(|(place, why)| format!("host {place} cannot be looked at: {why}")).collect();
        if world.anchor.is_some() && world.things.is_empty() {
            left.extend(self.farewell(&world).await.err().map(|error| error.chain()));
        }
        left
    }
}

fn taken(place: &str, claim: &str) -> Error {
    let theirs: Value = serde_json::from_str(claim).unwrap_or_default();
    let text = |field: &str| theirs[field].as_str().unwrap_or("unknown").to_string();
    Error::provider(format!("could not claim host {place}: it is {} of cluster {}", text("machine"), text("cluster")))
        .hint(format!("take that cluster away first (kprov down {}), or list another host", text("cluster")))
}

pub(super) fn json_line(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).or_fail(Kind::Internal, || "could not write a record")
}
