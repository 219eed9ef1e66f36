//! Patches applied, as tables; and what holds for any patch.

use super::*;
use crate::orchestrator::api::kinds::merge_keys::MergeRule;
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
