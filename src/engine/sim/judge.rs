//! What must hold, read from the cloud's own ledger and never from the engine's word.

use crate::engine::plan::difference;
use crate::engine::{Cluster, Resource, Verb};
use crate::providers::fake::{Cloud, Thing};
use std::collections::BTreeMap;

/// Owners whose things look like ours: same names, nearly our tag.
const OTHERS: [&str; 3] = ["u-2", "u-11", "U-1"];

pub(super) fn place_decoys(cloud: &Cloud, desired: &[Resource]) -> Vec<Thing> {
    for wish in desired {
        OTHERS.iter().for_each(|uid| cloud.decoy(&wish.id, uid));
    }
    decoys(cloud)
}

fn decoys(cloud: &Cloud) -> Vec<Thing> {
    OTHERS.iter().flat_map(|uid| cloud.things(uid)).collect()
}

pub(super) fn decoys_untouched(cloud: &Cloud, before: &[Thing]) -> Result<(), String> {
    if decoys(cloud) == before { Ok(()) } else { Err("a thing of another owner was touched".into()) }
}

/// Promises that the cloud saw broken at the very call, and writers that did not stop when they were fenced.
pub(super) fn no_violations(cloud: &Cloud) -> Result<(), String> {
    if let Some(violation) = cloud.violations().first() {
        return Err(violation.clone());
    }
    let mut fenced: BTreeMap<(u64, Verb, String), usize> = BTreeMap::new();
    for call in cloud.ledger().into_iter().filter(|call| !call.late && call.effect.contains("is over")) {
        *fenced.entry((call.epoch, call.verb, call.id.to_string())).or_default() += 1;
    }
    let stubborn = fenced.into_iter().find(|(_, times)| *times > 1);
    stubborn.map_or(Ok(()), |((epoch, verb, id), times)| Err(format!("{verb} {id} of the fenced epoch {epoch} was sent {times} times")))
}

/// Each wish is one live thing, as wished; nothing else is there.
pub(super) fn is_as_desired(cloud: &Cloud, cluster: &Cluster, desired: &[Resource]) -> Result<(), String> {
    let things = cloud.things(&cluster.uid);
    for wish in desired {
        let found: Vec<&Thing> = things.iter().filter(|thing| thing.id == wish.id).collect();
        let [thing] = found[..] else { return Err(format!("{} is there {} times", wish.id, found.len())) };
        let differences = difference(&wish.spec, &thing.spec);
        if thing.broken || !differences.is_empty() {
            return Err(format!("{} is not as wished: {differences:?}", wish.id));
        }
    }
    let dangling = things.iter().find(|thing| !thing.needs.iter().all(|need| things.iter().any(|other| other.handle == *need)));
    if let Some(thing) = dangling {
        return Err(format!("{} refers to something that is gone", thing.id));
    }
    let unasked: Vec<&str> =
        things.iter().filter(|thing| !desired.iter().any(|wish| wish.id == thing.id)).map(|thing| thing.handle.as_str()).collect();
    if unasked.is_empty() { Ok(()) } else { Err(format!("leaked: {}", unasked.join(", "))) }
}

pub(super) fn no_calls_since(cloud: &Cloud, before: usize) -> Result<(), String> {
    let ledger = cloud.ledger();
    match ledger.get(before) {
        None => Ok(()),
        Some(call) => Err(format!("a run with nothing to do sent: {} {} ({})", call.verb, call.id, call.effect)),
    }
}
