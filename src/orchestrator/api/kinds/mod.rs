//! What is particular to each kind, as tables and pure functions: no input or output, no clock, no store.

pub mod defaults;
pub mod discovery;
pub mod fields;
pub mod json;
pub mod merge_keys;
pub mod openapi;
pub mod patch;
pub mod place;
pub mod registry;
pub mod schema;
pub mod selector;
pub mod strategy;
pub mod table;
pub mod taints;
pub mod validation;

pub use super::status::Cause;
use crate::blueprint::manifests::Finding;
pub use registry::{KindRow, Registry, Subresource};
use serde_json::{Value, json};

/// What this API would refuse of a new object, whatever the cluster holds. As strict as `kubectl apply`, which takes
/// no field that nobody knows.
pub fn refusals(object: &Value) -> Vec<Finding> {
    let finding = |field: &str, message: String| Finding { field: field.into(), message };
    let text = |name: &str| object[name].as_str().unwrap_or_default();
    let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", text("apiVersion")));
    let Some(row) = Registry::builtin().find_kind(group, version, text("kind")) else {
        return vec![finding("kind", format!("this cluster does not serve {} {}", text("apiVersion"), text("kind")))];
    };
    if let Some(message) = fields::decode_error(row, object) {
        return vec![finding("", message)];
    }
    let unknown = fields::unknown_fields(row, object).into_iter().map(|field| finding(&field, fields::unknown_warning(&field)));
    let mut whole = object.clone();
    if row.namespaced && whole["metadata"]["namespace"].is_null() {
        whole["metadata"]["namespace"] = json!("default");
    }
    defaults::defaults(row, &mut whole);
    strategy::prepare_create(row, &mut whole);
    let causes = validation::validate(row, &whole, None, "");
    // A wrong value that a default was copied from is told once, where it is written.
    let twice = |cause: &Cause| causes.iter().filter(|other| other.message == cause.message).count() > 1;
    let told = causes.iter().filter(|cause| is_written(object, &cause.field) || !twice(cause));
    unknown.chain(told.map(|cause| finding(&cause.field, cause.message.clone()))).collect()
}

/// `field` as causes name it: `spec.ports[0].port`.
fn is_written(object: &Value, field: &str) -> bool {
    object.pointer(&format!("/{}", field.replace('[', "/").replace(']', "").replace('.', "/"))).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_refused_is_known_without_a_cluster() {
        let deployment = |replicas: Value, container: Value| {
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
                "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [container]}}}})
        };
        let check = |object: &Value, expected: &[(&str, &str)]| {
            let found = refusals(object);
            assert_eq!(found.len(), expected.len(), "{found:?}");
            for (Finding { field, message }, (wanted, part)) in found.iter().zip(expected) {
                assert!(field == wanted && message.contains(part), "{field}: {message}");
            }
        };
        let good = json!({"name": "web", "image": "a"});
        check(&deployment(json!(3), good.clone()), &[]);
        check(&deployment(json!("three"), good), &[("", "cannot unmarshal string")]);
        check(
            &deployment(json!(3), json!({"name": "web", "imagee": "a", "image": "b"})),
            &[("spec.template.spec.containers[0].imagee", "unknown field")],
        );
        check(
            &deployment(json!(-1), json!({"name": "We_b", "image": "a"})),
            &[("spec.template.spec.containers[0].name", "Invalid value"), ("spec.replicas", "must be greater than or equal to 0")],
        );
        let service =
            |port: i64| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"ports": [{"port": port}]}});
        check(&service(80), &[]);
        check(&service(99999), &[("spec.ports[0].port", "between 1 and 65535")]);
        check(
            &json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"}}),
            &[("kind", "does not serve apps/v1 StatefulSet")],
        );
    }
}
