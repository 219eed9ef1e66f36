//! The table of all kinds: names, verbs and subresources as discovery tells them, and which optional behaviour each one has.
//! A new built-in kind is a row here (and rows in `defaults`, `validation`, `table` where it has any).

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

/// Borrowed for built-in rows, owned for rows made while running.
pub type Text = Cow<'static, str>;

/// One served kind.
#[derive(Debug, Clone, PartialEq)]
pub struct KindRow {
    /// Empty for the core group.
    pub group: Text,
    pub version: Text,
    pub kind: Text,
    pub list_kind: Text,
    pub plural: Text,
    pub singular: Text,
    pub short_names: Vec<Text>,
    pub namespaced: bool,
    pub categories: Vec<Text>,
    pub subresources: Vec<Subresource>,
    pub verbs: Vec<Text>,
    /// False for kinds that are only computed (reviews): `create` answers at once and nothing is kept.
    pub stored: bool,
    /// `status` is the system's part: reset on create, kept on update, changed through the `status` subresource alone.
    pub has_status: bool,
    /// `metadata.generation` counts changes of the wanted state.
    pub has_generation: bool,
    /// The schema's name, such as `io.k8s.api.apps.v1.Deployment`; none for kinds that accept any fields.
    pub schema: Option<Text>,
}

/// A part of an object with an address of its own, such as `pods/status`.
#[derive(Debug, Clone, PartialEq)]
pub struct Subresource {
    pub name: Text,
    /// The kind it speaks, which may differ from its parent's (`Scale`, `Eviction`).
    pub group: Text,
    pub version: Text,
    pub kind: Text,
    pub verbs: Vec<Text>,
}

impl KindRow {
    /// `apps/v1`, or `v1` in the core group.
    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }
    /// `deployments.apps`, or `pods` in the core group: how messages name a resource.
    pub fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_string() } else { format!("{}.{}", self.plural, self.group) }
    }
    /// `Deployment.apps`, or `Pod` in the core group: how messages name a kind.
    pub fn group_kind(&self) -> String {
        if self.group.is_empty() { self.kind.to_string() } else { format!("{}.{}", self.kind, self.group) }
    }
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|subresource| subresource.name == name)
    }
    pub fn allows(&self, verb: &str) -> bool {
        self.verbs.iter().any(|allowed| allowed == verb)
    }
    /// True for the built-in kind of this group and name.
    pub fn is(&self, group: &str, kind: &str) -> bool {
        self.group == group && self.kind == kind
    }
}

/// `group/version`, or the version alone in the core group.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_string() } else { format!("{group}/{version}") }
}

/// All rows, found by their address or by their kind. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registry {
    rows: Vec<Arc<KindRow>>,
    by_resource: HashMap<(Text, Text, Text), Arc<KindRow>>,
    by_kind: HashMap<(Text, Text, Text), Arc<KindRow>>,
}

impl Registry {
    /// The kinds that are compiled in.
    pub fn builtin() -> &'static Registry {
        static BUILTIN: LazyLock<Registry> = LazyLock::new(|| Registry::new(BUILTINS.iter().map(Builtin::row)));
        &BUILTIN
    }
    pub fn new(rows: impl IntoIterator<Item = KindRow>) -> Registry {
        let rows: Vec<_> = rows.into_iter().map(Arc::new).collect();
        let key = |row: &KindRow, last: &Text| (row.group.clone(), row.version.clone(), last.clone());
        Registry {
            by_resource: rows.iter().map(|row| (key(row, &row.plural), row.clone())).collect(),
            by_kind: rows.iter().map(|row| (key(row, &row.kind), row.clone())).collect(),
            rows,
        }
    }
    /// By address: `find("apps", "v1", "deployments")`.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<KindRow>> {
        find(&self.by_resource, group, version, plural)
    }
    /// By kind: `find_kind("apps", "v1", "Deployment")`.
    pub fn find_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<KindRow>> {
        find(&self.by_kind, group, version, kind)
    }
    /// In the order discovery lists them.
    pub fn all(&self) -> &[Arc<KindRow>] {
        &self.rows
    }
    /// Every `(group, version)`, in the order discovery lists them.
    pub fn group_versions(&self) -> Vec<(Text, Text)> {
        let mut seen = Vec::new();
        for row in &self.rows {
            let pair = (row.group.clone(), row.version.clone());
            if !seen.contains(&pair) {
                seen.push(pair);
            }
        }
        seen
    }
}

fn find<'a>(index: &'a HashMap<(Text, Text, Text), Arc<KindRow>>, group: &str, version: &str, last: &str) -> Option<&'a Arc<KindRow>> {
    // The key type owns its parts for custom rows; three short copies per request are cheaper than a second index.
    index.get(&(Text::Owned(group.into()), Text::Owned(version.into()), Text::Owned(last.into())))
}

/// A row of the compiled-in table, as it is written below.
struct Builtin {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    scope: Scope,
    /// `all` where `kubectl get all` shows it.
    categories: &'static [&'static str],
    shape: Shape,
    subresources: &'static [Sub],
    schema: &'static str,
}

#[derive(Clone, Copy, PartialEq)]
enum Scope {
    Cluster,
    Namespaced,
}

/// What a kind's objects are like.
#[derive(Clone, Copy, PartialEq)]
enum Shape {
    /// Plain data.
    Data,
    /// Plain data whose changes are counted.
    Counted,
    /// Data with a status.
    Status,
    /// A wanted state whose changes are counted, and a status.
    Wanted,
    /// Computed on create, never kept.
    Review,
    /// Created through a subresource of another kind only; known so that its bodies can be read.
    Body,
}

/// (name, group, version, kind, verbs); an empty kind is the parent's.
type Sub = (&'static str, &'static str, &'static str, &'static str, &'static [&'static str]);

const STATUS: Sub = ("status", "", "", "", &["get", "patch", "update"]);
const SCALE: Sub = ("scale", "autoscaling", "v1", "Scale", &["get", "patch", "update"]);
const ALL_VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
/// Namespaces are emptied one by one, so there is no `deletecollection`.
const NAMESPACE_VERBS: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];

macro_rules! row {
    ($group:literal $version:literal $kind:literal $plural:literal $short:expr, $scope:ident, $categories:expr, $shape:ident, $subresources:expr, $schema:literal) => {
        Builtin {
            group: $group,
            version: $version,
            kind: $kind,
            plural: $plural,
            short: &$short,
            scope: Scope::$scope,
            categories: &$categories,
            shape: Shape::$shape,
            subresources: &$subresources,
            schema: $schema,
        }
    };
}

/// The table. `events.k8s.io/v1` is not served: events are kept and shown as core `v1`, which kubectl reads.
const BUILTINS: &[Builtin] = &[
    row!("" "v1" "Binding" "bindings" [], Namespaced, [], Body, [], "io.k8s.api.core.v1.Binding"),
    row!("" "v1" "ConfigMap" "configmaps" ["cm"], Namespaced, [], Data, [], "io.k8s.api.core.v1.ConfigMap"),
    row!("" "v1" "Event" "events" ["ev"], Namespaced, [], Data, [], "io.k8s.api.core.v1.Event"),
    row!("" "v1" "Namespace" "namespaces" ["ns"], Cluster, [], Status, [("finalize", "", "", "", &["update"]), STATUS], "io.k8s.api.core.v1.Namespace"),
    row!("" "v1" "Node" "nodes" ["no"], Cluster, [], Status, [STATUS], "io.k8s.api.core.v1.Node"),
    row!("" "v1" "PersistentVolumeClaim" "persistentvolumeclaims" ["pvc"], Namespaced, [], Status, [STATUS], "io.k8s.api.core.v1.PersistentVolumeClaim"),
    row!("" "v1" "PersistentVolume" "persistentvolumes" ["pv"], Cluster, [], Status, [STATUS], "io.k8s.api.core.v1.PersistentVolume"),
    row!("" "v1" "Pod" "pods" ["po"], Namespaced, ["all"], Wanted, [
        ("attach", "", "v1", "PodAttachOptions", &["create", "get"]),
        ("binding", "", "v1", "Binding", &["create"]),
        ("eviction", "policy", "v1", "Eviction", &["create"]),
        ("exec", "", "v1", "PodExecOptions", &["create", "get"]),
        ("log", "", "", "", &["get"]),
        ("portforward", "", "v1", "PodPortForwardOptions", &["create", "get"]),
        STATUS
    ], "io.k8s.api.core.v1.Pod"),
    row!("" "v1" "Secret" "secrets" [], Namespaced, [], Data, [], "io.k8s.api.core.v1.Secret"),
    row!("" "v1" "ServiceAccount" "serviceaccounts" ["sa"], Namespaced, [], Data, [
        ("token", "authentication.k8s.io", "v1", "TokenRequest", &["create"])
    ], "io.k8s.api.core.v1.ServiceAccount"),
    row!("" "v1" "Service" "services" ["svc"], Namespaced, ["all"], Status, [STATUS], "io.k8s.api.core.v1.Service"),
    row!("apps" "v1" "ControllerRevision" "controllerrevisions" [], Namespaced, [], Data, [], "io.k8s.api.apps.v1.ControllerRevision"),
    row!("apps" "v1" "DaemonSet" "daemonsets" ["ds"], Namespaced, ["all"], Wanted, [STATUS], "io.k8s.api.apps.v1.DaemonSet"),
    row!("apps" "v1" "Deployment" "deployments" ["deploy"], Namespaced, ["all"], Wanted, [SCALE, STATUS], "io.k8s.api.apps.v1.Deployment"),
    row!("apps" "v1" "ReplicaSet" "replicasets" ["rs"], Namespaced, ["all"], Wanted, [SCALE, STATUS], "io.k8s.api.apps.v1.ReplicaSet"),
    row!("authentication.k8s.io" "v1" "SelfSubjectReview" "selfsubjectreviews" [], Cluster, [], Review, [], "io.k8s.api.authentication.v1.SelfSubjectReview"),
    row!("authentication.k8s.io" "v1" "TokenRequest" "tokenrequests" [], Namespaced, [], Body, [], "io.k8s.api.authentication.v1.TokenRequest"),
    row!("authorization.k8s.io" "v1" "SelfSubjectAccessReview" "selfsubjectaccessreviews" [], Cluster, [], Review, [], "io.k8s.api.authorization.v1.SelfSubjectAccessReview"),
    row!("autoscaling" "v1" "Scale" "scales" [], Namespaced, [], Body, [], "io.k8s.api.autoscaling.v1.Scale"),
    row!("coordination.k8s.io" "v1" "Lease" "leases" [], Namespaced, [], Data, [], "io.k8s.api.coordination.v1.Lease"),
    row!("discovery.k8s.io" "v1" "EndpointSlice" "endpointslices" [], Namespaced, [], Counted, [], "io.k8s.api.discovery.v1.EndpointSlice"),
    row!("policy" "v1" "Eviction" "evictions" [], Namespaced, [], Body, [], "io.k8s.api.policy.v1.Eviction"),
    row!("storage.k8s.io" "v1" "StorageClass" "storageclasses" ["sc"], Cluster, [], Data, [], "io.k8s.api.storage.v1.StorageClass"),
    row!("kprov.dev" "v1" "Blueprint" "blueprints" ["bp"], Cluster, [], Wanted, [STATUS], ""),
];

impl Builtin {
    fn row(&self) -> KindRow {
        let verbs = match self.shape {
            Shape::Review => &["create"],
            Shape::Body => &[] as &[&str],
            _ if self.kind == "Namespace" => NAMESPACE_VERBS,
            _ => ALL_VERBS,
        };
        KindRow {
            group: self.group.into(),
            version: self.version.into(),
            kind: self.kind.into(),
            list_kind: format!("{}List", self.kind).into(),
            plural: self.plural.into(),
            singular: self.kind.to_ascii_lowercase().into(),
            short_names: texts(self.short),
            namespaced: self.scope == Scope::Namespaced,
            categories: texts(self.categories),
            subresources: self.subresources.iter().map(|sub| self.subresource(sub)).collect(),
            verbs: texts(verbs),
            stored: !matches!(self.shape, Shape::Review | Shape::Body),
            has_status: matches!(self.shape, Shape::Status | Shape::Wanted),
            has_generation: matches!(self.shape, Shape::Counted | Shape::Wanted),
            schema: (!self.schema.is_empty()).then_some(self.schema.into()),
        }
    }
    fn subresource(&self, (name, group, version, kind, verbs): &Sub) -> Subresource {
        let (group, version, kind) = if kind.is_empty() { (&self.group, &self.version, &self.kind) } else { (group, version, kind) };
        Subresource { name: (*name).into(), group: (*group).into(), version: (*version).into(), kind: (*kind).into(), verbs: texts(verbs) }
    }
}

fn texts(words: &[&'static str]) -> Vec<Text> {
    words.iter().map(|word| Text::Borrowed(word)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_found_by_address_and_by_name() {
        let registry = Registry::builtin();
        let by_address = registry.find("apps", "v1", "deployments").expect("deployments are served");
        let by_kind = registry.find_kind("apps", "v1", "Deployment").expect("the kind is known");
        assert_eq!(by_address, by_kind);
        assert_eq!(by_address.resource(), "deployments.apps");
        assert_eq!(by_address.group_kind(), "Deployment.apps");
        assert_eq!(by_address.api_version(), "apps/v1");
        assert!(registry.find("apps", "v2", "deployments").is_none());
        assert!(registry.find("", "v1", "deployments").is_none());
    }

    #[test]
    fn subresources_speak_their_own_kind() {
        let pods = Registry::builtin().find("", "v1", "pods").expect("pods are served");
        let eviction = pods.subresource("eviction").expect("pods can be evicted");
        assert_eq!((&*eviction.group, &*eviction.version, &*eviction.kind), ("policy", "v1", "Eviction"));
        let status = pods.subresource("status").expect("pods have a status");
        assert_eq!((&*status.group, &*status.version, &*status.kind), ("", "v1", "Pod"));
    }

    #[test]
    fn no_two_rows_share_an_address_or_a_kind() {
        let registry = Registry::builtin();
        assert_eq!(registry.by_resource.len(), registry.all().len());
        assert_eq!(registry.by_kind.len(), registry.all().len());
    }
}
