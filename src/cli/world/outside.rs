//! One cluster seen from the operator's host: its doors, what is desired behind them, and the journal.

use super::blueprint_door;
use super::hosts::{Hosts, machines_of};
use crate::blueprint::{Blueprint, Role};
use crate::bootstrap::spec::Image;
use crate::cli::progress::Progress;
use crate::engine::converge::{Look, Options, converge, look};
use crate::engine::journal::FileJournal;
use crate::engine::plan::Plan;
use crate::engine::{Door, Observed, Resource, Verb};
use crate::error::Result;
use crate::providers::{Context, Provider};
use std::sync::Arc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub struct Outside {
    pub provider: Arc<dyn Provider>,
    /// In the order in which their kinds need each other.
    pub doors: Vec<Arc<dyn Door>>,
    pub desired: Vec<Resource>,
    pub journal: FileJournal,
    /// The blueprint's archives, and the blueprint with their digests; none on the way down.
    pub images: Vec<Image>,
    pub blueprint: Option<Blueprint>,
    /// The first Ctrl-C: start nothing new, finish what is in flight.
    pub cancel: CancellationToken,
}

/// Everything that should exist for a blueprint: the provider's things, a host per machine, and the Blueprint object itself.
pub async fn desired(blueprint: &Blueprint, provider: &dyn Provider, context: &Context, hosts: &Hosts) -> Result<Vec<Resource>> {
    let mut desired = provider.resources(blueprint, context).await?;
    let hosts = hosts.resources(blueprint, &desired);
    desired.extend(hosts);
    if let Some(control) = machines_of(blueprint, Role::ControlPlane).first() {
        desired.push(blueprint_door::resource(blueprint, control)?);
    }
    Ok(desired)
}

impl Outside {
    /// What is there, and what would be done about it.
    pub async fn look(&self) -> Result<Look> {
        look(&self.doors, &self.desired, &self.journal, &Options::new(0)).await
    }

    /// US dollars an hour for everything that is desired, as far as its provider knows.
    pub fn price(&self) -> Option<f64> {
        let prices: Vec<f64> = self.desired.iter().filter_map(|thing| self.provider.price(&thing.id, &thing.spec)).collect();
        (!prices.is_empty()).then(|| prices.iter().sum())
    }

    /// What can be known before the first create; only for plans that make something.
    pub async fn check(&self, plan: &Plan) -> Result<()> {
        if plan.actions.iter().any(|action| action.verb == Verb::Create) { self.provider.check(&self.desired).await } else { Ok(()) }
    }

    /// Runs until nothing is left to do; what exists then.
    pub async fn converge(&self, epoch: u64, deadline: Instant, progress: &Progress) -> Result<Vec<Observed>> {
        let mut options = Options::new(epoch);
        options.deadline = Some(deadline.saturating_duration_since(Instant::now()));
        options.cancel = self.cancel.clone();
        // On the way down, one thing that will not go keeps nothing else.
        options.keep_going = self.desired.is_empty();
        let outcome = converge(&self.doors, &self.desired, &self.journal, &options, &|event| progress.event(&event)).await?;
        Ok(outcome.observed)
    }
}
