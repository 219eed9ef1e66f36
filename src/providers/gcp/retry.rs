//! When a call to Google is sent again: only when the server takes a repeat for the same call, with jitter and within a budget.

use super::failure::{Cause, Failure, is_accident};
use google_cloud_gax::error::Error;
use google_cloud_gax::exponential_backoff::{ExponentialBackoff, ExponentialBackoffBuilder};
use google_cloud_gax::options::RequestOptionsBuilder;
use google_cloud_gax::retry_policy::{RetryPolicy, RetryPolicyExt};
use google_cloud_gax::retry_result::RetryResult;
use google_cloud_gax::retry_state::RetryState;
use std::time::Duration;

/// The engine has a budget of its own around this one; longer waits here would hide what happens from people.
const BUDGET: Duration = Duration::from_secs(30);
const ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// The SDK's own policy sends no POST again and takes 429 for final.
#[derive(Debug, Clone)]
struct Policy;

impl RetryPolicy for Policy {
    fn on_error(&self, state: &RetryState, error: Error) -> RetryResult {
        let may_repeat = error.is_transient_and_before_rpc() || state.idempotent;
        if may_repeat && is_worth_repeating(&error) { RetryResult::Continue(error) } else { RetryResult::Permanent(error) }
    }
}

fn is_worth_repeating(error: &Error) -> bool {
    match error.http_status_code() {
        Some(_) => Failure::cause_of(error) == Cause::Transient,
        None => is_accident(error),
    }
}

pub fn policy() -> impl RetryPolicy + 'static {
    Policy.with_time_limit(BUDGET).with_attempt_limit(ATTEMPTS)
}

/// Full jitter is the SDK's own.
pub fn backoff() -> ExponentialBackoff {
    ExponentialBackoffBuilder::new().with_initial_delay(FIRST_PAUSE).with_maximum_delay(LONGEST_PAUSE).clamp()
}

/// A POST, PATCH or DELETE that the server takes for the same call when it comes again: it carries a request id, or has no second effect.
pub fn repeatable<B: RequestOptionsBuilder>(call: B) -> B {
    call.with_idempotency(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use google_cloud_gax::error::rpc::{Code, Status};

    fn http(status: u16, reason: &str) -> Error {
        let body = format!(r#"{{"error": {{"code": {status}, "message": "m", "errors": [{{"reason": "{reason}"}}]}}}}"#);
        let status_of = Status::try_from(&bytes::Bytes::from(body)).expect("an error's body");
        Error::service_with_http_metadata(status_of, Some(status), None)
    }

    fn check(error: Error, idempotent: bool, again: bool) {
        let text = format!("{error:?}");
        let result = Policy.on_error(&RetryState::new(idempotent), error);
        assert_eq!(matches!(result, RetryResult::Continue(_)), again, "{text}");
    }

    #[test]
    fn only_what_may_be_repeated_is_sent_again() {
        for idempotent in [true, false] {
            check(http(503, "backendError"), idempotent, idempotent);
            check(http(429, "rateLimitExceeded"), idempotent, idempotent);
            check(http(403, "rateLimitExceeded"), idempotent, idempotent);
            check(Error::io("reset"), idempotent, idempotent);
            check(Error::timeout("late"), idempotent, idempotent);
            check(Error::connect("refused"), idempotent, true);
        }
    }

    #[test]
    fn a_final_answer_is_final() {
        check(http(403, "quotaExceeded"), true, false);
        check(http(404, "notFound"), true, false);
        check(http(409, "alreadyExists"), true, false);
        check(http(400, "invalid"), true, false);
        check(Error::service(Status::default().set_code(Code::InvalidArgument)), true, false);
    }
}
