//! Upstream's NodeRestriction: a node writes its own objects only, and gives itself no labels or taints that others rely on. And its
//! TaintNodesByCondition: nothing is placed on a node before it was once ready.

use super::super::kinds::taints::NOT_READY;
use super::super::object::{self, meta, part_mut, peek};
use super::super::route::Target;
use super::super::server::Call;
use super::super::status::{Answer, Status};
use super::super::tokens::find;
use serde_json::{Map, Value, json};

/// Labels under `kubernetes.io` and `k8s.io` that a node may set itself.
const OWN_LABELS: &[&str] = &[
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];

fn refuse(call: &Call, name: &str, why: &str) -> Answer<()> {
    Err(Status::forbidden(&call.row.group, &call.row.plural, name, why))
}

pub fn create(call: &Call, object: &mut Value) -> Answer<()> {
    may_create(call, object)?;
    if call.row.is("", "Node") {
        begin_not_ready(object);
    }
    Ok(())
}

/// Whoever says that the node is ready takes it away.
fn begin_not_ready(node: &mut Value) {
    let taints = part_mut(node, "spec").entry("taints").or_insert_with(|| json!([]));
    let is_it = |taint: &Value| taint["key"] == NOT_READY && taint["effect"] == "NoSchedule";
    if let Some(taints) = taints.as_array_mut()
        && !taints.iter().any(is_it)
    {
        taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
    }
}

fn may_create(call: &Call, object: &Value) -> Answer<()> {
    let Some(node) = call.user.node() else { return Ok(()) };
    let name = meta(object, "name");
    match &*call.row.plural {
        "nodes" if name != node => refuse(call, name, &format!("node {node:?} is not allowed to create node {name:?}")),
        "nodes" => labels(call, node, &Value::Null, object),
        "leases" if name != node && !name.starts_with(crate::orchestrator::network::announce::PREFIX) => {
            refuse(call, name, &format!("node {node:?} is not allowed to create lease {name:?}"))
        }
        "pods" => refuse(
            call,
            name,
            &format!("pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"),
        ),
        _ => Ok(()),
    }
}

pub fn update(call: &Call, old: &Value, new: &Value) -> Answer<()> {
    let (Some(node), name) = (call.user.node(), call.target.name.as_str()) else { return Ok(()) };
    match &*call.row.plural {
        "nodes" if name != node => refuse(call, name, &format!("node {node:?} is not allowed to modify node {name:?}")),
        "nodes" if taints(old) != taints(new) => refuse(call, name, &format!("node {node:?} is not allowed to modify taints")),
        "nodes" => labels(call, node, old, new),
        _ => Ok(()),
    }
}

pub fn delete(call: &Call, target: &Target) -> Answer<()> {
    let Some(node) = call.user.node() else { return Ok(()) };
    if call.row.plural != "pods" {
        return Ok(());
    }
    let entry = find(call.server, "pods", &target.namespace, &target.name);
    match entry {
        Some(entry) if object::text(peek(&entry), "spec", "nodeName") != node => {
            refuse(call, &target.name, &format!("node {node:?} can only delete pods with spec.nodeName set to itself"))
        }
        _ => Ok(()),
    }
}

fn taints(object: &Value) -> Option<&Value> {
    object.pointer("/spec/taints").filter(|taints| taints.as_array().is_some_and(|taints| !taints.is_empty()))
}

fn labels(call: &Call, node: &str, old: &Value, new: &Value) -> Answer<()> {
    let empty = Map::new();
    let of = |object: &'_ Value| object.pointer("/metadata/labels").and_then(Value::as_object).unwrap_or(&empty).clone();
    let (old, new) = (of(old), of(new));
    let changed = old.keys().chain(new.keys()).filter(|key| old.get(*key) != new.get(*key));
    let mut forbidden: Vec<&str> = changed.map(String::as_str).filter(|key| !may_set(key)).collect();
    forbidden.sort_unstable();
    forbidden.dedup();
    if forbidden.is_empty() {
        return Ok(());
    }
    refuse(call, node, &format!("is not allowed to modify labels: {}", forbidden.join(", ")))
}

fn may_set(label: &str) -> bool {
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    let within = |zone: &str| domain == zone || domain.ends_with(&format!(".{zone}"));
    if within("node-restriction.kubernetes.io") {
        return false;
    }
    let own = OWN_LABELS.contains(&label) || within("kubelet.kubernetes.io") || within("node.kubernetes.io");
    own || !(within("kubernetes.io") || within("k8s.io"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_node_is_not_ready_whatever_its_maker_says() {
        let check = |mut node: Value, expected: Value| {
            begin_not_ready(&mut node);
            assert_eq!(node["spec"]["taints"], expected);
        };
        let not_ready = json!({"key": NOT_READY, "effect": "NoSchedule"});
        let role = json!({"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"});
        check(json!({"metadata": {"name": "worker-1"}}), json!([not_ready]));
        check(json!({"spec": {"taints": [role]}}), json!([role, not_ready]));
        check(json!({"spec": {"taints": [not_ready]}}), json!([not_ready]));
    }

    #[test]
    fn node_may_not_claim_a_role_or_a_restriction() {
        for (label, expected) in [
            ("kubernetes.io/hostname", true),
            ("topology.kubernetes.io/zone", true),
            ("kprov.dev/role", true),
            ("plain", true),
            ("node-restriction.kubernetes.io/x", false),
            ("node-role.kubernetes.io/control-plane", false),
            ("x.k8s.io/y", false),
            ("kubelet.kubernetes.io/x", true),
        ] {
            assert_eq!(may_set(label), expected, "{label}");
        }
    }
}
