//! The types of the served kinds in OpenAPI's dialect, with the `x-kubernetes-*` marks that clients merge and explain by.

use crate::blueprint;
use crate::orchestrator::api::kinds::json::Object;
use crate::orchestrator::api::kinds::{KindRow, merge_keys, schema};
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

pub fn schemas(rows: &[&KindRow]) -> Object {
    let named: Vec<_> = rows.iter().filter_map(|row| row.schema.as_deref()).collect();
    let mut schemas =
        schema::definitions(|name| name.ends_with(".DeleteOptions") || name.ends_with(".ObjectMeta") || named.contains(&name));
    if rows.iter().any(|row| row.is("kprov.dev", "Blueprint")) {
        schemas.extend(blueprint_schemas());
    }
    for (name, schema) in &mut schemas {
        mark_lists(name, schema);
        if merge_keys::is_atomic_type(name) {
            schema["x-kubernetes-map-type"] = "atomic".into();
        }
        translate(schema);
    }
    for row in rows {
        let name = row.schema.as_deref().unwrap_or(if row.kind == "Blueprint" { "dev.kprov.v1.Blueprint" } else { "" });
        if let Some(schema) = schemas.get_mut(name) {
            schema["x-kubernetes-group-version-kind"] = json!([{"group": row.group, "version": row.version, "kind": row.kind}]);
        }
    }
    schemas
}

fn mark_lists(type_name: &str, schema: &mut Value) {
    for (name, field) in schema.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        let Some(field) = field.as_object_mut() else { continue };
        if merge_keys::is_atomic_map(type_name, name) {
            field.insert("x-kubernetes-map-type".into(), "atomic".into());
        }
        let Some(rule) = merge_keys::rule(type_name, name) else {
            if field.get("type").is_some_and(|kind| kind == "array") {
                field.insert("x-kubernetes-list-type".into(), "atomic".into());
            }
            continue;
        };
        for (mark, value) in [("patch-strategy", rule.patch), ("patch-merge-key", rule.merge_key), ("list-type", rule.list)] {
            if !value.is_empty() {
                field.insert(format!("x-kubernetes-{mark}"), value.into());
            }
        }
        if !rule.map_keys.is_empty() {
            field.insert("x-kubernetes-list-map-keys".into(), json!(rule.map_keys));
        }
    }
}

/// OpenAPI 3.0 allows nothing beside a reference, and has its own way to say "number or text".
fn translate(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            object.values_mut().for_each(translate);
            if object.len() > 1
                && let Some(Value::String(target)) = object.get("$ref").cloned()
            {
                object.remove("$ref");
                object.insert("allOf".into(), json!([{"$ref": target}]));
            }
            if object.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
                object.remove("x-kubernetes-int-or-string");
                object.insert("oneOf".into(), json!([{"type": "integer"}, {"type": "string"}]));
            }
        }
        Value::Array(list) => list.iter_mut().for_each(translate),
        _ => {}
    }
}

/// A blueprint in the cluster: the person's spec, under the metadata of every object.
fn blueprint_schemas() -> Object {
    let mut generator = SchemaSettings::openapi3().into_generator();
    generator.subschema_for::<blueprint::schema::Spec>();
    let definitions = generator.take_definitions(true);
    let mut schemas: Object = definitions.into_iter().map(|(name, schema)| (format!("dev.kprov.v1.{name}"), schema)).collect();
    schemas.values_mut().for_each(|schema| move_references(schema, "#/components/schemas/", "#/components/schemas/dev.kprov.v1."));
    let reference = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let blueprint = json!({
        "type": "object",
        "description": "One desired architecture: machines, load balancers, filesystems and workloads.",
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": reference("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"),
            "spec": reference("dev.kprov.v1.Spec"),
            "status": {"type": "object", "description": "What is, as the loop in the cluster sees it.", "x-kubernetes-preserve-unknown-fields": true},
        },
    });
    schemas.insert("dev.kprov.v1.Blueprint".into(), blueprint);
    schemas
}

fn move_references(value: &mut Value, from: &str, to: &str) {
    match value {
        Value::Object(object) => {
            if let Some(Value::String(target)) = object.get_mut("$ref")
                && let Some(name) = target.strip_prefix(from)
            {
                *target = format!("{to}{name}");
            }
            object.values_mut().for_each(|value| move_references(value, from, to));
        }
        Value::Array(list) => list.iter_mut().for_each(|value| move_references(value, from, to)),
        _ => {}
    }
}

/// Swagger 2.0 keeps its types elsewhere and has no alternatives: references stand beside their descriptions again.
pub fn to_v2(value: &mut Value) {
    match value {
        Value::Object(object) => {
            if let Some(Value::Array(all)) = object.get("allOf").cloned()
                && let [only] = all.as_slice()
                && let Some(target) = only.get("$ref").cloned()
            {
                object.remove("allOf");
                object.insert("$ref".into(), target);
            }
            if object.remove("oneOf").is_some() {
                object.insert("type".into(), "string".into());
            }
            if let Some(Value::String(target)) = object.get_mut("$ref") {
                *target = target.replace("#/components/schemas/", "#/definitions/");
            }
            object.values_mut().for_each(to_v2);
        }
        Value::Array(list) => list.iter_mut().for_each(to_v2),
        _ => {}
    }
}
