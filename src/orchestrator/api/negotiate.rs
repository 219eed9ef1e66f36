//! What the client wants back (Accept, `as=Table`), and what it sent (Content-Type).

use super::kinds::patch::PatchType;
use super::protobuf;
use super::status::{Answer, Status};
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};
use serde_json::Value;

pub const JSON: &str = "application/json";
pub const YAML: &str = "application/yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const READ: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
const ACCEPTED: &str = "application/json, application/yaml";

/// How objects are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Object,
    Table,
    /// `PartialObjectMetadata`
    Metadata,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub form: Form,
    pub yaml: bool,
}

/// The first offer of the Accept header that can be met; weights are not looked at, as upstream.
pub fn wanted(headers: &HeaderMap) -> Answer<Wanted> {
    let all: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let all = all.join(",");
    if all.trim().is_empty() {
        return Ok(Wanted { form: Form::Object, yaml: false });
    }
    all.split(',').find_map(offer).ok_or_else(|| Status::not_acceptable(ACCEPTED))
}

fn offer(range: &str) -> Option<Wanted> {
    let mut parts = range.split(';').map(str::trim);
    let yaml = match parts.next()? {
        JSON | "*/*" | "application/*" => false,
        YAML => true,
        _ => return None,
    };
    let (mut form, mut version, mut group) = (Form::Object, "v1", "meta.k8s.io");
    for (name, value) in parts.filter_map(|part| part.split_once('=')) {
        match (name, value) {
            ("as", "Table") => form = Form::Table,
            ("as", "PartialObjectMetadata" | "PartialObjectMetadataList") => form = Form::Metadata,
            ("as", _) => return None,
            ("v", value) => version = value,
            ("g", value) => group = value,
            _ => {}
        }
    }
    let known = form == Form::Object || (group == "meta.k8s.io" && matches!(version, "v1" | "v1beta1"));
    known.then_some(Wanted { form, yaml })
}

/// A request's body as a value: JSON unless it says YAML or protobuf.
pub fn body(headers: &HeaderMap, bytes: &[u8]) -> Answer<Value> {
    match media_type(headers).as_str() {
        "" | JSON => serde_json::from_slice(bytes).map_err(|error| unreadable(&error)),
        YAML | "application/x-yaml" | "text/yaml" => {
            let text = std::str::from_utf8(bytes).map_err(|error| unreadable(&error))?;
            serde_saphyr::from_str(text).map_err(|error| unreadable(&error))
        }
        PROTOBUF => protobuf::decode(bytes).map_err(Status::bad_request),
        _ => Err(Status::unsupported_media_type(READ)),
    }
}

fn unreadable(error: &dyn std::fmt::Display) -> Status {
    Status::bad_request(format!("couldn't get version/kind; json parse error: {error}"))
}

pub fn patch_type(headers: &HeaderMap) -> Answer<PatchType> {
    let media_type = media_type(headers);
    PatchType::from_content_type(&media_type).ok_or_else(|| {
        let known = "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json";
        if media_type == "application/apply-patch+yaml" {
            let text = format!(
                "server-side apply is not served here, use kubectl apply without --server-side; accepted media types include: {known}"
            );
            return Status::new(415, "UnsupportedMediaType", text);
        }
        Status::unsupported_media_type(known)
    })
}

pub fn media_type(headers: &HeaderMap) -> String {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(accept: &str, expected: Option<(Form, bool)>) {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept.parse().expect("a header"));
        assert_eq!(wanted(&headers).ok().map(|wanted| (wanted.form, wanted.yaml)), expected, "{accept}");
    }

    #[test]
    fn first_offer_that_can_be_met_wins() {
        check("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", Some((Form::Table, false)));
        check("application/vnd.kubernetes.protobuf,application/json", Some((Form::Object, false)));
        check("application/json;as=Unknown;v=v1;g=meta.k8s.io,application/yaml", Some((Form::Object, true)));
        check("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", Some((Form::Metadata, false)));
        check("application/json;as=Table;v=v9;g=meta.k8s.io", None);
        check("application/cbor", None);
        check("*/*", Some((Form::Object, false)));
    }
}
