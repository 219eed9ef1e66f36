//! The rows of all kinds but pods.

use super::since;
use crate::orchestrator::api::kinds::json::{field, integer, list, map, text, truth};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

fn name(object: &Value) -> Value {
    text(object, "/metadata/name").into()
}
fn age(object: &Value, now: Timestamp) -> Value {
    since(object, "/metadata/creationTimestamp", now).into()
}
fn count(object: &Value, pointer: &str) -> Value {
    integer(object, pointer).unwrap_or_default().into()
}
fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

pub fn name_and_age(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), age(object, now)]
}

pub fn namespace(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), text(object, "/status/phase").into(), age(object, now)]
}

pub fn config_map(object: &Value, now: Timestamp) -> Vec<Value> {
    let entries = |pointer: &str| map(object, pointer).map_or(0, |map| map.len());
    vec![name(object), (entries("/data") + entries("/binaryData")).into(), age(object, now)]
}

pub fn secret(object: &Value, now: Timestamp) -> Vec<Value> {
    let entries = map(object, "/data").map_or(0, |map| map.len());
    vec![name(object), text(object, "/type").into(), entries.into(), age(object, now)]
}

pub fn service_account(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), list(object, "/secrets").len().into(), age(object, now)]
}

pub fn lease(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), text(object, "/spec/holderIdentity").into(), age(object, now)]
}

/// `a=1,b=2` in the order of names, as upstream's `FormatLabels`.
fn labels(object: &Value, pointer: &str) -> String {
    let pairs = map(object, pointer).into_iter().flatten();
    let pairs: Vec<_> = pairs.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    if pairs.is_empty() { "<none>".into() } else { pairs.join(",") }
}

/// `app=web,tier in (a,b),!old`, as upstream's `FormatLabelSelector`.
fn selector(object: &Value) -> String {
    let equal = map(object, "/spec/selector/matchLabels").into_iter().flatten();
    let mut terms: Vec<(String, String)> =
        equal.map(|(key, value)| (key.clone(), format!("{key}={}", value.as_str().unwrap_or_default()))).collect();
    for expression in list(object, "/spec/selector/matchExpressions") {
        let key = text(expression, "/key");
        let mut values: Vec<_> = list(expression, "/values").iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let term = match text(expression, "/operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.into(),
        };
        terms.push((key.into(), term));
    }
    terms.sort_by(|a, b| a.0.cmp(&b.0));
    let terms: Vec<_> = terms.into_iter().map(|(_, term)| term).collect();
    if terms.is_empty() { "<none>".into() } else { terms.join(",") }
}

/// Names and images of a template's containers, for `-o wide`.
fn containers(object: &Value) -> [Value; 2] {
    let all = |pointer: &str| {
        let list = list(object, "/spec/template/spec/containers").iter();
        list.map(|container| text(container, pointer)).collect::<Vec<_>>().join(",").into()
    };
    [all("/name"), all("/image")]
}

pub fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    let ready = format!("{}/{}", count(object, "/status/readyReplicas"), count(object, "/spec/replicas"));
    let [names, images] = containers(object);
    vec![
        name(object),
        ready.into(),
        count(object, "/status/updatedReplicas"),
        count(object, "/status/availableReplicas"),
        age(object, now),
        names,
        images,
        selector(object).into(),
    ]
}

pub fn replica_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images] = containers(object);
    vec![
        name(object),
        count(object, "/spec/replicas"),
        count(object, "/status/replicas"),
        count(object, "/status/readyReplicas"),
        age(object, now),
        names,
        images,
        selector(object).into(),
    ]
}

pub fn daemon_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images] = containers(object);
    vec![
        name(object),
        count(object, "/status/desiredNumberScheduled"),
        count(object, "/status/currentNumberScheduled"),
        count(object, "/status/numberReady"),
        count(object, "/status/updatedNumberScheduled"),
        count(object, "/status/numberAvailable"),
        labels(object, "/spec/template/spec/nodeSelector").into(),
        age(object, now),
        names,
        images,
        selector(object).into(),
    ]
}

pub fn controller_revision(object: &Value, now: Timestamp) -> Vec<Value> {
    let owner = list(object, "/metadata/ownerReferences").iter().find(|owner| truth(owner, "/controller"));
    let controller = owner.map(|owner| {
        let group = text(owner, "/apiVersion").split_once('/').map_or(String::new(), |(group, _)| format!(".{group}"));
        format!("{}{group}/{}", text(owner, "/kind").to_lowercase(), text(owner, "/name"))
    });
    vec![name(object), controller.unwrap_or_else(|| "<none>".into()).into(), count(object, "/revision"), age(object, now)]
}

pub fn service(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<_> = list(object, "/spec/ports").iter().map(service_port).collect();
    vec![
        name(object),
        text(object, "/spec/type").into(),
        or(text(object, "/spec/clusterIP"), "<none>").into(),
        external_address(object).into(),
        or(&ports.join(","), "<none>").into(),
        age(object, now),
        labels(object, "/spec/selector").into(),
    ]
}

fn service_port(port: &Value) -> String {
    let (number, protocol) = (count(port, "/port"), text(port, "/protocol"));
    match integer(port, "/nodePort").unwrap_or_default() {
        0 => format!("{number}/{protocol}"),
        node_port => format!("{number}:{node_port}/{protocol}"),
    }
}

fn external_address(object: &Value) -> String {
    let own = list(object, "/spec/externalIPs").iter().filter_map(Value::as_str);
    match text(object, "/spec/type") {
        "ClusterIP" | "NodePort" => or(&own.collect::<Vec<_>>().join(","), "<none>").into(),
        "LoadBalancer" => {
            let ingress = list(object, "/status/loadBalancer/ingress").iter();
            let mut all: Vec<_> =
                ingress.map(|ingress| or(text(ingress, "/ip"), text(ingress, "/hostname"))).filter(|address| !address.is_empty()).collect();
            all.sort_unstable();
            all.dedup();
            all.extend(own);
            or(&all.join(","), "<pending>").into()
        }
        "ExternalName" => text(object, "/spec/externalName").into(),
        _ => "<unknown>".into(),
    }
}

pub fn node(object: &Value, now: Timestamp) -> Vec<Value> {
    let address = |kind: &str| {
        let found = list(object, "/status/addresses").iter().find(|address| text(address, "/type") == kind);
        Value::from(or(found.map_or("", |address| text(address, "/address")), "<none>"))
    };
    let info = |name: &str| Value::from(or(text(object, &format!("/status/nodeInfo/{name}")), "<unknown>"));
    vec![
        name(object),
        node_status(object).into(),
        node_roles(object).into(),
        age(object, now),
        text(object, "/status/nodeInfo/kubeletVersion").into(),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

fn node_status(object: &Value) -> String {
    let ready = list(object, "/status/conditions").iter().find(|condition| text(condition, "/type") == "Ready");
    let status = match ready.map(|condition| text(condition, "/status")) {
        None => "Unknown",
        Some("True") => "Ready",
        Some(_) => "NotReady",
    };
    if truth(object, "/spec/unschedulable") { format!("{status},SchedulingDisabled") } else { status.into() }
}

fn node_roles(object: &Value) -> String {
    let mut roles: Vec<_> = map(object, "/metadata/labels")
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.as_str() {
            "kubernetes.io/role" => value.as_str(),
            key => key.strip_prefix("node-role.kubernetes.io/"),
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    or(&roles.join(","), "<none>").into()
}

pub fn event(object: &Value, now: Timestamp) -> Vec<Value> {
    let time = |pointers: &[&str]| {
        let set = pointers.iter().find(|pointer| !text(object, pointer).is_empty());
        set.map_or_else(|| "<unknown>".into(), |pointer| since(object, pointer, now))
    };
    let first = time(&["/firstTimestamp", "/eventTime"]);
    let last = time(&["/series/lastObservedTime", "/lastTimestamp", "/firstTimestamp", "/eventTime"]);
    let times = integer(object, "/series/count").or(integer(object, "/count")).filter(|count| *count > 0).unwrap_or(1);
    let kind = text(object, "/involvedObject/kind").to_lowercase();
    let about = match text(object, "/involvedObject/name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let component = or(text(object, "/source/component"), text(object, "/reportingComponent"));
    let source = match or(text(object, "/source/host"), text(object, "/reportingInstance")) {
        "" => component.into(),
        instance => format!("{component}, {instance}"),
    };
    vec![
        last.into(),
        text(object, "/type").into(),
        text(object, "/reason").into(),
        about.into(),
        text(object, "/involvedObject/fieldPath").into(),
        source.into(),
        text(object, "/message").trim().into(),
        first.into(),
        times.into(),
        name(object),
    ]
}

fn access_modes(modes: &[Value]) -> String {
    let has = |mode: &str| modes.iter().any(|given| given == mode);
    let short = [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    short.iter().filter(|(mode, _)| has(mode)).map(|(_, short)| *short).collect::<Vec<_>>().join(",")
}

/// A quantity may have been written as a number.
fn quantity(object: &Value, pointer: &str) -> String {
    match object.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    }
}

fn phase(object: &Value) -> Value {
    if object.pointer("/metadata/deletionTimestamp").is_some() { "Terminating".into() } else { text(object, "/status/phase").into() }
}

/// The class's old annotation still counts, as upstream.
fn storage_class_name(object: &Value) -> &str {
    let annotation =
        map(object, "/metadata/annotations").map_or("", |annotations| field(annotations, "volume.beta.kubernetes.io/storage-class"));
    or(annotation, text(object, "/spec/storageClassName"))
}

pub fn persistent_volume(object: &Value, now: Timestamp) -> Vec<Value> {
    let claim = match text(object, "/spec/claimRef/name") {
        "" => String::new(),
        name => format!("{}/{name}", text(object, "/spec/claimRef/namespace")),
    };
    vec![
        name(object),
        quantity(object, "/spec/capacity/storage").into(),
        access_modes(list(object, "/spec/accessModes")).into(),
        text(object, "/spec/persistentVolumeReclaimPolicy").into(),
        phase(object),
        claim.into(),
        storage_class_name(object).into(),
        or(text(object, "/spec/volumeAttributesClassName"), "<unset>").into(),
        text(object, "/status/reason").into(),
        age(object, now),
        or(text(object, "/spec/volumeMode"), "<unset>").into(),
    ]
}

pub fn claim(object: &Value, now: Timestamp) -> Vec<Value> {
    let volume = text(object, "/spec/volumeName");
    let (capacity, modes) = match volume {
        "" => (String::new(), String::new()),
        _ => (quantity(object, "/status/capacity/storage"), access_modes(list(object, "/status/accessModes"))),
    };
    vec![
        name(object),
        phase(object),
        volume.into(),
        capacity.into(),
        modes.into(),
        storage_class_name(object).into(),
        or(text(object, "/spec/volumeAttributesClassName"), "<unset>").into(),
        age(object, now),
        or(text(object, "/spec/volumeMode"), "<unset>").into(),
    ]
}

pub fn storage_class(object: &Value, now: Timestamp) -> Vec<Value> {
    let annotations = map(object, "/metadata/annotations");
    let default = ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"]
        .iter()
        .any(|key| annotations.is_some_and(|annotations| field(annotations, key) == "true"));
    let shown = text(object, "/metadata/name");
    vec![
        if default { format!("{shown} (default)").into() } else { shown.into() },
        text(object, "/provisioner").into(),
        or(text(object, "/reclaimPolicy"), "Delete").into(),
        or(text(object, "/volumeBindingMode"), "Immediate").into(),
        truth(object, "/allowVolumeExpansion").into(),
        age(object, now),
    ]
}

/// The first three of many, as upstream: `a,b,c + 2 more...`.
fn first_three(all: &[String]) -> String {
    match all {
        [] => "<unset>".into(),
        all if all.len() > 3 => format!("{} + {} more...", all[..3].join(","), all.len() - 3),
        all => all.join(","),
    }
}

pub fn endpoint_slice(object: &Value, now: Timestamp) -> Vec<Value> {
    let port = |port: &Value| match (integer(port, "/port"), port.get("name").and_then(Value::as_str)) {
        (Some(number), _) => number.to_string(),
        (None, Some(name)) => name.into(),
        (None, None) => "*".into(),
    };
    let ports: Vec<_> = list(object, "/ports").iter().map(port).collect();
    let endpoints = list(object, "/endpoints").iter();
    let addresses: Vec<_> =
        endpoints.flat_map(|endpoint| list(endpoint, "/addresses")).filter_map(|address| address.as_str().map(String::from)).collect();
    vec![name(object), text(object, "/addressType").into(), first_three(&ports).into(), first_three(&addresses).into(), age(object, now)]
}

/// `Ready` is the condition of that name, as the loop in the cluster reports it.
pub fn blueprint(object: &Value, now: Timestamp) -> Vec<Value> {
    let machines: i64 = list(object, "/spec/machines").iter().filter_map(|group| integer(group, "/count")).sum();
    let ready = list(object, "/status/conditions").iter().find(|condition| text(condition, "/type") == "Ready");
    let ready = ready.map_or("Unknown", |condition| text(condition, "/status"));
    vec![name(object), text(object, "/spec/provider").into(), json!(machines), ready.into(), age(object, now)]
}

#[cfg(test)]
mod tests {
    use super::super::tests::check;
    use super::*;

    fn metadata() -> Value {
        json!({"name": "x", "creationTimestamp": "2026-11-23T11:57:00Z"})
    }

    #[test]
    fn workloads_show_their_counts() {
        let template = json!({"spec": {"nodeSelector": {"disk": "ssd"}, "containers": [{"name": "a", "image": "a:1"}, {"name": "b", "image": "b:1"}]}});
        let selector = json!({"matchLabels": {"app": "x"}, "matchExpressions": [{"key": "tier", "operator": "In", "values": ["b", "a"]}]});
        let spec = json!({"replicas": 3, "template": template, "selector": selector});
        check(
            "apps",
            "Deployment",
            "Name | Ready | Up-to-date | Available | Age | Containers | Images | Selector",
            json!({"metadata": metadata(), "spec": spec, "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2}}),
            "x | 2/3 | 3 | 2 | 3m | a,b | a:1,b:1 | app=x,tier in (a,b)",
        );
        check(
            "apps",
            "ReplicaSet",
            "Name | Desired | Current | Ready | Age | Containers | Images | Selector",
            json!({"metadata": metadata(), "spec": spec, "status": {"replicas": 3, "readyReplicas": 1}}),
            "x | 3 | 3 | 1 | 3m | a,b | a:1,b:1 | app=x,tier in (a,b)",
        );
        check(
            "apps",
            "DaemonSet",
            "Name | Desired | Current | Ready | Up-to-date | Available | Node Selector | Age | Containers | Images | Selector",
            json!({"metadata": metadata(), "spec": spec, "status": {"desiredNumberScheduled": 2, "currentNumberScheduled": 2, "numberReady": 1, "numberAvailable": 1}}),
            "x | 2 | 2 | 1 | 0 | 1 | disk=ssd | 3m | a,b | a:1,b:1 | app=x,tier in (a,b)",
        );
    }

    #[test]
    fn services_show_where_they_are_reached() {
        let header = "Name | Type | Cluster-IP | External-IP | Port(s) | Age | Selector";
        let service = |spec: Value, status: Value| json!({"metadata": metadata(), "spec": spec, "status": status});
        check(
            "",
            "Service",
            header,
            service(json!({"type": "ClusterIP", "clusterIP": "10.96.0.1", "ports": [{"port": 443, "protocol": "TCP"}]}), json!({})),
            "x | ClusterIP | 10.96.0.1 | <none> | 443/TCP | 3m | <none>",
        );
        let balanced = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.2", "selector": {"app": "web"},
            "ports": [{"port": 80, "nodePort": 32000, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]});
        check(
            "",
            "Service",
            header,
            service(balanced.clone(), json!({})),
            "x | LoadBalancer | 10.96.0.2 | <pending> | 80:32000/TCP,53/UDP | 3m | app=web",
        );
        check(
            "",
            "Service",
            header,
            service(balanced, json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}, {"hostname": "a.example"}]}})),
            "x | LoadBalancer | 10.96.0.2 | 192.0.2.9,a.example | 80:32000/TCP,53/UDP | 3m | app=web",
        );
        check(
            "",
            "Service",
            header,
            service(json!({"type": "ExternalName", "externalName": "example.com"}), json!({})),
            "x | ExternalName | <none> | example.com | <none> | 3m | <none>",
        );
    }

    #[test]
    fn nodes_show_readiness_roles_and_addresses() {
        let node = json!({
            "metadata": {"name": "control-1", "labels": {"node-role.kubernetes.io/control-plane": "", "node-role.kubernetes.io/": ""}},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": "10.0.0.2"}],
                "nodeInfo": {"kubeletVersion": "v1.33.0+kprov", "osImage": "Debian GNU/Linux 12", "kernelVersion": "6.18"}}
        });
        check(
            "",
            "Node",
            "Name | Status | Roles | Age | Version | Internal-IP | External-IP | OS-Image | Kernel-Version | Container-Runtime",
            node,
            "control-1 | Ready,SchedulingDisabled | control-plane | <unknown> | v1.33.0+kprov | 10.0.0.2 | <none> | Debian GNU/Linux 12 | 6.18 | <unknown>",
        );
    }

    #[test]
    fn volumes_show_what_binds_them() {
        check(
            "",
            "PersistentVolume",
            "Name | Capacity | Access Modes | Reclaim Policy | Status | Claim | StorageClass | VolumeAttributesClass | Reason | Age | VolumeMode",
            json!({"metadata": metadata(), "spec": {"capacity": {"storage": "5Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain", "claimRef": {"namespace": "shop", "name": "media"}, "storageClassName": "media", "volumeMode": "Filesystem"},
                "status": {"phase": "Bound"}}),
            "x | 5Gi | RWO,RWX | Retain | Bound | shop/media | media | <unset> |  | 3m | Filesystem",
        );
        let header = "Name | Status | Volume | Capacity | Access Modes | StorageClass | VolumeAttributesClass | Age | VolumeMode";
        let claim = json!({"metadata": metadata(), "spec": {"storageClassName": "media", "volumeMode": "Filesystem"}, "status": {"phase": "Pending", "capacity": {"storage": "5Gi"}}});
        check("", "PersistentVolumeClaim", header, claim.clone(), "x | Pending |  |  |  | media | <unset> | 3m | Filesystem");
        let mut bound = claim;
        bound["spec"]["volumeName"] = "pv-1".into();
        bound["status"] = json!({"phase": "Bound", "capacity": {"storage": "5Gi"}, "accessModes": ["ReadWriteMany"]});
        check("", "PersistentVolumeClaim", header, bound, "x | Bound | pv-1 | 5Gi | RWX | media | <unset> | 3m | Filesystem");
        check(
            "storage.k8s.io",
            "StorageClass",
            "Name | Provisioner | ReclaimPolicy | VolumeBindingMode | AllowVolumeExpansion | Age",
            json!({"metadata": {"name": "media", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "kprov.dev/filesystem"}),
            "media (default) | kprov.dev/filesystem | Delete | Immediate | false | <unknown>",
        );
    }

    #[test]
    fn events_tell_when_what_and_about_what() {
        let header = "Last Seen | Type | Reason | Object | Subobject | Source | Message | First Seen | Count | Name";
        check(
            "",
            "Event",
            header,
            json!({"metadata": metadata(), "type": "Normal", "reason": "Started", "message": " Started container \n", "count": 3,
                "involvedObject": {"kind": "Pod", "name": "web", "fieldPath": "spec.containers{a}"}, "source": {"component": "kubelet", "host": "worker-1"},
                "firstTimestamp": "2026-11-23T11:50:00Z", "lastTimestamp": "2026-11-23T11:59:50Z"}),
            "10s | Normal | Started | pod/web | spec.containers{a} | kubelet, worker-1 | Started container | 10m | 3 | x",
        );
        check(
            "",
            "Event",
            header,
            json!({"metadata": metadata(), "type": "Warning", "reason": "FailedScheduling", "message": "no nodes", "eventTime": "2026-11-23T11:59:00.000000Z",
                "involvedObject": {"kind": "Pod", "name": "web"}, "reportingComponent": "kprov", "reportingInstance": "i"}),
            "60s | Warning | FailedScheduling | pod/web |  | kprov, i | no nodes | 60s | 1 | x",
        );
    }

    #[test]
    fn slices_show_three_of_many() {
        check(
            "discovery.k8s.io",
            "EndpointSlice",
            "Name | AddressType | Ports | Endpoints | Age",
            json!({"metadata": metadata(), "addressType": "IPv4", "ports": [{"port": 80}, {"name": "dns"}],
                "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}, {"addresses": ["10.0.0.3"]}, {"addresses": ["10.0.0.4"]}]}),
            "x | IPv4 | 80,dns | 10.0.0.1,10.0.0.2,10.0.0.3 + 1 more... | 3m",
        );
        check(
            "discovery.k8s.io",
            "EndpointSlice",
            "Name | AddressType | Ports | Endpoints | Age",
            json!({"metadata": metadata()}),
            "x |  | <unset> | <unset> | 3m",
        );
    }

    #[test]
    fn small_kinds_are_counted() {
        check(
            "",
            "ConfigMap",
            "Name | Data | Age",
            json!({"metadata": metadata(), "data": {"a": ""}, "binaryData": {"b": ""}}),
            "x | 2 | 3m",
        );
        check(
            "",
            "Secret",
            "Name | Type | Data | Age",
            json!({"metadata": metadata(), "type": "Opaque", "data": {"a": ""}}),
            "x | Opaque | 1 | 3m",
        );
        check("", "ServiceAccount", "Name | Secrets | Age", json!({"metadata": metadata()}), "x | 0 | 3m");
        check("", "Namespace", "Name | Status | Age", json!({"metadata": metadata(), "status": {"phase": "Active"}}), "x | Active | 3m");
        check(
            "coordination.k8s.io",
            "Lease",
            "Name | Holder | Age",
            json!({"metadata": metadata(), "spec": {"holderIdentity": "worker-1"}}),
            "x | worker-1 | 3m",
        );
        check(
            "apps",
            "ControllerRevision",
            "Name | Controller | Revision | Age",
            json!({"metadata": {"name": "x", "ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "controller": true}]}, "revision": 2}),
            "x | daemonset.apps/d | 2 | <unknown>",
        );
        check(
            "kprov.dev",
            "Blueprint",
            "Name | Provider | Machines | Ready | Age",
            json!({"metadata": metadata(), "spec": {"provider": "local", "machines": [{"count": 1}, {"count": 2}]}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
            "x | local | 3 | True | 3m",
        );
    }
}
