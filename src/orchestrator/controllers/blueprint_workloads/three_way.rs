//! What to send so that an object becomes what is wanted now, keeping what others set and dropping what we set before and no longer want.
//! The three sides: what we applied last, what is wanted, and (on the server, which merges) what is there.

use crate::orchestrator::api::kinds::KindRow;
use crate::orchestrator::api::kinds::merge_keys::MergeRule;
use crate::orchestrator::api::kinds::place::Place;
use crate::orchestrator::api::kinds::schema::Schemas;
use crate::orchestrator::client::Patch;
use serde_json::{Map, Value, json};

/// Strategic where the kind has a schema, else a merge patch, in which lists are replaced.
pub fn patch(row: &KindRow, applied: Option<&Value>, wanted: &Value) -> (Patch, Value) {
    let schemas = Schemas::builtin();
    let applied = applied.unwrap_or(&Value::Null);
    match schemas.of(row) {
        Some(of) => (Patch::Strategic, object(Place::root(schemas, of), applied, wanted)),
        None => (Patch::Merge, plain(applied, wanted)),
    }
}

/// What is wanted, with a null for every field that was applied and is no longer wanted.
fn plain(applied: &Value, wanted: &Value) -> Value {
    let (Some(before), Some(now)) = (applied.as_object(), wanted.as_object()) else { return wanted.clone() };
    let mut patch: Map<String, Value> =
        now.iter().map(|(name, value)| (name.clone(), plain(before.get(name).unwrap_or(&Value::Null), value))).collect();
    for name in before.keys().filter(|name| !now.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    Value::Object(patch)
}

fn object(place: Place, applied: &Value, wanted: &Value) -> Value {
    let Some(now) = wanted.as_object() else { return wanted.clone() };
    let empty = Map::new();
    let before = applied.as_object().unwrap_or(&empty);
    let mut patch = Map::new();
    for (name, value) in now {
        let (inner, rule) = place.field(name);
        let old = before.get(name).unwrap_or(&Value::Null);
        match value {
            Value::Array(items) => {
                let (list, gone) = list(inner, rule, old.as_array().map_or(&[], Vec::as_slice), items);
                patch.insert(name.clone(), Value::Array(list));
                if !gone.is_empty() {
                    patch.insert(format!("$deleteFromPrimitiveList/{name}"), Value::Array(gone));
                }
            }
            Value::Object(_) => {
                let mut value = object(inner, old, value);
                if rule.is_some_and(MergeRule::retains_keys) {
                    retain(&mut value);
                }
                patch.insert(name.clone(), value);
            }
            leaf => drop(patch.insert(name.clone(), leaf.clone())),
        }
    }
    for name in before.keys().filter(|name| !now.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    Value::Object(patch)
}

/// One-of types (volumes, update strategies): what is not named in the wanted object must go, even when a default put it there.
fn retain(value: &mut Value) {
    let Some(fields) = value.as_object_mut() else { return };
    let keys: Vec<String> =
        fields.iter().filter(|(name, value)| !name.starts_with('$') && !value.is_null()).map(|(name, _)| name.clone()).collect();
    fields.insert("$retainKeys".into(), json!(keys));
}

/// The list to send, and the plain elements to take out.
fn list(place: Place, rule: Option<&MergeRule>, before: &[Value], now: &[Value]) -> (Vec<Value>, Vec<Value>) {
    let Some(rule) = rule.filter(|rule| rule.merges()) else { return (now.to_vec(), Vec::new()) };
    if rule.merge_key.is_empty() {
        return (now.to_vec(), before.iter().filter(|old| !now.contains(old)).cloned().collect());
    }
    let key = |item: &Value| item.get(rule.merge_key).cloned().unwrap_or(Value::Null);
    let mut sent: Vec<Value> = now
        .iter()
        .map(|item| {
            let old = before.iter().find(|old| key(old) == key(item)).unwrap_or(&Value::Null);
            let mut value = object(place.item(), old, item);
            if rule.retains_keys() {
                retain(&mut value);
            }
            value
        })
        .collect();
    let gone = before.iter().filter(|old| !key(old).is_null() && !now.iter().any(|item| key(item) == key(old)));
    sent.extend(gone.map(|old| json!({"$patch": "delete", rule.merge_key: key(old)})));
    (sent, Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::api::kinds::Registry;
    use crate::orchestrator::api::kinds::patch::{PatchType, apply};

    /// Merges as the API would and compares.
    fn check(kind: (&str, &str, &str), applied: Value, there: Value, wanted: Value, expected: Value) {
        let row = Registry::builtin().find_kind(kind.0, kind.1, kind.2).unwrap();
        let (format, body) = patch(row, Some(&applied), &wanted);
        let format = if format == Patch::Strategic { PatchType::Strategic } else { PatchType::Merge };
        let merged = apply(row, format, &there, body.to_string().as_bytes()).unwrap_or_else(|refused| panic!("{}", refused.message));
        assert_eq!(merged, expected);
    }

    #[test]
    fn what_others_set_stays_and_what_we_no_longer_set_goes() {
        let pod = |containers: Value| json!({"spec": {"template": {"spec": {"containers": containers}}}});
        check(
            ("apps", "v1", "Deployment"),
            pod(
                json!([{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "1"}]}, {"name": "b", "image": "1"}]),
            ),
            pod(json!([
                {"name": "a", "image": "1", "pullPolicy": "defaulted", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "1"}]},
                {"name": "b", "image": "1"},
                {"name": "injected", "image": "9"},
            ])),
            pod(json!([{"name": "a", "image": "2", "env": [{"name": "X", "value": "1"}]}])),
            pod(json!([
                {"name": "a", "image": "2", "pullPolicy": "defaulted", "env": [{"name": "X", "value": "1"}]},
                {"name": "injected", "image": "9"},
            ])),
        );
    }

    #[test]
    fn a_strategy_that_changes_takes_its_old_parameters_along() {
        check(
            ("apps", "v1", "Deployment"),
            json!({"spec": {"replicas": 2}}),
            json!({"spec": {"replicas": 2, "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}),
            json!({"spec": {"strategy": {"type": "Recreate"}}}),
            json!({"spec": {"strategy": {"type": "Recreate"}}}),
        );
    }

    #[test]
    fn labels_and_data_lose_only_our_old_keys() {
        check(
            ("", "v1", "ConfigMap"),
            json!({"metadata": {"labels": {"a": "1", "b": "1"}}, "data": {"x": "1"}}),
            json!({"metadata": {"labels": {"a": "1", "b": "1", "theirs": "1"}, "uid": "u"}, "data": {"x": "1", "theirs": "1"}}),
            json!({"metadata": {"labels": {"a": "2"}}, "data": {"y": "1"}}),
            json!({"metadata": {"labels": {"a": "2", "theirs": "1"}, "uid": "u"}, "data": {"y": "1", "theirs": "1"}}),
        );
    }
}
