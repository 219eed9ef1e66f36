//! The two doors of the fake cloud: the provider, and the hosts on its machines.

use super::rules::Arrives;
use super::{Cloud, Fault, Thing, Things};
use crate::blueprint::Blueprint;
use crate::engine::handoff::{Epoch, EpochStore};
use crate::engine::{Action, Cluster, Door, HOST, Id, Inputs, Observed, Phase, Progress, Request, Resource, Verb};
use crate::error::{Error, Result};
use crate::providers::{Context, Provider, resources};
use async_trait::async_trait;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

/// The provider door of one cluster.
#[derive(Clone)]
pub struct Fake {
    pub cloud: Cloud,
    pub cluster: Cluster,
}

/// The door to the hosts on one cluster's machines.
#[derive(Clone)]
pub struct Hosts {
    pub cloud: Cloud,
    pub cluster: Cluster,
}

#[async_trait]
impl Door for Fake {
    fn kinds(&self) -> &'static [&'static str] {
        &[resources::NETWORK, resources::FILESYSTEM, resources::MACHINE, resources::LOAD_BALANCER]
    }
    fn settle(&self) -> Duration {
        self.cloud.manners().settle
    }
    async fn observe(&self, _known: &[Observed]) -> Result<Vec<Observed>> {
        self.cloud.latency().await;
        Ok(self.cloud.observe(&self.cluster.uid, |thing| thing.id.kind != HOST))
    }
    fn render(&self, action: &Action, inputs: &Inputs) -> Result<Request> {
        Ok(Request::of(&self.cluster, action, body(action, inputs)))
    }
    async fn execute(&self, request: &Request, progress: Progress<'_>) -> Result<Option<Observed>> {
        self.cloud.execute(&self.cluster.uid, request, progress).await
    }
}

#[async_trait]
impl Door for Hosts {
    fn kinds(&self) -> &'static [&'static str] {
        &[HOST]
    }
    /// A host says itself what it is: reads never lag.
    async fn observe(&self, known: &[Observed]) -> Result<Vec<Observed>> {
        self.cloud.latency().await;
        // Over SSH only the machines that are known can be asked.
        let machine = |thing: &Thing| known.iter().any(|machine| thing.needs.contains(&machine.handle));
        Ok(self.cloud.observe_now(&self.cluster.uid, |thing| thing.id.kind == HOST && machine(thing)))
    }
    fn render(&self, action: &Action, inputs: &Inputs) -> Result<Request> {
        Ok(Request::of(&self.cluster, action, body(action, inputs)))
    }
    async fn execute(&self, request: &Request, progress: Progress<'_>) -> Result<Option<Observed>> {
        self.cloud.execute(&self.cluster.uid, request, progress).await
    }
}

/// The wish, and the handles of what it needs. The provider gets its needs from the action's spec alone: `needs` in the spec.
fn body(action: &Action, inputs: &Inputs) -> Value {
    let named = |kind: &str, names: &Value| -> Vec<String> {
        let names = names.as_array().into_iter().flatten().filter_map(Value::as_str);
        names.filter_map(|name| inputs.get(&Id::new(kind, name))).map(|thing| thing.handle.clone()).collect()
    };
    let mut needs = match action.id.kind.as_str() {
        HOST => named(resources::MACHINE, &json!([action.id.name])),
        resources::LOAD_BALANCER => named(resources::MACHINE, &action.spec["machines"]),
        resources::MACHINE => {
            inputs.values().filter(|thing| thing.id.kind == resources::FILESYSTEM).map(|thing| thing.handle.clone()).collect()
        }
        _ => Vec::new(),
    };
    if !matches!(action.id.kind.as_str(), HOST | resources::NETWORK) {
        needs.extend(inputs.values().filter(|thing| thing.id.kind == resources::NETWORK).map(|thing| thing.handle.clone()));
    }
    needs.sort();
    json!({"spec": action.spec, "needs": needs})
}

#[async_trait]
impl Provider for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }
    async fn resources(&self, blueprint: &Blueprint, context: &Context) -> Result<Vec<Resource>> {
        resources::expand(blueprint, context)
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
    async fn swap(&self, expected: Option<&Epoch>, next: &Epoch) -> Result<bool> {
        let mut state = self.cloud.inner.lock();
        if state.epochs.get(&self.cluster.uid) == expected {
            state.epochs.insert(self.cluster.uid.clone(), next.clone());
        }
        Ok(state.epochs.get(&self.cluster.uid) == Some(next))
    }
}

impl Cloud {
    fn observe(&self, uid: &str, which: impl Fn(&Thing) -> bool) -> Vec<Observed> {
        let mut state = self.inner.lock();
        let seen = state.seen();
        seen.values().filter(|thing| thing.uid == uid && which(thing)).map(|thing| observed(thing, &seen)).collect()
    }

    fn observe_now(&self, uid: &str, which: impl Fn(&Thing) -> bool) -> Vec<Observed> {
        let mut state = self.inner.lock();
        state.pass_time();
        let things = state.things.clone();
        things.values().filter(|thing| thing.uid == uid && which(thing)).map(|thing| observed(thing, &things)).collect()
    }

    async fn execute(&self, uid: &str, request: &Request, progress: Progress<'_>) -> Result<Option<Observed>> {
        self.latency().await;
        let fault = if request.verb == Verb::Await { None } else { self.inner.lock().faults.next(request.verb) };
        let lost = || Error::transient("the connection was reset");
        match fault {
            Some(Fault::LostRequest | Fault::Throttle(_)) => return Err(lost()),
            Some(Fault::Refused) => return Err(Error::provider("refused for good")),
            Some(Fault::CrashBefore) => return self.die().await,
            Some(Fault::LateSuccess(delay)) => {
                self.inner.lock().faults.launch(delay, uid, request);
                return Err(lost());
            }
            Some(Fault::CrashLate(delay)) => {
                self.inner.lock().faults.launch(delay, uid, request);
                return self.die().await;
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
            state.effect(uid, request, Arrives::InTime)?
        };
        match fault {
            Some(Fault::LostReply) => return Err(lost()),
            Some(Fault::CrashAfter) => return self.die().await,
            Some(Fault::ForeignDelete) => self.remove_thing(uid, &request.id),
            Some(Fault::Breaks) => self.break_thing(uid, &request.id),
            _ => {}
        }
        progress("the cloud is at work");
        self.finished(request, effect).await
    }

    /// Waits until the thing is ready, or gone.
    async fn finished(&self, request: &Request, effect: Option<String>) -> Result<Option<Observed>> {
        let handle = if request.verb == Verb::Delete { request.handle.clone() } else { effect };
        let Some(handle) = handle else { return Ok(None) };
        loop {
            let until = {
                let mut state = self.inner.lock();
                state.pass_time();
                let Some(thing) = state.things.get(&handle) else { return Ok(None) };
                match thing.gone_at {
                    Some(end) => end,
                    None if thing.ready_at <= Instant::now() || request.verb == Verb::Delete => {
                        return Ok((request.verb != Verb::Delete).then(|| observed(thing, &state.things)));
                    }
                    None => thing.ready_at,
                }
            };
            tokio::time::sleep_until(until).await;
        }
    }

    /// The process that asked is killed: it never hears an answer.
    async fn die<T>(&self) -> T {
        self.crash.notify_one();
        std::future::pending().await
    }

    fn usurp(&self, uid: &str) {
        let mut state = self.inner.lock();
        let epoch = state.epochs.get(uid).map_or(0, |epoch| epoch.epoch) + 1;
        state.epochs.insert(uid.into(), Epoch { epoch, owner: "cli:other:1".into() });
    }
}

fn observed(thing: &Thing, things: &Things) -> Observed {
    let needed = thing.needs.iter().filter_map(|need| things.get(need));
    let on_broken = thing.id.kind == HOST && needed.clone().any(|machine| machine.broken);
    let phase = match () {
        _ if thing.gone_at.is_some() => Phase::Deleting,
        _ if thing.ready_at > Instant::now() => Phase::Pending,
        _ if thing.broken || on_broken => Phase::Broken("it does not answer".into()),
        _ => Phase::Ready,
    };
    let mut spec = thing.spec.clone();
    if let Some(machines) = spec.get_mut("machines").and_then(Value::as_array_mut) {
        // Only what it truly sends to: a machine made again is another target.
        machines.retain(|name| {
            needed.clone().any(|machine| machine.id.kind == resources::MACHINE && Some(machine.id.name.as_str()) == name.as_str())
        });
    }
    Observed {
        id: thing.id.clone(),
        handle: thing.handle.clone(),
        generation: thing.generation,
        phase,
        spec,
        outputs: json!({"address": format!("10.0.0.{}", thing.handle.len())}),
        needs: needed.map(|need| need.id.clone()).collect(),
    }
}
