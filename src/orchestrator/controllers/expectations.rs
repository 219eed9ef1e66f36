//! What a controller has done and not yet seen in its informer: while something is outstanding, counting pods would do it twice.

use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Upstream's own limit: an event lost for this long will not come.
const EXPIRY: Duration = Duration::from_secs(300);

#[derive(Default)]
struct Outstanding {
    creates: usize,
    deletes: HashSet<String>,
    since: Option<Instant>,
}

/// By the owner's uid. Cheap to clone.
#[derive(Clone, Default)]
pub struct Expectations {
    owners: Arc<Mutex<HashMap<String, Outstanding>>>,
}

impl Expectations {
    pub fn expect_creates(&self, owner: &str, count: usize) {
        let mut owners = self.owners.lock();
        let outstanding = owners.entry(owner.into()).or_default();
        outstanding.creates += count;
        outstanding.since = Some(Instant::now());
    }
    pub fn expect_delete(&self, owner: &str, uid: &str) {
        let mut owners = self.owners.lock();
        let outstanding = owners.entry(owner.into()).or_default();
        outstanding.deletes.insert(uid.into());
        outstanding.since = Some(Instant::now());
    }
    /// Seen, or failed: either way it is no longer to be waited for.
    pub fn created(&self, owner: &str, count: usize) {
        if let Some(outstanding) = self.owners.lock().get_mut(owner) {
            outstanding.creates = outstanding.creates.saturating_sub(count);
        }
    }
    pub fn deleted(&self, owner: &str, uid: &str) {
        if let Some(outstanding) = self.owners.lock().get_mut(owner) {
            outstanding.deletes.remove(uid);
        }
    }
    /// `None`: all is seen, or waited for long enough. Else the time after which it is no longer waited for: whoever asks must look again
    /// then, because the event that would wake it may be the one that was lost.
    pub fn unmet(&self, owner: &str) -> Option<Duration> {
        let mut owners = self.owners.lock();
        let outstanding = owners.get(owner)?;
        let done = outstanding.creates == 0 && outstanding.deletes.is_empty();
        let left = outstanding.since.map_or(Duration::ZERO, |since| EXPIRY.saturating_sub(since.elapsed()));
        if done || left.is_zero() {
            owners.remove(owner);
            return None;
        }
        Some(left)
    }
    pub fn forget(&self, owner: &str) {
        self.owners.lock().remove(owner);
    }
}

/// The earlier of two times to look again.
pub fn sooner(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    one.into_iter().chain(other).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_seen_or_failed_is_no_longer_waited_for() {
        let expectations = Expectations::default();
        assert_eq!(expectations.unmet("o"), None);
        expectations.expect_creates("o", 2);
        expectations.expect_delete("o", "p");
        assert_eq!(expectations.unmet("other"), None);
        expectations.created("o", 2);
        assert!(expectations.unmet("o").is_some());
        expectations.deleted("o", "p");
        assert_eq!(expectations.unmet("o"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_event_is_waited_for_until_the_time_that_is_told() {
        let expectations = Expectations::default();
        expectations.expect_delete("o", "p");
        assert_eq!(expectations.unmet("o"), Some(EXPIRY));
        tokio::time::advance(Duration::from_secs(100)).await;
        let left = expectations.unmet("o").expect("not yet");
        assert_eq!(left, Duration::from_secs(200));
        tokio::time::advance(left).await;
        assert_eq!(expectations.unmet("o"), None);
    }

    #[test]
    fn the_sooner_of_two() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(sooner(None, None), None);
        assert_eq!((sooner(seconds(3), None), sooner(None, seconds(3))), (seconds(3), seconds(3)));
        assert_eq!(sooner(seconds(3), seconds(2)), seconds(2));
    }
}
