//! Kubernetes `Status` bodies: reasons, codes, causes and upstream's message texts (apimachinery `pkg/api/errors`, `util/validation/field`).

use serde_json::{Map, Value, json};
use std::fmt;

/// One field's problem: `FieldValueInvalid` and its kin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    pub reason: &'static str,
    pub message: String,
    /// `spec.containers[0].name`
    pub field: String,
}

impl Cause {
    fn new(reason: &'static str, field: impl Into<String>, message: String) -> Self {
        Cause { reason, message, field: field.into() }
    }
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        Self::new("FieldValueRequired", field, with_detail("Required value", detail))
    }
    pub fn invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        Self::new("FieldValueInvalid", field, with_detail(&format!("Invalid value: {}", shown(value)), detail))
    }
    pub fn not_supported(field: impl Into<String>, value: &Value, supported: &[&str]) -> Self {
        let supported: Vec<String> = supported.iter().map(|value| format!("{value:?}")).collect();
        let message = format!("Unsupported value: {}: supported values: {}", shown(value), supported.join(", "));
        Self::new("FieldValueNotSupported", field, message)
    }
    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self::new("FieldValueDuplicate", field, format!("Duplicate value: {}", shown(value)))
    }
    pub fn not_found(field: impl Into<String>, value: &Value) -> Self {
        Self::new("FieldValueNotFound", field, format!("Not found: {}", shown(value)))
    }
    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self::new("FieldValueForbidden", field, with_detail("Forbidden", detail))
    }
    pub fn too_long(field: impl Into<String>, bytes: usize) -> Self {
        Self::new("FieldValueTooLong", field, format!("Too long: may not be more than {bytes} bytes"))
    }
    pub fn too_many(field: impl Into<String>, found: usize, allowed: usize) -> Self {
        Self::new("FieldValueTooMany", field, format!("Too many: {found}: must have at most {allowed} items"))
    }
    fn value(&self) -> Value {
        json!({"reason": self.reason, "message": self.message, "field": self.field})
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() { out.write_str(&self.message) } else { write!(out, "{}: {}", self.field, self.message) }
    }
}

fn with_detail(head: &str, detail: &str) -> String {
    if detail.is_empty() { head.to_owned() } else { format!("{head}: {detail}") }
}

/// Upstream prints strings quoted and everything else as JSON.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        other => other.to_string(),
    }
}

/// A refusal: what the API answers instead of an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    pub code: u16,
    pub reason: &'static str,
    pub message: String,
    pub details: Option<Box<Details>>,
    /// Only with 410 on a list: where an inconsistent continuation may start.
    pub continue_token: Option<Box<str>>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Details {
    pub name: String,
    pub group: String,
    /// The resource (`pods`), or the kind for `Invalid`.
    pub kind: String,
    pub uid: String,
    pub causes: Vec<Cause>,
    pub retry_after_seconds: u32,
}

pub type Answer<T> = Result<T, Status>;

impl Status {
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Status { code, reason, message: message.into(), details: None, continue_token: None }
    }
    fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        self.details = Some(Box::new(Details { name: name.into(), group: group.into(), kind: kind.into(), ..Details::default() }));
        self
    }
    fn causes(mut self, causes: Vec<Cause>) -> Self {
        self.details.get_or_insert_default().causes = causes;
        self
    }
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.details.get_or_insert_default().retry_after_seconds = seconds;
        self
    }

    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} {name:?} not found", qualified(group, resource))).about(group, resource, name)
    }
    /// A path inside a served group that names no resource.
    pub fn no_such_resource() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource").about("", "", "")
    }
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{} {name:?} already exists", qualified(group, resource))).about(group, resource, name)
    }
    /// `why` is a whole sentence of upstream's, e.g. [`MODIFIED`].
    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", qualified(group, resource));
        Self::new(409, "Conflict", message).about(group, resource, name)
    }
    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let resource_name = qualified(group, resource);
        let message = if name.is_empty() {
            format!("{resource_name} is forbidden: {why}")
        } else {
            format!("{resource_name} {name:?} is forbidden: {why}")
        };
        Self::new(403, "Forbidden", message).about(group, resource, name)
    }
    pub fn forbidden_causes(group: &str, resource: &str, name: &str, why: &str, causes: Vec<Cause>) -> Self {
        Self::forbidden(group, resource, name, why).causes(causes)
    }
    pub fn invalid(group: &str, kind: &str, name: &str, causes: Vec<Cause>) -> Self {
        let texts: Vec<String> = causes.iter().map(Cause::to_string).collect();
        let list = if texts.len() == 1 { texts[0].clone() } else { format!("[{}]", texts.join(", ")) };
        let message = format!("{} {name:?} is invalid: {list}", qualified(group, kind));
        Self::new(422, "Invalid", message).about(group, kind, name).causes(causes)
    }
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }
    pub fn method_not_allowed() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource").about("", "", "")
    }
    pub fn not_acceptable(accepted: &str) -> Self {
        Self::new(406, "NotAcceptable", format!("only the following media types are accepted: {accepted}"))
    }
    pub fn unsupported_media_type(accepted: &str) -> Self {
        let message = format!("the body of the request was in an unknown format - accepted media types include: {accepted}");
        Self::new(415, "UnsupportedMediaType", message)
    }
    pub fn too_large(limit: usize) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit}"))
    }
    pub fn too_many_requests(message: &str, seconds: u32) -> Self {
        Self::new(429, "TooManyRequests", message).retry_after(seconds)
    }
    pub fn timeout(message: impl Into<String>, seconds: u32) -> Self {
        Self::new(504, "Timeout", message).retry_after(seconds)
    }
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }
    pub fn internal(cause: impl fmt::Display) -> Self {
        Self::new(500, "InternalError", format!("Internal error occurred: {cause}"))
    }
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }
    pub fn too_old_resource_version(asked: u64, oldest: u64) -> Self {
        Self::expired(format!("too old resource version: {asked} ({oldest})"))
    }
    /// The client saw a revision that this server has not reached (a restored backup, or another server's).
    pub fn too_large_resource_version(asked: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {asked}, current: {current}");
        let cause = Cause { reason: "ResourceVersionTooLarge", message: "Too large resource version".into(), field: String::new() };
        Self::timeout(format!("Timeout: {message}"), 1).causes(vec![cause])
    }

    /// The JSON object as sent.
    pub fn body(&self) -> Value {
        let mut metadata = Map::new();
        if let Some(token) = &self.continue_token {
            metadata.insert("continue".into(), json!(token));
        }
        let mut body = json!({"kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure",
            "message": self.message, "reason": self.reason});
        if let Some(details) = &self.details {
            body["details"] = details.value();
        }
        body["code"] = json!(self.code);
        body
    }
}

impl Details {
    fn value(&self) -> Value {
        let mut map = Map::new();
        for (key, text) in [("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)] {
            if !text.is_empty() {
                map.insert(key.into(), json!(text));
            }
        }
        if !self.causes.is_empty() {
            map.insert("causes".into(), self.causes.iter().map(Cause::value).collect());
        }
        if self.retry_after_seconds > 0 {
            map.insert("retryAfterSeconds".into(), json!(self.retry_after_seconds));
        }
        Value::Object(map)
    }
}

/// Why a compare-and-put lost, in upstream's words.
pub const MODIFIED: &str = "the object has been modified; please apply your changes to the latest version and try again";

/// `deployments.apps`, or `pods` for the core group.
pub fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

/// The body of a delete that left nothing behind.
pub fn deleted(group: &str, resource: &str, name: &str, uid: &str) -> Value {
    let details = Details { name: name.into(), group: group.into(), kind: resource.into(), uid: uid.into(), ..Details::default() };
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details.value()})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(status: Status, code: u16, message: &str) {
        assert_eq!((status.code, status.message.as_str()), (code, message));
    }

    #[test]
    fn texts_are_upstreams() {
        check(Status::not_found("apps", "deployments", "web"), 404, "deployments.apps \"web\" not found");
        check(Status::forbidden("", "pods", "", "User \"x\" cannot list"), 403, "pods is forbidden: User \"x\" cannot list");
        check(
            Status::invalid("", "Pod", "a", vec![Cause::required("spec.containers", "")]),
            422,
            "Pod \"a\" is invalid: spec.containers: Required value",
        );
        let two = vec![Cause::not_supported("a", &json!("x"), &["y", "z"]), Cause::invalid("b", &json!(0), "must be greater than zero")];
        let text = "Job.batch \"a\" is invalid: [a: Unsupported value: \"x\": supported values: \"y\", \"z\", b: Invalid value: 0: must be greater than zero]";
        check(Status::invalid("batch", "Job", "a", two), 422, text);
    }

    #[test]
    fn body_has_the_shape_clients_decode() {
        let body = Status::conflict("", "pods", "a", MODIFIED).body();
        assert_eq!(body["details"], json!({"name": "a", "kind": "pods"}));
        assert_eq!(body["code"], 409);
    }
}
