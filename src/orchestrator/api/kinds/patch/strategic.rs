//! Strategic merge patches: maps merge, lists merge by key where the schema says so, and directives delete, replace and order.
//! The rules are those of `k8s.io/apimachinery/pkg/util/strategicpatch`, with one difference: directives and nulls never stay in the
//! result, because objects here keep fields that no schema knows.

use crate::orchestrator::api::kinds::json::Object;
use crate::orchestrator::api::kinds::merge_keys::MergeRule;
use crate::orchestrator::api::kinds::place::Place;
use crate::orchestrator::api::kinds::schema::{Schemas, Type};
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};

const DIRECTIVE: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder/";
const DELETE: &str = "$deleteFromPrimitiveList/";

type Merged<T> = Result<T, String>;

/// `current` with `patch` merged into it.
pub fn merge(schemas: &Schemas, of: &Type, current: &Value, patch: Object) -> Merged<Value> {
    let current = current.as_object().cloned().ok_or("the current object is no JSON object")?;
    let place = Place::root(schemas, of);
    Ok(Value::Object(merge_map(place, current, patch)?))
}

fn merge_map(place: Place, mut current: Object, mut patch: Object) -> Merged<Object> {
    match patch.remove(DIRECTIVE) {
        None => {}
        Some(directive) if directive == "replace" => return Ok(cleaned_map(patch)),
        Some(directive) if directive == "delete" => return Ok(Map::new()),
        // The API conventions list it, although it says what would happen anyway.
        Some(directive) if directive == "merge" => {}
        Some(directive) => return Err(format!("unknown patch type: {directive} in map: {}", Value::Object(patch))),
    }
    retain_keys(&mut current, &mut patch)?;
    merge_ordered_lists(place, &mut current, &mut patch)?;
    for (name, change) in patch {
        if let Some(list) = name.strip_prefix(DELETE) {
            delete_from_list(&mut current, list, &change)?;
            continue;
        }
        if change.is_null() {
            current.remove(&name);
            continue;
        }
        let (inner, rule) = place.field(&name);
        let merged = match (current.remove(&name), change) {
            (Some(Value::Object(before)), Value::Object(change)) => Some(Value::Object(merge_map(inner, before, change)?)),
            (Some(Value::Array(before)), Value::Array(change)) => Some(Value::Array(merge_list(inner, rule, before, change)?)),
            // Nothing there, a plain value, or something of another type: the patch's value.
            (_, change) => cleaned(change),
        };
        if let Some(merged) = merged {
            current.insert(name, merged);
        }
    }
    Ok(current)
}

/// `$retainKeys` names all fields that may stay: what is in neither the patch nor that list goes.
fn retain_keys(current: &mut Object, patch: &mut Object) -> Merged<()> {
    let Some(retained) = patch.remove(RETAIN) else { return Ok(()) };
    let retained = retained.as_array().ok_or("invalid patch format of retainKeys")?;
    let retained: HashSet<&str> = retained.iter().filter_map(Value::as_str).collect();
    let kept = |name: &str| retained.contains(name);
    let unnamed =
        |(name, value): (&String, &Value)| !value.is_null() && !name.starts_with(DELETE) && !name.starts_with(ORDER) && !kept(name);
    if patch.iter().any(unnamed) {
        return Err("invalid patch format of retainKeys".into());
    }
    current.retain(|name, _| kept(name));
    Ok(())
}

/// Lists with a `$setElementOrder/<list>` beside them: merged, then brought into the wanted order.
fn merge_ordered_lists(place: Place, current: &mut Object, patch: &mut Object) -> Merged<()> {
    let orders: Vec<String> = patch.keys().filter(|name| name.starts_with(ORDER)).cloned().collect();
    for directive in orders {
        let name = directive[ORDER.len()..].to_string();
        let Some(Value::Array(order)) = patch.remove(&directive) else { return Err("invalid patch format of setElementOrder list".into()) };
        let (inner, rule) = place.field(&name);
        let key = rule.map_or("", |rule| rule.merge_key);
        let before = list_of(current.get(&name))?;
        let change = list_of(patch.get(&name))?;
        if let Some(change) = &change {
            check_order(change, &order, key)?;
        }
        let merged = match (before.clone(), change) {
            (None, None) => continue,
            (Some(before), None) => before,
            (None, Some(change)) => change.into_iter().filter_map(cleaned).collect(),
            (Some(before), Some(change)) => merge_list(inner, rule, before, change)?,
        };
        patch.remove(&name);
        let sorted = sort(merged, &order, before.as_deref().unwrap_or_default(), key)?;
        current.insert(name, Value::Array(sorted));
    }
    Ok(())
}

fn list_of(value: Option<&Value>) -> Merged<Option<Vec<Value>>> {
    match value {
        None => Ok(None),
        Some(Value::Array(list)) => Ok(Some(list.clone())),
        Some(_) => Err("invalid patch format of setElementOrder list".into()),
    }
}

/// The patch's elements must stand in the order list, in the same order.
fn check_order(change: &[Value], order: &[Value], key: &str) -> Merged<()> {
    if order.is_empty() || change.is_empty() {
        return Ok(());
    }
    let mut wanted = order.iter();
    for element in change.iter().filter(|element| element.get(DIRECTIVE).is_none()) {
        let identity = identity(element, key)?;
        if !wanted.any(|wanted| identity_of(wanted, key) == Some(identity)) {
            return Err(format!(
                "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                Value::from(change),
                Value::from(order)
            ));
        }
    }
    Ok(())
}

/// What tells an element from the others: itself, or the value of its merge key.
fn identity_of<'a>(element: &'a Value, key: &str) -> Option<&'a Value> {
    if key.is_empty() { Some(element) } else { element.get(key) }
}

fn identity<'a>(element: &'a Value, key: &str) -> Merged<&'a Value> {
    identity_of(element, key).ok_or_else(|| format!("map: {element} does not contain declared merge key: {key}"))
}

fn merge_list(place: Place, rule: Option<&MergeRule>, before: Vec<Value>, change: Vec<Value>) -> Merged<Vec<Value>> {
    let Some(rule) = rule.filter(|rule| rule.merges()) else { return Ok(change.into_iter().filter_map(cleaned).collect()) };
    if before.is_empty() && change.is_empty() {
        return Ok(before);
    }
    let maps = before.iter().chain(&change).filter(|element| element.is_object()).count();
    if maps == 0 {
        return merge_plain(before, change);
    }
    if maps != before.len() + change.len() || rule.merge_key.is_empty() {
        return Err(format!("the elements of list {:?} are not all of one type", rule.field));
    }
    let (original, patch) = (before.clone(), change.clone());
    let merged = merge_elements(place.item(), rule.merge_key, before, change)?;
    sort(merged, &patch, &original, rule.merge_key)
}

/// Lists of plain values are sets that grow; `$deleteFromPrimitiveList` shrinks them.
fn merge_plain(before: Vec<Value>, change: Vec<Value>) -> Merged<Vec<Value>> {
    let (original, patch) = (before.clone(), change.clone());
    let mut merged: Vec<Value> = Vec::with_capacity(before.len() + change.len());
    let mut seen = HashSet::new();
    for value in before.into_iter().chain(change) {
        if value.is_array() {
            return Err("lists of lists are not supported".into());
        }
        if seen.insert(value.to_string()) {
            merged.push(value);
        }
    }
    sort(merged, &patch, &original, "")
}

fn merge_elements(place: Place, key: &str, mut before: Vec<Value>, change: Vec<Value>) -> Merged<Vec<Value>> {
    let (special, plain): (Vec<_>, Vec<_>) =
        change.into_iter().partition(|element| element.get(DIRECTIVE).is_some_and(|directive| directive != "merge"));
    let (mut replaced, mut gone) = (false, HashSet::new());
    for element in &special {
        match element[DIRECTIVE].as_str() {
            Some("delete") => {
                gone.insert(identity(element, key)?.to_string());
            }
            Some("replace") => replaced = true,
            _ => return Err(format!("unknown patch type: {} in map: {element}", element[DIRECTIVE])),
        }
    }
    if replaced {
        return Ok(plain.into_iter().filter_map(cleaned).collect());
    }
    if !gone.is_empty() {
        before.retain(|element| element.get(key).is_none_or(|identity| !gone.contains(&identity.to_string())));
    }
    let mut places = places(&before, key);
    for element in plain {
        let wanted = identity(&element, key)?.to_string();
        match (places.get(&wanted).map(|at| &mut before[*at]), element) {
            (Some(found), Value::Object(change)) => {
                let Value::Object(current) = found.take() else { return Err("a list of objects holds something else".into()) };
                *found = Value::Object(merge_map(place, current, change)?);
            }
            (_, element) => {
                if let Some(element) = cleaned(element) {
                    places.insert(wanted, before.len());
                    before.push(element);
                }
            }
        }
    }
    Ok(before)
}

/// Where each element stands, by what identifies it: lists may be long, and looking through them again and again would be quadratic.
/// Of elements that share their identity the first counts.
fn places(list: &[Value], key: &str) -> HashMap<String, usize> {
    let mut places = HashMap::with_capacity(list.len());
    for (at, element) in list.iter().enumerate() {
        if let Some(identity) = identity_of(element, key) {
            places.entry(identity.to_string()).or_insert(at);
        }
    }
    places
}

fn delete_from_list(current: &mut Object, name: &str, gone: &Value) -> Merged<()> {
    let gone = gone.as_array().ok_or("invalid patch format of primitive list")?;
    if let Some(Value::Array(list)) = current.get_mut(name) {
        let gone = places(gone, "");
        list.retain(|value| !gone.contains_key(&value.to_string()));
    }
    Ok(())
}

/// Elements that `order` names come in that order; the others keep the places they had relative to them, as well as that is possible.
fn sort(merged: Vec<Value>, order: &[Value], before: &[Value], key: &str) -> Merged<Vec<Value>> {
    let (in_order, in_before) = (places(order, key), places(before, key));
    let (mut named, mut others) = (Vec::new(), Vec::new());
    for element in merged {
        let identity = identity(&element, key)?.to_string();
        let was = in_before.get(&identity).copied();
        match in_order.get(&identity) {
            Some(at) => named.push((*at, was, element)),
            None => others.push((was, element)),
        }
    }
    named.sort_by_key(|(at, _, _)| *at);
    others.sort_by_key(|(was, _)| *was);
    let mut sorted = Vec::with_capacity(named.len() + others.len());
    let mut others = others.into_iter().peekable();
    for (_, was, element) in named {
        while let (Some(was), Some((Some(other), _))) = (was, others.peek())
            && *other < was
        {
            sorted.extend(others.next().map(|(_, element)| element));
        }
        sorted.push(element);
    }
    sorted.extend(others.map(|(_, element)| element));
    Ok(sorted)
}

/// A value of the patch as it may stand in an object: no directives, no nulls; nothing if it is a directive itself.
fn cleaned(value: Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::Object(object) if object.get(DIRECTIVE).is_some_and(|directive| directive != "merge") => None,
        Value::Object(object) => Some(Value::Object(cleaned_map(object))),
        Value::Array(list) => Some(Value::Array(list.into_iter().filter_map(cleaned).collect())),
        value => Some(value),
    }
}

fn cleaned_map(object: Object) -> Object {
    let directive = |name: &str| name == DIRECTIVE || name == RETAIN || name.starts_with(ORDER) || name.starts_with(DELETE);
    object.into_iter().filter(|(name, _)| !directive(name)).filter_map(|(name, value)| Some((name, cleaned(value)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn apply(of: &str, current: Value, patch: Value) -> Merged<Value> {
        let schemas = Schemas::builtin();
        let Value::Object(patch) = patch else { panic!("a patch is an object") };
        merge(schemas, schemas.find(of).expect(of), &current, patch)
    }
    fn check_pod(current: Value, patch: Value, expected: Value) {
        let result = apply("io.k8s.api.core.v1.Pod", json!({"spec": current}), json!({"spec": patch}));
        assert_eq!(result, Ok(json!({"spec": expected})));
    }

    #[test]
    fn containers_merge_by_name() {
        check_pod(
            json!({"containers": [{"name": "a", "image": "a:1"}, {"name": "b", "image": "b:1"}]}),
            json!({"containers": [{"name": "b", "image": "b:2"}, {"name": "c", "image": "c:1"}]}),
            json!({"containers": [{"name": "a", "image": "a:1"}, {"name": "b", "image": "b:2"}, {"name": "c", "image": "c:1"}]}),
        );
    }

    #[test]
    fn nested_lists_merge_by_their_own_keys() {
        check_pod(
            json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "protocol": "TCP"}], "env": [{"name": "X", "value": "1"}], "args": ["1"],
                "volumeMounts": [{"mountPath": "/a", "name": "v"}]}]}),
            json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "name": "http"}], "env": [{"name": "Y", "value": "2"}], "args": ["2"],
                "volumeMounts": [{"mountPath": "/a", "readOnly": true}]}]}),
            json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "protocol": "TCP", "name": "http"}],
                "env": [{"name": "Y", "value": "2"}, {"name": "X", "value": "1"}], "args": ["2"],
                "volumeMounts": [{"mountPath": "/a", "name": "v", "readOnly": true}]}]}),
        );
    }

    #[test]
    fn directives_delete_and_replace_elements_and_maps() {
        let current = json!({"containers": [{"name": "a"}, {"name": "b"}], "nodeSelector": {"x": "1"}});
        check_pod(
            current.clone(),
            json!({"containers": [{"name": "a", "$patch": "delete"}]}),
            json!({"containers": [{"name": "b"}], "nodeSelector": {"x": "1"}}),
        );
        check_pod(
            current.clone(),
            json!({"containers": [{"$patch": "replace"}, {"name": "c"}]}),
            json!({"containers": [{"name": "c"}], "nodeSelector": {"x": "1"}}),
        );
        check_pod(
            current.clone(),
            json!({"nodeSelector": {"$patch": "replace", "y": "2"}}),
            json!({"containers": [{"name": "a"}, {"name": "b"}], "nodeSelector": {"y": "2"}}),
        );
        check_pod(
            current.clone(),
            json!({"nodeSelector": {"$patch": "delete"}}),
            json!({"containers": [{"name": "a"}, {"name": "b"}], "nodeSelector": {}}),
        );
        check_pod(current, json!({"nodeSelector": null}), json!({"containers": [{"name": "a"}, {"name": "b"}]}));
    }

    #[test]
    fn the_order_directive_sorts_and_keeps_what_only_the_server_has() {
        check_pod(
            json!({"containers": [{"name": "a"}, {"name": "server"}, {"name": "b"}]}),
            json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "new"}, {"name": "a"}], "containers": [{"name": "new"}]}),
            json!({"containers": [{"name": "server"}, {"name": "b"}, {"name": "new"}, {"name": "a"}]}),
        );
        let wrong =
            json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "a"}, {"name": "b"}]}});
        assert!(apply("io.k8s.api.core.v1.Pod", json!({"spec": {}}), wrong).is_err());
    }

    #[test]
    fn finalizers_are_a_set() {
        let current = json!({"metadata": {"finalizers": ["a", "b"]}});
        let check = |patch: Value, expected: Value| {
            let result = apply("io.k8s.api.core.v1.Pod", current.clone(), json!({"metadata": patch}));
            assert_eq!(result, Ok(json!({"metadata": {"finalizers": expected}})));
        };
        check(json!({"finalizers": ["b", "c"]}), json!(["a", "b", "c"]));
        check(json!({"$deleteFromPrimitiveList/finalizers": ["a"]}), json!(["b"]));
        check(json!({"$setElementOrder/finalizers": ["b", "a"]}), json!(["b", "a"]));
    }

    #[test]
    fn retained_keys_push_the_others_out() {
        let deployment = "io.k8s.api.apps.v1.Deployment";
        let current = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
        let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
        assert_eq!(apply(deployment, current.clone(), patch), Ok(json!({"spec": {"strategy": {"type": "Recreate"}}})));
        let inconsistent = json!({"spec": {"strategy": {"$retainKeys": ["x"], "type": "Recreate"}}});
        assert_eq!(apply(deployment, current, inconsistent), Err("invalid patch format of retainKeys".into()));
        check_pod(
            json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
            json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}),
            json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}),
        );
    }

    #[test]
    fn service_ports_merge_by_number() {
        let current = json!({"spec": {"ports": [{"port": 80, "targetPort": 8080}]}});
        let patch = json!({"spec": {"ports": [{"port": 80, "nodePort": 32000}]}});
        let expected = json!({"spec": {"ports": [{"port": 80, "targetPort": 8080, "nodePort": 32000}]}});
        assert_eq!(apply("io.k8s.api.core.v1.Service", current, patch), Ok(expected));
    }

    #[test]
    fn unknown_fields_merge_as_plain_json() {
        check_pod(
            json!({"mine": {"a": 1, "list": [1]}}),
            json!({"mine": {"b": 2, "list": [2]}}),
            json!({"mine": {"a": 1, "b": 2, "list": [2]}}),
        );
    }

    #[test]
    fn long_lists_merge_in_linear_time() {
        let variables = |from: usize| (from..from + 30_000).map(|at| json!({"name": format!("V{at}"), "value": "x"})).collect::<Vec<_>>();
        let container = |from: usize| json!({"spec": {"containers": [{"name": "a", "env": variables(from)}]}});
        let merged = apply("io.k8s.api.core.v1.Pod", container(0), container(15_000)).expect("merges");
        assert_eq!(merged["spec"]["containers"][0]["env"].as_array().map(Vec::len), Some(45_000));
    }

    #[test]
    fn an_element_without_its_key_is_refused() {
        let result = apply(
            "io.k8s.api.core.v1.Pod",
            json!({"spec": {"containers": [{"name": "a"}]}}),
            json!({"spec": {"containers": [{"image": "x"}]}}),
        );
        assert_eq!(result, Err("map: {\"image\":\"x\"} does not contain declared merge key: name".into()));
    }

    /// The patch that `kubectl apply` would send to get from one object to another.
    fn diff(place: Place, from: &Object, to: &Object) -> Object {
        let mut patch = Map::new();
        for name in from.keys().filter(|name| !to.contains_key(*name)) {
            patch.insert(name.clone(), Value::Null);
        }
        for (name, wanted) in to {
            let (inner, rule) = place.field(name);
            match (from.get(name), wanted) {
                (Some(before), wanted) if before == wanted => {}
                (Some(Value::Object(before)), Value::Object(wanted)) => {
                    patch.insert(name.clone(), Value::Object(diff(inner, before, wanted)));
                }
                (Some(Value::Array(before)), Value::Array(wanted)) if rule.is_some_and(MergeRule::merges) => {
                    let key = rule.expect("just looked at").merge_key;
                    let (changes, order) = diff_list(inner, key, before, wanted);
                    patch.insert(format!("{ORDER}{name}"), order.into());
                    patch.insert(name.clone(), changes.into());
                }
                (_, wanted) => {
                    patch.insert(name.clone(), wanted.clone());
                }
            }
        }
        patch
    }

    fn diff_list(place: Place, key: &str, from: &[Value], to: &[Value]) -> (Vec<Value>, Vec<Value>) {
        let find = |list: &'_ [Value], element: &Value| list.iter().position(|other| other[key] == element[key]);
        let gone = from.iter().filter(|element| find(to, element).is_none()).map(|element| json!({key: element[key], DIRECTIVE: "delete"}));
        let kept = to.iter().map(|element| match find(from, element).map(|at| &from[at]) {
            None => element.clone(),
            Some(before) => {
                let mut patch = diff(place.item(), before.as_object().expect("a map"), element.as_object().expect("a map"));
                patch.insert(key.into(), element[key].clone());
                Value::Object(patch)
            }
        });
        (gone.chain(kept).collect(), to.iter().map(|element| json!({key: element[key]})).collect())
    }

    fn pods() -> impl Strategy<Value = Value> {
        let value = prop_oneof![Just("1"), Just("2"), Just("3")];
        let variables = prop::collection::btree_map(prop_oneof![Just("A"), Just("B"), Just("C")], value.clone(), 0..3)
            .prop_map(|map| map.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect::<Vec<_>>())
            .prop_shuffle();
        let container = (value.clone(), variables, prop::option::of(prop::collection::vec(value, 0..3)));
        prop::collection::btree_map(prop_oneof![Just("a"), Just("b"), Just("c"), Just("d")], container, 0..4)
            .prop_map(|map| {
                map.into_iter()
                    .map(|(name, (image, env, args))| {
                        let mut container = json!({"name": name, "image": image, "env": env});
                        if let Some(args) = args {
                            container["args"] = args.into();
                        }
                        container
                    })
                    .collect::<Vec<_>>()
            })
            .prop_shuffle()
            .prop_map(|containers| json!({"spec": {"containers": containers}}))
    }

    proptest! {
        #[test]
        fn a_diff_applied_gives_the_wanted_object_and_applied_again_changes_nothing(from in pods(), to in pods()) {
            let schemas = Schemas::builtin();
            let of = schemas.find("io.k8s.api.core.v1.Pod").expect("known");
            let place = Place::root(schemas, of);
            let patch = diff(place, from.as_object().expect("a map"), to.as_object().expect("a map"));
            let once = merge(schemas, of, &from, patch.clone());
            prop_assert_eq!(once.as_ref(), Ok(&to), "patch {}", Value::Object(patch.clone()));
            prop_assert_eq!(merge(schemas, of, &to, patch), Ok(to));
        }

        #[test]
        fn an_empty_patch_changes_nothing(from in pods()) {
            prop_assert_eq!(apply("io.k8s.api.core.v1.Pod", from.clone(), json!({})), Ok(from));
        }

        #[test]
        fn no_directive_survives(current in pods(), patch in super::super::tests::any_json()) {
            if let Value::Object(patch) = patch
                && let Ok(merged) = apply("io.k8s.api.core.v1.Pod", current, Value::Object(patch))
            {
                prop_assert!(!merged.to_string().contains("\"$"), "{}", merged);
            }
        }
    }
}
