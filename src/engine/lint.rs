//! Plans we refuse, whoever made them: the last look before anything happens. Pure.

use super::plan::{Plan, difference};
use super::{Action, Door, HOST, Id, Key, MACHINE, Observed, Phase, Resource, Verb};
use crate::error::Error;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// Why a plan must not be carried out. Each is a mistake in a blueprint's expansion, a door or the planner, never the user's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// These actions wait for each other, or for one that is not in the plan.
    Cycle(Vec<Key>),
    /// Two actions of one verb on one thing, or two wishes of one id.
    Twice(Id),
    /// Two doors say that they own this kind.
    TwoDoors(String),
    NoDoor(Id),
    /// Something needs this, and it is neither wanted nor part of the plan.
    MissingNeed {
        id: Id,
        need: Id,
    },
    /// Machines would stay without anything to control them.
    LastControlPlane,
    /// This is wanted as it is, and would be deleted.
    Unasked(Id),
    /// The action names a thing that was not observed under our tag.
    NotOurs(Key),
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Cycle(keys) => {
                write!(out, "these wait for each other: {}", keys.iter().map(Key::to_string).collect::<Vec<_>>().join(", "))
            }
            Refusal::Twice(id) => write!(out, "{id} appears twice"),
            Refusal::TwoDoors(kind) => write!(out, "two doors own the kind {kind}"),
            Refusal::NoDoor(id) => write!(out, "no door owns the kind of {id}"),
            Refusal::MissingNeed { id, need } => write!(out, "{id} needs {need}, which nobody wants"),
            Refusal::LastControlPlane => out.write_str("every control plane would go while machines stay"),
            Refusal::Unasked(id) => write!(out, "{id} would be deleted although it is wanted as it is"),
            Refusal::NotOurs(key) => write!(out, "\"{key}\" is about something that does not carry this cluster's tag"),
        }
    }
}

/// All refusals as one error.
pub fn refuse(refusals: &[Refusal]) -> Result<(), Error> {
    let Some(first) = refusals.first() else { return Ok(()) };
    let rest = refusals.iter().skip(1).map(Refusal::to_string);
    Err(rest.fold(Error::internal(format!("refused the plan: {first}")), Error::hint))
}

pub fn lint(plan: &Plan, desired: &[Resource], observed: &[Observed]) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    refusals.extend(cycle(plan));
    refusals.extend(twice(plan, desired));
    refusals.extend(missing_needs(desired));
    refusals.extend(last_control_plane(plan, desired, observed));
    refusals.extend(unasked(plan, desired, observed));
    refusals.extend(not_ours(plan, observed));
    refusals
}

/// Each kind has exactly one owner, declared.
pub fn lint_doors(doors: &[Arc<dyn Door>], plan: &Plan) -> Vec<Refusal> {
    let mut owners: BTreeMap<&str, usize> = BTreeMap::new();
    for kind in doors.iter().flat_map(|door| door.kinds()) {
        *owners.entry(kind).or_default() += 1;
    }
    let two = owners.iter().filter(|(_, count)| **count > 1).map(|(kind, _)| Refusal::TwoDoors(kind.to_string()));
    let none =
        plan.actions.iter().filter(|action| !owners.contains_key(action.id.kind.as_str())).map(|action| Refusal::NoDoor(action.id.clone()));
    two.chain(none).collect()
}

/// The planner sorts: whatever comes before something it waits for is in a cycle, or waits for nothing that exists.
fn cycle(plan: &Plan) -> Option<Refusal> {
    let mut seen = BTreeSet::new();
    let mut stuck = Vec::new();
    for action in &plan.actions {
        if action.after.iter().all(|key| seen.contains(key)) {
            seen.insert(action.key());
        } else {
            stuck.push(action.key());
        }
    }
    (!stuck.is_empty()).then_some(Refusal::Cycle(stuck))
}

fn twice(plan: &Plan, desired: &[Resource]) -> Vec<Refusal> {
    let mut seen = BTreeSet::new();
    let actions = plan.actions.iter().filter(|action| !seen.insert(action.key())).map(|action| action.id.clone()).collect::<Vec<_>>();
    // One thing is changed in one way; only a replacement has two actions on one id, and they are about two things.
    let mut changed = BTreeSet::new();
    let handled = plan.actions.iter().filter_map(|action| Some((&action.id, action.handle.as_ref()?)));
    let changes = handled.filter(|thing| !changed.insert(*thing)).map(|(id, _)| id.clone()).collect::<Vec<_>>();
    let mut wished = BTreeSet::new();
    let wishes = desired.iter().filter(|wish| !wished.insert(&wish.id)).map(|wish| wish.id.clone());
    let all: BTreeSet<Id> = actions.into_iter().chain(changes).chain(wishes).collect();
    all.into_iter().map(Refusal::Twice).collect()
}

fn missing_needs(desired: &[Resource]) -> Vec<Refusal> {
    let wanted: BTreeSet<&Id> = desired.iter().map(|wish| &wish.id).collect();
    let missing = desired.iter().flat_map(|wish| wish.needs.iter().map(|need| (&wish.id, need))).filter(|(_, need)| !wanted.contains(need));
    missing.map(|(id, need)| Refusal::MissingNeed { id: id.clone(), need: need.clone() }).collect()
}

fn last_control_plane(plan: &Plan, desired: &[Resource], observed: &[Observed]) -> Option<Refusal> {
    let is_control = |spec: &Value| spec.get("role").and_then(Value::as_str) == Some("control-plane");
    let machines: Vec<&Resource> = desired.iter().filter(|wish| wish.id.kind == MACHINE).collect();
    let controls: Vec<&Observed> = observed.iter().filter(|thing| thing.id.kind == MACHINE && is_control(&thing.spec)).collect();
    let deleted =
        |thing: &Observed| plan.actions.iter().any(|action| action.verb == Verb::Delete && action.handle.as_ref() == Some(&thing.handle));
    let none_wanted = !machines.iter().any(|wish| is_control(&wish.spec));
    let all_go = !controls.is_empty() && controls.iter().all(|thing| deleted(thing));
    (all_go && none_wanted && !machines.is_empty()).then_some(Refusal::LastControlPlane)
}

fn unasked(plan: &Plan, desired: &[Resource], observed: &[Observed]) -> Vec<Refusal> {
    let wishes: BTreeMap<&Id, &Resource> = desired.iter().map(|wish| (&wish.id, wish)).collect();
    let things = by_id(observed);
    let made: BTreeSet<&Id> = plan.actions.iter().filter(|action| action.verb == Verb::Create).map(|action| &action.id).collect();
    let wanted = |action: &Action| {
        let wish = wishes.get(&action.id)?;
        let things = things.get(&action.id)?;
        let thing = things.iter().find(|thing| Some(&thing.handle) == action.handle.as_ref())?;
        let machine_remade = action.id.kind == HOST && made.contains(&Id::new(MACHINE, &action.id.name));
        let fixed = difference(&wish.spec, &thing.spec)
            .iter()
            .any(|difference| difference.path.first().is_some_and(|field| wish.replace_on.contains(field)));
        let certain = matches!(thing.phase, Phase::Ready | Phase::Broken(_));
        (things.len() == 1 && !machine_remade && !(fixed && certain)).then(|| action.id.clone())
    };
    plan.actions.iter().filter(|action| action.verb == Verb::Delete).filter_map(wanted).map(Refusal::Unasked).collect()
}

fn not_ours(plan: &Plan, observed: &[Observed]) -> Vec<Refusal> {
    let things = by_id(observed);
    let known = |action: &Action| match &action.handle {
        None => action.verb == Verb::Create,
        Some(handle) => things.get(&action.id).is_some_and(|things| things.iter().any(|thing| thing.handle == *handle)),
    };
    plan.actions.iter().filter(|action| !known(action)).map(|action| Refusal::NotOurs(action.key())).collect()
}

fn by_id(observed: &[Observed]) -> BTreeMap<&Id, Vec<&Observed>> {
    let mut things: BTreeMap<&Id, Vec<&Observed>> = BTreeMap::new();
    observed.iter().for_each(|thing| things.entry(&thing.id).or_default().push(thing));
    things
}

#[cfg(test)]
mod tests {
    use super::super::plan::plan;
    use super::super::plan::tests::{observed, resource};
    use super::*;
    use serde_json::json;

    /// What the linter says of the plan for these, after `spoil`.
    fn check(desired: &[Resource], world: &[Observed], spoil: impl FnOnce(&mut Plan), expected: &[Refusal]) {
        let mut plan = plan(desired, world, &BTreeMap::new());
        spoil(&mut plan);
        assert_eq!(lint(&plan, desired, world), expected);
    }

    fn id(kind: &str, name: &str) -> Id {
        Id::new(kind, name)
    }

    #[test]
    fn what_waits_for_itself_in_a_circle_is_refused() {
        let wish = [resource("machine/a", json!({}), &["machine/b"]), resource("machine/b", json!({}), &["machine/a"])];
        let key = |name| Key { id: id("machine", name), verb: Verb::Create, handle: None };
        check(&wish, &[], |_| {}, &[Refusal::Cycle(vec![key("a"), key("b")])]);
    }

    #[test]
    fn two_wishes_of_one_id_are_refused() {
        let wish = [resource("machine/a", json!({}), &[]), resource("machine/a", json!({"size": 2}), &[])];
        check(&wish, &[], |_| {}, &[Refusal::Twice(id("machine", "a"))]);
    }

    #[test]
    fn two_actions_on_one_thing_are_refused() {
        let world = [observed("machine/a", json!({"x": 1}), Phase::Ready, &[])];
        let wish = [resource("machine/a", json!({"x": 2}), &[])];
        let add_repair = |plan: &mut Plan| {
            let repair = Action { verb: Verb::Repair, ..plan.actions[0].clone() };
            plan.actions.push(repair);
        };
        check(&wish, &world, add_repair, &[Refusal::Twice(id("machine", "a"))]);
    }

    #[test]
    fn a_need_nobody_wants_is_refused() {
        let wish = [resource("machine/a", json!({}), &["network/n"])];
        check(&wish, &[], |_| {}, &[Refusal::MissingNeed { id: id("machine", "a"), need: id("network", "n") }]);
    }

    #[test]
    fn workers_without_any_control_plane_are_refused() {
        let world = [
            observed("machine/c", json!({"role": "control-plane"}), Phase::Ready, &[]),
            observed("machine/w", json!({}), Phase::Ready, &[]),
        ];
        check(&[resource("machine/w", json!({}), &[])], &world, |_| {}, &[Refusal::LastControlPlane]);
        check(&[], &world, |_| {}, &[]);
    }

    #[test]
    fn deleting_what_is_wanted_or_only_uncertain_is_refused() {
        let wish = [resource("machine/a", json!({"size": 2}), &[])];
        for (phase, size) in [(Phase::Ready, 2), (Phase::Pending, 1)] {
            let world = [observed("machine/a", json!({"size": size}), phase, &[])];
            let delete = |plan: &mut Plan| {
                plan.actions = super::super::plan::plan(&[], &world, &BTreeMap::new()).actions;
            };
            check(&wish, &world, delete, &[Refusal::Unasked(id("machine", "a"))]);
        }
        check(&wish, &[observed("machine/a", json!({"size": 1}), Phase::Ready, &[])], |_| {}, &[]);
    }

    #[test]
    fn a_thing_without_our_tag_is_refused() {
        let world = [observed("machine/a", json!({}), Phase::Ready, &[])];
        let plan = plan(&[], &world, &BTreeMap::new());
        assert_eq!(lint(&plan, &[], &[]), [Refusal::NotOurs(plan.actions[0].key())]);
    }
}
