//! Shared filesystems: a folder on one of the machines, exported by its own NFS server to the cluster's machines and nobody else.
//!
//! The export's file on the host says whose it is, what its server says who may mount it: both together are what is observed.

use super::Machines;
use super::hosts::Host;
use super::record::{Record, Share};
use super::world::World;
use crate::engine::{Id, Observed, Phase, Progress, Request, Resource, Verb};
use crate::error::{Error, Result};
use crate::providers::resources::{FILESYSTEM, MACHINE};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// Beside kprov's own data, which goes with its machine.
const FOLDER: &str = "/var/lib/kprov-filesystems";

pub fn folder(cluster_uid: &str, name: &str) -> String {
    format!("{FOLDER}/{cluster_uid}/{name}")
}

/// What the wish for filesystems is made from.
pub struct Wish<'a> {
    pub cluster_uid: &'a str,
    /// Which host keeps which filesystem, where the blueprint says so.
    pub said: &'a BTreeMap<String, String>,
    pub listed: &'a BTreeSet<String>,
    pub world: &'a World,
}

/// Adds to each filesystem's spec the `host` that keeps it, where others mount it (`source`), and who may (`clients`). Pure.
///
/// One that exists stays where it is while its host is listed; a new one goes where the blueprint says, else to the first control plane.
pub fn place(resources: &mut [Resource], wish: &Wish<'_>) -> Result<()> {
    let machines = resources.iter().filter(|resource| resource.id.kind == MACHINE);
    let hosts: Vec<(String, bool)> = machines
        .filter_map(|machine| Some((machine.spec["host"].as_str()?.to_string(), machine.spec["role"] == "control-plane")))
        .collect();
    // Machines that still are there mount it until they go.
    let there = wish.world.held().into_values();
    let hosts_of_all: BTreeSet<String> = hosts.iter().map(|(host, _)| host.clone()).chain(there).collect();
    let clients: BTreeSet<String> = hosts_of_all.iter().filter_map(|host| wish.world.address(host)).collect();
    for resource in resources.iter_mut().filter(|resource| resource.id.kind == FILESYSTEM) {
        let host = keeper(&resource.id, wish, &hosts)?;
        let server = wish.world.address(&host).unwrap_or_else(|| host.clone());
        let server = if server.contains(':') { format!("[{server}]") } else { server };
        resource.spec["source"] = json!(format!("{server}:{}", folder(wish.cluster_uid, &resource.id.name)));
        resource.spec["clients"] = json!(clients);
        resource.summary = format!("on {host}, {}", resource.summary);
        resource.spec["host"] = json!(host);
        resource.replace_on = vec!["host".into()];
    }
    Ok(())
}

fn keeper(id: &Id, wish: &Wish<'_>, hosts: &[(String, bool)]) -> Result<String> {
    if let Some(said) = wish.said.get(&id.name) {
        return hosts.iter().find(|(host, _)| host == said).map(|(host, _)| host.clone()).ok_or_else(|| {
            Error::input(format!("could not keep {id} on {said}: none of the cluster's machines is there"))
                .hint("name another host in spec.providers.ssh.filesystems, or give that one a machine")
        });
    }
    let held = wish.world.thing(id).and_then(|thing| thing.spec["host"].as_str());
    if let Some(held) = held.filter(|held| wish.listed.contains(*held)) {
        return Ok(held.into());
    }
    let control = hosts.iter().find(|(_, is_control)| *is_control).or(hosts.first());
    control.map(|(host, _)| host.clone()).ok_or_else(|| Error::input(format!("could not find a host for {id}: there are no machines")))
}

/// One filesystem as its host shows it. Pure.
pub fn observed(share: &Share, place: &str, exported: &[(String, String)], serves: bool, needs: Vec<Id>) -> Observed {
    let Record { id, generation, spec, .. } = &share.record;
    let ours = folder(&share.cluster.uid, &id.name);
    let clients: BTreeSet<&str> = exported.iter().filter(|(folder, _)| *folder == ours).map(|(_, client)| client.as_str()).collect();
    let mut spec = spec.clone();
    spec["clients"] = json!(clients);
    spec["host"] = json!(place);
    let phase = if serves { Phase::Ready } else { Phase::Broken("the NFS server of its host does not run".into()) };
    thing(id, *generation, place, phase, spec, needs)
}

/// On record, and not seen: begun, or out of sight.
pub fn intended(record: &Record, seen: Option<&Result<(), String>>, needs: Vec<Id>) -> Observed {
    let place = record.spec["host"].as_str().unwrap_or_default();
    let phase = match seen {
        Some(Ok(())) => Phase::Pending,
        Some(Err(why)) => Phase::Broken(format!("its host does not answer: {why}")),
        None => Phase::Broken("its host is not known here".into()),
    };
    thing(&record.id, record.generation, place, phase, record.spec.clone(), needs)
}

fn thing(id: &Id, generation: u32, place: &str, phase: Phase, spec: Value, needs: Vec<Id>) -> Observed {
    let outputs = json!({"mount": {"type": "nfs4", "source": spec["source"]}});
    Observed { id: id.clone(), handle: format!("{place}/{}", id.name), generation, phase, spec, outputs, needs }
}

/// Stays when the folder moves to another disk; clients know the filesystem by it.
fn number(cluster_uid: &str, name: &str) -> String {
    hex::encode(&Sha256::digest(format!("{cluster_uid}\n{name}"))[..16])
}

impl Machines {
    /// Intent on record, then the export: killed between the two, the next run finds both hosts.
    pub(super) async fn share(&self, world: &World, request: &Request, progress: Progress<'_>) -> Result<Option<Observed>> {
        let spec = &request.body["spec"];
        let place = spec["host"].as_str().unwrap_or_default();
        let elsewhere = world.thing(&request.id).filter(|held| held.spec["host"] != place && request.verb == Verb::Create);
        if let Some(other) = elsewhere {
            return Err(Error::conflict(format!("could not share {} from {place}: it is at {}", request.id, other.handle)));
        }
        let host = self.host_on_record(world, place).await?;
        progress("sharing its folder");
        let look = self.hosts.look_at(place.into(), Ok(host.clone())).await;
        let record = Record { reach: look.reach, ..World::first(&request.id, request.generation, &request.token, spec) };
        self.put(world, &record, "").await?;
        self.export(&host, record).await?;
        Ok(self.world().await?.thing(&request.id).cloned())
    }

    async fn export(&self, host: &Host, record: Record) -> Result<()> {
        let (uid, name) = (self.cluster.uid.clone(), record.id.name.clone());
        let clients: Vec<String> = serde_json::from_value(record.spec["clients"].clone()).unwrap_or_default();
        let share = Share { cluster: self.cluster.clone(), record: Record { reach: None, ..record } };
        let text = super::effects::json_line(&share)?;
        let (folder, number) = (folder(&uid, &name), number(&uid, &name));
        let data = ["share", &uid, &name, &folder, &number, &clients.join(" "), &text];
        self.hosts.order(host, "share a folder of", &data).await.map(drop)
    }

    /// Nobody may mount it any more, then its data goes, the record last.
    pub(super) async fn unshare(&self, world: &World, request: &Request, progress: Progress<'_>) -> Result<Option<Observed>> {
        let ours = |thing: &&Observed| thing.id == request.id && request.handle.as_ref() == Some(&thing.handle);
        let Some(filesystem) = world.things.iter().find(ours) else { return Ok(None) };
        let place = filesystem.spec["host"].as_str().unwrap_or_default();
        progress("removing its data");
        let host = self.host_on_record(world, place).await?;
        let data = ["unshare", &self.cluster.uid, &request.id.name, &host.target.ssh_user];
        match self.hosts.order(&host, "remove a shared folder of", &data).await {
            Err(error) if matches!(filesystem.phase, Phase::Broken(_)) && self.is_given_up(place) => {
                tracing::warn!("{} is forgotten: {place} is no longer listed and does not answer ({})", request.id, error.chain());
            }
            removed => {
                drop(removed.map_err(|error| error.hint("a host that is gone for good: take it out of the list, and it is forgotten"))?)
            }
        }
        // A second one of this name, found elsewhere, is not what the record is about.
        if world.records.get(&request.id).is_some_and(|record| record.spec["host"] == place) {
            self.unput(world, &request.id).await?;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Claim, Seen};
    use super::super::world::Look;
    use super::*;
    use crate::engine::Cluster;

    fn cluster() -> Cluster {
        Cluster { name: "shop".into(), uid: "u".into() }
    }

    fn look(place: &str, machine: Option<&str>, shares: Vec<Share>) -> Look {
        let claim = |machine: &str| Claim {
            cluster_uid: "u".into(),
            cluster: "shop".into(),
            machine: machine.into(),
            generation: 1,
            token: "t".into(),
            spec: json!({}),
        };
        let exported = shares.iter().map(|share| (folder("u", &share.record.id.name), "10.0.0.1".to_string())).collect();
        let seen = Seen { claim: machine.map(claim), shares, exported, serves: true, ..Seen::default() };
        Look { place: place.into(), seen: Ok(seen), outputs: json!({"privateAddress": format!("10.0.0.{}", place.len())}), reach: None }
    }

    fn share(host: &str) -> Share {
        let record = World::first(&Id::new(FILESYSTEM, "media"), 1, "t", &json!({"host": host, "clients": ["10.0.0.1"]}));
        Share { cluster: cluster(), record }
    }

    fn resource(kind: &str, name: &str, spec: Value) -> Resource {
        Resource { id: Id::new(kind, name), spec, needs: vec![], replace_on: vec![], summary: "5Gi shared".into() }
    }

    /// `host source clients`, or why not.
    fn check(looks: &[Look], said: &[(&str, &str)], listed: &[&str], expected: &str) {
        let world = World::of(&cluster(), looks, None).unwrap();
        let said = said.iter().map(|(name, host)| (name.to_string(), host.to_string())).collect();
        let listed = listed.iter().map(|place| place.to_string()).collect();
        let mut resources = [
            resource(FILESYSTEM, "media", json!({})),
            resource(MACHINE, "worker-1", json!({"role": "worker", "host": "bb"})),
            resource(MACHINE, "control-1", json!({"role": "control-plane", "host": "a"})),
        ];
        let placed = place(&mut resources, &Wish { cluster_uid: "u", said: &said, listed: &listed, world: &world });
        let spec = &resources[0].spec;
        let found = placed.map(|()| format!("{} {} {}", spec["host"], spec["source"], spec["clients"]).replace('"', ""));
        assert_eq!(found.unwrap_or_else(|error| error.to_string()), expected);
    }

    #[test]
    fn the_control_planes_host_keeps_it_unless_said_otherwise_and_it_stays_there() {
        let fresh = [look("a", None, vec![]), look("bb", None, vec![])];
        check(&fresh, &[], &["a", "bb"], "a 10.0.0.1:/var/lib/kprov-filesystems/u/media [10.0.0.1,10.0.0.2]");
        check(&fresh, &[("media", "bb")], &["a", "bb"], "bb 10.0.0.2:/var/lib/kprov-filesystems/u/media [10.0.0.1,10.0.0.2]");
        check(&fresh, &[("media", "ccc")], &["a"], "could not keep filesystem/media on ccc: none of the cluster's machines is there");
        let held = [look("a", None, vec![]), look("bb", None, vec![share("bb")])];
        check(&held, &[], &["a", "bb"], "bb 10.0.0.2:/var/lib/kprov-filesystems/u/media [10.0.0.1,10.0.0.2]");
        check(&held, &[], &["a"], "a 10.0.0.1:/var/lib/kprov-filesystems/u/media [10.0.0.1,10.0.0.2]");
    }

    #[test]
    fn a_machine_that_is_on_its_way_out_may_mount_it_until_it_is_gone() {
        let leaving = [look("a", None, vec![]), look("bb", None, vec![]), look("ccc", Some("worker-2"), vec![])];
        check(&leaving, &[], &["a"], "a 10.0.0.1:/var/lib/kprov-filesystems/u/media [10.0.0.1,10.0.0.2,10.0.0.3]");
    }

    #[test]
    fn what_the_server_says_is_what_is_there() {
        let world = World::of(&cluster(), &[look("a", None, vec![share("a")])], None).unwrap();
        let media = world.thing(&Id::new(FILESYSTEM, "media")).unwrap();
        assert_eq!((&media.phase, &media.spec["clients"], media.handle.as_str()), (&Phase::Ready, &json!(["10.0.0.1"]), "a/media"));
        let silent = observed(&share("a"), "a", &[], false, vec![]);
        assert!(matches!(silent.phase, Phase::Broken(_)) && silent.spec["clients"] == json!([]), "{silent:?}");
    }
}
