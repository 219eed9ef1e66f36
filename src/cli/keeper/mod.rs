//! The loop inside the cluster: the same engine as `kprov up`, fed by the Blueprint object, for ever.
//!
//! It wakes when somebody wants something else (the Blueprint, Services of type LoadBalancer), when a node stands otherwise, when the
//! provider tells of a change, and at the latest after [`REST`]; each time it looks at everything afresh. It acts only while the epoch says
//! that it is the writer.

mod report;

use super::world::hosts::Hosts;
use super::world::nodes::{self, Standing};
use super::world::{host_door, images};
use crate::blueprint::{Blueprint, schema::Metadata};
use crate::bootstrap::install::Program;
use crate::bootstrap::spec::PROVIDER_FILE;
use crate::bootstrap::trust::Trust;
use crate::engine::converge::{Options, Step, step};
use crate::engine::event::Event;
use crate::engine::handoff;
use crate::engine::journal::{FileJournal, wall_clock};
use crate::engine::{Door, Observed, Resource};
use crate::error::{Context as _, Error, Kind, Result};
use crate::orchestrator::client::blueprint::BlueprintObject;
use crate::orchestrator::client::{Client, Informer, Patch, Selector};
use crate::orchestrator::config::ServerConfig;
use crate::orchestrator::controllers::Informers;
use crate::orchestrator::controllers::service_load_balancer::{self, Wanted};
use crate::providers::resources::{ListenerSpec, LoadBalancerSpec};
use crate::providers::{self, Context, Provider};
use crate::remote::Ssh;
use k8s_openapi::api::core::v1::{Node, Service};
use parking_lot::Mutex;
use report::{Verdict, balancers, doing, refused, told};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Without any event: providers can change without telling. Cheap (one observe), and long against any API's rate limit.
const REST: Duration = Duration::from_secs(30);
/// After a round that left something undone; doubled up to [`REST`] while rounds achieve nothing (a quota that is full stays full).
const AGAIN: Duration = Duration::from_secs(2);
/// Before the hand-off, and after a fence, only the epoch is looked at, and not all providers tell when it changes: people wait for that,
/// while every look is a request that somebody counts. So the pauses double from the first to the second.
const NOT_YET: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(2)];
/// One action's tries in one round: the next round is another try, and a look in between may show something better to do.
const RETRIES: Duration = Duration::from_secs(10);
/// What is in flight when somebody wants something else may finish within this; longer than most requests, shorter than a dead machine.
const GRACE: Duration = Duration::from_secs(10);

/// Ends only when told to; a provider that cannot be reached is tried again.
pub async fn run(client: Client, informers: Informers, config: Arc<ServerConfig>, cancel: CancellationToken) -> Result<()> {
    let blueprints = Informer::<BlueprintObject>::start(client.clone(), Selector::all(), &cancel);
    let Some(keeper) = Keeper::open(client, informers, blueprints, &config).await? else {
        // No provider's credentials: somebody runs the server by hand. There is nothing to keep.
        cancel.cancelled().await;
        return Ok(());
    };
    tokio::select! {
        () = cancel.cancelled() => Ok(()),
        () = keeper.keep(&cancel) => Ok(()),
    }
}

struct Keeper {
    client: Client,
    informers: Informers,
    blueprints: Informer<BlueprintObject>,
    provider: Arc<dyn Provider>,
    hosts: Hosts,
    doors: Vec<Arc<dyn Door>>,
    journal: FileJournal,
    /// The epoch under which a look has ended.
    looked: Mutex<Option<u64>>,
}

impl Keeper {
    async fn open(
        client: Client,
        informers: Informers,
        blueprints: Informer<BlueprintObject>,
        config: &ServerConfig,
    ) -> Result<Option<Keeper>> {
        let Ok(credentials) = std::fs::read_to_string(PROVIDER_FILE) else { return Ok(None) };
        let trust = Trust::load(&config.pki, SystemTime::now())?.ok_or_else(|| Error::host("could not find the cluster's keys"))?;
        let trust = Arc::new(trust);
        let secret: Value = serde_json::from_str(&credentials).or_fail(Kind::Host, || format!("could not read {PROVIDER_FILE}"))?;
        let provider = providers::from_credentials(&secret).await?;
        provider.hold_key(&trust.ssh.private);
        let hosts = Hosts { trust: trust.clone(), program: Program::current()?, provider: provider.clone(), images: Arc::default() };
        let ssh = Ssh::open(&config.data, &trust.ssh)?;
        let doors: Vec<Arc<dyn Door>> = vec![provider.clone(), host_door::inside(ssh, hosts.clone(), client.clone())];
        let journal = FileJournal::open(&config.data.join("journal"), wall_clock())?;
        Ok(Some(Keeper { client, informers, blueprints, provider, hosts, doors, journal, looked: Mutex::default() }))
    }

    async fn keep(&self, cancel: &CancellationToken) {
        self.blueprints.synced().await;
        self.informers.nodes.synced().await;
        self.informers.services.synced().await;
        let mut seen = String::new();
        let mut idle = 0;
        loop {
            let (wish, nodes) = (self.wish(), self.nodes());
            let end = self.round(cancel).await.unwrap_or_else(|error| {
                tracing::warn!("infrastructure: {}", error.chain());
                RoundEnd::Failed
            });
            if end == RoundEnd::Failed {
                // A provider that cannot be asked for its changes says so at once.
                sleep(AGAIN).await;
            }
            // Only rounds that came by themselves say that there is nothing to hurry for.
            tokio::select! {
                () = self.wishes_other_than(&wish) => idle = 0,
                () = self.nodes_other_than(&nodes) => {}
                now = self.provider.changed(&seen) => seen = now.unwrap_or_default(),
                () = sleep(pause(end, idle)) => idle = if end.is_idle() { idle + 1 } else { 0 },
            }
        }
    }

    fn wish(&self) -> Wish {
        let object = self.blueprints.get("", &self.hosts.trust.cluster.name);
        Wish::of(object.as_deref(), &self.informers.services.list())
    }

    fn nodes(&self) -> Vec<Standing> {
        self.informers.nodes.list().iter().map(|node| Standing::of(node)).collect()
    }

    /// Returns when somebody wants something else. What this loop itself writes into a status is nobody's wish.
    async fn wishes_other_than(&self, wish: &Wish) {
        let (mut blueprints, mut services) = (self.blueprints.changed(), self.informers.services.changed());
        while self.wish() == *wish {
            tokio::select! {
                () = blueprints.wait() => {}
                () = services.wait() => {}
            }
        }
    }

    /// Returns when a node stands otherwise. What nodes report of themselves every few minutes is no reason to look: of a few hundred
    /// machines there is always one that does.
    async fn nodes_other_than(&self, nodes: &[Standing]) {
        let mut changed = self.informers.nodes.changed();
        while self.nodes() == nodes {
            changed.wait().await;
        }
    }

    /// One look and what follows from it.
    async fn round(&self, cancel: &CancellationToken) -> Result<RoundEnd> {
        let Some(writer) = handoff::inside(self.provider.epochs()).await.transpose() else { return Ok(RoundEnd::NotTheWriter) };
        // Absence decides nothing: a Blueprint that somebody deleted is not a wish for no machines.
        let Some(object) = self.blueprints.get("", &self.hosts.trust.cluster.name) else {
            return writer.map(|_| RoundEnd::Quiet);
        };
        let ended = match writer {
            Ok(epoch) => self.act(epoch, &object, cancel).await,
            // Whoever waits for the loop reads the status, and nothing else, to learn that it cannot even begin.
            Err(error) => Err(error),
        };
        if let Err(error) = &ended {
            self.write_status(&object, json!({"refused": refused([error])}), &Verdict::not_yet("Failing", told(error))).await;
        }
        ended
    }

    async fn act(&self, epoch: u64, object: &BlueprintObject, cancel: &CancellationToken) -> Result<RoundEnd> {
        let blueprint = blueprint(object);
        let known = self.hosts.images.read().clone();
        let kept = tokio::task::block_in_place(|| images::kept(&blueprint.spec, &known));
        *self.hosts.images.write() = kept;
        let services = self.informers.services.list();
        let wish = Wish::of(Some(object), &services);
        let desired = self.desired(&blueprint, &services).await?;
        let mut options = Options::new(epoch);
        options.cancel = cancel.child_token();
        options.keep_going = true;
        options.has_looked = *self.looked.lock() == Some(epoch);
        options.retry_budget = RETRIES;
        let Some(ended) = self.unless_overtaken(&wish, &options.cancel, self.told_step(object, &desired, &options)).await? else {
            return Ok(RoundEnd::Overtaken);
        };
        *self.looked.lock() = Some(epoch);
        service_load_balancer::report(&self.client, &services, &balancers(&ended.observed)).await?;
        self.label(&ended.observed).await;
        self.report(object, &blueprint, &ended).await;
        Ok(if ended.plan.is_empty() { RoundEnd::Quiet } else { RoundEnd::Undone { effects: ended.effects } })
    }

    /// One round of the engine, with its plan in the Blueprint's status while it is carried out.
    async fn told_step(&self, object: &BlueprintObject, desired: &[Resource], options: &Options) -> Result<Step> {
        let (plans, mut made) = mpsc::unbounded_channel();
        let hear = move |event: Event| {
            tracing::info!("{event}");
            if let Event::PlanMade { plan, .. } = event {
                let _ = plans.send(plan);
            }
        };
        let work = async move { step(&self.doors, desired, &self.journal, options, &hear).await };
        let tell = async {
            while let Some(plan) = made.recv().await {
                let doing = doing(&plan);
                let verdict = Verdict::not_yet("Converging", doing.first().cloned().unwrap_or_default());
                self.write_status(object, json!({"doing": doing}), &verdict).await;
            }
        };
        tokio::join!(work, tell).0
    }

    /// The end of `work`; nothing when somebody wants something else meanwhile. Then it starts nothing new, and what is still in flight
    /// after [`GRACE`] is dropped: as after a crash, the next round finds what became of it.
    async fn unless_overtaken(
        &self,
        wish: &Wish,
        stop: &CancellationToken,
        work: impl Future<Output = Result<Step>>,
    ) -> Result<Option<Step>> {
        let mut work = std::pin::pin!(work);
        tokio::select! {
            ended = &mut work => return ended.map(Some),
            () = self.wishes_other_than(wish) => stop.cancel(),
        }
        if tokio::time::timeout(GRACE, work).await.is_err() {
            tracing::info!("what is in flight is left to the next look: something else is wanted");
        }
        Ok(None)
    }

    async fn desired(&self, blueprint: &Blueprint, services: &[Arc<Service>]) -> Result<Vec<Resource>> {
        let context = Context {
            cluster: self.hosts.trust.cluster.clone(),
            ssh_public_key: self.hosts.trust.ssh.public.clone(),
            service_load_balancers: service_load_balancer::wanted(services).into_iter().map(balancer).collect(),
        };
        let mut desired = self.provider.resources(blueprint, &context).await?;
        let hosts = self.hosts.resources(blueprint, &desired);
        desired.extend(hosts);
        Ok(desired)
    }

    async fn label(&self, observed: &[Observed]) {
        for (name, label) in nodes::unlabelled(&self.informers.nodes.list(), observed) {
            let patch = json!({"metadata": {"labels": {label: ""}}});
            if let Err(error) = self.client.patch::<Node>("", &name, "", Patch::Merge, &patch).await {
                tracing::warn!("could not label node {name} with its role: {error}");
            }
        }
    }
}

/// What somebody wants, as far as this loop serves it.
#[derive(PartialEq)]
struct Wish {
    /// The Blueprint's own and its spec's.
    version: Option<(Option<String>, Option<i64>)>,
    balancers: Vec<Wanted>,
}

impl Wish {
    fn of(blueprint: Option<&BlueprintObject>, services: &[Arc<Service>]) -> Self {
        let version = blueprint.map(|object| (object.metadata.uid.clone(), object.metadata.generation));
        Wish { version, balancers: service_load_balancer::wanted(services) }
    }
}

/// What became of one round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RoundEnd {
    Quiet,
    Undone {
        effects: usize,
    },
    /// Something else is wanted by now.
    Overtaken,
    NotTheWriter,
    Failed,
}

impl RoundEnd {
    fn is_idle(self) -> bool {
        matches!(self, RoundEnd::Undone { effects: 0 } | RoundEnd::NotTheWriter | RoundEnd::Failed)
    }
}

/// How long to rest when nothing happens meanwhile, after so many idle rounds in a row.
fn pause(end: RoundEnd, idle: u32) -> Duration {
    let doubled = |first: Duration, most: Duration| (first * (1 << idle.min(10))).min(most);
    match end {
        RoundEnd::Quiet => REST,
        RoundEnd::Overtaken => Duration::ZERO,
        RoundEnd::Undone { .. } | RoundEnd::Failed => doubled(AGAIN, REST),
        RoundEnd::NotTheWriter => doubled(NOT_YET[0], NOT_YET[1]),
    }
}

/// What a Service asks of the provider; expansion adds the machines.
fn balancer(wanted: Wanted) -> LoadBalancerSpec {
    let listeners = wanted.listeners.into_iter();
    let listeners = listeners.map(|one| ListenerSpec { port: one.port, protocol: one.protocol, node_port: one.node_port }).collect();
    LoadBalancerSpec { name: wanted.name, listeners, machines: Vec::new() }
}

/// The object as the file form that expansion reads.
fn blueprint(object: &BlueprintObject) -> Blueprint {
    Blueprint {
        api_version: "kprov.dev/v1".into(),
        kind: "Blueprint".into(),
        metadata: Metadata {
            name: object.metadata.name.clone().unwrap_or_default(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        },
        spec: object.spec.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_loop_writes_into_a_status_is_nobodys_wish() {
        let wish = |uid: &str, generation: i64, status: Value| {
            let spec = json!({"provider": "local", "machines": []});
            let metadata = json!({"name": "shop", "uid": uid, "generation": generation});
            let object: BlueprintObject = serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status})).unwrap();
            Wish::of(Some(&object), &[])
        };
        let first = wish("u1", 1, json!(null));
        assert!(wish("u1", 1, json!({"doing": ["create machine/worker-2"]})) == first);
        assert!(wish("u1", 2, json!(null)) != first);
        assert!(wish("u2", 1, json!(null)) != first, "deleted and written again");
        assert!(Wish::of(None, &[]) != first);
    }

    #[test]
    fn rounds_that_achieve_nothing_come_less_and_less_often() {
        let seconds = |end, idle| pause(end, idle).as_secs_f64();
        assert_eq!([0, 1, 2, 3, 4, 60].map(|idle| seconds(RoundEnd::Undone { effects: 0 }, idle)), [2.0, 4.0, 8.0, 16.0, 30.0, 30.0]);
        assert_eq!(seconds(RoundEnd::Undone { effects: 3 }, 0), 2.0);
        assert_eq!([0, 1, 4, 5, 60].map(|idle| seconds(RoundEnd::NotTheWriter, idle)), [0.1, 0.2, 1.6, 2.0, 2.0]);
        assert_eq!((seconds(RoundEnd::Quiet, 0), seconds(RoundEnd::Overtaken, 7)), (30.0, 0.0));
    }
}
