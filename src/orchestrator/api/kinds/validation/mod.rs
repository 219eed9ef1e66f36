//! What an object must look like before it is kept, with upstream's words (`k8s.io/kubernetes/pkg/apis/*/validation`).
//! Types of values are checked before, by `fields::decode_error`; here a value of the wrong type counts as absent.

mod apps;
mod common;
mod config;
mod container;
mod metadata;
pub mod names;
mod network;
mod pod;
mod storage;

use super::{Cause, KindRow};
use common::Problems;
use serde_json::Value;

/// One object to check, before and after.
struct Case<'a> {
    new: &'a Value,
    old: Option<&'a Value>,
}

/// All problems of `new`; none means it may be kept. `old` is there on updates; `subresource` is empty for the object itself.
/// Answer `Status::invalid` when there are any.
pub fn validate(row: &KindRow, new: &Value, old: Option<&Value>, subresource: &str) -> Vec<Cause> {
    let mut problems = Problems::default();
    let case = Case { new, old };
    if row.stored {
        metadata::check(row, &case, &mut problems);
    }
    // Status is written by the system alone, and a binding was checked against the pod by whoever made it.
    if subresource.is_empty()
        && let Some((_, _, rule)) = RULES.iter().find(|(group, kind, _)| row.is(group, kind))
    {
        rule(&case, &mut problems);
    }
    problems.into_causes()
}

type Rule = fn(&Case, &mut Problems);

const RULES: &[(&str, &str, Rule)] = &[
    ("", "Pod", pod::pod),
    ("", "Service", network::service),
    ("", "ConfigMap", config::config_map),
    ("", "Secret", config::secret),
    ("", "Event", config::event),
    ("", "Node", config::node),
    ("", "PersistentVolume", storage::volume),
    ("", "PersistentVolumeClaim", storage::claim),
    ("apps", "Deployment", apps::deployment),
    ("apps", "ReplicaSet", apps::replica_set),
    ("apps", "DaemonSet", apps::daemon_set),
    ("apps", "ControllerRevision", apps::controller_revision),
    ("autoscaling", "Scale", apps::scale),
    ("coordination.k8s.io", "Lease", config::lease),
    ("discovery.k8s.io", "EndpointSlice", network::endpoint_slice),
    ("storage.k8s.io", "StorageClass", storage::class),
    ("kprov.dev", "Blueprint", config::blueprint),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::api::kinds::{Registry, defaults::defaults};
    use serde_json::json;

    /// The problems of `new` after defaulting, each as `field: message`.
    pub(super) fn problems(group: &str, kind: &str, new: Value, old: Option<Value>) -> Vec<String> {
        let row = Registry::builtin().find_kind(group, "v1", kind).expect(kind);
        let prepared = |mut object: Value| {
            let metadata = &mut object["metadata"];
            if metadata.get("name").is_none() {
                metadata["name"] = "x".into();
            }
            if row.namespaced && metadata.get("namespace").is_none() {
                metadata["namespace"] = "shop".into();
            }
            defaults(row, &mut object);
            object
        };
        let (new, old) = (prepared(new), old.map(prepared));
        validate(row, &new, old.as_ref(), "").iter().map(Cause::to_string).collect()
    }

    #[test]
    fn nonsense_is_judged_without_a_panic() {
        for row in Registry::builtin().all() {
            for nonsense in [
                json!(null),
                json!([]),
                json!({"metadata": [], "spec": 1}),
                json!({"spec": {"template": 1, "ports": {}, "containers": [1, null]}}),
            ] {
                for subresource in ["", "status"] {
                    validate(row, &nonsense, None, subresource);
                    validate(row, &nonsense, Some(&nonsense), subresource);
                }
            }
        }
    }
}
