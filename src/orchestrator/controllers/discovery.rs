//! The kinds the API serves, as discovery tells: for controllers that look after all of them.

use crate::orchestrator::client::{Client, Failure};
use serde::Deserialize;
use serde_json::Value;

/// A kind that can be listed, watched and deleted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Resource {
    /// `/api/v1` or `/apis/<group>/<version>`.
    pub root: String,
    pub api_version: String,
    pub kind: String,
    pub plural: String,
    pub namespaced: bool,
}

impl Resource {
    /// The collection (empty `name`) or an object; an empty namespace means all.
    pub fn path(&self, namespace: &str, name: &str) -> String {
        let mut path = self.root.clone();
        if self.namespaced && !namespace.is_empty() {
            path.push_str(&format!("/namespaces/{namespace}"));
        }
        path.push_str(&format!("/{}", self.plural));
        if !name.is_empty() {
            path.push_str(&format!("/{name}"));
        }
        path
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    name: String,
    kind: String,
    namespaced: bool,
    verbs: Vec<String>,
}

/// All of them, each once: groups answer with their preferred version.
pub async fn resources(client: &Client) -> Result<Vec<Resource>, Failure> {
    let mut roots = vec!["/api/v1".to_string()];
    let groups = client.get_value("/apis").await?.unwrap_or_default();
    for group in groups["groups"].as_array().into_iter().flatten() {
        if let Some(version) = group["preferredVersion"]["groupVersion"].as_str() {
            roots.push(format!("/apis/{version}"));
        }
    }
    let mut all = Vec::new();
    for root in roots {
        let list = client.get_value(&root).await?.unwrap_or_default();
        all.extend(parse(&root, &list));
    }
    Ok(all)
}

fn parse(root: &str, list: &Value) -> Vec<Resource> {
    let api_version = root.trim_start_matches("/apis/").trim_start_matches("/api/").to_string();
    let wires = list["resources"].as_array().into_iter().flatten().filter_map(|entry| serde_json::from_value::<Wire>(entry.clone()).ok());
    let wanted = wires.filter(|wire| {
        !wire.name.contains('/') && ["list", "watch", "delete"].iter().all(|verb| wire.verbs.iter().any(|held| held == verb))
    });
    wanted
        .map(|wire| Resource {
            root: root.into(),
            api_version: api_version.clone(),
            kind: wire.kind,
            plural: wire.name,
            namespaced: wire.namespaced,
        })
        .collect()
}
