//! How lists of the built-in types are merged: the one table behind strategic merge, OpenAPI's `x-kubernetes-*` marks and field
//! ownership. Taken from the `patchStrategy`, `patchMergeKey`, `listType` and `listMapKey` marks of `k8s.io/api` v0.33.

/// One field's rule. Lists without a row are replaced as a whole.
#[derive(Debug, PartialEq, Eq)]
pub struct MergeRule {
    /// The type's name without `io.k8s.api.` or `io.k8s.apimachinery.pkg.apis.`.
    pub of: &'static str,
    pub field: &'static str,
    /// Strategic merge: `merge`, `retainKeys`, `merge,retainKeys`, or empty for replacement.
    pub patch: &'static str,
    /// Strategic merge: what identifies an element; empty for lists of plain values.
    pub merge_key: &'static str,
    /// Apply: `map`, `set`, `atomic`, or empty for fields that are no list.
    pub list: &'static str,
    /// Apply: what identifies an element of a `map` list.
    pub map_keys: &'static [&'static str],
}

impl MergeRule {
    pub fn merges(&self) -> bool {
        self.patch.split(',').any(|word| word == "merge")
    }
    pub fn retains_keys(&self) -> bool {
        self.patch.split(',').any(|word| word == "retainKeys")
    }
}

pub fn rule(type_name: &str, field: &str) -> Option<&'static MergeRule> {
    let short =
        type_name.strip_prefix("io.k8s.api.").or_else(|| type_name.strip_prefix("io.k8s.apimachinery.pkg.apis.")).unwrap_or(type_name);
    RULES.iter().find(|rule| rule.of == short && rule.field == field)
}

const fn merged(of: &'static str, field: &'static str, merge_key: &'static str, map_keys: &'static [&'static str]) -> MergeRule {
    MergeRule { of, field, patch: "merge", merge_key, list: "map", map_keys }
}
const fn retained(of: &'static str, field: &'static str) -> MergeRule {
    MergeRule { of, field, patch: "merge,retainKeys", merge_key: "name", list: "map", map_keys: &["name"] }
}
const fn set(of: &'static str, field: &'static str, patch: &'static str) -> MergeRule {
    MergeRule { of, field, patch, merge_key: "", list: "set", map_keys: &[] }
}
/// Replaced by strategic merge, but owned element by element by apply.
const fn owned(of: &'static str, field: &'static str, map_keys: &'static [&'static str]) -> MergeRule {
    MergeRule { of, field, patch: "", merge_key: "", list: "map", map_keys }
}

const PORTS: &[&str] = &["containerPort", "protocol"];

const RULES: &[MergeRule] = &[
    merged("meta.v1.ObjectMeta", "ownerReferences", "uid", &["uid"]),
    set("meta.v1.ObjectMeta", "finalizers", "merge"),
    retained("core.v1.PodSpec", "volumes"),
    merged("core.v1.PodSpec", "initContainers", "name", &["name"]),
    merged("core.v1.PodSpec", "containers", "name", &["name"]),
    merged("core.v1.PodSpec", "ephemeralContainers", "name", &["name"]),
    merged("core.v1.PodSpec", "imagePullSecrets", "name", &["name"]),
    merged("core.v1.PodSpec", "hostAliases", "ip", &["ip"]),
    merged("core.v1.PodSpec", "topologySpreadConstraints", "topologyKey", &["topologyKey", "whenUnsatisfiable"]),
    merged("core.v1.PodSpec", "schedulingGates", "name", &["name"]),
    retained("core.v1.PodSpec", "resourceClaims"),
    merged("core.v1.Container", "ports", "containerPort", PORTS),
    merged("core.v1.Container", "env", "name", &["name"]),
    merged("core.v1.Container", "volumeMounts", "mountPath", &["mountPath"]),
    merged("core.v1.Container", "volumeDevices", "devicePath", &["devicePath"]),
    merged("core.v1.EphemeralContainer", "ports", "containerPort", PORTS),
    merged("core.v1.EphemeralContainer", "env", "name", &["name"]),
    merged("core.v1.EphemeralContainer", "volumeMounts", "mountPath", &["mountPath"]),
    merged("core.v1.EphemeralContainer", "volumeDevices", "devicePath", &["devicePath"]),
    owned("core.v1.ResourceRequirements", "claims", &["name"]),
    merged("core.v1.ContainerStatus", "volumeMounts", "mountPath", &["mountPath"]),
    merged("core.v1.ContainerStatus", "allocatedResourcesStatus", "name", &["name"]),
    owned("core.v1.ResourceStatus", "resources", &["resourceID"]),
    merged("core.v1.PodStatus", "conditions", "type", &["type"]),
    MergeRule { of: "core.v1.PodStatus", field: "hostIPs", patch: "merge", merge_key: "ip", list: "atomic", map_keys: &[] },
    merged("core.v1.PodStatus", "podIPs", "ip", &["ip"]),
    retained("core.v1.PodStatus", "resourceClaimStatuses"),
    merged("core.v1.ServiceSpec", "ports", "port", &["port", "protocol"]),
    merged("core.v1.ServiceStatus", "conditions", "type", &["type"]),
    merged("core.v1.ServiceAccount", "secrets", "name", &["name"]),
    set("core.v1.NodeSpec", "podCIDRs", "merge"),
    merged("core.v1.NodeStatus", "conditions", "type", &["type"]),
    merged("core.v1.NodeStatus", "addresses", "type", &["type"]),
    merged("core.v1.NamespaceStatus", "conditions", "type", &["type"]),
    merged("core.v1.PersistentVolumeClaimStatus", "conditions", "type", &["type"]),
    MergeRule { of: "apps.v1.DeploymentSpec", field: "strategy", patch: "retainKeys", merge_key: "", list: "", map_keys: &[] },
    merged("apps.v1.DeploymentStatus", "conditions", "type", &["type"]),
    merged("apps.v1.DaemonSetStatus", "conditions", "type", &["type"]),
    merged("apps.v1.ReplicaSetStatus", "conditions", "type", &["type"]),
    set("discovery.v1.Endpoint", "addresses", ""),
];

/// Types whose objects are owned and replaced as a whole by apply (`structType=atomic`, `mapType=atomic`).
const ATOMIC_TYPES: &[&str] = &[
    "core.v1.ConfigMapKeySelector",
    "core.v1.LocalObjectReference",
    "core.v1.NodeSelector",
    "core.v1.NodeSelectorTerm",
    "core.v1.ObjectFieldSelector",
    "core.v1.ObjectReference",
    "core.v1.ResourceFieldSelector",
    "core.v1.SecretKeySelector",
    "core.v1.SecretReference",
    "core.v1.TopologySelectorTerm",
    "core.v1.TypedLocalObjectReference",
    "meta.v1.LabelSelector",
    "meta.v1.OwnerReference",
];

/// Maps of a struct that are owned and replaced as a whole by apply.
const ATOMIC_MAPS: &[(&str, &str)] = &[("core.v1.PodSpec", "nodeSelector"), ("core.v1.ServiceSpec", "selector")];

pub fn is_atomic_type(type_name: &str) -> bool {
    ATOMIC_TYPES.iter().any(|atomic| type_name.strip_suffix(atomic).is_some_and(|start| start.ends_with('.')))
}

pub fn is_atomic_map(type_name: &str, field: &str) -> bool {
    ATOMIC_MAPS.iter().any(|(of, name)| *name == field && type_name.strip_suffix(of).is_some_and(|start| start.ends_with('.')))
}

#[cfg(test)]
pub fn count() -> usize {
    RULES.len()
}
