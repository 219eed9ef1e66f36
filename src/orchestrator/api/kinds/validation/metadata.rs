//! Metadata of every kind.

use super::common::{IMMUTABLE, Problems, bytes_of, set_of};
use super::{Case, names};
use crate::orchestrator::api::kinds::KindRow;
use crate::orchestrator::api::kinds::json::{list, text, truth};
use crate::orchestrator::api::status::Cause;
use serde_json::Value;

/// As upstream: annotations are for tools, not for storage.
const MAX_ANNOTATION_BYTES: usize = 256 << 10;

pub fn check(row: &KindRow, case: &Case, problems: &mut Problems) {
    let metadata = &case.new["metadata"];
    name(row, metadata, problems);
    namespace(row, metadata, problems);
    problems.labels(metadata.get("labels"), "metadata.labels");
    for key in metadata["annotations"].as_object().into_iter().flatten().map(|(key, _)| key) {
        // Keys of annotations may be written in capitals.
        if let Err(detail) = names::qualified_name(&key.to_lowercase()) {
            problems.invalid("metadata.annotations", &key.as_str().into(), &detail);
        }
    }
    if bytes_of(metadata, "annotations") > MAX_ANNOTATION_BYTES {
        problems.add(Cause::too_long("metadata.annotations", MAX_ANNOTATION_BYTES));
    }
    owners(metadata, problems);
    for finalizer in list(metadata, "/finalizers") {
        if let Err(detail) = names::qualified_name(finalizer.as_str().unwrap_or_default()) {
            problems.invalid("metadata.finalizers", finalizer, &detail);
        }
    }
    if let Some(old) = case.old {
        update(metadata, &old["metadata"], problems);
    }
}

fn name_rule(row: &KindRow) -> fn(&str) -> Result<(), String> {
    match (&*row.group, &*row.kind) {
        ("", "Namespace") => names::dns_label,
        ("", "Service") => names::dns_1035_label,
        // A blueprint's name is its cluster's, and a part of many others.
        ("kprov.dev", "Blueprint") => names::dns_label,
        _ => names::dns_subdomain,
    }
}

fn name(row: &KindRow, metadata: &Value, problems: &mut Problems) {
    let rule = name_rule(row);
    let generated = text(metadata, "/generateName");
    // The prefix is followed by letters, so it may end in a hyphen.
    let prefix = generated.strip_suffix('-').map_or_else(|| generated.to_string(), |start| format!("{start}a"));
    if let (false, Err(detail)) = (generated.is_empty(), rule(&prefix)) {
        problems.invalid("metadata.generateName", &generated.into(), &detail);
    }
    match text(metadata, "/name") {
        "" if generated.is_empty() => problems.required("metadata.name", "name or generateName is required"),
        "" => {}
        name => {
            if let Err(detail) = rule(name) {
                problems.invalid("metadata.name", &name.into(), &detail);
            }
        }
    }
}

fn namespace(row: &KindRow, metadata: &Value, problems: &mut Problems) {
    match (row.namespaced, text(metadata, "/namespace")) {
        (true, "") => problems.required("metadata.namespace", ""),
        (true, namespace) => {
            if let Err(detail) = names::dns_label(namespace) {
                problems.invalid("metadata.namespace", &namespace.into(), &detail);
            }
        }
        (false, "") => {}
        (false, _) => problems.forbidden("metadata.namespace", "not allowed on this type"),
    }
}

fn owners(metadata: &Value, problems: &mut Problems) {
    let controllers: Vec<_> = list(metadata, "/ownerReferences").iter().filter(|owner| truth(owner, "/controller")).collect();
    if let [first, second, ..] = controllers.as_slice() {
        let detail = format!(
            "Only one reference can have Controller set to true. Found \"true\" in references for {} and {}",
            text(first, "/name"),
            text(second, "/name")
        );
        problems.invalid("metadata.ownerReferences", &metadata["ownerReferences"], &detail);
    }
    for (at, owner) in list(metadata, "/ownerReferences").iter().enumerate() {
        let path = format!("metadata.ownerReferences[{at}]");
        let version = text(owner, "/apiVersion").rsplit('/').next().unwrap_or_default();
        for (name, value, detail) in [
            ("apiVersion", version, "version must not be empty"),
            ("kind", text(owner, "/kind"), "must not be empty"),
            ("name", text(owner, "/name"), "must not be empty"),
            ("uid", text(owner, "/uid"), "must not be empty"),
        ] {
            if value.is_empty() {
                problems.invalid(format!("{path}.{name}"), &owner.get(name).cloned().unwrap_or_else(|| "".into()), detail);
            }
        }
    }
}

fn update(metadata: &Value, old: &Value, problems: &mut Problems) {
    for name in ["name", "namespace", "uid", "creationTimestamp"] {
        let (new, old) = (metadata.get(name), old.get(name));
        if old.is_some() && new != old {
            problems.invalid(format!("metadata.{name}"), new.unwrap_or(&Value::Null), IMMUTABLE);
        }
    }
    if old.get("deletionTimestamp").is_none() {
        return;
    }
    let before = set_of(list(old, "/finalizers"));
    let added: Vec<_> =
        list(metadata, "/finalizers").iter().map(Value::to_string).filter(|finalizer| !before.contains(finalizer)).collect();
    if !added.is_empty() {
        let detail =
            format!("no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}", added.join(", "));
        problems.forbidden("metadata.finalizers", &detail);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::problems;
    use serde_json::{Value, json};

    fn check(metadata: Value, old: Option<Value>, expected: &[&str]) {
        let object = |metadata: Value| json!({"metadata": metadata});
        let found = problems("", "ConfigMap", object(metadata), old.map(object));
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found}\nshould start with\n{expected}");
        }
    }

    #[test]
    fn names_labels_and_owners_follow_upstream() {
        check(
            json!({"name": "a", "labels": {"a/b": "C"}, "annotations": {"a.b/C": "anything at all"}, "finalizers": ["a.b/c"]}),
            None,
            &[],
        );
        check(json!({"name": "A"}), None, &["metadata.name: Invalid value: \"A\": a lowercase RFC 1123 subdomain must consist of"]);
        check(json!({"name": ""}), None, &["metadata.name: Required value: name or generateName is required"]);
        check(json!({"name": "", "generateName": "web-"}), None, &[]);
        check(json!({"labels": {"-a": "ok"}}), None, &["metadata.labels: Invalid value: \"-a\": name part must consist of"]);
        check(
            json!({"labels": {"a": "b c"}}),
            None,
            &["metadata.labels: Invalid value: \"b c\": a valid label must be an empty string or"],
        );
        check(json!({"annotations": {"a b": ""}}), None, &["metadata.annotations: Invalid value: \"a b\": name part"]);
        check(
            json!({"annotations": {"a": "x".repeat(300 << 10)}}),
            None,
            &["metadata.annotations: Too long: may not be more than 262144 bytes"],
        );
        check(json!({"namespace": "A"}), None, &["metadata.namespace: Invalid value: \"A\": a lowercase RFC 1123 label"]);
        check(
            json!({"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p"}]}),
            None,
            &["metadata.ownerReferences[0].uid: Invalid value: \"\": must not be empty"],
        );
        let owner = |name: &str| json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": name, "uid": name, "controller": true});
        check(json!({"ownerReferences": [owner("a"), owner("b")]}), None, &["metadata.ownerReferences: Invalid value: [{"]);
    }

    #[test]
    fn identity_stays() {
        let old = json!({"name": "a", "uid": "1"});
        check(json!({"name": "a", "uid": "1"}), Some(old.clone()), &[]);
        check(
            json!({"name": "b", "uid": "2"}),
            Some(old),
            &["metadata.name: Invalid value: \"b\": field is immutable", "metadata.uid: Invalid value: \"2\": field is immutable"],
        );
    }

    #[test]
    fn a_deleted_object_takes_no_new_finalizers() {
        let old = json!({"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["a/b"]});
        let mut new = old.clone();
        new["finalizers"] = json!([]);
        check(new.clone(), Some(old.clone()), &[]);
        new["finalizers"] = json!(["a/c"]);
        let message = "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"a/c\"}";
        check(new, Some(old), &[message]);
    }

    #[test]
    fn each_kind_has_its_rule_for_names() {
        let name =
            |group: &str, kind: &str, name: &str| problems(group, kind, json!({"metadata": {"name": name}, "provisioner": "x"}), None);
        assert!(name("", "Service", "1a").iter().any(|problem| problem.contains("a DNS-1035 label")));
        assert!(name("", "Namespace", "a.b").iter().any(|problem| problem.contains("RFC 1123 label")));
        assert_eq!(name("storage.k8s.io", "StorageClass", "a.b"), Vec::<String>::new());
        let namespaced = problems("storage.k8s.io", "StorageClass", json!({"metadata": {"namespace": "x"}, "provisioner": "x"}), None);
        assert_eq!(namespaced, ["metadata.namespace: Forbidden: not allowed on this type"]);
    }
}
