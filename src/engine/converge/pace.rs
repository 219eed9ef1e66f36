//! Never faster than the receiver's owner allows: requests of one kind leave at its documented rate instead of being sent away.

use super::Run;
use crate::engine::Pace;
use std::time::Duration;
use tokio::time::Instant;

impl Run<'_> {
    /// Returns when the next request of this pace may leave. A token bucket: so many at once, then one per interval.
    pub(super) async fn paced(&self, pace: &Pace) {
        let (now, interval) = (Instant::now(), Duration::from_secs_f64(1.0 / pace.per_second));
        let due = {
            let mut paces = self.paces.lock();
            let free = paces.entry(pace.bucket).or_insert(now);
            let due = (*free).max(now);
            *free = due + interval;
            due
        };
        let at_once = interval * pace.burst.saturating_sub(1);
        if let Some(start) = due.checked_sub(at_once).filter(|start| *start > now) {
            tokio::time::sleep_until(start).await;
        }
    }
}
