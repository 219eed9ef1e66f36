//! Paths that are no resources: health, version, discovery, OpenAPI.

use super::kinds::{discovery, openapi};
use super::negotiate::JSON;
use super::respond::{self, Response};
use super::server::{Query, Server};
use super::status::{Answer, Status};
use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH, VARY};
use http::{Method, Request};
use serde_json::{Value, json};
use std::sync::Arc;

/// Swagger as protobuf: what clients ask for, in one spelling or another, and what they are answered.
const SWAGGER_PROTOBUF: (&str, &str) = ("proto-openapi.spec.v2", "application/com.github.proto-openapi.spec.v2.v1.0+protobuf");

/// What anybody may ask.
pub fn health(server: &Server, path: &[String], query: &Query) -> Option<Response> {
    let [endpoint, rest @ ..] = path else { return None };
    if !matches!(endpoint.as_str(), "healthz" | "livez" | "readyz") {
        return None;
    }
    let checks = [("ping", true), ("store", server.store.healthy()), ("shutdown", endpoint != "readyz" || !server.stop.is_cancelled())];
    let checks: Vec<_> = match rest {
        [] => checks.to_vec(),
        [one] => checks.into_iter().filter(|(name, _)| name == one).collect(),
        _ => Vec::new(),
    };
    if checks.is_empty() {
        return Some(respond::full(404, "text/plain; charset=utf-8", Bytes::from_static(b"404 page not found\n")));
    }
    let well = checks.iter().all(|(_, well)| *well);
    let lines =
        checks.iter().map(|(name, well)| if *well { format!("[+]{name} ok\n") } else { format!("[-]{name} failed: reason withheld\n") });
    let text = match (well, query.all("verbose").next()) {
        (true, None) => "ok".to_owned(),
        (true, Some(_)) => lines.collect::<String>() + endpoint + " check passed\n",
        (false, _) => lines.collect::<String>() + endpoint + " check failed\n",
    };
    Some(respond::full(if well { 200 } else { 500 }, "text/plain; charset=utf-8", text.into()))
}

pub async fn get(server: &Arc<Server>, request: &Request<Bytes>, path: &[String], query: &Query) -> Answer<Response> {
    if let Some(response) = health(server, path, query) {
        return Ok(response);
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Status::method_not_allowed());
    }
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let registry = server.registry;
    let address = format!("{}:{}", server.config.advertise, server.config.port);
    let found = match path.as_slice() {
        ["version"] => Some(tagged(request, JSON, &version())),
        [root @ ("api" | "apis")] => Some(match aggregated(request) {
            Some((format, content_type)) => tagged(request, content_type, &discovery::aggregated(registry, *root == "api", format)),
            None if *root == "api" => tagged(request, JSON, &discovery::api_versions(&address)),
            None => tagged(request, JSON, &discovery::group_list(registry)),
        }),
        ["api", version] => discovery::resource_list(registry, "", version).map(|list| tagged(request, JSON, &list)),
        ["apis", group] => discovery::group(registry, group).map(|group| tagged(request, JSON, &group)),
        ["apis", group, version] => discovery::resource_list(registry, group, version).map(|list| tagged(request, JSON, &list)),
        ["openapi", rest @ ..] => openapi(request, rest).await?,
        [] => Some(tagged(
            request,
            JSON,
            &json!({"paths": ["/api", "/api/v1", "/apis", "/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"]}),
        )),
        _ => None,
    };
    found.ok_or_else(Status::no_such_resource)
}

fn version() -> Value {
    json!({"major": "1", "minor": "33", "gitVersion": "v1.33.0+kprov", "gitCommit": "", "gitTreeState": "clean", "buildDate": "2025-01-01T00:00:00Z",
        "goVersion": "none (rust)", "compiler": "rustc", "platform": format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" })})
}

/// The aggregated format that the client would like best, if any.
fn aggregated<T>(request: &Request<T>) -> Option<(&'static str, &'static str)> {
    let accept = request.headers().get(ACCEPT)?.to_str().ok()?;
    let offers = accept.split(',').map(|offer| offer.split(';').map(str::trim).collect::<Vec<_>>());
    let aggregated =
        offers.filter(|parts| parts[0] == JSON && parts.contains(&"as=APIGroupDiscoveryList") && parts.contains(&"g=apidiscovery.k8s.io"));
    aggregated.into_iter().find_map(|parts| match parts.iter().find_map(|part| part.strip_prefix("v="))? {
        "v2" => Some(("v2", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")),
        "v2beta1" => Some(("v2beta1", "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList")),
        _ => None,
    })
}

/// A document with its hash, or 304 if the client has it already.
fn tagged<T>(request: &Request<T>, content_type: &'static str, value: &Value) -> Response {
    use sha2::Digest;
    let bytes = value.to_string();
    let tag = format!("\"{}\"", hex::encode_upper(sha2::Sha256::digest(bytes.as_bytes())));
    let known = request.headers().get(IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes());
    let mut response = if known { respond::full(304, content_type, Bytes::new()) } else { respond::full(200, content_type, bytes.into()) };
    if known {
        response.headers_mut().remove(CONTENT_TYPE);
    }
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(ETAG, tag);
    }
    response.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
    response
}

/// The first one to ask waits for a second or two while all documents are built.
async fn openapi(request: &Request<Bytes>, path: &[&str]) -> Answer<Option<Response>> {
    let accepts = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("*/*");
    let takes_json = ["*/*", "application/*", JSON].iter().any(|range| accepts.contains(range));
    if *path == ["v2"] && !takes_json && accepts.contains(SWAGGER_PROTOBUF.0) {
        let document = tokio::task::spawn_blocking(openapi::v2_protobuf).await.map_err(Status::internal)?;
        return Ok(Some(compressed(request, document, SWAGGER_PROTOBUF.1, None)));
    }
    if !takes_json {
        return Err(Status::not_acceptable(JSON));
    }
    let path: Vec<String> = path.iter().map(|part| (*part).to_owned()).collect();
    let documents = move || match path.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["v2"] => Some((openapi::v2(), None)),
        ["v3"] => Some((openapi::v3_index(), None)),
        ["v3", "api", version] => openapi::v3_document("", version).map(|document| (document, openapi::v3_hash("", version))),
        ["v3", "apis", group, version] => openapi::v3_document(group, version).map(|document| (document, openapi::v3_hash(group, version))),
        _ => None,
    };
    let found = tokio::task::spawn_blocking(documents).await.map_err(Status::internal)?;
    Ok(found.map(|(document, hash)| compressed(request, document, JSON, hash)))
}

/// Documents of OpenAPI are kept compressed (the index is not); few clients want them otherwise.
fn compressed<T>(request: &Request<T>, document: Bytes, media: &'static str, hash: Option<&str>) -> Response {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let packed = document.starts_with(&[0x1f, 0x8b]);
    let tag = hash.map(|hash| format!("\"{hash}\""));
    let mut response = match &tag {
        Some(tag) if header(IF_NONE_MATCH) == tag => respond::full(304, media, Bytes::new()),
        _ if packed && header(ACCEPT_ENCODING).contains("gzip") => {
            let mut response = respond::full(200, media, document);
            response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            response
        }
        _ if packed => respond::full(200, media, openapi::inflate(&document)),
        _ => respond::full(200, media, document),
    };
    if let Some(tag) = tag.and_then(|tag| HeaderValue::from_str(&tag).ok()) {
        response.headers_mut().insert(ETAG, tag);
    }
    response.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
    response
}
