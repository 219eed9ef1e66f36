//! What every new pod gets: a service account with its token volume, tolerations of a node's short absence, a priority.

use super::super::kinds::taints::{NOT_READY, UNREACHABLE};
use super::super::object::{self, part_mut, random_suffix, text};
use super::super::server::Call;
use super::super::status::{Answer, Status};
use super::super::tokens::find;
use serde_json::{Value, json};

const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Upstream's odd number marks a token the system asked for, not a person.
const TOKEN_SECONDS: u32 = 3607;

pub fn create(call: &Call, pod: &mut Value) -> Answer<()> {
    service_account(call, pod)?;
    tolerations(call, pod);
    priority(call, pod)
}

fn service_account(call: &Call, pod: &mut Value) -> Answer<()> {
    let namespace = &call.target.namespace;
    let given = text(pod, "spec", "serviceAccountName").to_owned();
    let name = if given.is_empty() { "default".to_owned() } else { given };
    let refuse = || {
        let why = format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found");
        Status::forbidden("", "pods", object::meta(pod, "name"), &why)
    };
    let account = find(call.server, "serviceaccounts", namespace, &name).ok_or_else(refuse)?;
    let account = object::decode(&account)?;
    let spec = part_mut(pod, "spec");
    spec.insert("serviceAccountName".into(), json!(name));
    spec.insert("serviceAccount".into(), json!(name));
    let pulls = account.get("imagePullSecrets").filter(|list| list.as_array().is_some_and(|list| !list.is_empty()));
    if let Some(pulls) = pulls
        && spec.get("imagePullSecrets").and_then(Value::as_array).is_none_or(Vec::is_empty)
    {
        spec.insert("imagePullSecrets".into(), pulls.clone());
    }
    let automount = |object: Option<&Value>| object.and_then(Value::as_bool);
    let wanted = automount(spec.get("automountServiceAccountToken")).or_else(|| automount(account.get("automountServiceAccountToken")));
    if wanted.unwrap_or(true) {
        mount_token(spec);
    }
    Ok(())
}

/// The projected volume `kube-api-access-xxxxx`, in each container that mounts nothing at the place itself.
fn mount_token(spec: &mut serde_json::Map<String, Value>) {
    let volume = format!("kube-api-access-{}", random_suffix());
    let mut used = false;
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(container) = container.as_object_mut() else { continue };
            let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
            let Some(mounts) = mounts.as_array_mut() else { continue };
            if mounts.iter().any(|mount| mount.get("mountPath").and_then(Value::as_str) == Some(TOKEN_PATH)) {
                continue;
            }
            mounts.push(json!({"name": volume, "readOnly": true, "mountPath": TOKEN_PATH}));
            used = true;
        }
    }
    if used && let Some(volumes) = spec.entry("volumes").or_insert_with(|| json!([])).as_array_mut() {
        volumes.push(token_volume(&volume));
    }
}

fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}})
}

/// Upstream's DefaultTolerationSeconds, with the cluster's own patience.
fn tolerations(call: &Call, pod: &mut Value) {
    let list = part_mut(pod, "spec").entry("tolerations").or_insert_with(|| json!([]));
    let Some(list) = list.as_array_mut() else { return };
    for key in [NOT_READY, UNREACHABLE] {
        if !list.iter().any(|toleration| tolerates(toleration, key)) {
            let seconds = call.server.config.eviction_seconds;
            list.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}));
        }
    }
}

fn tolerates(toleration: &Value, key: &str) -> bool {
    let field = |name: &str| toleration.get(name).and_then(Value::as_str).unwrap_or_default();
    (field("key") == key || field("key").is_empty()) && matches!(field("effect"), "" | "NoExecute")
}

fn priority(call: &Call, pod: &mut Value) -> Answer<()> {
    let class = text(pod, "spec", "priorityClassName").to_owned();
    let priority = match class.as_str() {
        "" => 0,
        "system-cluster-critical" => 2_000_000_000,
        "system-node-critical" => 2_000_001_000,
        class => {
            let why = format!("no PriorityClass with name {class} was found");
            return Err(Status::forbidden("", &call.row.plural, object::meta(pod, "name"), &why));
        }
    };
    let spec = part_mut(pod, "spec");
    spec.insert("priority".into(), json!(priority));
    spec.entry("preemptionPolicy").or_insert_with(|| json!("PreemptLowerPriority"));
    Ok(())
}
