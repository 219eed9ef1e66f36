//! Desired and observed -> plan. Pure: the same values give the same plan, and nothing is left to choose when it is carried out.

mod compare;
mod show;
#[cfg(test)]
pub(crate) mod tests;

pub use compare::difference;
pub use show::beside;

use super::{Action, HOST, Id, Key, MACHINE, Observed, Phase, Resource, Verb};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What will be done, in an order that respects every dependency; what is printed is what runs. `Display` is for people.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    pub actions: Vec<Action>,
    /// What nobody can hurry, and why.
    pub waiting: Vec<Waiting>,
    /// How many resources are as they should be.
    pub unchanged: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Waiting {
    pub id: Id,
    pub why: String,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }
}

/// What becomes of one logical id.
#[derive(Debug, Clone, PartialEq)]
enum Fate {
    Keep,
    Create,
    Update(String),
    Repair(String),
    /// Delete, then create the next generation.
    Replace(String),
    AwaitReady,
    /// Its deletion was accepted before; the next generation follows when it is gone.
    AwaitGoneThenCreate,
    AwaitGone,
    Delete(String),
}

/// Plans from what should be to what is. `generations` is the highest generation that anybody remembers per id (the journal); what is
/// observed may know a higher one. An empty `desired` is `down`.
pub fn plan(desired: &[Resource], observed: &[Observed], generations: &BTreeMap<Id, u32>) -> Plan {
    let world = World::new(desired, observed);
    let fates = world.fates();
    let mut actions = Vec::new();
    for (id, fate) in &fates {
        world.actions_for(id, fate, generations, &mut actions);
    }
    for spare in &world.spares {
        actions.push(world.removal(spare, "a second one of this name"));
    }
    world.order_creations(&mut actions);
    world.order_removals(&mut actions);
    Plan { waiting: waiting(&fates), unchanged: fates.values().filter(|fate| **fate == Fate::Keep).count(), actions: sorted(actions) }
}

/// Both sides by id, with one thing kept of each id.
struct World<'a> {
    desired: BTreeMap<&'a Id, &'a Resource>,
    kept: BTreeMap<&'a Id, &'a Observed>,
    /// Further things of an id that has one already: made by a lost reply where the provider knows neither tokens nor names.
    spares: Vec<&'a Observed>,
    /// No machine is wanted: the whole cluster goes.
    goes: bool,
}

impl<'a> World<'a> {
    fn new(desired: &'a [Resource], observed: &'a [Observed]) -> Self {
        let desired: BTreeMap<_, _> = desired.iter().map(|resource| (&resource.id, resource)).collect();
        let (mut kept, mut spares) = (BTreeMap::new(), Vec::new());
        for thing in best_first(observed) {
            if kept.contains_key(&thing.id) {
                spares.push(thing);
            } else {
                kept.insert(&thing.id, thing);
            }
        }
        let goes = !desired.keys().any(|id| id.kind == MACHINE);
        World { desired, kept, spares, goes }
    }

    fn fates(&self) -> BTreeMap<&'a Id, Fate> {
        let ids: BTreeSet<&Id> = self.desired.keys().chain(self.kept.keys()).copied().collect();
        let mut fates: BTreeMap<&Id, Fate> = ids.into_iter().map(|id| (id, self.fate(id))).collect();
        let remade: Vec<&Id> = fates
            .iter()
            .filter(|(id, fate)| {
                id.kind == HOST && !matches!(fate, Fate::Create | Fate::AwaitGoneThenCreate | Fate::AwaitGone | Fate::Delete(_))
            })
            .filter(|(id, _)| {
                let machine = Id::new(MACHINE, &id.name);
                matches!(fates.get(&machine), Some(Fate::Create | Fate::Replace(_) | Fate::AwaitGoneThenCreate))
            })
            .map(|(id, _)| *id)
            .collect();
        for id in remade {
            fates.insert(id, Fate::Replace("its machine is made again".into()));
        }
        fates
    }

    fn fate(&self, id: &Id) -> Fate {
        match (self.desired.get(id), self.kept.get(id)) {
            (Some(_), None) => Fate::Create,
            (Some(wish), Some(thing)) => meet(wish, thing),
            (None, Some(thing)) if thing.phase == Phase::Deleting => Fate::AwaitGone,
            (None, Some(_)) if self.desired.is_empty() => Fate::Delete("the cluster goes".into()),
            (None, _) => Fate::Delete("no longer in the blueprint".into()),
        }
    }

    fn actions_for(&self, id: &Id, fate: &Fate, generations: &BTreeMap<Id, u32>, actions: &mut Vec<Action>) {
        let remembered = generations.get(id).copied().unwrap_or(0);
        let of_spares = self.spares.iter().filter(|spare| spare.id == *id).map(|spare| spare.generation).max().unwrap_or(0);
        let kept = self.kept.get(id).copied();
        let next = remembered.max(of_spares).max(kept.map_or(0, |thing| thing.generation)) + 1;
        let create = |reason: &str| self.wish(Verb::Create, id, next, None, reason);
        let change = |verb: Verb, thing: &Observed, reason: &str| self.wish(verb, id, thing.generation, Some(thing), reason);
        match (fate, kept) {
            (Fate::Keep, _) => {}
            (Fate::Create, _) => actions.push(create("not there")),
            (Fate::Update(reason), Some(thing)) => actions.push(change(Verb::Update, thing, reason)),
            (Fate::Repair(reason), Some(thing)) => actions.push(change(Verb::Repair, thing, reason)),
            (Fate::AwaitReady, Some(thing)) => actions.push(change(Verb::Await, thing, "not ready yet")),
            (Fate::Replace(reason), Some(thing)) => actions.extend([self.removal(thing, reason), create(reason)]),
            (Fate::AwaitGoneThenCreate, Some(thing)) => {
                actions.extend([change(Verb::Await, thing, "being deleted"), create("the former one is being deleted")]);
            }
            (Fate::AwaitGone, Some(thing)) => actions.push(change(Verb::Await, thing, "being deleted")),
            (Fate::Delete(reason), Some(thing)) => actions.push(self.removal(thing, reason)),
            (fate, None) => unreachable!("{id} is not observed but meets {fate:?}"),
        }
    }

    fn wish(&self, verb: Verb, id: &Id, generation: u32, thing: Option<&Observed>, reason: &str) -> Action {
        let wish = self.desired.get(id);
        Action {
            verb,
            id: id.clone(),
            generation,
            spec: wish.map_or_else(|| json!({}), |wish| wish.spec.clone()),
            handle: thing.map(|thing| thing.handle.clone()),
            after: Vec::new(),
            reason: reason.into(),
            summary: wish.map(|wish| wish.summary.clone()).unwrap_or_default(),
        }
    }

    fn removal(&self, thing: &Observed, reason: &str) -> Action {
        let (mut spec, mut summary) = (json!({}), String::new());
        if thing.id.kind == HOST {
            let machine = self.kept.get(&Id::new(MACHINE, &thing.id.name));
            // Draining a host whose machine is gone, or when nothing can take its pods, would only cost time.
            let drain = !self.goes && machine.is_some_and(|machine| machine.phase == Phase::Ready);
            spec = json!({ "drain": drain });
            summary = if drain { "drain, then remove the node" } else { "goes with its machine, no drain" }.into();
        }
        let (id, generation, handle) = (thing.id.clone(), thing.generation, Some(thing.handle.clone()));
        Action { verb: Verb::Delete, id, generation, spec, handle, after: Vec::new(), reason: reason.into(), summary }
    }

    /// What is made or changed waits for what it needs, and a replacement for its forerunner's end.
    fn order_creations(&self, actions: &mut [Action]) {
        let builds = keys_by_id(actions, |action| !is_removal(action, &self.desired));
        let removals = keys_by_id(actions, |action| is_removal(action, &self.desired) || is_going(action, &self.kept));
        for action in actions.iter_mut().filter(|action| matches!(action.verb, Verb::Create | Verb::Update | Verb::Repair)) {
            let needs = self.desired.get(&action.id).map_or(&[][..], |wish| &wish.needs);
            let mut after: Vec<Key> =
                needs.iter().filter(|need| **need != action.id).flat_map(|need| builds.get(need).into_iter().flatten().cloned()).collect();
            if action.verb == Verb::Create {
                after.extend(removals.get(&action.id).into_iter().flatten().cloned());
            }
            action.after = after;
        }
    }

    /// What goes waits for those that still need it: until they are gone themselves, or changed so that they no longer do.
    fn order_removals(&self, actions: &mut [Action]) {
        let keys: Vec<Key> = actions.iter().map(Action::key).collect();
        let fences: BTreeSet<&Id> = actions.iter().filter(|action| self.is_fence(action)).map(|action| &action.id).collect();
        let is_fence = |action: &Action| action.verb == Verb::Delete && fences.contains(&action.id);
        let released = self.released(actions);
        let after: Vec<Vec<Key>> = actions
            .iter()
            .map(|action| {
                let mut others: BTreeSet<usize> = BTreeSet::new();
                if action.verb == Verb::Delete {
                    others.extend(released.get(&action.id).into_iter().flatten());
                    if self.goes && action.id.kind == MACHINE && self.is_control_plane(&action.id) {
                        others.extend((0..actions.len()).filter(|place| self.goes_before_control_plane(&actions[*place])));
                    }
                    if !fences.is_empty() && !is_fence(action) && !self.leads_to_fence(&action.id, &fences) {
                        others.extend((0..actions.len()).filter(|place| is_fence(&actions[*place])));
                    }
                }
                others.into_iter().filter(|place| actions[*place].id != action.id).map(|place| keys[place].clone()).collect()
            })
            .collect();
        actions.iter_mut().zip(after).for_each(|(action, more)| action.after.extend(more));
    }

    /// By what is needed: the places of the actions after which one thing fewer needs it.
    fn released(&self, actions: &[Action]) -> BTreeMap<Id, BTreeSet<usize>> {
        let mut released: BTreeMap<Id, BTreeSet<usize>> = BTreeMap::new();
        let spares = |id: &Id| self.spares.iter().copied().filter(|spare| spare.id == *id).collect::<Vec<_>>();
        let has_spares: BTreeSet<&Id> = self.spares.iter().map(|spare| &spare.id).collect();
        for (place, action) in actions.iter().enumerate() {
            let more = if has_spares.contains(&action.id) { spares(&action.id) } else { Vec::new() };
            let things = self.kept.get(&action.id).copied().into_iter().chain(more);
            let about = things.filter(|thing| action.handle.as_ref().is_some_and(|handle| *handle == thing.handle));
            for need in about.flat_map(|thing| &thing.needs) {
                let lets_go = match action.verb {
                    Verb::Delete => true,
                    Verb::Await => !self.desired.contains_key(&action.id) || is_going(action, &self.kept),
                    Verb::Update | Verb::Repair => !self.desired.get(&action.id).is_some_and(|wish| wish.needs.contains(need)),
                    Verb::Create => false,
                };
                if lets_go {
                    released.entry(need.clone()).or_default().insert(place);
                }
            }
        }
        released
    }

    /// Another machine, on its way out: the one that runs the loop goes last.
    fn goes_before_control_plane(&self, other: &Action) -> bool {
        other.id.kind == MACHINE && !self.is_control_plane(&other.id) && matches!(other.verb, Verb::Delete | Verb::Await)
    }

    /// When the whole cluster goes, the loop on a control plane is stopped before anything that it would make again.
    fn is_fence(&self, action: &Action) -> bool {
        self.goes && action.verb == Verb::Delete && action.id.kind == HOST && self.is_control_plane(&Id::new(MACHINE, &action.id.name))
    }

    fn is_control_plane(&self, machine: &Id) -> bool {
        let role = |thing: &&Observed| thing.spec.get("role").and_then(Value::as_str) == Some("control-plane");
        self.kept.get(machine).is_some_and(role) || self.kept.get(&Id::new(HOST, &machine.name)).is_some_and(role)
    }

    /// Whether `id` needs, directly or through others, a host that is a fence: then it goes before the fence, not after.
    fn leads_to_fence(&self, id: &Id, fences: &BTreeSet<&Id>) -> bool {
        let (mut seen, mut open) = (BTreeSet::new(), vec![id]);
        while let Some(next) = open.pop() {
            if fences.contains(next) {
                return true;
            }
            if seen.insert(next) {
                open.extend(self.kept.get(next).into_iter().flat_map(|thing| &thing.needs));
            }
        }
        false
    }
}

/// Of each id the one thing that stays: what others refer to.
pub fn kept(observed: &[Observed]) -> Vec<&Observed> {
    let mut seen = BTreeSet::new();
    best_first(observed).into_iter().filter(|thing| seen.insert(&thing.id)).collect()
}

/// The healthier first; then the later generation, which was made because the earlier one was gone; then the elder of two twins.
fn best_first(observed: &[Observed]) -> Vec<&Observed> {
    let mut best: Vec<&Observed> = observed.iter().collect();
    best.sort_by_key(|thing| (health(&thing.phase), std::cmp::Reverse(thing.generation), &thing.handle));
    best
}

/// One that works is worth more than one on its way, that more than a broken one; one on its way out is worth least.
fn health(phase: &Phase) -> u8 {
    match phase {
        Phase::Ready => 0,
        Phase::Pending => 1,
        Phase::Broken(_) => 2,
        Phase::Deleting => 3,
    }
}

/// A wish and the thing that should fulfil it. A pending thing may still become right and is never replaced; a broken one is, when what
/// differs cannot change in place, and else repaired.
fn meet(wish: &Resource, thing: &Observed) -> Fate {
    let differences = || difference(&wish.spec, &thing.spec);
    match &thing.phase {
        Phase::Deleting => Fate::AwaitGoneThenCreate,
        Phase::Pending => Fate::AwaitReady,
        Phase::Broken(why) => match compare::replacing(wish, &differences()) {
            Some(reason) => Fate::Replace(reason),
            None => Fate::Repair(why.clone()),
        },
        Phase::Ready => {
            let differences = differences();
            if differences.is_empty() {
                return Fate::Keep;
            }
            compare::replacing(wish, &differences).map_or_else(|| Fate::Update(compare::reason(&differences)), Fate::Replace)
        }
    }
}

fn is_removal(action: &Action, desired: &BTreeMap<&Id, &Resource>) -> bool {
    action.verb == Verb::Delete || (action.verb == Verb::Await && !desired.contains_key(&action.id))
}

/// An Await for something on its way out.
fn is_going(action: &Action, kept: &BTreeMap<&Id, &Observed>) -> bool {
    action.verb == Verb::Await && kept.get(&action.id).is_some_and(|thing| thing.phase == Phase::Deleting)
}

fn keys_by_id(actions: &[Action], which: impl Fn(&Action) -> bool) -> BTreeMap<Id, Vec<Key>> {
    let mut keys: BTreeMap<Id, Vec<Key>> = BTreeMap::new();
    for action in actions.iter().filter(|action| which(action)) {
        keys.entry(action.id.clone()).or_default().push(action.key());
    }
    keys
}

fn waiting(fates: &BTreeMap<&Id, Fate>) -> Vec<Waiting> {
    let why = |fate: &Fate| match fate {
        Fate::AwaitReady => Some("started earlier and not ready yet"),
        Fate::AwaitGone | Fate::AwaitGoneThenCreate => Some("its deletion has begun and is not finished"),
        _ => None,
    };
    fates.iter().filter_map(|(id, fate)| Some(Waiting { id: (*id).clone(), why: why(fate)?.into() })).collect()
}

/// Dependency order; among equals the order given. What is left in a cycle comes last, where the linter finds it.
fn sorted(actions: Vec<Action>) -> Vec<Action> {
    let mut open = actions;
    let mut done: BTreeSet<Key> = BTreeSet::new();
    let mut order = Vec::with_capacity(open.len());
    loop {
        let (ready, blocked): (Vec<_>, Vec<_>) = open.into_iter().partition(|action| action.after.iter().all(|key| done.contains(key)));
        let stuck = ready.is_empty();
        done.extend(ready.iter().map(Action::key));
        order.extend(ready);
        if stuck || blocked.is_empty() {
            order.extend(blocked);
            return order;
        }
        open = blocked;
    }
}
