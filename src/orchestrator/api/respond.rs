//! Answers: whole objects as kept, Tables, metadata alone, YAML, and refusals.

use super::kinds::table::{self, IncludeObject};
use super::negotiate::{Form, JSON, Wanted, YAML};
use super::server::{Call, Query};
use super::status::{Answer, Status};
use crate::orchestrator::client::Body;
use crate::orchestrator::store::Entry;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WARNING};
use http_body_util::{BodyExt, Full};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

pub type Response = http::Response<Body>;

pub fn full(code: u16, content_type: &'static str, bytes: Bytes) -> Response {
    body(code, content_type, Full::new(bytes).map_err(|never| match never {}).boxed_unsync())
}

pub fn body(code: u16, content_type: &'static str, body: Body) -> Response {
    let mut response = http::Response::new(body);
    *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

pub fn status(status: &Status) -> Response {
    let mut response = full(status.code, JSON, status.body().to_string().into());
    let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
    if seconds > 0 {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

/// A value that is no stored object: reviews, statuses, scales.
pub fn value(wanted: Wanted, code: u16, value: &Value) -> Answer<Response> {
    if wanted.yaml {
        let text = serde_saphyr::to_string(value).map_err(Status::internal)?;
        return Ok(full(code, YAML, text.into()));
    }
    Ok(full(code, JSON, value.to_string().into()))
}

/// One stored object in the form the client wants.
pub fn object(call: &Call, code: u16, bytes: &Bytes) -> Answer<Response> {
    match (call.wanted.form, call.wanted.yaml) {
        (Form::Object, false) => Ok(full(code, JSON, bytes.clone())),
        (Form::Object, true) => value(call.wanted, code, &parsed(bytes)?),
        (Form::Metadata, _) => value(call.wanted, code, &parsed(&metadata_only(bytes)?)?),
        (Form::Table, _) => value(call.wanted, code, &table_of(call, &[parsed(bytes)?], Value::Null)?),
    }
}

pub fn entry(call: &Call, code: u16, entry: &Entry) -> Answer<Response> {
    object(call, code, entry.value())
}

pub fn parsed(bytes: &[u8]) -> Answer<Value> {
    serde_json::from_slice(bytes).map_err(|error| Status::internal(format!("could not read an object of the store: {error}")))
}

pub fn table_of(call: &Call, objects: &[Value], list_metadata: Value) -> Answer<Value> {
    Ok(table::table(&call.row, objects, k8s_openapi::jiff::Timestamp::now(), include_object(&call.query)?, list_metadata))
}

pub fn include_object(query: &Query) -> Answer<IncludeObject> {
    match query.text("includeObject") {
        "" | "Metadata" => Ok(IncludeObject::Metadata),
        "None" => Ok(IncludeObject::None),
        "Object" => Ok(IncludeObject::Object),
        other => Err(Status::bad_request(format!("unrecognized includeObject value: {other:?}"))),
    }
}

/// A `PartialObjectMetadata`, without reading the rest of the object.
pub fn metadata_only(bytes: &[u8]) -> Answer<Bytes> {
    #[derive(Deserialize)]
    struct Shell<'a> {
        #[serde(borrow)]
        metadata: &'a RawValue,
    }
    let shell: Shell = serde_json::from_slice(bytes).map_err(|error| Status::internal(format!("could not read an object: {error}")))?;
    Ok(format!(r#"{{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{}}}"#, shell.metadata).into())
}

/// RFC 7234 warnings, which kubectl prints.
pub fn add_warnings(response: &mut Response, warnings: &[String]) {
    for warning in warnings {
        let plain: String = warning.chars().map(|c| if c.is_control() || !c.is_ascii() { ' ' } else { c }).collect();
        let quoted = plain.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(header) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(WARNING, header);
        }
    }
}
