//! Kinds that hold data more than they want a state: ConfigMaps, Secrets, Events, Leases, Nodes, and the Blueprint's own shape.

use super::common::{IMMUTABLE, Problems, bytes_of};
use super::{Case, names};
use crate::blueprint;
use crate::orchestrator::api::kinds::json::{list, map, text, truth};
use crate::orchestrator::api::status::Cause;
use serde_json::Value;
use std::collections::HashSet;

/// As upstream: what one object may hold.
const MAX_DATA_BYTES: usize = 1 << 20;

const WHILE_IMMUTABLE: &str = "field is immutable when `immutable` is set";

fn keys(object: &Value, name: &str, problems: &mut Problems) {
    for key in map(object, &format!("/{name}")).into_iter().flatten().map(|(key, _)| key) {
        if let Err(detail) = names::config_key(key) {
            problems.invalid(format!("{name}[{key}]"), &key.as_str().into(), &detail);
        }
    }
}

/// What was marked immutable stays so, and stays as it is.
fn frozen(case: &Case, fields: &[&str], problems: &mut Problems) {
    let Some(old) = case.old.filter(|old| truth(old, "/immutable")) else { return };
    if !truth(case.new, "/immutable") {
        problems.forbidden("immutable", WHILE_IMMUTABLE);
    }
    for field in fields.iter().filter(|field| case.new.get(**field) != old.get(**field)) {
        problems.forbidden(*field, WHILE_IMMUTABLE);
    }
}

pub fn config_map(case: &Case, problems: &mut Problems) {
    keys(case.new, "data", problems);
    keys(case.new, "binaryData", problems);
    for key in map(case.new, "/data").into_iter().flatten().map(|(key, _)| key) {
        if map(case.new, "/binaryData").is_some_and(|binary| binary.contains_key(key)) {
            problems.invalid(format!("data[{key}]"), &key.as_str().into(), "duplicate of key present in binaryData");
        }
    }
    if bytes_of(case.new, "data") + bytes_of(case.new, "binaryData") > MAX_DATA_BYTES {
        problems.add(Cause::too_long("", MAX_DATA_BYTES));
    }
    frozen(case, &["data", "binaryData"], problems);
}

pub fn secret(case: &Case, problems: &mut Problems) {
    keys(case.new, "data", problems);
    // Values are in base64 here, and counted as what they stand for.
    if bytes_of(case.new, "data") / 4 * 3 > MAX_DATA_BYTES {
        problems.add(Cause::too_long("data", MAX_DATA_BYTES));
    }
    let needed: &[&str] = match text(case.new, "/type") {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        _ => &[],
    };
    for key in needed.iter().filter(|key| map(case.new, "/data").is_none_or(|data| !data.contains_key(**key))) {
        problems.required(format!("data[{key}]"), "");
    }
    if let Some(old) = case.old {
        problems.immutable(case.new.get("type"), old.get("type"), "type");
    }
    frozen(case, &["data"], problems);
}

pub fn event(case: &Case, problems: &mut Problems) {
    let (about, own) = (text(case.new, "/involvedObject/namespace"), text(case.new, "/metadata/namespace"));
    // Events about objects without a namespace live in `default` (or `kube-system`).
    let fits = about == own || (about.is_empty() && matches!(own, "default" | "kube-system"));
    if !fits {
        problems.invalid("involvedObject.namespace", &about.into(), "does not match event.namespace");
    }
}

pub fn lease(case: &Case, problems: &mut Problems) {
    let spec = &case.new["spec"];
    problems.range(spec, "leaseDurationSeconds", "spec", 1..=i64::MAX, "must be greater than 0");
    problems.not_negative(spec, "leaseTransitions", "spec");
}

pub fn node(case: &Case, problems: &mut Problems) {
    let spec = &case.new["spec"];
    let mut seen = HashSet::new();
    for (at, taint) in list(spec, "/taints").iter().enumerate() {
        let path = format!("spec.taints[{at}]");
        if let Err(detail) = names::qualified_name(text(taint, "/key")) {
            problems.invalid(format!("{path}.key"), &text(taint, "/key").into(), &detail);
        }
        if let Err(detail) = names::label_value(text(taint, "/value")) {
            problems.invalid(format!("{path}.value"), &text(taint, "/value").into(), &detail);
        }
        if text(taint, "/effect").is_empty() {
            problems.required(format!("{path}.effect"), "");
        } else {
            problems.one_of(taint, "effect", &path, &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
        }
        if !seen.insert((text(taint, "/key"), text(taint, "/effect"))) {
            let mut cause = Cause::duplicate(path, taint);
            cause.message.push_str(": taints must be unique by key and effect pair");
            problems.add(cause);
        }
    }
    if let Some(old) = case.old {
        for name in ["podCIDR", "providerID"] {
            let before = text(old, &format!("/spec/{name}"));
            if !before.is_empty() && before != text(spec, &format!("/{name}")) {
                problems.forbidden(format!("spec.{name}"), &format!("node updates may not change {name} except from \"\" to valid"));
            }
        }
    }
}

/// What `kprov validate` says of a file, said of the object.
pub fn blueprint(case: &Case, problems: &mut Problems) {
    let spec = &case.new["spec"];
    for problem in blueprint::from_object(case.new).err().into_iter().flat_map(|found| found.0) {
        let path = if problem.path.is_empty() { "spec" } else { &problem.path };
        let value = case.new.pointer(&format!("/{}", path.replace(']', "").replace(['[', '.'], "/")));
        let hint = problem.hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
        problems.invalid(path, value.unwrap_or(&Value::Null), &format!("{}{hint}", problem.message));
    }
    if let Some(old) = case.old
        && old.pointer("/spec/provider") != spec.get("provider")
    {
        problems.invalid("spec.provider", &spec["provider"], IMMUTABLE);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::problems;
    use serde_json::{Value, json};

    fn check(group: &str, kind: &str, new: Value, old: Option<Value>, expected: &[&str]) {
        assert_eq!(problems(group, kind, new, old), expected, "{kind}");
    }

    #[test]
    fn data_has_clean_keys_and_a_size() {
        check("", "ConfigMap", json!({"data": {"a.b": "x"}, "binaryData": {"c": "eA=="}}), None, &[]);
        check(
            "",
            "ConfigMap",
            json!({"data": {"a": "x"}, "binaryData": {"a": "eA=="}}),
            None,
            &["data[a]: Invalid value: \"a\": duplicate of key present in binaryData"],
        );
        let found = problems("", "ConfigMap", json!({"data": {"a/b": "x"}}), None);
        assert!(found.len() == 1 && found[0].starts_with("data[a/b]: Invalid value: \"a/b\": a valid config key"), "{found:?}");
        check("", "ConfigMap", json!({"data": {"a": "x".repeat(2 << 20)}}), None, &["Too long: may not be more than 1048576 bytes"]);
    }

    #[test]
    fn what_is_immutable_stays() {
        let old = json!({"immutable": true, "data": {"a": "MQ=="}});
        for kind in ["ConfigMap", "Secret"] {
            check("", kind, old.clone(), Some(old.clone()), &[]);
            check(
                "",
                kind,
                json!({"data": {"a": "Mg=="}}),
                Some(old.clone()),
                &[
                    "immutable: Forbidden: field is immutable when `immutable` is set",
                    "data: Forbidden: field is immutable when `immutable` is set",
                ],
            );
        }
    }

    #[test]
    fn secrets_keep_their_type_and_hold_what_it_says() {
        check("", "Secret", json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}), None, &["data[tls.key]: Required value"]);
        check("", "Secret", json!({"type": "b"}), Some(json!({"type": "a"})), &["type: Invalid value: \"b\": field is immutable"]);
    }

    #[test]
    fn events_stay_with_their_object() {
        check("", "Event", json!({"involvedObject": {"namespace": "shop"}}), None, &[]);
        check(
            "",
            "Event",
            json!({"involvedObject": {"namespace": "x"}}),
            None,
            &["involvedObject.namespace: Invalid value: \"x\": does not match event.namespace"],
        );
        check("", "Event", json!({"metadata": {"namespace": "default"}, "involvedObject": {}}), None, &[]);
    }

    #[test]
    fn nodes_keep_their_range_and_have_distinct_taints() {
        check("", "Node", json!({"spec": {"podCIDR": "10.244.0.0/24"}}), Some(json!({"spec": {}})), &[]);
        check(
            "",
            "Node",
            json!({"spec": {"podCIDR": "10.244.1.0/24"}}),
            Some(json!({"spec": {"podCIDR": "10.244.0.0/24"}})),
            &["spec.podCIDR: Forbidden: node updates may not change podCIDR except from \"\" to valid"],
        );
        let taint = json!({"key": "a", "effect": "NoSchedule"});
        check(
            "",
            "Node",
            json!({"spec": {"taints": [taint, taint]}}),
            None,
            &["spec.taints[1]: Duplicate value: {\"effect\":\"NoSchedule\",\"key\":\"a\"}: taints must be unique by key and effect pair"],
        );
    }

    #[test]
    fn a_blueprint_has_the_shape_that_files_have() {
        let spec = json!({"provider": "local", "machines": [{"name": "control", "role": "control-plane", "count": 1}]});
        let good = json!({"apiVersion": "kprov.dev/v1", "kind": "Blueprint", "metadata": {"name": "shop"}, "spec": spec});
        check("kprov.dev", "Blueprint", good.clone(), None, &[]);
        let mut bad = good.clone();
        bad["spec"]["machines"][0]["count"] = "three".into();
        let found = problems("kprov.dev", "Blueprint", bad, None);
        assert!(found.len() == 1 && found[0].starts_with("spec.machines[0].count: Invalid value: \"three\": "), "{found:?}");
        let mut senseless = good.clone();
        senseless["spec"]["machines"][0]["count"] = 3.into();
        let found = problems("kprov.dev", "Blueprint", senseless, None);
        assert!(
            found.len() == 1 && found[0].starts_with("spec.machines[0].count: Invalid value: 3: 3 control-plane machines"),
            "{found:?}"
        );
        let mut moved = good.clone();
        moved["spec"]["provider"] = "aws".into();
        check("kprov.dev", "Blueprint", moved, Some(good), &["spec.provider: Invalid value: \"aws\": field is immutable"]);
    }
}
