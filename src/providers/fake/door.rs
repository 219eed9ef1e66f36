//! The two doors of the fake cloud: the provider, and the hosts on its machines.

use super::faults::Part;
use super::rules::Arrives;
use super::{BLUEPRINT, Cloud, Fault, Manners, Thing, Things};
use crate::blueprint::Blueprint;
use crate::engine::handoff::{CLUSTER, Epoch, EpochStore};
use crate::engine::{Action, Cluster, Door, HOST, Inputs, MACHINE, Observed, Pace, Phase, Progress, Request, Resource, Verb};
use crate::error::{Error, Result};
use crate::providers::{Context, Provider, resources};
use async_trait::async_trait;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// As in `bootstrap::door`.
const HOSTS_AT_ONCE: usize = 128;

/// The provider door of one cluster.
#[derive(Clone)]
pub struct Fake {
    pub cloud: Cloud,
    pub cluster: Cluster,
    pub manners: Arc<Manners>,
}

/// The door to the hosts on one cluster's machines.
#[derive(Clone)]
pub struct Hosts {
    pub cloud: Cloud,
    pub cluster: Cluster,
    pub manners: Arc<Manners>,
}

/// The door to the Blueprint object inside the cluster.
#[derive(Clone)]
pub struct Inside {
    pub cloud: Cloud,
    pub cluster: Cluster,
    pub manners: Arc<Manners>,
}

#[async_trait]
impl Door for Fake {
    fn kinds(&self) -> &'static [&'static str] {
        self.manners.shape.kinds()
    }
    fn settle(&self) -> Duration {
        self.manners.settle
    }
    fn at_once(&self) -> usize {
        self.manners.at_once
    }
    fn pace(&self, request: &Request) -> Option<Pace> {
        if self.manners.published { self.manners.shape.pace(request) } else { None }
    }
    async fn observe(&self, _known: &[Observed]) -> Result<Vec<Observed>> {
        self.cloud.latency().await;
        Ok(self.cloud.observe(&self.cluster.uid, |thing| !matches!(thing.id.kind.as_str(), HOST | BLUEPRINT)))
    }
    fn render(&self, action: &Action, inputs: &Inputs) -> Result<Request> {
        render(&self.manners, &self.cluster, action, inputs)
    }
    async fn execute(&self, request: &Request, progress: Progress<'_>) -> Result<Option<Observed>> {
        self.cloud.execute(&self.manners, &self.cluster.uid, request, progress).await
    }
}

#[async_trait]
impl Door for Hosts {
    fn kinds(&self) -> &'static [&'static str] {
        &[HOST]
    }
    fn at_once(&self) -> usize {
        HOSTS_AT_ONCE
    }
    /// A host says itself what it is: reads never lag.
    async fn observe(&self, known: &[Observed]) -> Result<Vec<Observed>> {
        self.cloud.latency().await;
        // Over SSH only the machines that are known can be asked.
        let machine = |thing: &Thing| known.iter().any(|machine| thing.needs.contains(&machine.handle));
        Ok(self.cloud.observe_now(&self.cluster.uid, |thing| thing.id.kind == HOST && machine(thing)))
    }
    fn render(&self, action: &Action, inputs: &Inputs) -> Result<Request> {
        render(&self.manners, &self.cluster, action, inputs)
    }
    async fn execute(&self, request: &Request, progress: Progress<'_>) -> Result<Option<Observed>> {
        self.cloud.execute(&self.manners, &self.cluster.uid, request, progress).await
    }
}

#[async_trait]
impl Door for Inside {
    fn kinds(&self) -> &'static [&'static str] {
        &[BLUEPRINT]
    }
    /// Only a control plane that is known can be asked.
    async fn observe(&self, known: &[Observed]) -> Result<Vec<Observed>> {
        self.cloud.latency().await;
        let machine = |thing: &Thing| known.iter().any(|machine| thing.needs.contains(&machine.handle));
        Ok(self.cloud.observe_now(&self.cluster.uid, |thing| thing.id.kind == BLUEPRINT && machine(thing)))
    }
    fn render(&self, action: &Action, inputs: &Inputs) -> Result<Request> {
        render(&self.manners, &self.cluster, action, inputs)
    }
    async fn execute(&self, request: &Request, progress: Progress<'_>) -> Result<Option<Observed>> {
        self.cloud.execute(&self.manners, &self.cluster.uid, request, progress).await
    }
}

/// The wish, the handles of what it needs, and what the provider itself would send.
fn render(manners: &Manners, cluster: &Cluster, action: &Action, inputs: &Inputs) -> Result<Request> {
    let own = manners.shape.body(cluster, action, inputs)?;
    let needs = manners.shape.needs(cluster, action, &own, inputs);
    Ok(Request::of(cluster, action, json!({"spec": action.spec, "needs": needs, "own": own})))
}

#[async_trait]
impl Provider for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }
    async fn resources(&self, blueprint: &Blueprint, context: &Context) -> Result<Vec<Resource>> {
        self.manners.shape.resources(blueprint, context)
    }
    async fn check(&self, resources: &[Resource]) -> Result<()> {
        let quota = self.cloud.manners().quota;
        if resources.len() > quota { Err(Error::provider(format!("the quota is {quota}"))) } else { Ok(()) }
    }
    fn epochs(&self) -> &dyn EpochStore {
        self
    }
    async fn loop_credentials(&self) -> Result<Value> {
        Ok(json!({}))
    }
}

#[async_trait]
impl EpochStore for Fake {
    async fn read(&self) -> Result<Option<Epoch>> {
        Ok(self.cloud.inner.lock().epochs.get(&self.cluster.uid).cloned())
    }
    /// A call like any other: it may be lost on its way there and back, and somebody may come first.
    async fn swap(&self, expected: Option<&Epoch>, next: &Epoch) -> Result<bool> {
        self.cloud.latency().await;
        let lost = || Error::transient("the connection was reset");
        let fault = self.cloud.inner.lock().faults.next(Verb::Await);
        match fault {
            Some(Fault::CrashBefore) => return self.cloud.die().await,
            Some(Fault::LostRequest | Fault::Throttle(_) | Fault::Hangs(_) | Fault::LateSuccess(_)) => return Err(lost()),
            Some(Fault::Refused) => return Err(Error::provider("refused for good")),
            Some(Fault::Usurped | Fault::Paused(_)) => self.cloud.usurp(&self.cluster.uid),
            _ => {}
        }
        let swapped = self.cloud.inner.lock().swap(&self.cluster.uid, expected, next);
        match fault {
            Some(Fault::CrashAfter | Fault::CrashLate(_) | Fault::CrashStale) => self.cloud.die().await,
            Some(Fault::LostReply | Fault::HangsAfter(_)) => Err(lost()),
            _ => Ok(swapped),
        }
    }
}

impl super::State {
    fn swap(&mut self, uid: &str, expected: Option<&Epoch>, next: &Epoch) -> bool {
        if self.epochs.get(uid) == expected {
            let written = self.things.values().any(|thing| thing.uid == uid && thing.id.kind == BLUEPRINT);
            if next.owner == CLUSTER && !written {
                self.violations.push("the cluster was given to its loop without its blueprint".into());
            }
            self.epochs.insert(uid.into(), next.clone());
        }
        self.epochs.get(uid) == Some(next)
    }
}

impl Cloud {
    fn observe(&self, uid: &str, which: impl Fn(&Thing) -> bool) -> Vec<Observed> {
        let mut state = self.inner.lock();
        let seen = state.seen();
        let mut all: Vec<Observed> =
            seen.values().filter(|thing| thing.uid == uid && which(thing)).map(|thing| observed(thing, &seen, &state.manners)).collect();
        if !state.manners.whole_tags {
            let looks_like_ours = |thing: &&Arc<Thing>| thing.uid.starts_with(uid);
            all.extend(state.foreign.values().filter(looks_like_ours).map(|thing| observed(thing, &seen, &state.manners)));
        }
        state.manners.shape.observed_needs(&mut all);
        all
    }

    fn observe_now(&self, uid: &str, which: impl Fn(&Thing) -> bool) -> Vec<Observed> {
        let mut state = self.inner.lock();
        state.pass_time();
        let things = &state.things;
        things.values().filter(|thing| thing.uid == uid && which(thing)).map(|thing| observed(thing, things, &state.manners)).collect()
    }

    async fn execute(&self, manners: &Manners, uid: &str, request: &Request, progress: Progress<'_>) -> Result<Option<Observed>> {
        self.latency().await;
        let provider = !matches!(request.id.kind.as_str(), HOST | BLUEPRINT);
        if provider && manners.door_fences && request.verb != Verb::Await {
            self.inner.lock().door_fence(uid, request)?;
        }
        let mut effect = request.handle.clone();
        if request.verb == Verb::Create {
            effect = if manners.looks_first { self.inner.lock().look(uid, request) } else { None };
        } else if request.verb == Verb::Delete && !self.inner.lock().is_there(&effect) {
            return Ok(None);
        }
        let calls = manners.shape.calls(&request.id.kind, request.verb);
        // What is made is there from its first call on; a host is one, and everything else changes or goes, with the last.
        let decisive = if request.verb == Verb::Create && request.id.kind != HOST { 0 } else { calls.len().saturating_sub(1) };
        for number in 0..calls.len() {
            if number == decisive && request.verb == Verb::Create && effect.is_some() {
                // Found by the look: only what is missing of it is made.
                continue;
            }
            let mut request = request.clone();
            if number != decisive && request.verb == Verb::Create && request.id.kind != HOST {
                request.handle.clone_from(&effect);
            }
            let part = Part { request, number: number as u8, of: calls.len() as u8, decides: number == decisive };
            let done = self.call(uid, &part).await?;
            if part.decides {
                if part.request.verb == Verb::Create && done.is_none() {
                    return Ok(None);
                }
                effect = done;
            }
        }
        progress("the cloud is at work");
        self.finished(manners, request, effect).await
    }

    /// One call of a request, with whatever happens to it.
    async fn call(&self, uid: &str, part: &Part) -> Result<Option<String>> {
        if part.number > 0 {
            self.latency().await;
        }
        let lost = || Error::transient("the connection was reset");
        let request = &part.request;
        let fault = self.inner.lock().faults.next(request.verb);
        match fault {
            Some(Fault::LostRequest | Fault::Throttle(_)) => return Err(lost()),
            Some(Fault::Refused) => return Err(Error::provider("refused for good")),
            Some(Fault::CrashBefore) => return self.die().await,
            Some(Fault::Hangs(pause)) => {
                tokio::time::sleep(pause).await;
                return Err(lost());
            }
            Some(Fault::LateSuccess(delay)) => {
                self.inner.lock().faults.launch(delay, uid, part);
                return Err(lost());
            }
            Some(Fault::CrashLate(delay)) => {
                self.inner.lock().faults.launch(delay, uid, part);
                return self.die().await;
            }
            Some(Fault::StaleReads | Fault::CrashStale) => {
                let mut state = self.inner.lock();
                state.pass_time();
                state.freeze();
            }
            Some(Fault::Usurped) => self.usurp(uid),
            Some(Fault::Paused(pause)) => {
                self.usurp(uid);
                self.usurped.notify_one();
                tokio::time::sleep(pause).await;
            }
            _ => {}
        }
        let effect = {
            let mut state = self.inner.lock();
            state.pass_time();
            state.effect(uid, part, Arrives::InTime)?
        };
        match fault {
            Some(Fault::LostReply) => return Err(lost()),
            Some(Fault::HangsAfter(pause)) => {
                tokio::time::sleep(pause).await;
                return Err(lost());
            }
            Some(Fault::CrashAfter | Fault::CrashStale) => return self.die().await,
            Some(Fault::ForeignDelete) => self.remove_thing(uid, &request.id),
            Some(Fault::Breaks) => self.break_thing(uid, &request.id),
            _ => {}
        }
        Ok(effect)
    }

    /// Waits until the thing is ready, or gone.
    async fn finished(&self, manners: &Manners, request: &Request, effect: Option<String>) -> Result<Option<Observed>> {
        let handle = if request.verb == Verb::Delete { request.handle.clone() } else { effect };
        let Some(handle) = handle else { return Ok(None) };
        loop {
            let until = {
                let mut state = self.inner.lock();
                state.pass_time();
                let Some(thing) = state.things.get(&handle) else { return Ok(None) };
                match thing.gone_at {
                    Some(_) if !manners.waits_for_ends => return Ok(None),
                    Some(end) => end,
                    None if thing.ready_at <= Instant::now() || request.verb == Verb::Delete => {
                        return Ok((request.verb != Verb::Delete).then(|| observed(thing, &state.things, &state.manners)));
                    }
                    None if !manners.waits_for_starts => {
                        let thing = Observed { phase: Phase::Ready, ..observed(thing, &state.things, &state.manners) };
                        return Ok(Some(thing));
                    }
                    None => thing.ready_at,
                }
            };
            let until = if manners.published { look_that_shows(manners.shape.longest_pause(), until) } else { until };
            tokio::time::sleep_until(until).await;
        }
    }

    /// The process that asked is killed: it never hears an answer.
    async fn die<T>(&self) -> T {
        self.crash.notify_one();
        std::future::pending().await
    }

    pub fn usurp(&self, uid: &str) {
        let mut state = self.inner.lock();
        let epoch = state.epochs.get(uid).map_or(0, |epoch| epoch.epoch) + 1;
        state.epochs.insert(uid.into(), Epoch { epoch, owner: "cli:other:1".into() });
    }
}

/// The first of a door's looks, from now on, that is not before `moment`.
fn look_that_shows(longest_pause: Duration, moment: Instant) -> Instant {
    let (mut look, mut pause) = (Instant::now(), Duration::from_millis(200));
    if longest_pause.is_zero() {
        return moment;
    }
    while look < moment {
        look += pause;
        pause = (pause * 2).min(longest_pause);
    }
    look
}

fn observed(thing: &Thing, things: &Things, manners: &Manners) -> Observed {
    let needed: Vec<&Arc<Thing>> = thing.needs.iter().filter_map(|need| things.get(need)).collect();
    let on_broken = thing.id.kind == HOST && needed.iter().any(|machine| machine.broken);
    let phase = match () {
        _ if thing.gone_at.is_some() => Phase::Deleting,
        _ if thing.ready_at > Instant::now() => Phase::Pending,
        _ if thing.broken || on_broken => Phase::Broken("it does not answer".into()),
        _ if thing.unmade > 0 && manners.parts_finished => Phase::Broken("it is half made".into()),
        _ => Phase::Ready,
    };
    let mut spec = thing.spec.clone();
    if let Some(machines) = spec.get_mut("machines").and_then(Value::as_array_mut)
        && thing.needs.iter().any(|need| need.starts_with(MACHINE))
    {
        // Only what it truly sends to: a machine made again is another target.
        machines.retain(|name| needed.iter().any(|machine| machine.id.kind == MACHINE && Some(machine.id.name.as_str()) == name.as_str()));
    }
    let mut outputs = json!({"address": format!("10.0.0.{}", thing.handle.len())});
    if let Some(network) = needed.iter().find(|other| other.id.kind == resources::NETWORK) {
        outputs["network"] = json!(network.handle);
    }
    Observed {
        id: thing.id.clone(),
        handle: thing.handle.clone(),
        generation: thing.generation,
        phase,
        spec,
        outputs,
        needs: needed.iter().map(|need| need.id.clone()).collect(),
    }
}
