//! Discovery documents made from the registry's rows: legacy lists per group and the two aggregated formats.

use super::registry::{KindRow, Registry, Text, api_version};
use serde_json::{Value, json};

/// `GET /api`.
pub fn api_versions(server_address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}],
    })
}

/// `GET /apis`.
pub fn group_list(registry: &Registry) -> Value {
    let groups: Vec<_> = groups(registry).iter().filter(|name| !name.is_empty()).map(|name| group_document(registry, name)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `GET /apis/<group>`; none if no such group is served.
pub fn group(registry: &Registry, name: &str) -> Option<Value> {
    if name.is_empty() || !groups(registry).iter().any(|served| served == name) {
        return None;
    }
    let mut document = group_document(registry, name);
    document["kind"] = "APIGroup".into();
    document["apiVersion"] = "v1".into();
    Some(document)
}

/// `GET /api/v1` and `GET /apis/<group>/<version>`; none if it is not served.
pub fn resource_list(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let rows = rows_of(registry, group, version);
    if rows.is_empty() {
        return None;
    }
    let mut resources = Vec::new();
    for row in rows {
        if !row.verbs.is_empty() {
            resources.push(resource(row));
        }
        resources.extend(row.subresources.iter().map(|subresource| {
            let mut entry = json!({
                "name": format!("{}/{}", row.plural, subresource.name),
                "singularName": "",
                "namespaced": row.namespaced,
                "kind": subresource.kind,
                "verbs": subresource.verbs,
            });
            if (&subresource.group, &subresource.version) != (&row.group, &row.version) {
                entry["group"] = subresource.group.as_ref().into();
                entry["version"] = subresource.version.as_ref().into();
            }
            entry
        }));
    }
    Some(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version(group, version), "resources": resources}))
}

/// The aggregated document of `/api` (`core`) or `/apis`, in `apidiscovery.k8s.io/<format>` where format is `v2` or `v2beta1`.
/// Content type: `application/json;g=apidiscovery.k8s.io;v=<format>;as=APIGroupDiscoveryList`.
pub fn aggregated(registry: &Registry, core: bool, format: &str) -> Value {
    let items: Vec<_> = groups(registry)
        .iter()
        .filter(|name| name.is_empty() == core)
        .map(|name| {
            let versions: Vec<_> = versions(registry, name).iter().map(|version| aggregated_version(registry, name, version)).collect();
            let metadata =
                if name.is_empty() { json!({"creationTimestamp": null}) } else { json!({"name": name, "creationTimestamp": null}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{format}"), "metadata": {}, "items": items})
}

fn aggregated_version(registry: &Registry, group: &str, version: &str) -> Value {
    let served = rows_of(registry, group, version).into_iter().filter(|row| !row.verbs.is_empty());
    let resources: Vec<_> = served.map(aggregated_resource).collect();
    json!({"version": version, "resources": resources, "freshness": "Current"})
}

fn aggregated_resource(row: &KindRow) -> Value {
    let subresources: Vec<_> = row
        .subresources
        .iter()
        .map(|subresource| {
            json!({
                "subresource": subresource.name,
                "responseKind": {"group": subresource.group, "version": subresource.version, "kind": subresource.kind},
                "verbs": subresource.verbs,
            })
        })
        .collect();
    let mut entry = json!({
        "resource": row.plural,
        "responseKind": {"group": row.group, "version": row.version, "kind": row.kind},
        "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": row.singular,
        "verbs": row.verbs,
    });
    for (name, list) in [("shortNames", &row.short_names), ("categories", &row.categories)] {
        if !list.is_empty() {
            entry[name] = json!(list);
        }
    }
    if !subresources.is_empty() {
        entry["subresources"] = subresources.into();
    }
    entry
}

fn resource(row: &KindRow) -> Value {
    let mut entry = json!({
        "name": row.plural,
        "singularName": row.singular,
        "namespaced": row.namespaced,
        "kind": row.kind,
        "verbs": row.verbs,
    });
    for (name, list) in [("shortNames", &row.short_names), ("categories", &row.categories)] {
        if !list.is_empty() {
            entry[name] = json!(list);
        }
    }
    if row.stored {
        entry["storageVersionHash"] = storage_hash(row).into();
    }
    entry
}

/// Clients only compare it for equality.
fn storage_hash(row: &KindRow) -> String {
    use base64::Engine;
    use sha2::Digest;
    let digest = sha2::Sha256::digest(format!("{}/{}/{}", row.group, row.version, row.kind));
    base64::engine::general_purpose::STANDARD.encode(&digest[..8])
}

fn group_document(registry: &Registry, name: &str) -> Value {
    let versions: Vec<_> =
        versions(registry, name).iter().map(|version| json!({"groupVersion": api_version(name, version), "version": version})).collect();
    json!({"name": name, "preferredVersion": versions[0], "versions": versions})
}

/// Groups with something to offer by themselves, in table order.
fn groups(registry: &Registry) -> Vec<Text> {
    let mut names = Vec::new();
    for (group, _) in registry.group_versions() {
        if !names.contains(&group) && registry.all().iter().any(|row| row.group == group && !row.verbs.is_empty()) {
            names.push(group);
        }
    }
    names
}

fn versions(registry: &Registry, group: &str) -> Vec<Text> {
    registry.group_versions().into_iter().filter(|(name, _)| name == group).map(|(_, version)| version).collect()
}

fn rows_of<'a>(registry: &'a Registry, group: &str, version: &str) -> Vec<&'a KindRow> {
    let rows = registry.all().iter().map(|row| &**row);
    let rows: Vec<_> = rows.filter(|row| row.group == group && row.version == version).collect();
    if rows.iter().any(|row| !row.verbs.is_empty()) { rows } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_without_resources_of_their_own_stay_hidden() {
        let list = group_list(Registry::builtin());
        let names: Vec<_> = list["groups"].as_array().expect("a list").iter().filter_map(|group| group["name"].as_str()).collect();
        assert!(names.contains(&"apps") && names.contains(&"kprov.dev"), "{names:?}");
        assert!(!names.contains(&"autoscaling") && !names.contains(&"policy") && !names.contains(&""), "{names:?}");
        assert!(resource_list(Registry::builtin(), "autoscaling", "v1").is_none());
        assert!(group(Registry::builtin(), "nonsense").is_none());
    }

    #[test]
    fn a_resource_list_names_resources_and_subresources() {
        let list = resource_list(Registry::builtin(), "apps", "v1").expect("served");
        let find =
            |name: &str| list["resources"].as_array().expect("a list").iter().find(|entry| entry["name"] == name).cloned().expect(name);
        assert_eq!(list["groupVersion"], "apps/v1");
        assert_eq!(find("deployments")["shortNames"], json!(["deploy"]));
        assert_eq!(find("deployments")["categories"], json!(["all"]));
        let scale = find("deployments/scale");
        assert_eq!((&scale["group"], &scale["version"], &scale["kind"]), (&json!("autoscaling"), &json!("v1"), &json!("Scale")));
    }

    #[test]
    fn the_aggregated_document_splits_core_from_the_rest() {
        let core = aggregated(Registry::builtin(), true, "v2");
        assert_eq!(core["apiVersion"], "apidiscovery.k8s.io/v2");
        assert_eq!(core["items"].as_array().expect("a list").len(), 1);
        assert!(core["items"][0]["metadata"].get("name").is_none());
        let resources = core["items"][0]["versions"][0]["resources"].as_array().expect("a list");
        let pods = resources.iter().find(|entry| entry["resource"] == "pods").expect("pods");
        assert_eq!(pods["scope"], "Namespaced");
        assert_eq!(pods["responseKind"], json!({"group": "", "version": "v1", "kind": "Pod"}));
        assert!(!resources.iter().any(|entry| entry["resource"] == "bindings"));
        let rest = aggregated(Registry::builtin(), false, "v2beta1");
        assert!(rest["items"].as_array().expect("a list").iter().all(|item| item["metadata"]["name"] != ""));
    }
}
