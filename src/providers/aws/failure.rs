//! What AWS answers when it does not do it, by who can mend it.

use crate::error::{Error, Kind, Result};
use aws_sdk_ec2::config::http::HttpResponse;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};

/// Codes that pass by themselves: rates, reads that lag, things that still let go of others.
const PASSING: [&str; 22] = [
    "RequestLimitExceeded",
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "TooManyRequestsException",
    "TooManyUpdates",
    "ServiceUnavailable",
    "Unavailable",
    "InternalError",
    "InternalFailure",
    "InternalServerError",
    "RequestTimeout",
    "DependencyViolation",
    "ResourceInUse",
    "ResourceInUseException",
    "FileSystemInUse",
    "IncorrectFileSystemLifeCycleState",
    "DeleteConflict",
    "IncorrectInstanceState",
    "IncorrectState",
    "ConcurrentModification",
    "InvalidTarget",
];

/// A kind that reached this provider by mistake.
pub fn not_ours(kind: &str) -> Error {
    Error::internal(format!("could not find out what to do: kind {kind} is not AWS's"))
}

pub trait OrFailure<T> {
    /// `what` is said as "could not ...".
    fn or_failure(self, what: &str) -> Result<T>;
}

impl<T, E> OrFailure<T> for std::result::Result<T, SdkError<E, HttpResponse>>
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    fn or_failure(self, what: &str) -> Result<T> {
        self.map_err(|error| failure(what, &error))
    }
}

/// Whether the request may have been carried out all the same: there was no answer, or AWS did not know either.
pub fn may_have_happened<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> bool {
    match error {
        SdkError::ServiceError(context) => {
            context.raw().status().as_u16() >= 500 && !error.code().is_some_and(|code| PASSING.contains(&code))
        }
        _ => true,
    }
}

pub fn failure<E>(what: &str, error: &SdkError<E, HttpResponse>) -> Error
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let (code, message) = (error.code().unwrap_or_default(), error.message().unwrap_or_default());
    match error {
        SdkError::ServiceError(context) => refusal(what, code, message, context.raw().status().as_u16()),
        // No answer, or none that can be read: whether it had an effect is unknown, and sending the same again is harmless.
        other => {
            let text = aws_sdk_ec2::error::DisplayErrorContext(other).to_string();
            if text.contains("dns error") || text.contains("failed to lookup address") {
                return Error::provider(format!("could not {what}: AWS has no address there, or this host finds none"))
                    .because(text)
                    .hint("is the region's name right (spec.location, spec.providers.aws.region, AWS_REGION)? is this host online?");
            }
            if text.contains("redential") {
                return Error::provider(format!("could not {what}")).because(text).hint("aws configure, or AWS_PROFILE, says who you are");
            }
            Error::transient(format!("could not {what}")).because(text)
        }
    }
}

/// A profile made a moment ago, or one that was given its role a moment ago; the parameter is right.
pub fn is_young_profile(message: &str) -> bool {
    ["Invalid IAM Instance Profile", "has no associated IAM Roles"].iter().any(|part| message.contains(part))
}

/// Pure.
fn refusal(what: &str, code: &str, message: &str, status: u16) -> Error {
    let (kind, hint) = classify(code, message, status);
    let error = Error::new(kind, format!("could not {what}")).because(format!("{code}: {message}"));
    if hint.is_empty() { error } else { error.hint(hint) }
}

/// Who can mend it, and how; what is refused for good comes first, since AWS calls some of that its own fault (status 500).
fn classify(code: &str, message: &str, status: u16) -> (Kind, &'static str) {
    let has = |parts: &[&str]| parts.iter().any(|part| code.contains(part));
    match () {
        // Filesystems and load balancers have zones of an account that they are not offered in.
        _ if has(&["UnsupportedAvailabilityZone"]) || message.to_lowercase().contains("constrained availability zone") => {
            let hint = "kprov down, then name zones that have it in spec.providers.aws.zones (of a network of your own: other subnets)";
            (Kind::Provider, hint)
        }
        _ if has(&["InsufficientInstanceCapacity", "InsufficientCapacity", "Unsupported"]) => {
            (Kind::Provider, "name another type in spec.providers.aws.instanceTypes, or another region; or try again later")
        }
        _ if has(&["InvalidAMIID", "InvalidInstanceType"]) => {
            (Kind::Provider, "spec.providers.aws.image, spec.providers.aws.instanceTypes and the region decide")
        }
        _ if status >= 500 || status == 429 || PASSING.contains(&code) || is_young_profile(message) => (Kind::Transient, ""),
        _ if has(&["NotFound", "NoSuchEntity"]) => (Kind::Transient, ""),
        // Our names hold the cluster's uid: what has one is ours, made by a request whose answer was lost, and shows in a moment.
        _ if has(&["Duplicate", "AlreadyExists"]) => (Kind::Transient, ""),
        _ if has(&["AccessDenied", "UnauthorizedOperation"]) => {
            (Kind::Provider, "kprov iam aws FILE prints the policy that kprov needs; the message names what is missing")
        }
        _ if has(&["AuthFailure", "ExpiredToken", "RequestExpired", "InvalidClientTokenId", "UnrecognizedClient", "Signature"]) => {
            (Kind::Provider, "the credentials are wrong or expired, or this host's clock is; or the account has not enabled the region")
        }
        _ if has(&["OptInRequired", "PendingVerification", "Blocked"]) => {
            (Kind::Provider, "the account itself is not ready: see the console")
        }
        _ if has(&["LimitExceeded", "TooMany", "Quota"]) => {
            (Kind::Provider, "ask for more under Service Quotas in the console, or make the blueprint smaller")
        }
        _ => (Kind::Provider, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_classified_by_who_can_mend_it() {
        let check = |code, message, status, kind| assert_eq!(classify(code, message, status).0, kind, "{code}");
        check("RequestLimitExceeded", "", 503, Kind::Transient);
        check("DependencyViolation", "", 400, Kind::Transient);
        check("InvalidParameterValue", "Invalid IAM Instance Profile name", 400, Kind::Transient);
        let roleless = r#"IAM Instance Profile "arn:aws:iam::123456789012:instance-profile/kprov-shop" has no associated IAM Roles"#;
        check("InvalidParameterValue", roleless, 400, Kind::Transient);
        check("InvalidParameterValue", "", 400, Kind::Provider);
        check("VcpuLimitExceeded", "", 400, Kind::Provider);
        check("UnauthorizedOperation", "", 403, Kind::Provider);
        check("", "", 502, Kind::Transient);
        check("InsufficientInstanceCapacity", "", 500, Kind::Provider);
        check("InvalidAMIID.NotFound", "", 400, Kind::Provider);
        check("InvalidSubnetID.NotFound", "", 400, Kind::Transient);
        check("InvalidGroup.Duplicate", "", 400, Kind::Transient);
        check("EntityAlreadyExists", "", 409, Kind::Transient);
        check("RequestExpired", "", 400, Kind::Provider);
        for (code, message) in [
            ("UnsupportedAvailabilityZone", "Not there."),
            ("InvalidConfigurationRequest", "Subnet subnet-1 is in a constrained Availability Zone."),
        ] {
            let (kind, hint) = classify(code, message, 400);
            assert!(kind == Kind::Provider && hint.contains("spec.providers.aws.zones"), "{code}: {hint}");
        }
        assert!(!refusal("make a machine", "InsufficientInstanceCapacity", "none left", 400).hints().is_empty());
    }
}
