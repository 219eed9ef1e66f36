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
    pub fn met(&self, owner: &str) -> bool {
        let mut owners = self.owners.lock();
        let Some(outstanding) = owners.get(owner) else { return true };
        let done = outstanding.creates == 0 && outstanding.deletes.is_empty();
        let expired = outstanding.since.is_none_or(|since| since.elapsed() > EXPIRY);
        if done || expired {
            owners.remove(owner);
        }
        done || expired
    }
    pub fn forget(&self, owner: &str) {
        self.owners.lock().remove(owner);
    }
}
