//! What must hold, read from the cloud's own ledger and never from the engine's word.

use crate::engine::plan::difference;
use crate::engine::{Cluster, Resource, Verb};
use crate::providers::fake::{BLUEPRINT, Cloud, Thing};
use std::collections::BTreeMap;
use std::fmt;

/// What kprov promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Promise {
    /// What is wished for is there, as wished, and nothing is done to what is right.
    Converges,
    /// Nothing is there that nobody asked for.
    NothingLeaks,
    /// Nothing is there twice.
    NothingTwice,
    /// Nothing of other owners is touched.
    ForeignUntouched,
    OneWriter,
}

/// A promise that did not hold, and how that was seen.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Broken {
    pub promise: Promise,
    pub text: String,
}

impl Promise {
    pub fn broken(self, text: impl Into<String>) -> Broken {
        Broken { promise: self, text: text.into() }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}: {}", self.promise, self.text)
    }
}

/// Owners whose things look like ours: same kinds and names, nearly our tag.
const OTHERS: [&str; 4] = ["u-2", "u-11", "U-1", "u-1 "];
/// At least so many things of others lie about.
const DECOYS: usize = 100;

pub(super) fn place_decoys(cloud: &Cloud, desired: &[Resource]) -> Vec<Thing> {
    let looks = OTHERS.iter().cycle().zip(desired.iter().cycle());
    let count = DECOYS.max(desired.len() * OTHERS.len());
    looks.take(count).for_each(|(uid, wish)| cloud.decoy(&wish.id, uid));
    cloud.decoys()
}

pub(super) fn decoys_untouched(cloud: &Cloud, before: &[Thing]) -> Result<(), Broken> {
    if cloud.decoys() == before { Ok(()) } else { Err(Promise::ForeignUntouched.broken("a thing of another owner was touched")) }
}

/// Promises that the cloud saw broken at the very call, and writers that did not stop when they were fenced.
pub(super) fn no_violations(cloud: &Cloud) -> Result<(), Broken> {
    if let Some(violation) = cloud.violations().first() {
        let promise = match () {
            _ if violation.contains("a second") => Promise::NothingTwice,
            _ if violation.contains("another owner") => Promise::ForeignUntouched,
            _ if violation.contains("epoch") => Promise::OneWriter,
            _ => Promise::Converges,
        };
        return Err(promise.broken(violation.clone()));
    }
    let mut fenced: BTreeMap<(u64, Verb, String), usize> = BTreeMap::new();
    for call in cloud.ledger().into_iter().filter(|call| !call.late && call.effect.contains("is over")) {
        *fenced.entry((call.epoch, call.verb, call.id.to_string())).or_default() += 1;
    }
    let stubborn = fenced.into_iter().find(|(_, times)| *times > 1);
    stubborn.map_or(Ok(()), |((epoch, verb, id), times)| {
        Err(Promise::OneWriter.broken(format!("{verb} {id} of the fenced epoch {epoch} was sent {times} times")))
    })
}

/// Each wish is one live thing, as wished; nothing else is there.
pub(super) fn is_as_desired(cloud: &Cloud, cluster: &Cluster, desired: &[Resource]) -> Result<(), Broken> {
    let things = cloud.things(&cluster.uid);
    for wish in desired {
        let found: Vec<&Thing> = things.iter().filter(|thing| thing.id == wish.id).collect();
        let thing = match found[..] {
            [thing] => thing,
            [] => return Err(Promise::Converges.broken(format!("{} is not there", wish.id))),
            _ => return Err(Promise::NothingTwice.broken(format!("{} is there {} times", wish.id, found.len()))),
        };
        let differences = difference(&wish.spec, &thing.spec);
        if thing.broken || thing.unmade > 0 || !differences.is_empty() {
            let state = format!("broken: {}, unmade calls: {}", thing.broken, thing.unmade);
            return Err(Promise::Converges.broken(format!("{} is not as wished: {differences:?}, {state}", wish.id)));
        }
    }
    let dangling = things.iter().find(|thing| !thing.needs.iter().all(|need| things.iter().any(|other| other.handle == *need)));
    if let Some(thing) = dangling {
        return Err(Promise::Converges.broken(format!("{} refers to something that is gone", thing.id)));
    }
    let asked = |thing: &Thing| desired.iter().any(|wish| wish.id == thing.id) || (!desired.is_empty() && thing.id.kind == BLUEPRINT);
    let unasked: Vec<&str> = things.iter().filter(|thing| !asked(thing)).map(|thing| thing.handle.as_str()).collect();
    if unasked.is_empty() { Ok(()) } else { Err(Promise::NothingLeaks.broken(format!("leaked: {}", unasked.join(", ")))) }
}

pub(super) fn no_calls_since(cloud: &Cloud, before: usize) -> Result<(), Broken> {
    let ledger = cloud.ledger();
    match ledger.get(before) {
        None => Ok(()),
        Some(call) => {
            let text = format!("a run with nothing to do sent: {} {} ({})", call.verb, call.id, call.effect);
            Err(Promise::Converges.broken(text))
        }
    }
}
