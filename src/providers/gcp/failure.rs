//! What Google's refusals mean: a status and its reasons become a cause, and a cause becomes an error with a next step. Pure.

use crate::error::{Error, Kind};
use google_cloud_gax::error::Error as SdkError;
use google_cloud_gax::error::rpc::StatusDetails;
use serde_json::Value;

/// A call or an operation that did not end well, sorted by what can be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub cause: Cause,
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    NotFound,
    /// Something of this name is there: ours from a call whose reply was lost, or somebody else's.
    AlreadyExists,
    /// It is not as it was when it was read: read again.
    Changed,
    /// Another operation on it is not finished.
    NotReady,
    InUse,
    /// Nobody has to change anything: throttled, unavailable, connection lost.
    Transient,
    Quota,
    /// The zone has no such machine to give at the moment.
    Capacity,
    Denied,
    /// The API is not enabled in the project.
    Disabled,
    Unauthenticated,
    Refused,
}

impl Failure {
    pub fn new(cause: Cause, text: impl Into<String>) -> Self {
        Failure { cause, text: text.into() }
    }

    /// A finished operation's own error; `None` when it succeeded.
    pub fn of_operation(operation: &Value) -> Option<Failure> {
        let errors = operation["error"]["errors"].as_array().filter(|errors| !errors.is_empty());
        let status = operation["httpErrorStatusCode"].as_u64().map(|status| status as u16);
        if errors.is_none() && status.is_none_or(|status| status < 400) {
            return None;
        }
        let text_of = |name: &str| -> Vec<String> {
            errors.into_iter().flatten().filter_map(|error| error[name].as_str().map(str::to_string)).collect()
        };
        let (codes, mut texts) = (text_of("code"), text_of("message"));
        texts.extend(operation["httpErrorMessage"].as_str().filter(|_| errors.is_none()).map(str::to_string));
        let text = texts.join("; ");
        Some(Failure::new(cause(status, &codes, &text), text))
    }

    pub fn cause_of(error: &SdkError) -> Cause {
        let text = error.status().map_or("", |status| status.message.as_str());
        cause(error.http_status_code(), &reasons(error), text)
    }

    /// `what` reads "could not ...".
    pub fn error(self, what: impl Into<String>) -> Error {
        let kind = match self.cause {
            Cause::Transient | Cause::NotReady | Cause::Changed => Kind::Transient,
            _ => Kind::Provider,
        };
        let hint = self.hint();
        let error = Error::new(kind, what).because(self.text);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }

    /// An organization's policy forbids it: no role helps.
    pub fn is_policy(&self) -> bool {
        is_policy(&self.text)
    }

    fn hint(&self) -> Option<String> {
        let hint = match self.cause {
            Cause::Quota => "ask for more quota at https://console.cloud.google.com/iam-admin/quotas or make the blueprint smaller; \
                             kprov up goes on from here, kprov down takes away what exists"
                .into(),
            Cause::Capacity => "choose another type in spec.providers.gcp.machineTypes or another region, or try again later; \
                                kprov up goes on from here, kprov down takes away what exists"
                .into(),
            Cause::Denied => denied(&self.text),
            Cause::Disabled => "enable it: gcloud services enable compute.googleapis.com file.googleapis.com".into(),
            Cause::Unauthenticated => "sign in: gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS".into(),
            Cause::InUse => "something outside of the cluster uses it; take that away first".into(),
            _ => return None,
        };
        Some(hint)
    }
}

impl From<SdkError> for Failure {
    fn from(error: SdkError) -> Self {
        let text = error.status().map_or_else(|| error.to_string(), |status| status.message.clone());
        if error.is_authentication() {
            return Failure::new(if is_accident(&error) { Cause::Transient } else { Cause::Unauthenticated }, chain(&error));
        }
        if error.http_status_code().is_none() && is_accident(&error) {
            return Failure::new(Cause::Transient, chain(&error));
        }
        Failure::new(Failure::cause_of(&error), text)
    }
}

fn reasons(error: &SdkError) -> Vec<String> {
    let Some(status) = error.status() else { return Vec::new() };
    let details = status.details.iter().filter_map(|detail| match detail {
        StatusDetails::ErrorInfo(info) => Some(info.reason.clone()),
        _ => None,
    });
    details.chain([status.code.name().to_string()]).collect()
}

/// The connection or the peer failed, not the request.
pub fn is_accident(error: &SdkError) -> bool {
    // A limit of the retry policy wraps what it gave up on.
    let inner = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    inner.filter_map(|error| error.downcast_ref::<SdkError>()).any(|error| {
        error.is_io()
            || error.is_connect()
            || error.is_timeout()
            || error.is_exhausted()
            || error.is_transport()
            || error.is_transient_and_before_rpc()
    })
}

fn chain(error: &dyn std::error::Error) -> String {
    let all: Vec<String> = std::iter::successors(Some(error), |error| error.source()).map(|error| error.to_string()).collect();
    all.join(": ")
}

/// Reasons are written `quotaExceeded` in replies and `QUOTA_EXCEEDED` in operations.
pub fn cause(status: Option<u16>, reasons: &[String], text: &str) -> Cause {
    let reasons: Vec<String> = reasons.iter().map(|reason| reason.replace('_', "").to_ascii_lowercase()).collect();
    let says = |part: &str| reasons.iter().any(|reason| reason.contains(part));
    match status {
        // Google gives an organization's policy the reason of an outdated fingerprint.
        _ if is_policy(text) => Cause::Denied,
        // A quota by its name, but one that empties by itself: of operations at once.
        _ if says("ratelimitexceeded") || says("concurrentoperationsquota") => Cause::Transient,
        _ if says("quotaexceeded") => Cause::Quota,
        _ if says("poolexhausted") || says("stockout") => Cause::Capacity,
        _ if says("resourcenotready") || says("aborted") || says("operationinprogress") => Cause::NotReady,
        _ if says("inusebyanotherresource") || says("resourceinuse") => Cause::InUse,
        _ if says("conditionnotmet") => Cause::Changed,
        _ if says("accessnotconfigured") || says("servicedisabled") => Cause::Disabled,
        _ if says("alreadyexists") || says("duplicate") => Cause::AlreadyExists,
        _ if says("notfound") => Cause::NotFound,
        _ if says("internalerror") => Cause::Transient,
        _ if says("permissionserror") => Cause::Denied,
        Some(401) => Cause::Unauthenticated,
        Some(403) => Cause::Denied,
        Some(404) => Cause::NotFound,
        Some(409) => Cause::AlreadyExists,
        Some(412) => Cause::Changed,
        Some(408 | 429 | 500..) => Cause::Transient,
        _ => Cause::Refused,
    }
}

/// What an organization's policy forbids: "Constraint constraints/compute.requireOsLogin violated for project 1".
fn is_policy(text: &str) -> bool {
    text.contains("onstraint constraints/") || text.contains("violated for project") || text.contains("denied by org policy")
}

/// The next step when Google says no.
fn denied(text: &str) -> String {
    if is_policy(text) {
        let constraint = text.split(|letter: char| !letter.is_ascii_alphanumeric() && !"./".contains(letter));
        let constraint = constraint.map(|word| word.trim_end_matches('.')).find(|word| word.contains("onstraints/"));
        let named = constraint.map_or_else(|| "a constraint of the organization's policy".into(), |name| format!("the policy {name}"));
        return format!("{named} forbids it: ask who keeps the organization's policies for an exception for this project");
    }
    if text.contains("guest attributes of") && permission(text).is_none() {
        return "host keys are read there: no policy (constraints/compute.disableGuestAttributesAccess) may forbid it for this project"
            .into();
    }
    match permission(text) {
        Some(permission) => format!("the credentials lack {permission}: grant a role that has it"),
        None => "grant the credentials' account a role with this permission".into(),
    }
}

/// `compute.instances.create` out of "Required 'compute.instances.create' permission for ...".
fn permission(text: &str) -> Option<&str> {
    text.split(['\'', '"', ' ']).find(|word| {
        let known = word.starts_with("compute.") || word.starts_with("file.") || word.starts_with("iam.");
        known && word.split('.').count() == 3
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(status: u16, reason: &str, expected: Cause) {
        assert_eq!(cause(Some(status), &[reason.to_string()], "a text"), expected, "{status} {reason}");
    }

    #[test]
    fn refusals_are_told_apart_by_reason_before_status() {
        check(404, "notFound", Cause::NotFound);
        check(409, "alreadyExists", Cause::AlreadyExists);
        check(409, "ABORTED", Cause::NotReady);
        check(412, "conditionNotMet", Cause::Changed);
        check(400, "resourceInUseByAnotherResource", Cause::InUse);
        check(400, "resourceNotReady", Cause::NotReady);
        check(400, "invalid", Cause::Refused);
        check(403, "rateLimitExceeded", Cause::Transient);
        check(403, "quotaExceeded", Cause::Quota);
        check(403, "CONCURRENT_OPERATIONS_QUOTA_EXCEEDED", Cause::Transient);
        check(403, "accessNotConfigured", Cause::Disabled);
        check(403, "forbidden", Cause::Denied);
        check(429, "", Cause::Transient);
        check(503, "backendError", Cause::Transient);
        check(401, "authError", Cause::Unauthenticated);
    }

    #[test]
    fn a_finished_operation_that_failed_is_a_failure() {
        let failed =
            |code: &str| json!({"status": "DONE", "httpErrorStatusCode": 403, "error": {"errors": [{"code": code, "message": "no more"}]}});
        let failure = |code: &str| Failure::of_operation(&failed(code)).expect("it failed");
        assert_eq!(failure("QUOTA_EXCEEDED"), Failure::new(Cause::Quota, "no more"));
        assert_eq!(failure("ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS").cause, Cause::Capacity);
        assert_eq!(failure("RESOURCE_ALREADY_EXISTS").cause, Cause::AlreadyExists);
        assert_eq!(Failure::of_operation(&json!({"status": "DONE"})), None);
        assert_eq!(
            Failure::of_operation(&json!({"httpErrorStatusCode": 503, "httpErrorMessage": "x"})).map(|one| one.cause),
            Some(Cause::Transient)
        );
    }

    #[test]
    fn a_denied_request_names_the_missing_permission() {
        let text = "Required 'compute.instances.create' permission for 'projects/p/zones/z/instances/i'";
        let error = Failure::new(Cause::Denied, text).error("could not create machine/a");
        assert!(error.hints()[0].contains("lack compute.instances.create:"), "{:?}", error.hints());
        assert_eq!(error.kind, Kind::Provider);
    }

    #[test]
    fn what_an_organization_forbids_is_denied_and_the_constraint_is_named() {
        let check = |text: &str, named: &str| {
            for (status, reason) in [(412, "conditionNotMet"), (400, "CONDITION_NOT_MET")] {
                assert_eq!(cause(Some(status), &[reason.to_string()], text), Cause::Denied, "{text}");
            }
            let error = Failure::new(Cause::Denied, text).error("could not create machine/a");
            assert!(error.hints()[0].starts_with(named) && error.kind == Kind::Provider, "{:?}", error.hints());
        };
        let login = "Constraint constraints/compute.requireOsLogin violated for project 123456.";
        check(login, "the policy constraints/compute.requireOsLogin forbids");
        let own = "Operation denied by org policy on resource 'projects/1': [\"customConstraints/custom.small\": \"no\"].";
        check(own, "the policy customConstraints/custom.small forbids");
        check("Something is violated for project 1.", "a constraint of the organization's policy forbids");
        let fingerprint = "Supplied fingerprint does not match current metadata fingerprint.";
        assert_eq!(cause(Some(412), &["conditionNotMet".into()], fingerprint), Cause::Changed);
    }

    #[test]
    fn operations_that_are_too_many_at_once_are_waited_for_whatever_else_the_reply_says() {
        let body = r#"{"error": {"code": 403, "message": "Rate Limit Exceeded", "errors": [{"reason": "rateLimitExceeded"}], "details": [
            {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "CONCURRENT_OPERATIONS_QUOTA_EXCEEDED", "domain": "d"}]}}"#;
        let status = google_cloud_gax::error::rpc::Status::try_from(&bytes::Bytes::from(body)).expect("an error's body");
        let error = SdkError::service_with_http_metadata(status, Some(403), None);
        assert_eq!(Failure::from(error).cause, Cause::Transient);
    }
}
