//! Trying again: full-jitter back-off inside a budget, and waits that end at the deadline or on Ctrl-C.

use super::Run;
use crate::error::{Error, Kind, Result};
use rand::RngExt;
use std::future::Future;
use std::time::Duration;
use tokio::time::Instant;

/// The first pause is at most this; each further one may be twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Longer pauses only make people wait: a throttled account recovers within seconds.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

impl Run<'_> {
    /// Full jitter: anything between nothing and the exponential bound, so that clients which failed together do not return together.
    pub(super) fn pause(&self, attempt: u32) -> Duration {
        let bound = FIRST_PAUSE.saturating_mul(1 << attempt.min(10)).min(LONGEST_PAUSE);
        self.random.lock().random_range(Duration::ZERO..=bound)
    }

    /// Repeats `call` while its errors are transient, for at most the retry budget. `before` hears of each pause.
    pub(super) async fn retrying<T, F: Future<Output = Result<T>>>(
        &self,
        mut call: impl FnMut() -> F,
        before: impl Fn(u32, Duration, &Error),
    ) -> Result<T> {
        let give_up = Instant::now() + self.options.retry_budget;
        let mut attempt = 0;
        loop {
            let error = match call().await {
                Err(error) if self.is_worth_retrying(&error) => error,
                end => return end,
            };
            attempt += 1;
            let pause = self.pause(attempt);
            if Instant::now() + pause > give_up || self.options.cancel.is_cancelled() {
                return Err(error);
            }
            before(attempt, pause, &error);
            tokio::time::sleep(pause).await;
        }
    }

    fn is_worth_retrying(&self, error: &Error) -> bool {
        error.kind == Kind::Transient || (self.has(super::Bug::ConflictRetried) && error.kind == Kind::Conflict)
    }

    /// `wait`, unless the deadline or Ctrl-C comes first. Only for what has no effect: it may be dropped half-way.
    pub(super) async fn unless_stopped<T>(&self, wait: impl Future<Output = T>) -> Result<T> {
        tokio::select! {
            biased;
            _ = self.options.cancel.cancelled() => Err(interrupted()),
            _ = until(self.deadline) => Err(self.late()),
            value = wait => Ok(value),
        }
    }

    /// A pause between rounds that grows with the number of rounds that achieved nothing, and is long enough for reads to catch up.
    pub(super) async fn rest(&self, rounds: u32) -> Result<()> {
        let pause = self.pause(rounds).max(self.window());
        self.unless_stopped(tokio::time::sleep(pause)).await
    }

    pub(super) fn late(&self) -> Error {
        let seconds = self.options.deadline.unwrap_or_default().as_secs();
        Error::timeout(format!("could not finish within {seconds} s"))
    }
}

pub(super) fn interrupted() -> Error {
    Error::new(Kind::Interrupted, "stopped on request; nothing is in flight any more")
}

/// Never, when there is no deadline.
pub(super) async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
