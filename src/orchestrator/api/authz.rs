//! Who may: `system:masters` everything, a node what its pods need, everybody else discovery and reviews of themselves.

use super::User;
use super::index::Index;
use super::kinds::selector::FieldSelector;
use super::object::{self, decode, meta};
use super::route::Target;
use super::server::{Query, Server};
use super::status::{Answer, Status};
use crate::orchestrator::store::{Entry, Revision};
use http::Method;
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// What is asked for, as authorisers see it.
#[derive(Debug, Clone, Default)]
pub struct Attributes {
    pub verb: String,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    /// `spec.nodeName=` of the field selector.
    pub selected_node: String,
}

impl Attributes {
    pub fn of(target: &Target, verb: &str, name: &str, query: &Query) -> Attributes {
        Attributes {
            verb: verb.into(),
            group: target.group.clone(),
            resource: target.resource.clone(),
            subresource: target.subresource.clone(),
            namespace: target.namespace.clone(),
            name: name.into(),
            selected_node: selected_node(target, query),
        }
    }
}

fn selected_node(target: &Target, query: &Query) -> String {
    let row = super::kinds::Registry::builtin().find(&target.group, &target.version, &target.resource);
    let fields = row.and_then(|row| FieldSelector::parse(row, query.text("fieldSelector")).ok());
    fields.and_then(|fields| fields.required("spec.nodeName").map(str::to_owned)).unwrap_or_default()
}

pub fn authorize(server: &Server, user: &User, asked: &Attributes) -> Answer<()> {
    decide(server, user, asked).map_err(|reason| {
        let mut why = format!("User {:?} cannot {} resource {:?} in API group {:?}", user.name, asked.verb, resource(asked), asked.group);
        why.push_str(&if asked.namespace.is_empty() {
            " at the cluster scope".to_owned()
        } else {
            format!(" in the namespace {:?}", asked.namespace)
        });
        if !reason.is_empty() {
            why.push_str(&format!(": {reason}"));
        }
        Status::forbidden(&asked.group, &asked.resource, &asked.name, &why)
    })
}

fn resource(asked: &Attributes) -> String {
    if asked.subresource.is_empty() { asked.resource.clone() } else { format!("{}/{}", asked.resource, asked.subresource) }
}

/// `Err` holds the reason, which may be empty.
pub fn decide(server: &Server, user: &User, asked: &Attributes) -> Result<(), String> {
    let own_review = matches!(&*asked.group, "authorization.k8s.io" | "authentication.k8s.io") && asked.resource.starts_with("selfsubject");
    if user.is_master() || (own_review && asked.verb == "create") {
        return Ok(());
    }
    match user.node() {
        Some(node) => node_may(server, node, asked),
        None => Err(String::new()),
    }
}

/// Documents: everybody who is somebody reads discovery; the rest is the masters'.
pub fn authorize_path(user: &User, method: &Method, path: &str) -> Answer<()> {
    if may_path(user, method.as_str(), path) {
        return Ok(());
    }
    let verb = method.as_str().to_ascii_lowercase();
    Err(Status::new(403, "Forbidden", format!("forbidden: User {:?} cannot {verb} path {path:?}", user.name)))
}

pub fn may_path(user: &User, method: &str, path: &str) -> bool {
    let open = ["/api", "/apis", "/openapi", "/version", "/healthz", "/livez", "/readyz"];
    let reads = method.eq_ignore_ascii_case("get") || method.eq_ignore_ascii_case("head");
    user.is_master() || (reads && open.iter().any(|prefix| path == *prefix || path.starts_with(&format!("{prefix}/"))))
}

const READ: &[&str] = &["get", "list", "watch"];

/// Upstream's role `system:node` with its node authoriser; kprov's node also runs proxy and DNS, so it reads services, slices and nodes.
fn node_may(server: &Server, node: &str, asked: &Attributes) -> Result<(), String> {
    let verb = asked.verb.as_str();
    let related = |found: bool| {
        let kind = asked.resource.trim_end_matches('s');
        if found { Ok(()) } else { Err(format!("no relationship found between node '{node}' and this {kind}")) }
    };
    let allowed = |yes: bool| if yes { Ok(()) } else { Err(String::new()) };
    match (asked.group.as_str(), resource(asked).as_str()) {
        ("", "services" | "nodes" | "namespaces") | ("discovery.k8s.io", "endpointslices") if READ.contains(&verb) => Ok(()),
        // Whose Node it is, and which labels, is admission's matter: the name of a create is only in the body.
        ("", "nodes") => allowed(matches!(verb, "create" | "update" | "patch")),
        ("", "nodes/status") => allowed(matches!(verb, "get" | "update" | "patch") && asked.name == node),
        ("", "events") | ("events.k8s.io", "events") => allowed(matches!(verb, "create" | "update" | "patch")),
        ("coordination.k8s.io", "leases") => {
            let own = asked.namespace == "kube-node-lease"
                && (asked.name == node || asked.name.starts_with(crate::orchestrator::network::announce::PREFIX) || verb == "create");
            allowed(own && matches!(verb, "get" | "create" | "update" | "patch" | "delete"))
        }
        ("", "pods") => match verb {
            "get" | "delete" => related(PodIndex::has(server, node, &asked.namespace, &asked.name)),
            "list" | "watch" if asked.selected_node == node => Ok(()),
            "list" | "watch" => Err(format!("can only list/watch pods with spec.nodeName field selector set to {node:?}")),
            _ => allowed(false),
        },
        ("", "pods/status") => {
            allowed(matches!(verb, "get" | "update" | "patch"))?;
            related(PodIndex::has(server, node, &asked.namespace, &asked.name))
        }
        ("", "pods/eviction") if verb == "create" => related(PodIndex::has(server, node, &asked.namespace, &asked.name)),
        ("", "secrets" | "configmaps" | "persistentvolumeclaims") => {
            allowed(READ.contains(&verb))?;
            // A list or watch of one object is a get; of all objects it is not the node's.
            related(!asked.name.is_empty() && PodIndex::needs(server, node, &asked.resource, &asked.namespace, &asked.name))
        }
        ("", "persistentvolumes") => {
            allowed(READ.contains(&verb))?;
            related(!asked.name.is_empty() && PodIndex::needs_volume(server, node, &asked.name))
        }
        ("", "serviceaccounts/token") if verb == "create" => {
            related(PodIndex::needs(server, node, "serviceaccounts", &asked.namespace, &asked.name))
        }
        _ => Err(String::new()),
    }
}

/// Which objects the pods of each node need. Follows the store's pods; asked, it first catches up.
#[derive(Default)]
pub struct PodIndex {
    seen: Revision,
    /// pod's key -> (node, what it needs)
    pods: HashMap<Arc<str>, (String, Needs)>,
    /// node -> keys of its pods
    nodes: HashMap<String, BTreeSet<Arc<str>>>,
}

/// (resource, name), all in the pod's namespace.
type Needs = BTreeSet<(&'static str, String)>;

impl PodIndex {
    fn has(server: &Server, node: &str, namespace: &str, name: &str) -> bool {
        let index = Self::current(server);
        index.nodes.get(node).is_some_and(|pods| pods.contains(format!("pods/{namespace}/{name}").as_str()))
    }

    fn needs(server: &Server, node: &str, resource: &str, namespace: &str, name: &str) -> bool {
        let index = Self::current(server);
        index.needs_of(node).any(|(pod, needs)| {
            pod.split('/').nth(1) == Some(namespace) && needs.iter().any(|(kind, needed)| *kind == resource && needed == name)
        })
    }

    /// The volume is bound to a claim that a pod of the node uses.
    fn needs_volume(server: &Server, node: &str, volume: &str) -> bool {
        let Some(entry) =
            server.registry.find("", "v1", "persistentvolumes").and_then(|row| server.store.get(&object::key(row, "", volume)))
        else {
            return false;
        };
        let value = decode(&entry).unwrap_or_default();
        let claim = |field: &str| value.pointer(&format!("/spec/claimRef/{field}")).and_then(Value::as_str).unwrap_or_default().to_owned();
        Self::needs(server, node, "persistentvolumeclaims", &claim("namespace"), &claim("name"))
    }

    fn needs_of(&self, node: &str) -> impl Iterator<Item = (&Arc<str>, &Needs)> {
        let pods = self.nodes.get(node).into_iter().flatten();
        pods.filter_map(|pod| self.pods.get(pod).map(|(_, needs)| (pod, needs)))
    }

    fn current(server: &Server) -> parking_lot::MutexGuard<'_, PodIndex> {
        let mut index = server.pods.lock();
        index.catch_up(&server.store);
        index
    }
}

impl Index for PodIndex {
    const PREFIX: &'static str = "pods/";

    fn seen(&mut self) -> &mut Revision {
        &mut self.seen
    }

    fn add(&mut self, entry: &Entry) {
        let node = object::text(object::peek(entry), "spec", "nodeName").to_owned();
        if node.is_empty() {
            return;
        }
        let needs = decode(entry).map(|pod| needs(&pod)).unwrap_or_default();
        self.nodes.entry(node.clone()).or_default().insert(entry.key().clone());
        self.pods.insert(entry.key().clone(), (node, needs));
    }

    fn remove(&mut self, key: &Arc<str>) {
        if let Some((node, _)) = self.pods.remove(key)
            && let Some(pods) = self.nodes.get_mut(&node)
        {
            pods.remove(key);
        }
    }
}

/// Everything a pod's spec names that a kubelet must read.
fn needs(pod: &Value) -> Needs {
    let mut needs = Needs::new();
    let spec = &pod["spec"];
    let mut add = |resource: &'static str, name: &Value| {
        if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
            needs.insert((resource, name.to_owned()));
        }
    };
    add("serviceaccounts", &spec["serviceAccountName"]);
    for secret in items(&spec["imagePullSecrets"]) {
        add("secrets", &secret["name"]);
    }
    for volume in items(&spec["volumes"]) {
        add("secrets", &volume["secret"]["secretName"]);
        add("configmaps", &volume["configMap"]["name"]);
        add("persistentvolumeclaims", &volume["persistentVolumeClaim"]["claimName"]);
        for source in items(&volume["projected"]["sources"]) {
            add("secrets", &source["secret"]["name"]);
            add("configmaps", &source["configMap"]["name"]);
        }
        if volume.get("ephemeral").is_some() {
            let claim = format!("{}-{}", meta(pod, "name"), volume["name"].as_str().unwrap_or_default());
            add("persistentvolumeclaims", &Value::String(claim));
        }
    }
    for container in ["containers", "initContainers"].iter().flat_map(|list| items(&spec[*list])) {
        for variable in items(&container["env"]) {
            add("secrets", &variable["valueFrom"]["secretKeyRef"]["name"]);
            add("configmaps", &variable["valueFrom"]["configMapKeyRef"]["name"]);
        }
        for source in items(&container["envFrom"]) {
            add("secrets", &source["secretRef"]["name"]);
            add("configmaps", &source["configMapRef"]["name"]);
        }
    }
    needs
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}
