//! OpenAPI documents, built on first request from the registry and the schemas and kept compressed (about a tenth of their size).

mod paths;
mod protobuf;
mod schemas;

use super::registry::{Registry, Text};
use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::sync::LazyLock;

struct Document {
    group: Text,
    version: Text,
    hash: String,
    gzip: Bytes,
}

/// All documents, one after the other so that only one is ever in memory at its full size.
static DOCUMENTS: LazyLock<Vec<Document>> = LazyLock::new(|| {
    let registry = Registry::builtin();
    registry
        .group_versions()
        .iter()
        .filter(|(group, version)| serves(registry, group, version))
        .map(|(group, version)| build(registry, group, version))
        .collect()
});

/// Groups that only lend a body to another group's subresource have no address of their own.
fn serves(registry: &Registry, group: &str, version: &str) -> bool {
    registry.all().iter().any(|row| row.group == group && row.version == version && !row.verbs.is_empty())
}

fn build(registry: &Registry, group: &Text, version: &Text) -> Document {
    let rows: Vec<_> = registry.all().iter().filter(|row| row.group == *group && row.version == *version).map(|row| &**row).collect();
    let document = json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.33.0"},
        "paths": paths::paths(&rows),
        "components": {"schemas": schemas::schemas(&rows)},
    });
    let text = document.to_string();
    Document { group: group.clone(), version: version.clone(), hash: hex::encode_upper(Sha256::digest(&text)), gzip: gzip(text.as_bytes()) }
}

/// `GET /openapi/v3`: where each group's document is, with its hash, as JSON. The first call builds all documents: keep it off the
/// threads that serve requests.
pub fn v3_index() -> Bytes {
    let paths: serde_json::Map<String, Value> = DOCUMENTS
        .iter()
        .map(|document| {
            let path = if document.group.is_empty() {
                format!("api/{}", document.version)
            } else {
                format!("apis/{}/{}", document.group, document.version)
            };
            let address = format!("/openapi/v3/{path}?hash={}", document.hash);
            (path, json!({"serverRelativeURL": address}))
        })
        .collect();
    json!({"paths": paths}).to_string().into()
}

/// `GET /openapi/v3/apis/<group>/<version>` (or `/openapi/v3/api/v1` with an empty group), as JSON; none if it is not served.
/// gzip-compressed: send with `Content-Encoding: gzip`, or `inflate` it for clients that do not accept that.
pub fn v3_document(group: &str, version: &str) -> Option<Bytes> {
    DOCUMENTS.iter().find(|document| document.group == group && document.version == version).map(|document| document.gzip.clone())
}

/// The hash that the index names: the document's strong `ETag`.
pub fn v3_hash(group: &str, version: &str) -> Option<&'static str> {
    DOCUMENTS.iter().find(|document| document.group == group && document.version == version).map(|document| document.hash.as_str())
}

/// `GET /openapi/v2` as JSON (Swagger 2.0), gzip-compressed.
pub fn v2() -> Bytes {
    static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| gzip(swagger().to_string().as_bytes()));
    DOCUMENT.clone()
}

/// The same as protobuf, gzip-compressed.
pub fn v2_protobuf() -> Bytes {
    static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| gzip(&protobuf::encode(&swagger())));
    DOCUMENT.clone()
}

fn swagger() -> Value {
    let registry = Registry::builtin();
    let rows: Vec<_> = registry.all().iter().map(|row| &**row).collect();
    let mut definitions = Value::Object(schemas::schemas(&rows));
    schemas::to_v2(&mut definitions);
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": "v1.33.0"},
        "paths": paths::paths(&rows),
        "definitions": definitions,
    })
}

fn gzip(plain: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(plain).expect("memory takes every write");
    encoder.finish().expect("memory takes every write").into()
}

/// The plain bytes of one of this module's documents.
pub fn inflate(gzip: &[u8]) -> Bytes {
    let mut plain = Vec::new();
    GzDecoder::new(gzip).read_to_end(&mut plain).expect("this module compressed it");
    plain.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(group: &str, version: &str) -> Value {
        serde_json::from_slice(&inflate(&v3_document(group, version).expect("served"))).expect("JSON")
    }

    #[test]
    fn the_index_leads_to_every_document() {
        let index: Value = serde_json::from_slice(&v3_index()).expect("JSON");
        let paths = index["paths"].as_object().expect("an object");
        assert!(paths.contains_key("api/v1") && paths.contains_key("apis/apps/v1") && paths.contains_key("apis/kprov.dev/v1"), "{paths:?}");
        assert!(!paths.contains_key("apis/autoscaling/v1"));
        let address = paths["apis/apps/v1"]["serverRelativeURL"].as_str().expect("text");
        assert_eq!(address, format!("/openapi/v3/apis/apps/v1?hash={}", v3_hash("apps", "v1").expect("served")));
        assert_eq!(v3_document("apps", "v9"), None);
    }

    #[test]
    fn kubectl_finds_the_type_and_the_parameters_of_a_kind() {
        let apps = document("apps", "v1");
        let item = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"];
        assert_eq!(item["patch"]["x-kubernetes-group-version-kind"], json!({"group": "apps", "version": "v1", "kind": "Deployment"}));
        let parameters: Vec<_> =
            item["patch"]["parameters"].as_array().expect("a list").iter().map(|parameter| parameter["name"].as_str()).collect();
        assert!(parameters.contains(&Some("fieldValidation")), "{parameters:?}");
        let deployment = &apps["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"];
        assert_eq!(deployment["x-kubernetes-group-version-kind"], json!([{"group": "apps", "version": "v1", "kind": "Deployment"}]));
    }

    #[test]
    fn lists_say_how_they_merge() {
        let core = document("", "v1");
        let containers = &core["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
        assert_eq!(containers["x-kubernetes-list-type"], "map");
        assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
        assert_eq!(containers["items"]["$ref"], "#/components/schemas/io.k8s.api.core.v1.Container");
        let args = &core["components"]["schemas"]["io.k8s.api.core.v1.Container"]["properties"]["args"];
        assert_eq!(args["x-kubernetes-list-type"], "atomic");
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(object) => {
                    if let Some(Value::String(target)) = object.get("$ref") {
                        assert_eq!(object.len(), 1, "a reference stands alone: {value}");
                        found.push(target.clone());
                    }
                    object.values().for_each(|value| references(value, found));
                }
                Value::Array(list) => list.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        for document in DOCUMENTS.iter() {
            let document: Value = serde_json::from_slice(&inflate(&document.gzip)).expect("JSON");
            let mut found = Vec::new();
            references(&document, &mut found);
            assert!(!found.is_empty());
            for target in found {
                let name = target.strip_prefix("#/components/schemas/").expect("a schema");
                assert!(document["components"]["schemas"].get(name).is_some(), "{target}");
            }
        }
    }

    #[test]
    fn a_blueprint_is_described_too() {
        let document = document("kprov.dev", "v1");
        let blueprint = &document["components"]["schemas"]["dev.kprov.v1.Blueprint"];
        assert_eq!(blueprint["x-kubernetes-group-version-kind"], json!([{"group": "kprov.dev", "version": "v1", "kind": "Blueprint"}]));
        let spec = &document["components"]["schemas"]["dev.kprov.v1.Spec"];
        assert!(spec["properties"]["machines"].is_object(), "{spec}");
    }

    #[test]
    fn the_older_format_is_there_as_json() {
        let v2: Value = serde_json::from_slice(&inflate(&v2())).expect("JSON");
        let spec = &v2["definitions"]["io.k8s.api.apps.v1.Deployment"]["properties"]["spec"];
        assert_eq!(spec["$ref"], "#/definitions/io.k8s.api.apps.v1.DeploymentSpec");
        assert!(!v2.to_string().contains("#/components/"));
    }
}
