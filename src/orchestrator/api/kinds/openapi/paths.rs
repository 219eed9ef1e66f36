//! The addresses of the served kinds: enough for clients to find a kind's type and which parameters its verbs take.

use crate::orchestrator::api::kinds::KindRow;
use crate::orchestrator::api::kinds::json::Object;
use serde_json::{Value, json};

pub fn paths(rows: &[&KindRow]) -> Object {
    let mut paths = Object::new();
    for row in rows.iter().filter(|row| !row.verbs.is_empty()) {
        let root = if row.group.is_empty() { format!("/api/{}", row.version) } else { format!("/apis/{}/{}", row.group, row.version) };
        let scope = if row.namespaced { "/namespaces/{namespace}" } else { "" };
        let collection = format!("{root}{scope}/{}", row.plural);
        let item = format!("{collection}/{{name}}");
        if row.namespaced && row.allows("list") {
            paths.insert(format!("{root}/{}", row.plural), operations(row, &["list"], &[]));
        }
        for subresource in &row.subresources {
            let verbs: Vec<_> = subresource.verbs.iter().map(|verb| &**verb).collect();
            let of = KindRow {
                group: subresource.group.clone(),
                version: subresource.version.clone(),
                kind: subresource.kind.clone(),
                ..(*row).clone()
            };
            paths.insert(format!("{item}/{}", subresource.name), operations(&of, &verbs, &["namespace", "name"]));
        }
        let verbs = |wanted: &[&'static str]| wanted.iter().copied().filter(|verb| row.allows(verb)).collect::<Vec<_>>();
        paths.insert(collection, operations(row, &verbs(&["list", "create", "deletecollection"]), &["namespace"]));
        let of_one = verbs(&["get", "update", "patch", "delete"]);
        if !of_one.is_empty() {
            paths.insert(item, operations(row, &of_one, &["namespace", "name"]));
        }
    }
    paths
}

fn operations(row: &KindRow, verbs: &[&str], place: &[&str]) -> Value {
    let mut item = Object::new();
    let place = place.iter().filter(|name| row.namespaced || **name != "namespace");
    let place: Vec<_> = place.map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}})).collect();
    if !place.is_empty() {
        item.insert("parameters".into(), place.into());
    }
    for verb in verbs {
        let (method, action, parameters): (_, _, &[&str]) = match *verb {
            "list" => {
                ("get", "list", &["labelSelector", "fieldSelector", "limit", "continue", "resourceVersion", "watch", "timeoutSeconds"])
            }
            "get" => ("get", "get", &[]),
            "create" => ("post", "post", &["dryRun", "fieldManager", "fieldValidation"]),
            "update" => ("put", "put", &["dryRun", "fieldManager", "fieldValidation"]),
            "patch" => ("patch", "patch", &["dryRun", "fieldManager", "fieldValidation", "force"]),
            "delete" => ("delete", "delete", &["dryRun", "gracePeriodSeconds", "propagationPolicy"]),
            "deletecollection" => ("delete", "deletecollection", &["dryRun", "labelSelector", "fieldSelector"]),
            _ => continue,
        };
        let parameters: Vec<_> =
            parameters.iter().map(|name| json!({"name": name, "in": "query", "schema": {"type": kind_of(name)}})).collect();
        let mut operation = json!({
            "parameters": parameters,
            "responses": {"200": {"description": "OK"}},
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": {"group": row.group, "version": row.version, "kind": row.kind},
        });
        if method == "patch" {
            // Clients look here for which patch formats a kind takes.
            let strategic = row.schema.as_ref().map(|_| "application/strategic-merge-patch+json");
            let formats = ["application/json-patch+json", "application/merge-patch+json"].into_iter().chain(strategic);
            operation["requestBody"] = json!({"content": formats.map(|format| (format.to_string(), json!({}))).collect::<Object>()});
        }
        item.insert(method.into(), operation);
    }
    Value::Object(item)
}

fn kind_of(parameter: &str) -> &'static str {
    match parameter {
        "limit" | "timeoutSeconds" | "gracePeriodSeconds" => "integer",
        "watch" | "force" => "boolean",
        _ => "string",
    }
}
