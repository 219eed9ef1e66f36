//! Kinds that are only computed: who am I, and may I.

use super::authz::{self, Attributes};
use super::negotiate;
use super::respond::{self, Response};
use super::server::Call;
use super::status::{Answer, Status};
use super::write::with_kind;
use serde_json::{Value, json};

pub fn create(call: &Call) -> Answer<Response> {
    let body = negotiate::body(call.headers, call.body)?;
    let mut review = with_kind(call, body, &call.row.kind, &call.row.api_version())?;
    review["status"] = match &*call.row.kind {
        "SelfSubjectReview" => json!({"userInfo": call.user.info()}),
        "SelfSubjectAccessReview" => access(call, &review["spec"])?,
        _ => return Err(Status::method_not_allowed()),
    };
    respond::value(call.wanted, 201, &review)
}

/// Answered by the authoriser that real requests pass.
fn access(call: &Call, spec: &Value) -> Answer<Value> {
    let field = |part: &str, name: &str| spec[part][name].as_str().unwrap_or_default().to_owned();
    if spec["nonResourceAttributes"].is_object() {
        let allowed = authz::may_path(call.user, &field("nonResourceAttributes", "verb"), &field("nonResourceAttributes", "path"));
        return Ok(json!({"allowed": allowed}));
    }
    if !spec["resourceAttributes"].is_object() {
        let text =
            "spec.resourceAttributes: Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified";
        return Err(Status::bad_request(text));
    }
    let part = |name: &str| field("resourceAttributes", name);
    let asked = Attributes {
        verb: part("verb"),
        group: part("group"),
        resource: part("resource"),
        subresource: part("subresource"),
        namespace: part("namespace"),
        name: part("name"),
        selected_node: String::new(),
    };
    Ok(match authz::decide(call.server, call.user, &asked) {
        Ok(()) => json!({"allowed": true}),
        Err(reason) if reason.is_empty() => json!({"allowed": false}),
        Err(reason) => json!({"allowed": false, "reason": reason}),
    })
}
