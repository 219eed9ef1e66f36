//! What the loop tells people through the Blueprint's status: what it does, what failed, and whether all is as wanted.

use super::Keeper;
use crate::blueprint::schema::OF_SERVICE;
use crate::blueprint::{Blueprint, counted};
use crate::cli::world::hosts::all_machines;
use crate::cli::world::waiting;
use crate::engine::Observed;
use crate::engine::converge::Step;
use crate::engine::plan::Plan;
use crate::error::{Error, Kind};
use crate::orchestrator::client::blueprint::BlueprintObject;
use crate::orchestrator::client::{Patch, time};
use crate::providers::Delivery;
use crate::providers::resources::LOAD_BALANCER;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Tries to write a status while others write theirs.
const STATUS_TRIES: u32 = 3;

impl Keeper {
    /// Load balancers whose packets arrive with their own address: nodes must know it.
    fn delivered(&self, observed: &[Observed]) -> Value {
        if self.provider.delivery() == Delivery::NodePort {
            return json!([]);
        }
        let ours = balancers(observed).into_iter().filter(|(name, _)| !name.starts_with(OF_SERVICE));
        let known = ours.filter_map(|(name, address)| Some(json!({"name": name, "address": address?.parse::<std::net::IpAddr>().ok()?})));
        Value::Array(known.collect())
    }

    /// Writes what this round saw into the Blueprint's status.
    pub(super) async fn report(&self, object: &BlueprintObject, blueprint: &Blueprint, ended: &Step) {
        let nodes = self.informers.nodes.list();
        let machines = all_machines(blueprint);
        let ready = nodes.iter().filter(|node| waiting::is_ready(node)).count();
        let doing = doing(&ended.plan);
        let failed: Vec<String> = ended.failed.iter().map(|(key, error)| format!("{key}: {}", error.chain())).collect();
        let message =
            failed.first().or(doing.first()).cloned().unwrap_or_else(|| format!("{ready} of {} ready", counted(machines.len(), "node")));
        let as_wanted = ended.plan.is_empty() && ready == machines.len();
        let verdict = if as_wanted { Verdict::as_wanted(message) } else { Verdict::not_yet("Converging", message) };
        let fields = json!({
            "machines": machines.len(),
            "readyMachines": ready,
            "doing": doing,
            "failed": failed,
            "refused": refused(ended.failed.iter().map(|(_, error)| error)),
            "loadBalancers": self.delivered(&ended.observed),
        });
        self.write_status(object, fields, &verdict).await;
    }

    /// The version that was looked at, what was found there and what is to be said of it, when that is anything new.
    pub(super) async fn write_status(&self, looked_at: &BlueprintObject, mut fields: Value, verdict: &Verdict) {
        let name = looked_at.metadata.name.as_deref().unwrap_or_default();
        fields["observedGeneration"] = json!(looked_at.metadata.generation);
        for _ in 0..STATUS_TRIES {
            let Ok(Some(newest)) = self.client.get::<BlueprintObject>("", name).await else { return };
            fields["conditions"] = verdict.among(&newest);
            if newest.status.as_ref().is_some_and(|kept| says_already(kept, &fields)) {
                return;
            }
            // A list is patched whole: only onto the version that it was made from, or a condition that somebody just added would go.
            let patch = json!({"metadata": {"resourceVersion": newest.metadata.resource_version}, "status": fields});
            match self.client.patch::<BlueprintObject>("", name, "status", Patch::Merge, &patch).await {
                Ok(_) => return,
                Err(error) => tracing::debug!("could not write the blueprint's status: {error}"),
            }
        }
    }
}

/// An error with its next steps, on one line.
pub(super) fn told(error: &Error) -> String {
    std::iter::once(error.chain()).chain(error.hints().iter().cloned()).collect::<Vec<_>>().join("; ")
}

/// What the provider refuses for good, with its next steps: the loop tries it again, but somebody has to change something first.
pub(super) fn refused<'a>(errors: impl IntoIterator<Item = &'a Error>) -> Value {
    let for_good = errors.into_iter().filter(|error| error.kind == Kind::Provider);
    for_good.map(|error| json!({"why": error.chain(), "hints": error.hints()})).collect()
}

pub(super) fn doing(plan: &Plan) -> Vec<String> {
    plan.actions.iter().map(|action| format!("{}: {}", action.key(), action.reason)).collect()
}

/// Load balancers that are there, with their addresses once they have one.
pub(super) fn balancers(observed: &[Observed]) -> BTreeMap<String, Option<String>> {
    let there = observed.iter().filter(|thing| thing.id.kind == LOAD_BALANCER);
    there.map(|thing| (thing.id.name.clone(), thing.outputs["address"].as_str().map(str::to_string))).collect()
}

/// Our condition `Ready` of the Blueprint.
pub(super) struct Verdict {
    status: &'static str,
    reason: &'static str,
    message: String,
}

impl Verdict {
    pub fn as_wanted(message: String) -> Self {
        Verdict { status: "True", reason: "AsWanted", message }
    }

    pub fn not_yet(reason: &'static str, message: String) -> Self {
        Verdict { status: "False", reason, message }
    }

    /// The object's conditions with this one in its place: those that others keep stay. Its transition time moves only when its status does.
    fn among(&self, object: &BlueprintObject) -> Value {
        let mut conditions = object.status.as_ref().and_then(|status| status["conditions"].as_array()).cloned().unwrap_or_default();
        let before = conditions.iter().position(|condition| condition["type"] == "Ready");
        let same = before.map(|place| &conditions[place]).filter(|condition| condition["status"] == self.status);
        let since = same.map_or_else(|| json!(time::now_text()), |condition| condition["lastTransitionTime"].clone());
        let ready =
            json!({"type": "Ready", "status": self.status, "reason": self.reason, "message": self.message, "lastTransitionTime": since});
        match before {
            Some(place) => conditions[place] = ready,
            None => conditions.insert(0, ready),
        }
        conditions.into()
    }
}

fn says_already(kept: &Value, status: &Value) -> bool {
    status.as_object().is_some_and(|fields| fields.iter().all(|(name, value)| kept.get(name) == Some(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(conditions: Value) -> BlueprintObject {
        let spec = json!({"provider": "local", "machines": []});
        serde_json::from_value(json!({"metadata": {"name": "shop"}, "spec": spec, "status": {"conditions": conditions}})).expect("object")
    }

    #[test]
    fn conditions_of_others_stay_and_ours_keeps_its_moment() {
        let theirs = json!({"type": "Approved", "status": "True", "reason": "Audit"});
        let ours = json!({"type": "Ready", "status": "True", "reason": "AsWanted", "message": "old", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let object = object(json!([theirs, ours]));
        let same = Verdict::as_wanted("new".into()).among(&object);
        assert_eq!(same[0], theirs);
        assert_eq!((&same[1]["message"], &same[1]["lastTransitionTime"]), (&json!("new"), &json!("2026-01-01T00:00:00Z")));
        let other = Verdict::not_yet("Converging", "new".into()).among(&object);
        assert_eq!((other.as_array().map(Vec::len), &other[0], &other[1]["status"]), (Some(2), &theirs, &json!("False")));
        assert_ne!(other[1]["lastTransitionTime"], ours["lastTransitionTime"]);
    }

    #[test]
    fn only_what_waiting_cannot_mend_is_refused_and_its_next_step_is_told() {
        let denied = Error::provider("could not read who writes").because("lacks a permission").hint("grant it");
        assert_eq!(told(&denied), "could not read who writes: lacks a permission; grant it");
        let expected = json!([{"why": "could not read who writes: lacks a permission", "hints": ["grant it"]}]);
        assert_eq!(refused([&denied, &Error::transient("could not look"), &Error::timeout("too late")]), expected);
    }

    #[test]
    fn the_first_report_brings_the_first_condition() {
        let first = Verdict::not_yet("Converging", "making machines".into()).among(&object(json!(null)));
        assert_eq!((first.as_array().map(Vec::len), &first[0]["type"], &first[0]["status"]), (Some(1), &json!("Ready"), &json!("False")));
    }
}
