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
use crate::providers::resources::{FILESYSTEM, LOAD_BALANCER, MACHINE};
use crate::providers::{Context, Provider};
use std::fmt;
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

/// What is paid for on every cloud; a network, a rule or a key costs nothing.
const PAID: [&str; 3] = [FILESYSTEM, MACHINE, LOAD_BALANCER];
/// Of what has no known price; the others are counted.
const MOST_NAMED: usize = 3;

/// What all that is desired costs together.
#[derive(Debug, PartialEq)]
pub struct Price {
    /// US dollars an hour, without what is unknown.
    pub dollars: f64,
    /// What costs something that nobody here knows: its id, and of a machine its type.
    pub unknown: Vec<String>,
}

impl Price {
    fn of(desired: &[Resource], price: impl Fn(&Resource) -> Option<f64>) -> Option<Price> {
        let (known, others): (Vec<_>, Vec<_>) = desired.iter().map(|thing| (thing, price(thing))).partition(|(_, price)| price.is_some());
        let unknown = others.into_iter().filter(|(thing, _)| PAID.contains(&thing.id.kind.as_str())).map(|(thing, _)| named(thing));
        let dollars = known.iter().filter_map(|(_, price)| *price).sum();
        (!known.is_empty()).then(|| Price { dollars, unknown: unknown.collect() })
    }
}

/// A machine's summary begins with its type, wherever types have prices.
fn named(thing: &Resource) -> String {
    match thing.summary.split([',', ' ']).next() {
        Some(kind) if thing.id.kind == MACHINE && !kind.is_empty() => format!("{} ({kind})", thing.id),
        _ => thing.id.to_string(),
    }
}

impl fmt::Display for Price {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "about ${:.2} an hour at list prices", self.dollars)?;
        let (named, rest) = self.unknown.split_at(self.unknown.len().min(MOST_NAMED));
        match (named, rest.len()) {
            ([], _) => Ok(()),
            ([one], _) => write!(out, ", and what {one} costs"),
            ([some @ .., last], 0) => write!(out, ", and what {} and {last} cost", some.join(", ")),
            (some, more) => write!(out, ", and what {} and {more} more cost", some.join(", ")),
        }
    }
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

    /// Of everything that is desired, as far as its provider knows; `None` where it knows no price at all.
    pub fn price(&self) -> Option<Price> {
        Price::of(&self.desired, |thing| self.provider.price(&thing.id, &thing.spec))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Id;
    use serde_json::json;

    fn wish(kind: &str, name: &str, summary: &str) -> Resource {
        Resource { id: Id::new(kind, name), spec: json!({}), needs: vec![], replace_on: vec![], summary: summary.into() }
    }

    fn check(desired: &[Resource], expected: Option<&str>) {
        let price = |thing: &Resource| thing.summary.contains('$').then_some(0.5);
        assert_eq!(Price::of(desired, price).map(|price| price.to_string()).as_deref(), expected);
    }

    #[test]
    fn what_has_no_known_price_is_named_and_not_left_out_in_silence() {
        let control = wish(MACHINE, "control-1", "t3.small, 8 GiB, about $0.500 an hour");
        let worker = |number: u32| wish(MACHINE, &format!("worker-{number}"), "m7i.large, 8 GiB, debian-12");
        let (network, media) = (wish("network", "shop", "private"), wish(FILESYSTEM, "media", "EFS"));
        let known = "about $0.50 an hour at list prices";
        check(&[network.clone(), control.clone()], Some(known));
        let plan = [network.clone(), media.clone(), control.clone()];
        check(&plan, Some(&format!("{known}, and what filesystem/media costs")));
        let plan = [media.clone(), control.clone(), worker(1)];
        check(&plan, Some(&format!("{known}, and what filesystem/media and machine/worker-1 (m7i.large) cost")));
        let many: Vec<Resource> = [control, media.clone()].into_iter().chain((1..=4).map(worker)).collect();
        let named = "filesystem/media, machine/worker-1 (m7i.large), machine/worker-2 (m7i.large)";
        check(&many, Some(&format!("{known}, and what {named} and 2 more cost")));
        // Where nothing is sold there is nothing to say.
        check(&[network, media], None);
    }
}
