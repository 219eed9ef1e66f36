//! Which parts of an object a writer may set: status belongs to the system, generation counts changes of the wanted state.
//! Order of a write: `defaults`, then one of these, then `validate`.

use super::KindRow;
use super::json::{Object, child, child_made, each, field, list, text, unset};
use crate::blueprint::quantity::Quantity;
use serde_json::{Value, json};

/// Before validation of a create: resets status and starts the generation. Name, uid, creation time and resource version are the
/// storage's to set.
pub fn prepare_create(row: &KindRow, new: &mut Value) {
    let status = first_status(row, new);
    let Some(object) = new.as_object_mut() else { return };
    if let Some(metadata) = child_made(object, "metadata") {
        for name in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"] {
            metadata.remove(name);
        }
        if row.has_generation {
            metadata.insert("generation".into(), 1.into());
        }
    }
    if row.is("", "Namespace")
        && let Some(spec) = child_made(object, "spec")
    {
        super::json::fill(spec, "finalizers", json!(["kubernetes"]));
    }
    match status {
        // A node registers with the status it has found.
        None => {}
        Some(status) if status.is_null() => {
            object.remove("status");
        }
        Some(status) => {
            object.insert("status".into(), status);
        }
    }
}

/// None: whatever was sent; null: none.
fn first_status(row: &KindRow, new: &Value) -> Option<Value> {
    if !row.has_status {
        return None;
    }
    match (&*row.group, &*row.kind) {
        ("", "Node") => None,
        ("", "Pod") => Some(json!({"phase": "Pending", "qosClass": qos_class(new)})),
        ("", "Namespace") => Some(json!({"phase": "Active"})),
        ("", "PersistentVolume" | "PersistentVolumeClaim") => Some(json!({"phase": "Pending"})),
        ("", "Service") => Some(json!({"loadBalancer": {}})),
        ("apps", "ReplicaSet") => Some(json!({"replicas": 0})),
        ("apps", "DaemonSet") => {
            Some(json!({"currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0}))
        }
        ("apps", "Deployment") => Some(json!({})),
        _ => Some(Value::Null),
    }
}

/// Before validation of an update: keeps what `subresource` (empty: the object itself) may not change as it was, and counts the
/// generation. Also keeps the system's metadata where the writer left it out; where he wrote another value, `validate` says so.
pub fn prepare_update(row: &KindRow, new: &mut Value, old: &Value, subresource: &str) {
    let Some(object) = new.as_object_mut() else { return };
    if let (Some(metadata), Some(before)) = (child_made(object, "metadata"), old.get("metadata").and_then(Value::as_object)) {
        keep_system_metadata(metadata, before);
    }
    match subresource {
        "status" => keep_all_but_status(row, object, old),
        "finalize" => keep(object, old, "status"),
        _ => {
            if row.has_status {
                keep(object, old, "status");
            }
            if row.is("", "Service") {
                keep_allocated(object, old);
            }
            if row.is("", "Namespace") {
                keep_namespace_finalizers(object, old);
            }
        }
    }
    if row.has_generation && subresource != "status" && wanted_changed(row, object, old) {
        let before = old.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or_default();
        if let Some(metadata) = child(object, "metadata") {
            metadata.insert("generation".into(), (before + 1).into());
        }
    }
}

fn keep_system_metadata(metadata: &mut Object, before: &Object) {
    for name in ["uid", "creationTimestamp", "name", "namespace"] {
        if let (true, Some(value)) = (unset(metadata, name), before.get(name)) {
            metadata.insert(name.into(), value.clone());
        }
    }
    // Nobody un-deletes an object or writes its generation.
    for name in ["deletionTimestamp", "deletionGracePeriodSeconds", "generation", "generateName", "selfLink"] {
        match before.get(name) {
            Some(value) => metadata.insert(name.into(), value.clone()),
            None => metadata.remove(name),
        };
    }
}

fn keep(object: &mut Object, old: &Value, name: &str) {
    match old.get(name) {
        Some(value) => object.insert(name.into(), value.clone()),
        None => object.remove(name),
    };
}

/// Everything at the top that is not status or metadata: `spec`, and `data` of kinds that have one.
fn keep_all_but_status(row: &KindRow, object: &mut Object, old: &Value) {
    let mine = |name: &String| !matches!(name.as_str(), "status" | "metadata" | "apiVersion" | "kind");
    let names: Vec<_> =
        object.keys().chain(old.as_object().into_iter().flat_map(Object::keys)).filter(|name| mine(name)).cloned().collect();
    for name in names {
        keep(object, old, &name);
    }
    let (Some(metadata), Some(before)) = (child(object, "metadata"), old.get("metadata").and_then(Value::as_object)) else { return };
    let kept: &[&str] = match (&*row.group, &*row.kind) {
        ("", "Pod") => &["ownerReferences"],
        ("apps", "Deployment") => &["labels"],
        _ => &[],
    };
    for name in kept {
        match before.get(*name) {
            Some(value) => metadata.insert((*name).into(), value.clone()),
            None => metadata.remove(*name),
        };
    }
}

/// Finalizers of `spec` are changed through the `finalize` subresource alone.
fn keep_namespace_finalizers(object: &mut Object, old: &Value) {
    if let (Some(spec), Some(finalizers)) = (child_made(object, "spec"), old.pointer("/spec/finalizers")) {
        spec.insert("finalizers".into(), finalizers.clone());
    }
}

fn wanted_changed(row: &KindRow, object: &Object, old: &Value) -> bool {
    let differs = |name: &str| object.get(name) != old.get(name);
    let metadata_differs =
        |name: &str| object.get("metadata").and_then(|metadata| metadata.get(name)) != old.pointer(&format!("/metadata/{name}"));
    match (&*row.group, &*row.kind) {
        ("discovery.k8s.io", "EndpointSlice") => {
            differs("endpoints") || differs("ports") || differs("addressType") || metadata_differs("labels")
        }
        ("apps", "Deployment") => differs("spec") || metadata_differs("annotations"),
        _ => differs("spec"),
    }
}

/// A writer who leaves out allocated addresses and ports keeps them, as long as the service's type still has them
/// (`patchAllocatedValues` and `dropTypeDependentFields` upstream).
fn keep_allocated(object: &mut Object, old: &Value) {
    let Some(spec) = child(object, "spec") else { return };
    let has_address = |kind: &str| kind != "ExternalName";
    let has_node_ports = |kind: &str| matches!(kind, "NodePort" | "LoadBalancer");
    let (before, now) = (text(old, "/spec/type"), field(spec, "type").to_string());
    let addresses = ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"];
    if has_address(before) && has_address(&now) {
        for name in ["clusterIP", "clusterIPs"] {
            if let (true, Some(value)) = (unset(spec, name), old.pointer(&format!("/spec/{name}"))) {
                spec.insert(name.into(), value.clone());
            }
        }
    } else if has_address(before) {
        for name in addresses {
            if spec.get(name) == old.pointer(&format!("/spec/{name}")) {
                spec.remove(name);
            }
        }
    }
    let keeps = has_node_ports(before) && has_node_ports(&now);
    let drops = has_node_ports(before) && !has_node_ports(&now);
    let old_ports = list(old, "/spec/ports");
    for port in each(spec, "ports") {
        let same = old_ports.iter().find(|other| ["port", "protocol"].iter().all(|name| port.get(*name) == other.get(*name)));
        let Some(allocated) = same.and_then(|other| other.get("nodePort")) else { continue };
        let unsaid = port.get("nodePort").is_none_or(|value| value.is_null() || value == 0);
        if keeps && unsaid {
            port.insert("nodePort".into(), allocated.clone());
        } else if drops && port.get("nodePort") == Some(allocated) {
            port.remove("nodePort");
        }
    }
    if drops {
        for name in ["externalTrafficPolicy", "healthCheckNodePort"] {
            spec.remove(name);
        }
    }
    if before == "LoadBalancer" && now != "LoadBalancer" {
        for name in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            spec.remove(name);
        }
    }
}

/// `Guaranteed`, `Burstable` or `BestEffort`, from the CPU and memory of all containers. Missing requests count as the limits.
pub fn qos_class(pod: &Value) -> &'static str {
    let containers = || list(pod, "/spec/initContainers").iter().chain(list(pod, "/spec/containers"));
    let amount = |container: &Value, which: &str, resource: &str| {
        let value = container.pointer(&format!("/resources/{which}/{resource}"))?;
        Quantity::from_value(value).ok().filter(|quantity| *quantity > Quantity::ZERO)
    };
    let both = ["cpu", "memory"];
    let any = containers().any(|container| {
        both.iter().any(|resource| amount(container, "requests", resource).or_else(|| amount(container, "limits", resource)).is_some())
    });
    let guaranteed = containers().all(|container| {
        both.iter().all(|resource| {
            let limit = amount(container, "limits", resource);
            limit.is_some() && amount(container, "requests", resource).or(limit) == limit
        })
    });
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::api::kinds::{Registry, defaults::defaults};
    use std::sync::Arc;

    fn row(group: &str, kind: &str) -> &'static Arc<KindRow> {
        Registry::builtin().find_kind(group, "v1", kind).expect(kind)
    }

    #[test]
    fn nobody_creates_a_status_or_a_deleted_object() {
        let mut pod = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "generation": 9}, "spec": {"containers": []}, "status": {"phase": "Running"}});
        prepare_create(row("", "Pod"), &mut pod);
        assert_eq!(pod["metadata"], json!({"generation": 1}));
        assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
        let mut blueprint = json!({"metadata": {}, "spec": {}, "status": {"x": 1}});
        prepare_create(row("kprov.dev", "Blueprint"), &mut blueprint);
        assert_eq!(blueprint.get("status"), None);
    }

    #[test]
    fn a_node_registers_with_its_status() {
        let mut node = json!({"metadata": {}, "status": {"capacity": {"cpu": "1"}}});
        prepare_create(row("", "Node"), &mut node);
        assert_eq!(node["status"]["capacity"]["cpu"], "1");
    }

    #[test]
    fn spec_and_status_have_separate_doors() {
        let deployment = row("apps", "Deployment");
        let old =
            json!({"metadata": {"name": "a", "generation": 1, "labels": {"a": "1"}}, "spec": {"replicas": 1}, "status": {"replicas": 1}});
        let mut new = json!({"metadata": {"name": "a", "labels": {"a": "2"}}, "spec": {"replicas": 2}, "status": {"replicas": 9}});
        prepare_update(deployment, &mut new, &old, "");
        assert_eq!(
            new,
            json!({"metadata": {"name": "a", "generation": 2, "labels": {"a": "2"}}, "spec": {"replicas": 2}, "status": {"replicas": 1}})
        );

        let mut new = json!({"metadata": {"name": "a", "labels": {"a": "2"}}, "spec": {"replicas": 2}, "status": {"replicas": 9}});
        prepare_update(deployment, &mut new, &old, "status");
        assert_eq!(
            new,
            json!({"metadata": {"name": "a", "generation": 1, "labels": {"a": "1"}}, "spec": {"replicas": 1}, "status": {"replicas": 9}})
        );
    }

    #[test]
    fn an_unchanged_object_keeps_its_generation_and_its_deletion() {
        let old = json!({"metadata": {"name": "a", "uid": "u", "generation": 3, "deletionTimestamp": "t"}, "spec": {"x": 1}});
        let mut new = json!({"metadata": {"generation": 7}, "spec": {"x": 1}});
        prepare_update(row("kprov.dev", "Blueprint"), &mut new, &old, "");
        assert_eq!(new, old);
    }

    #[test]
    fn allocated_addresses_and_ports_survive_an_update_without_them() {
        let service = row("", "Service");
        let old = json!({"metadata": {}, "spec": {"type": "NodePort", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "externalTrafficPolicy": "Cluster",
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 32000}]}});
        let mut new = json!({"metadata": {}, "spec": {"type": "NodePort", "ports": [{"port": 80}, {"port": 81}]}});
        defaults(service, &mut new);
        prepare_update(service, &mut new, &old, "");
        assert_eq!(new["spec"]["clusterIP"], "10.96.0.9");
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 32000);
        assert_eq!(new["spec"]["ports"][1].get("nodePort"), None);

        let mut new = old.clone();
        new["spec"]["type"] = "ClusterIP".into();
        prepare_update(service, &mut new, &old, "");
        assert_eq!(new["spec"]["ports"][0].get("nodePort"), None);
        assert_eq!(new["spec"].get("externalTrafficPolicy"), None);

        let mut new = old.clone();
        new["spec"]["type"] = "ExternalName".into();
        prepare_update(service, &mut new, &old, "");
        assert_eq!(new["spec"].get("clusterIP"), None);
    }

    #[test]
    fn quality_of_service_follows_requests_and_limits() {
        let pod = |resources: Value| json!({"spec": {"containers": [{"resources": resources}]}});
        for (resources, class) in [
            (json!({}), "BestEffort"),
            (json!({"requests": {"cpu": "0"}}), "BestEffort"),
            (json!({"requests": {"cpu": "1"}}), "Burstable"),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed"),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}}), "Guaranteed"),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}), "Burstable"),
            (json!({"limits": {"cpu": "1"}}), "Burstable"),
        ] {
            assert_eq!(qos_class(&pod(resources.clone())), class, "{resources}");
        }
    }
}
