//! Observing through all doors, in order; and `kprov plan`, which only looks.

use super::{Options, Run};
use crate::engine::journal::Journal;
use crate::engine::plan::{Plan, plan};
use crate::engine::{Door, Observed, Resource, lint};
use crate::error::Result;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// For the look before the last word: somebody waits at a terminal that has already failed.
const LAST_LOOK: Duration = Duration::from_secs(5);

/// What is, and what would be done about it.
#[derive(Debug, Clone)]
pub struct Look {
    pub observed: Vec<Observed>,
    pub plan: Plan,
}

/// Observes and plans, and touches nothing.
pub async fn look(doors: &[Arc<dyn Door>], desired: &[Resource], journal: &dyn Journal, options: &Options) -> Result<Look> {
    let observed = Run::new(doors, journal, options, &|_| ()).observe().await?;
    let plan = plan(desired, &observed, &journal.generations());
    let mut refusals = lint::lint_doors(doors, &plan);
    refusals.extend(lint::lint(&plan, desired, &observed));
    lint::refuse(&refusals)?;
    Ok(Look { observed, plan })
}

impl Run<'_> {
    /// Everything of the cluster behind all doors, each door knowing what those before it have seen.
    pub(super) async fn observe(&self) -> Result<Vec<Observed>> {
        let mut seen: Vec<Observed> = Vec::new();
        for door in self.doors {
            let (known, asked) = (&seen, Instant::now());
            let observed = self.unless_stopped(self.retrying(|| door.observe(known), |_, _, _| ())).await??;
            seen.extend(self.corrected(door, asked, observed));
        }
        *self.last_seen.lock() = seen.clone();
        Ok(seen)
    }

    /// What is there when a run ends early: looked at afresh, since its own actions have changed it. A door that does not answer in time
    /// leaves what was known of it, with this run's own effects put right.
    pub(super) async fn last_look(&self) -> Vec<Observed> {
        let mut seen: Vec<Observed> = Vec::new();
        let end = Instant::now() + LAST_LOOK;
        for door in self.doors {
            let (known, asked) = (&seen, Instant::now());
            let observed = match tokio::time::timeout_at(end, door.observe(known)).await {
                Ok(Ok(observed)) => observed,
                _ => self.last_seen.lock().iter().filter(|thing| door.kinds().contains(&thing.id.kind.as_str())).cloned().collect(),
            };
            seen.extend(self.corrected(door, asked, observed));
        }
        seen
    }
}
