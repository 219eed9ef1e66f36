//! The cluster as its hosts tell it, all of them together. Pure; uncertainty is an error or a broken machine, never an absence.

use super::effects::ADMISSION;
use super::networks::{self, Networks};
use super::record::{CLUSTER, EPOCH, Reach, Record, Seen};
use super::{balance, shares};
use crate::engine::{Cluster, Id, Observed, Phase};
use crate::error::{Error, Result};
use crate::providers::resources::{FILESYSTEM, LOAD_BALANCER, LoadBalancerSpec, MACHINE, NETWORK};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// One host's answer, or why there is none.
#[derive(Debug, Clone)]
pub struct Look {
    pub place: String,
    pub seen: Result<Seen, String>,
    /// Outputs of the machine that this host is or would be.
    pub outputs: Value,
    /// How the loop inside reaches it.
    pub reach: Option<Reach>,
}

/// See the module text.
#[derive(Debug, Default)]
pub struct World {
    /// The host that keeps the cluster's records.
    pub anchor: Option<String>,
    pub epoch: Option<Value>,
    pub records: BTreeMap<Id, Record>,
    pub things: Vec<Observed>,
    /// Where the other machines reach each host that answered.
    pub addresses: BTreeMap<String, String>,
    pub networks: Networks,
    /// Hosts that did not answer, and why.
    pub silent: Vec<(String, String)>,
}

impl World {
    /// `known` is where the records were found before, if they were.
    pub fn of(cluster: &Cluster, looks: &[Look], known: Option<&str>) -> Result<World> {
        let mut world = World::default();
        let of_us = |look: &&Look| look.seen.as_ref().is_ok_and(|seen| seen.record(cluster, CLUSTER).is_some());
        let number = |look: &&Look| look.seen.as_ref().ok().and_then(|seen| seen.record(cluster, EPOCH)?["epoch"].as_u64());
        let keeper = looks.iter().filter(of_us).max_by_key(number);
        world.silent = looks.iter().filter_map(|look| Some((look.place.clone(), look.seen.as_ref().err()?.clone()))).collect();
        if let Some(keeper) = keeper {
            world.anchor = Some(keeper.place.clone());
            world.keep(cluster, keeper);
        }
        let is_shared = |seen: &Seen| seen.shares.iter().any(|share| share.cluster.uid == cluster.uid);
        let has_claims = looks.iter().any(|look| look.seen.as_ref().is_ok_and(|seen| seen.claim_of(cluster).is_some() || is_shared(seen)));
        let lost = world.anchor.is_none() && (has_claims || known.is_some());
        if lost && !world.silent.is_empty() {
            return Err(world.blind(cluster, known));
        }
        world.addresses =
            looks.iter().filter(|look| look.seen.is_ok()).filter_map(|look| Some((look.place.clone(), address(look)?))).collect();
        let recorded = world.records.values().filter_map(|record| record.reach.as_ref());
        let known = recorded.filter_map(|reach| Some((reach.place.clone(), reach.network?)));
        world.networks = known.chain(looks.iter().filter_map(|look| Some((look.place.clone(), network(look)?)))).collect();
        world.filesystems(cluster, looks);
        world.machines(cluster, looks);
        world.others();
        Ok(world)
    }

    fn keep(&mut self, cluster: &Cluster, keeper: &Look) {
        let Ok(seen) = &keeper.seen else { return };
        self.epoch = seen.record(cluster, EPOCH).cloned();
        let ours = seen.records.iter().filter(|(uid, ..)| *uid == cluster.uid);
        let records = ours.filter_map(|(.., value)| serde_json::from_value::<Record>(value.clone()).ok());
        self.records = records.map(|record| (record.id.clone(), record)).collect();
    }

    fn blind(&self, cluster: &Cluster, known: Option<&str>) -> Error {
        let words = self.silent.iter().map(|(place, why)| format!("{place}: {why}"));
        let whose = known.map_or("one of these hosts, which keeps".to_string(), |place| format!("{place}, which keeps"));
        Error::transient(format!("could not see the whole of cluster {}: {whose} its records, does not answer", cluster.name))
            .because(words.collect::<Vec<_>>().join("; "))
            .hint("nothing is changed on a guess: bring the host back, then run the same command again")
    }

    fn filesystems(&mut self, cluster: &Cluster, looks: &[Look]) {
        let network = vec![Id::new(NETWORK, &cluster.name)];
        for look in looks {
            let Ok(seen) = &look.seen else { continue };
            let ours = seen.shares.iter().filter(|share| share.cluster.uid == cluster.uid);
            let ours = ours.map(|share| shares::observed(share, &look.place, &seen.exported, seen.serves, network.clone()));
            self.things.extend(ours);
        }
        let recorded = self.records.values().filter(|record| record.id.kind == FILESYSTEM);
        let unseen = recorded.filter(|record| self.thing(&record.id).is_none());
        let look_at = |record: &Record| looks.iter().find(|look| record.spec["host"] == look.place.as_str());
        let intended = |record| {
            let seen = look_at(record).map(|look| look.seen.as_ref().map(drop).map_err(String::clone));
            shares::intended(record, seen.as_ref(), network.clone())
        };
        let unseen: Vec<Observed> = unseen.map(intended).collect();
        self.things.extend(unseen);
    }

    /// Machines mount filesystems: these go after them.
    fn machines(&mut self, cluster: &Cluster, looks: &[Look]) {
        let needs: Vec<Id> = std::iter::once(Id::new(NETWORK, &cluster.name)).chain(self.mounted()).collect();
        for look in looks {
            let (id, generation, phase, spec) = match &look.seen {
                Ok(seen) => match (seen.claim_of(cluster), self.intended(&look.place)) {
                    (Some(claim), _) => (Id::new(MACHINE, &claim.machine), claim.generation, Phase::Ready, claim.spec.clone()),
                    // Begun, and nobody else's: a run was killed between the two, or only let the loop in.
                    (None, Some(record)) if seen.claim.is_none() && seen.damaged.is_none() => {
                        (record.id.clone(), record.generation, Phase::Pending, record.spec.clone())
                    }
                    _ => continue,
                },
                Err(why) => match self.intended(&look.place) {
                    Some(record) => (
                        record.id.clone(),
                        record.generation,
                        Phase::Broken(format!("its host does not answer: {why}")),
                        record.spec.clone(),
                    ),
                    None => continue,
                },
            };
            let (handle, outputs, needs) = (look.place.clone(), look.outputs.clone(), needs.clone());
            self.things.push(Observed { id, handle, generation, phase, spec, outputs, needs });
        }
    }

    /// The machine that this host was to become.
    fn intended(&self, place: &str) -> Option<&Record> {
        self.records.values().find(|record| record.id.kind == MACHINE && record.spec["host"] == place)
    }

    fn others(&mut self) {
        let Some(anchor) = &self.anchor else { return };
        let network = self.records.keys().find(|id| id.kind == NETWORK).cloned();
        for record in self.records.values().filter(|record| ![MACHINE, FILESYSTEM, ADMISSION].contains(&record.id.kind.as_str())) {
            let mut needs: Vec<Id> = network.iter().filter(|network| **network != record.id).cloned().collect();
            if record.id.kind == LOAD_BALANCER
                && let Ok(spec) = serde_json::from_value::<LoadBalancerSpec>(record.spec.clone())
            {
                needs.extend(spec.machines.iter().map(|name| Id::new(MACHINE, name)));
            }
            let mut spec = record.spec.clone();
            // It still leads to where its machine was: that part of the wish is open again.
            let now = balance::address(&spec, |id| self.things.iter().find(|thing| thing.id == *id));
            if spec["machine"].is_string() && now.is_some_and(|now| record.outputs["address"] != now.as_str()) {
                spec["machine"] = Value::Null;
            }
            self.things.push(Observed {
                id: record.id.clone(),
                handle: format!("{anchor}/{}", Record::file(&record.id)),
                generation: record.generation,
                phase: Phase::Ready,
                spec,
                outputs: record.outputs.clone(),
                needs,
            });
        }
    }

    /// Where the other machines reach a host; of one that is silent, what was on record.
    pub fn address(&self, place: &str) -> Option<String> {
        let recorded = || self.records.values().filter_map(|record| record.reach.as_ref()).find(|reach| reach.place == place);
        self.addresses.get(place).cloned().or_else(|| recorded().map(|reach| reach.address.clone()))
    }

    /// What machines mount.
    pub fn mounted(&self) -> impl Iterator<Item = Id> {
        self.things.iter().map(|thing| &thing.id).filter(|id| id.kind == FILESYSTEM).cloned()
    }

    /// Each machine is told which free addresses it may announce.
    pub fn announce(&mut self, addresses: &[String]) {
        for machine in self.things.iter_mut().filter(|thing| thing.id.kind == MACHINE) {
            machine.outputs["announce"] = json!(networks::announced(addresses, &machine.handle, &self.networks));
        }
    }

    pub fn thing(&self, id: &Id) -> Option<&Observed> {
        self.things.iter().find(|thing| thing.id == *id)
    }

    /// Which host each machine has.
    pub fn held(&self) -> BTreeMap<String, String> {
        let machines = self.things.iter().filter(|thing| thing.id.kind == MACHINE);
        machines.map(|machine| (machine.id.name.clone(), machine.handle.clone())).collect()
    }

    /// The record as a resource's first state.
    pub fn first(id: &Id, generation: u32, token: &str, spec: &Value) -> Record {
        Record { id: id.clone(), generation, token: token.into(), spec: spec.clone(), outputs: json!({}), reach: None }
    }
}

fn address(look: &Look) -> Option<String> {
    ["privateAddress", "address"].iter().find_map(|field| look.outputs[*field].as_str()).map(str::to_string)
}

fn network(look: &Look) -> Option<ipnet::Ipv4Net> {
    look.outputs["network"].as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::record::Claim;
    use super::*;

    fn cluster() -> Cluster {
        Cluster { name: "shop".into(), uid: "u".into() }
    }

    fn host(place: &str, machine: Option<&str>, records: &[(&str, Value)]) -> Look {
        let claim = machine.map(|machine| Claim {
            cluster_uid: "u".into(),
            cluster: "shop".into(),
            machine: machine.into(),
            generation: 1,
            token: "t".into(),
            spec: json!({"host": place}),
        });
        let records = records.iter().map(|(file, value)| ("u".to_string(), file.to_string(), value.clone())).collect();
        Look { place: place.into(), seen: Ok(Seen { claim, records, ..Seen::default() }), outputs: json!({}), reach: None }
    }

    fn silent(place: &str) -> Look {
        Look { place: place.into(), seen: Err("no answer".into()), outputs: json!({}), reach: None }
    }

    fn keeper(place: &str, machines: &[(&str, &str)]) -> Look {
        let record = |name: &str, host: &str| {
            let record = World::first(&Id::new(MACHINE, name), 1, "t", &json!({"host": host}));
            (format!("machine.{name}"), serde_json::to_value(record).unwrap())
        };
        let mut records = vec![("cluster".to_string(), json!({"name": "shop", "uid": "u"}))];
        records.extend(machines.iter().map(|(name, host)| record(name, host)));
        let records: Vec<(&str, Value)> = records.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        host(place, Some("control-1"), &records)
    }

    /// `machine phase` of each.
    fn check(looks: &[Look], known: Option<&str>, expected: &[&str]) {
        let world = World::of(&cluster(), looks, known).unwrap();
        let phase = |phase: &Phase| match phase {
            Phase::Ready => "ready",
            Phase::Pending => "begun",
            _ => "broken",
        };
        let line = |thing: &Observed| format!("{} {}", thing.id.name, phase(&thing.phase));
        assert_eq!(world.things.iter().map(line).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_host_that_does_not_answer_keeps_its_machine() {
        let records = [("control-1", "a"), ("worker-1", "b")];
        check(&[keeper("a", &records), host("b", Some("worker-1"), &[]), silent("c")], None, &["control-1 ready", "worker-1 ready"]);
        check(&[keeper("a", &records), silent("b"), silent("c")], None, &["control-1 ready", "worker-1 broken"]);
        check(&[keeper("a", &records), host("b", None, &[])], None, &["control-1 ready", "worker-1 begun"]);
    }

    #[test]
    fn without_the_host_that_knows_nothing_is_guessed() {
        let blind = |looks: &[Look], known| World::of(&cluster(), looks, known).unwrap_err().kind;
        assert_eq!(blind(&[silent("a"), host("b", Some("worker-1"), &[])], None), crate::error::Kind::Transient);
        assert_eq!(blind(&[silent("a"), host("b", None, &[])], Some("a")), crate::error::Kind::Transient);
        check(&[silent("a"), host("b", None, &[])], None, &[]);
        check(&[host("a", None, &[]), host("b", None, &[])], Some("a"), &[]);
    }
}
