//! The Swagger document as protobuf (`openapi.v2.Document` of gnostic), which is all that kubectl before 1.27 asks for. Messages are declared by
//! hand with the field numbers of `OpenAPIv2.proto`; what those clients never read is left out.

use crate::orchestrator::api::kinds::json::Object;
use prost::Message;
use serde_json::Value;

#[derive(Clone, PartialEq, Message)]
struct Document {
    #[prost(string, tag = "1")]
    swagger: String,
    #[prost(message, optional, tag = "2")]
    info: Option<Info>,
    #[prost(message, optional, tag = "8")]
    paths: Option<Paths>,
    #[prost(message, optional, tag = "9")]
    definitions: Option<Schemas>,
}

#[derive(Clone, PartialEq, Message)]
struct Info {
    #[prost(string, tag = "1")]
    title: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct Paths {
    #[prost(message, repeated, tag = "2")]
    path: Vec<NamedPath>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedPath {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<PathItem>,
}

/// Of a path's operations the one that clients read, to learn whether a kind takes dry runs.
#[derive(Clone, PartialEq, Message)]
struct PathItem {
    #[prost(message, optional, tag = "8")]
    patch: Option<Operation>,
}

#[derive(Clone, PartialEq, Message)]
struct Operation {
    #[prost(message, repeated, tag = "8")]
    parameters: Vec<ParametersItem>,
    #[prost(message, repeated, tag = "13")]
    extensions: Vec<NamedAny>,
}

#[derive(Clone, PartialEq, Message)]
struct ParametersItem {
    #[prost(message, optional, tag = "1")]
    parameter: Option<Parameter>,
}

#[derive(Clone, PartialEq, Message)]
struct Parameter {
    #[prost(message, optional, tag = "2")]
    non_body: Option<NonBodyParameter>,
}

#[derive(Clone, PartialEq, Message)]
struct NonBodyParameter {
    #[prost(message, optional, tag = "3")]
    query: Option<QueryParameter>,
}

#[derive(Clone, PartialEq, Message)]
struct QueryParameter {
    #[prost(string, tag = "2")]
    place: String,
    #[prost(string, tag = "4")]
    name: String,
    #[prost(string, tag = "6")]
    kind: String,
}

/// Named schemas: definitions, or a type's properties.
#[derive(Clone, PartialEq, Message)]
struct Schemas {
    #[prost(message, repeated, tag = "1")]
    all: Vec<NamedSchema>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedSchema {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct Schema {
    #[prost(string, tag = "1")]
    reference: String,
    #[prost(string, tag = "2")]
    format: String,
    #[prost(string, tag = "4")]
    description: String,
    #[prost(string, repeated, tag = "19")]
    required: Vec<String>,
    #[prost(message, optional, boxed, tag = "21")]
    additional_properties: Option<Box<AdditionalProperties>>,
    #[prost(message, optional, tag = "22")]
    kind: Option<Kind>,
    #[prost(message, optional, tag = "23")]
    items: Option<Items>,
    #[prost(message, optional, tag = "25")]
    properties: Option<Schemas>,
    #[prost(message, repeated, tag = "31")]
    extensions: Vec<NamedAny>,
}

#[derive(Clone, PartialEq, Message)]
struct AdditionalProperties {
    #[prost(message, optional, boxed, tag = "1")]
    schema: Option<Box<Schema>>,
}

#[derive(Clone, PartialEq, Message)]
struct Kind {
    #[prost(string, repeated, tag = "1")]
    value: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Items {
    #[prost(message, repeated, tag = "1")]
    schema: Vec<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedAny {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

/// JSON is YAML, too.
#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(string, tag = "2")]
    yaml: String,
}

/// The bytes for a document of Swagger 2.0.
pub fn encode(document: &Value) -> Vec<u8> {
    let paths = members(&document["paths"]).map(|(name, item)| NamedPath { name: name.clone(), value: Some(path(item)) });
    let info = &document["info"];
    Document {
        swagger: text(&document["swagger"]),
        info: Some(Info { title: text(&info["title"]), version: text(&info["version"]) }),
        paths: Some(Paths { path: paths.collect() }),
        definitions: Some(schemas(&document["definitions"])),
    }
    .encode_to_vec()
}

fn path(item: &Value) -> PathItem {
    let parameters = |operation: &Value| {
        let all = operation["parameters"].as_array().into_iter().flatten();
        let query = |one: &Value| QueryParameter { place: text(&one["in"]), name: text(&one["name"]), kind: text(&one["schema"]["type"]) };
        let item = |one| ParametersItem { parameter: Some(Parameter { non_body: Some(NonBodyParameter { query: Some(query(one)) }) }) };
        all.map(item).collect()
    };
    let patch = item.get("patch").map(|operation| Operation { parameters: parameters(operation), extensions: extensions(operation) });
    PathItem { patch }
}

fn schemas(named: &Value) -> Schemas {
    Schemas { all: members(named).map(|(name, value)| NamedSchema { name: name.clone(), value: Some(schema(value)) }).collect() }
}

fn schema(value: &Value) -> Schema {
    let below = |name: &str| value.get(name).filter(|below| below.is_object());
    Schema {
        reference: text(&value["$ref"]),
        format: text(&value["format"]),
        description: text(&value["description"]),
        required: value["required"].as_array().into_iter().flatten().map(text).collect(),
        additional_properties: below("additionalProperties")
            .map(|below| Box::new(AdditionalProperties { schema: Some(Box::new(schema(below))) })),
        kind: value["type"].as_str().map(|kind| Kind { value: vec![kind.into()] }),
        items: below("items").map(|below| Items { schema: vec![schema(below)] }),
        properties: below("properties").map(schemas),
        extensions: extensions(value),
    }
}

fn extensions(value: &Value) -> Vec<NamedAny> {
    let marks = members(value).filter(|(name, _)| name.starts_with("x-"));
    marks.map(|(name, mark)| NamedAny { name: name.clone(), value: Some(AnyValue { yaml: mark.to_string() }) }).collect()
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Object::iter)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn types_and_the_parameters_of_patches_are_all_there() {
        let mark = json!([{"group": "", "version": "v1", "kind": "Pod"}]);
        let document = json!({
            "swagger": "2.0",
            "info": {"title": "Kubernetes", "version": "v1.33.0"},
            "paths": {"/api/v1/pods": {"get": {}}, "/api/v1/pods/{name}": {"patch": {
                "parameters": [{"name": "dryRun", "in": "query", "schema": {"type": "string"}}],
                "x-kubernetes-group-version-kind": {"kind": "Pod"},
            }}},
            "definitions": {"Pod": {"type": "object", "required": ["spec"], "x-kubernetes-group-version-kind": mark, "properties": {
                "spec": {"$ref": "#/definitions/PodSpec"},
                "names": {"type": "array", "items": {"type": "string"}, "x-kubernetes-patch-strategy": "merge"},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "any": {"type": "object", "additionalProperties": true},
            }}},
        });
        let read = Document::decode(encode(&document).as_slice()).expect("a document");
        let paths = read.paths.expect("paths").path;
        assert_eq!((paths.len(), &paths[0].value), (2, &Some(PathItem::default())));
        let patch = paths[1].value.as_ref().and_then(|item| item.patch.as_ref()).expect("a patch");
        let query = patch.parameters[0].parameter.as_ref().and_then(|one| one.non_body.as_ref()).and_then(|one| one.query.as_ref());
        assert_eq!(
            query.map(|query| (query.name.as_str(), query.place.as_str(), query.kind.as_str())),
            Some(("dryRun", "query", "string"))
        );
        assert_eq!(patch.extensions[0].value.as_ref().map(|any| any.yaml.as_str()), Some(r#"{"kind":"Pod"}"#));
        let pod = read.definitions.expect("definitions").all.remove(0).value.expect("a type");
        assert_eq!(
            (pod.required, pod.extensions[0].value.as_ref().map(|any| any.yaml.clone())),
            (vec!["spec".into()], Some(mark.to_string()))
        );
        let fields = pod.properties.expect("properties").all;
        let of = |name: &str| fields.iter().find(|field| field.name == name).and_then(|field| field.value.clone()).expect("a field");
        assert_eq!(of("spec").reference, "#/definitions/PodSpec");
        assert_eq!(of("names").items.map(|items| items.schema.len()), Some(1));
        assert!(
            of("labels").additional_properties.is_some_and(|below| below.schema.is_some()) && of("any").additional_properties.is_none()
        );
    }
}
