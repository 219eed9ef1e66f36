//! What upstream fills in where a person said nothing: `SetDefaults_*` of `k8s.io/kubernetes/pkg/apis/*/v1/defaults.go`. Applied on
//! every write before `strategy` and validation, so that templates compare equal however they were written.

mod pod;
mod service;

use super::json::{Object, child, child_made, each, field, fill, text};
use super::{KindRow, schema};
use serde_json::{Value, json};

/// Fills in defaults, after bringing nulls and quantities to upstream's form; a second call changes nothing.
pub fn defaults(row: &KindRow, object: &mut Value) {
    schema::normalise(row, object);
    let Some(rule) = RULES.iter().find(|rule| row.is(rule.0, rule.1)) else { return };
    if let Some(object) = object.as_object_mut() {
        rule.2(object);
    }
}

type Rule = fn(&mut Object);

/// By group and kind.
const RULES: &[(&str, &str, Rule)] = &[
    ("", "Pod", pod::pod),
    ("", "Service", service::service),
    ("", "Secret", secret),
    ("", "Namespace", namespace),
    ("", "Node", node),
    ("", "PersistentVolume", persistent_volume),
    ("", "PersistentVolumeClaim", claim),
    ("apps", "Deployment", deployment),
    ("apps", "ReplicaSet", replica_set),
    ("apps", "DaemonSet", daemon_set),
    ("authentication.k8s.io", "TokenRequest", token_request),
    ("discovery.k8s.io", "EndpointSlice", endpoint_slice),
    ("storage.k8s.io", "StorageClass", storage_class),
];

fn template(spec: &mut Object) {
    if let Some(spec) = child(spec, "template").and_then(|template| child_made(template, "spec")) {
        pod::spec(spec);
    }
}

fn deployment(object: &mut Object) {
    let Some(spec) = child(object, "spec") else { return };
    fill(spec, "replicas", 1);
    fill(spec, "revisionHistoryLimit", 10);
    fill(spec, "progressDeadlineSeconds", 600);
    rolling(spec, "strategy", json!("25%"), json!("25%"));
    template(spec);
}

fn daemon_set(object: &mut Object) {
    let Some(spec) = child(object, "spec") else { return };
    fill(spec, "revisionHistoryLimit", 10);
    rolling(spec, "updateStrategy", json!(1), json!(0));
    template(spec);
}

fn rolling(spec: &mut Object, name: &str, max_unavailable: Value, max_surge: Value) {
    let Some(strategy) = child_made(spec, name) else { return };
    fill(strategy, "type", "RollingUpdate");
    if field(strategy, "type") == "RollingUpdate"
        && let Some(rolling) = child_made(strategy, "rollingUpdate")
    {
        fill(rolling, "maxUnavailable", max_unavailable);
        fill(rolling, "maxSurge", max_surge);
    }
}

fn replica_set(object: &mut Object) {
    let Some(spec) = child(object, "spec") else { return };
    fill(spec, "replicas", 1);
    template(spec);
}

/// `stringData` is a way to write only: it ends in `data`.
fn secret(object: &mut Object) {
    use base64::Engine;
    fill(object, "type", "Opaque");
    let Some(Value::Object(plain)) = object.get("stringData") else { return };
    let encoded: Vec<_> = plain
        .iter()
        .filter_map(|(key, value)| Some((key.clone(), base64::engine::general_purpose::STANDARD.encode(value.as_str()?))))
        .collect();
    // A value of the wrong type is left for the type check to name.
    if encoded.len() == plain.len()
        && let Some(data) = child_made(object, "data")
    {
        data.extend(encoded.into_iter().map(|(key, value)| (key, value.into())));
        object.remove("stringData");
    }
}

fn namespace(object: &mut Object) {
    let name = object.get("metadata").map_or("", |metadata| text(metadata, "/name")).to_string();
    if !name.is_empty()
        && let Some(labels) = child(object, "metadata").and_then(|metadata| child_made(metadata, "labels"))
    {
        labels.insert("kubernetes.io/metadata.name".into(), name.into());
    }
    child_made(object, "spec");
    if let Some(status) = child_made(object, "status") {
        fill(status, "phase", "Active");
    }
}

fn node(object: &mut Object) {
    let Some(status) = child(object, "status") else { return };
    if let (None, Some(capacity)) = (status.get("allocatable"), status.get("capacity").cloned()) {
        status.insert("allocatable".into(), capacity);
    }
}

fn persistent_volume(object: &mut Object) {
    if let Some(spec) = child(object, "spec") {
        fill(spec, "persistentVolumeReclaimPolicy", "Retain");
        fill(spec, "volumeMode", "Filesystem");
        pod::host_path(spec);
    }
    if let Some(status) = child_made(object, "status") {
        fill(status, "phase", "Pending");
    }
}

fn claim(object: &mut Object) {
    if let Some(spec) = child(object, "spec") {
        fill(spec, "volumeMode", "Filesystem");
    }
    if let Some(status) = child_made(object, "status") {
        fill(status, "phase", "Pending");
    }
}

fn token_request(object: &mut Object) {
    if let Some(spec) = child_made(object, "spec") {
        fill(spec, "expirationSeconds", 3600);
    }
}

fn endpoint_slice(object: &mut Object) {
    for port in each(object, "ports") {
        if port.get("name").is_none_or(Value::is_null) {
            port.insert("name".into(), "".into());
        }
        fill(port, "protocol", "TCP");
    }
}

fn storage_class(object: &mut Object) {
    fill(object, "reclaimPolicy", "Delete");
    fill(object, "volumeBindingMode", "Immediate");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::api::kinds::Registry;

    /// `written` becomes `kept`, and stays so.
    pub(super) fn check(group: &str, kind: &str, written: Value, kept: Value) {
        let row = Registry::builtin().find_kind(group, "v1", kind).expect(kind);
        let mut object = written;
        defaults(row, &mut object);
        assert_eq!(object, kept, "{kind}");
        defaults(row, &mut object);
        assert_eq!(object, kept, "{kind}: the second time");
    }

    fn bare_pod_spec() -> Value {
        json!({"containers": [{"name": "c", "image": "nginx:1"}]})
    }

    fn full_pod_spec() -> Value {
        json!({
            "containers": [{"name": "c", "image": "nginx:1", "imagePullPolicy": "IfNotPresent", "resources": {},
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
            "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler",
            "securityContext": {}, "terminationGracePeriodSeconds": 30
        })
    }

    #[test]
    fn a_deployment_rolls_by_quarters() {
        check(
            "apps",
            "Deployment",
            json!({"spec": {"template": {"spec": bare_pod_spec()}}}),
            json!({"spec": {"replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}},
                "template": {"spec": full_pod_spec()}}}),
        );
    }

    #[test]
    fn what_is_said_stays() {
        check(
            "apps",
            "Deployment",
            json!({"spec": {"replicas": 0, "strategy": {"type": "Recreate"}, "revisionHistoryLimit": 0, "progressDeadlineSeconds": 5}}),
            json!({"spec": {"replicas": 0, "strategy": {"type": "Recreate"}, "revisionHistoryLimit": 0, "progressDeadlineSeconds": 5}}),
        );
    }

    #[test]
    fn a_daemon_set_rolls_one_by_one() {
        check(
            "apps",
            "DaemonSet",
            json!({"spec": {"template": {"spec": bare_pod_spec()}}}),
            json!({"spec": {"revisionHistoryLimit": 10, "template": {"spec": full_pod_spec()},
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}}}),
        );
    }

    #[test]
    fn plain_text_of_a_secret_ends_in_data() {
        check(
            "",
            "Secret",
            json!({"data": {"a": "MQ==", "b": "Mg=="}, "stringData": {"b": "3"}}),
            json!({"type": "Opaque", "data": {"a": "MQ==", "b": "Mw=="}}),
        );
    }

    #[test]
    fn small_kinds_have_their_defaults() {
        check(
            "",
            "Namespace",
            json!({"metadata": {"name": "shop"}}),
            json!({"metadata": {"name": "shop", "labels": {"kubernetes.io/metadata.name": "shop"}}, "spec": {}, "status": {"phase": "Active"}}),
        );
        check("storage.k8s.io", "StorageClass", json!({}), json!({"reclaimPolicy": "Delete", "volumeBindingMode": "Immediate"}));
        check(
            "",
            "PersistentVolumeClaim",
            json!({"spec": {}}),
            json!({"spec": {"volumeMode": "Filesystem"}, "status": {"phase": "Pending"}}),
        );
        check(
            "",
            "PersistentVolume",
            json!({"spec": {"hostPath": {"path": "/x"}}}),
            json!({"spec": {"hostPath": {"path": "/x", "type": ""}, "persistentVolumeReclaimPolicy": "Retain", "volumeMode": "Filesystem"},
                "status": {"phase": "Pending"}}),
        );
        check(
            "discovery.k8s.io",
            "EndpointSlice",
            json!({"ports": [{"port": 80}]}),
            json!({"ports": [{"port": 80, "name": "", "protocol": "TCP"}]}),
        );
    }

    #[test]
    fn nonsense_is_left_alone() {
        for row in Registry::builtin().all() {
            for nonsense in
                [json!(null), json!([]), json!("x"), json!({"spec": []}), json!({"spec": {"template": 1, "containers": {}, "ports": 7}})]
            {
                defaults(row, &mut nonsense.clone());
            }
        }
    }
}
