//! Defaults of pods and of pod templates.

use crate::orchestrator::api::kinds::json::{Object, child, child_made, each, field, fill};
use serde_json::Value;

const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// A pod itself gets a little more than a template.
pub fn pod(object: &mut Object) {
    let Some(spec_object) = child(object, "spec") else { return };
    spec(spec_object);
    fill(spec_object, "enableServiceLinks", true);
    let on_host = spec_object.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["initContainers", "containers"] {
        for container in each(spec_object, list) {
            requests_from_limits(container);
            if on_host {
                host_ports(container);
            }
        }
    }
}

pub fn spec(spec: &mut Object) {
    fill(spec, "dnsPolicy", "ClusterFirst");
    fill(spec, "restartPolicy", "Always");
    fill(spec, "terminationGracePeriodSeconds", 30);
    fill(spec, "schedulerName", "default-scheduler");
    child_made(spec, "securityContext");
    for list in CONTAINER_LISTS {
        each(spec, list).for_each(container);
    }
    each(spec, "volumes").for_each(volume);
}

fn container(container: &mut Object) {
    fill(container, "terminationMessagePath", "/dev/termination-log");
    fill(container, "terminationMessagePolicy", "File");
    child_made(container, "resources");
    let policy = pull_policy(field(container, "image"));
    fill(container, "imagePullPolicy", policy);
    each(container, "ports").for_each(|port| fill(port, "protocol", "TCP"));
    for source in each(container, "env").filter_map(|variable| child(variable, "valueFrom")) {
        downward(source);
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = child(container, name) {
            fill_probe(probe);
        }
    }
    if let Some(lifecycle) = child(container, "lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(handler) = child(lifecycle, hook) {
                http(handler);
            }
        }
    }
}

/// Images named `latest`, or without a tag or digest, may change behind their name.
pub fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    // A colon before the last slash belongs to the registry's port.
    let last = name.rsplit('/').next().unwrap_or_default();
    match last.split_once(':') {
        Some((_, "latest")) => "Always",
        None if digest.is_none() => "Always",
        _ => "IfNotPresent",
    }
}

fn fill_probe(probe: &mut Object) {
    // Zero is "not said" here, as in upstream's types.
    for (name, value) in [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)] {
        if probe.get(name).and_then(Value::as_i64) == Some(0) {
            probe.remove(name);
        }
        fill(probe, name, value);
    }
    http(probe);
    if let Some(grpc) = child(probe, "grpc")
        && grpc.get("service").is_none_or(Value::is_null)
    {
        grpc.insert("service".into(), "".into());
    }
}

fn http(handler: &mut Object) {
    if let Some(get) = child(handler, "httpGet") {
        fill(get, "path", "/");
        fill(get, "scheme", "HTTP");
    }
}

/// `fieldRef` and `resourceFieldRef`, in environments and in downward volumes alike.
fn downward(source: &mut Object) {
    if let Some(reference) = child(source, "fieldRef") {
        fill(reference, "apiVersion", "v1");
    }
    if let Some(reference) = child(source, "resourceFieldRef") {
        fill(reference, "divisor", "0");
    }
}

fn requests_from_limits(container: &mut Object) {
    let Some(resources) = child(container, "resources") else { return };
    let Some(Value::Object(limits)) = resources.get("limits").cloned() else { return };
    let Some(requests) = child_made(resources, "requests") else { return };
    for (name, limit) in limits {
        requests.entry(name).or_insert(limit);
    }
}

fn host_ports(container: &mut Object) {
    for port in each(container, "ports") {
        if let (Some(number), true) = (port.get("containerPort").cloned(), port.get("hostPort").and_then(Value::as_i64).unwrap_or(0) == 0) {
            port.insert("hostPort".into(), number);
        }
    }
}

fn volume(volume: &mut Object) {
    // A volume that says nothing but its name is an empty folder.
    if volume.len() == 1 && volume.contains_key("name") {
        child_made(volume, "emptyDir");
    }
    host_path(volume);
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = child(volume, source) {
            fill(source, "defaultMode", 0o644);
            each(source, "items").for_each(downward);
            for projection in each(source, "sources") {
                if let Some(token) = child(projection, "serviceAccountToken") {
                    fill(token, "expirationSeconds", 3600);
                }
                if let Some(projected) = child(projection, "downwardAPI") {
                    each(projected, "items").for_each(downward);
                }
            }
        }
    }
}

/// `type` is kept as the empty text, which means "no check".
pub fn host_path(volume: &mut Object) {
    if let Some(path) = child(volume, "hostPath")
        && path.get("type").is_none_or(Value::is_null)
    {
        path.insert("type".into(), "".into());
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::check;
    use super::*;
    use serde_json::json;

    #[test]
    fn the_pull_policy_follows_the_tag() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.27", "IfNotPresent"),
            ("registry:5000/nginx", "Always"),
            ("registry:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:aa", "IfNotPresent"),
            ("nginx:latest@sha256:aa", "Always"),
            ("", "Always"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    fn with(container: Value, more: Value) -> Value {
        let mut spec = json!({"containers": [container], "hostNetwork": false});
        spec.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        json!({"spec": spec})
    }

    #[test]
    fn a_pod_is_filled_in_down_to_its_probes_and_volumes() {
        check(
            "",
            "Pod",
            with(
                json!({"name": "c", "image": "a:1",
                    "ports": [{"containerPort": 80}],
                    "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}},
                    "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                        {"name": "B", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}],
                    "livenessProbe": {"httpGet": {"port": 80}, "timeoutSeconds": 0},
                    "lifecycle": {"preStop": {"httpGet": {"port": 80}}}}),
                json!({"volumes": [
                    {"name": "a"},
                    {"name": "b", "configMap": {"name": "x"}},
                    {"name": "c", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}},
                        {"downwardAPI": {"items": [{"path": "p", "fieldRef": {"fieldPath": "metadata.name"}}]}}]}},
                    {"name": "d", "hostPath": {"path": "/x"}},
                ]}),
            ),
            with(
                json!({"name": "c", "image": "a:1", "imagePullPolicy": "IfNotPresent",
                    "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}},
                    "env": [{"name": "A", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
                        {"name": "B", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "0"}}}],
                    "livenessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
                        "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                    "lifecycle": {"preStop": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}}},
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}),
                json!({"dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler",
                "securityContext": {}, "terminationGracePeriodSeconds": 30, "enableServiceLinks": true,
                "volumes": [
                    {"name": "a", "emptyDir": {}},
                    {"name": "b", "configMap": {"name": "x", "defaultMode": 420}},
                    {"name": "c", "projected": {"defaultMode": 420, "sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 3600}},
                        {"downwardAPI": {"items": [{"path": "p", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}]}}]}},
                    {"name": "d", "hostPath": {"path": "/x", "type": ""}},
                ]}),
            ),
        );
    }

    #[test]
    fn ports_on_the_host_network_are_host_ports() {
        let mut pod_object = json!({"spec": {"hostNetwork": true, "containers": [{"ports": [{"containerPort": 80}, {"containerPort": 81, "hostPort": 9}]}]}});
        pod(pod_object.as_object_mut().expect("an object"));
        let ports = &pod_object["spec"]["containers"][0]["ports"];
        assert_eq!((&ports[0]["hostPort"], &ports[1]["hostPort"]), (&json!(80), &json!(9)));
    }
}
