//! A strict cloud in memory: what real clouds do at their worst, on virtual time, with a ledger of everything.
//!
//! It judges the engine and sets the standard for the conformance suite. Tests alone use it.

mod door;
mod faults;
mod rules;
mod shape;

pub use door::{Fake, Hosts, Inside};
pub use faults::Fault;
pub use shape::{BLUEPRINT, Shape};

use crate::engine::handoff::Epoch;
use crate::engine::{Cluster, Id, Resource, Verb};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Which kind of cloud this is.
#[derive(Debug, Clone)]
pub struct Manners {
    pub shape: Shape,
    /// A create's token is remembered for ever.
    pub tokens: bool,
    /// The door looks for a thing of the same name and generation before it sends a create; the look may lag as every read.
    pub looks_first: bool,
    /// Requests of a lower epoch are refused.
    pub epochs: bool,
    /// Not by the receiver: the door looks at the epoch right before it sends.
    pub door_fences: bool,
    /// Reads may show the past, as old as this.
    pub settle: Duration,
    /// Live things per cluster.
    pub quota: usize,
    /// Doors ask for the thing under a handle whether it carries our tag before they touch it.
    pub tags_checked: bool,
    /// The receiver looks at the epoch (a seeded bug takes that away).
    pub epochs_checked: bool,
    /// Deleting something in use is refused.
    pub dependencies_checked: bool,
    /// What an earlier try left half made is finished when it is found (a seeded bug takes that away).
    pub parts_finished: bool,
    /// The owner's tag is compared whole (a seeded bug compares how it begins).
    pub whole_tags: bool,
    /// A delete ends when the thing is gone (a seeded bug ends it when it was accepted).
    pub waits_for_ends: bool,
    /// Requests that its doors carry at once.
    pub at_once: usize,
    /// Things take as long as the provider publishes; otherwise chance says.
    pub published: bool,
    /// A create ends when the thing is ready (a seeded bug ends it when it was accepted).
    pub waits_for_starts: bool,
}

impl Manners {
    /// The local cloud: tokens, epochs, reads what it wrote.
    pub fn strict() -> Self {
        let settle = Duration::ZERO;
        Manners {
            shape: Shape::Neutral,
            tokens: true,
            looks_first: false,
            epochs: true,
            door_fences: false,
            settle,
            quota: 100,
            tags_checked: true,
            epochs_checked: true,
            dependencies_checked: true,
            parts_finished: true,
            whole_tags: true,
            waits_for_ends: true,
            at_once: 16,
            published: false,
            waits_for_starts: true,
        }
    }
    /// A public cloud: tokens, no epochs, reads lag behind.
    pub fn eventual() -> Self {
        Manners { epochs: false, settle: Duration::from_secs(10), ..Self::strict() }
    }
    /// Whether a writer that was overtaken cannot end well, wherever it was.
    pub fn refuses_late_writers(&self) -> bool {
        self.epochs && !self.door_fences && self.shape == Shape::Neutral
    }
    /// A create without token or unique name: what the door looks up before it sends is all the protection there is.
    pub fn tokenless() -> Self {
        Manners { tokens: false, looks_first: true, ..Self::eventual() }
    }
}

/// One thing in the cloud, whoever owns it.
#[derive(Debug, Clone, PartialEq)]
pub struct Thing {
    pub handle: String,
    pub uid: String,
    pub id: Id,
    pub generation: u32,
    pub spec: Value,
    pub needs: Vec<String>,
    pub broken: bool,
    /// Calls of its creation that have not been made: it exists and does not work.
    pub unmade: u8,
    ready_at: Instant,
    /// Its deletion was accepted, and is over then.
    gone_at: Option<Instant>,
}

/// By handle. Shared until changed: the past keeps a map per change.
type Things = BTreeMap<String, Arc<Thing>>;

/// One mutating call, as the cloud saw it.
#[derive(Debug, Clone)]
pub struct Call {
    pub verb: Verb,
    pub id: Id,
    pub uid: String,
    pub epoch: u64,
    /// Its name at the provider.
    pub call: &'static str,
    pub at: Instant,
    /// What it did: `create network-0001`, `nothing there`, `refused: the quota is used up`.
    pub effect: String,
    /// Nobody waited for it any more.
    pub late: bool,
}

/// Shared by all doors of all clusters. Cheap to clone.
#[derive(Clone)]
pub struct Cloud {
    inner: Arc<Mutex<State>>,
    /// The process that makes the current call is to die now.
    pub crash: Arc<Notify>,
    /// Another writer took over while a call hangs.
    pub usurped: Arc<Notify>,
}

struct State {
    manners: Manners,
    things: Things,
    /// Other owners' things.
    foreign: Things,
    /// Reads show this world until then.
    frozen: Option<(Instant, Things)>,
    /// What was there before each change, for reads of the past.
    past: Vec<(Instant, Things)>,
    /// Token to handle and body; remembered after the thing is gone.
    tokens: BTreeMap<String, (String, Value)>,
    epochs: BTreeMap<String, Epoch>,
    highest_epoch: BTreeMap<String, u64>,
    counter: u32,
    moment: Option<Instant>,
    random: StdRng,
    faults: faults::Faults,
    ledger: Vec<Call>,
    /// Broken promises, found at the very call that broke them.
    violations: Vec<String>,
    /// What the clusters want, so that the judge knows a healthy thing when it is deleted.
    wanted: BTreeMap<String, Vec<Resource>>,
}

impl Cloud {
    pub fn new(manners: Manners, seed: u64) -> Self {
        let state = State {
            manners,
            things: BTreeMap::new(),
            foreign: BTreeMap::new(),
            frozen: None,
            past: Vec::new(),
            tokens: BTreeMap::new(),
            epochs: BTreeMap::new(),
            highest_epoch: BTreeMap::new(),
            counter: 0,
            moment: None,
            random: StdRng::seed_from_u64(seed),
            faults: faults::Faults::default(),
            ledger: Vec::new(),
            violations: Vec::new(),
            wanted: BTreeMap::new(),
        };
        Cloud { inner: Arc::new(Mutex::new(state)), crash: Arc::default(), usurped: Arc::default() }
    }

    /// The provider door of one cluster.
    pub fn provider(&self, cluster: &Cluster) -> Fake {
        Fake { cloud: self.clone(), cluster: cluster.clone(), manners: Arc::new(self.manners()) }
    }
    /// The door to the hosts on one cluster's machines.
    pub fn hosts(&self, cluster: &Cluster) -> Hosts {
        Hosts { cloud: self.clone(), cluster: cluster.clone(), manners: Arc::new(self.manners()) }
    }
    /// The door to the Blueprint object inside a cluster.
    pub fn inside(&self, cluster: &Cluster) -> Inside {
        Inside { cloud: self.clone(), cluster: cluster.clone(), manners: Arc::new(self.manners()) }
    }

    pub fn manners(&self) -> Manners {
        self.inner.lock().manners.clone()
    }
    /// The `call`-th mutating call from now on meets `fault`.
    pub fn inject(&self, call: usize, fault: Fault) {
        self.inner.lock().faults.inject(call, fault);
    }
    /// Faults that were injected and have not happened.
    pub fn unfired(&self) -> usize {
        self.inner.lock().faults.left()
    }
    /// Those never will: how many.
    pub fn forget_faults(&self) -> usize {
        self.inner.lock().faults.forget()
    }
    /// Calls that could have met a fault.
    pub fn calls(&self) -> usize {
        self.inner.lock().faults.calls()
    }
    /// Calls that had, or could have had, an effect.
    pub fn effects(&self) -> usize {
        self.inner.lock().ledger.len()
    }
    pub fn ledger(&self) -> Vec<Call> {
        self.inner.lock().ledger.clone()
    }
    pub fn violations(&self) -> Vec<String> {
        self.inner.lock().violations.clone()
    }
    pub fn want(&self, cluster: &Cluster, desired: &[Resource]) {
        self.inner.lock().wanted.insert(cluster.uid.clone(), desired.to_vec());
    }

    /// What truly exists of a cluster, the hosts on its machines included.
    pub fn things(&self, uid: &str) -> Vec<Thing> {
        let mut state = self.inner.lock();
        state.pass_time();
        state.things.values().filter(|thing| thing.uid == uid).map(|thing| Thing::clone(thing)).collect()
    }

    /// Somebody else's thing that looks like one of ours: same kind, same name, another owner.
    pub fn decoy(&self, id: &Id, uid: &str) {
        let mut state = self.inner.lock();
        let handle = format!("{}-x{}", id.kind, state.foreign.len());
        let (spec, needs, ready_at) = (serde_json::json!({"precious": true}), Vec::new(), Instant::now());
        let thing = Thing {
            handle: handle.clone(),
            uid: uid.into(),
            id: id.clone(),
            generation: 1,
            spec,
            needs,
            broken: false,
            unmade: 0,
            ready_at,
            gone_at: None,
        };
        state.foreign.insert(handle, Arc::new(thing));
    }
    /// What belongs to others.
    pub fn decoys(&self) -> Vec<Thing> {
        self.inner.lock().foreign.values().map(|thing| Thing::clone(thing)).collect()
    }
    pub fn epoch(&self, uid: &str) -> Option<Epoch> {
        self.inner.lock().epochs.get(uid).cloned()
    }

    /// Something happens to a thing that nobody asked for.
    pub fn break_thing(&self, uid: &str, id: &Id) {
        let mut state = self.inner.lock();
        let broken = state.things.values_mut().filter(|thing| thing.uid == uid && thing.id == *id);
        broken.for_each(|thing| Arc::make_mut(thing).broken = true);
    }
    /// Unless it is in use: the cloud refuses that to everybody.
    pub fn remove_thing(&self, uid: &str, id: &Id) {
        let mut state = self.inner.lock();
        let which = |thing: &Thing| thing.uid == uid && thing.id == *id;
        let user = |other: &Thing| state.things.values().any(|thing| which(thing) && state.holds(other, thing));
        if !state.things.values().any(|other| user(other)) {
            state.vanish(which);
        }
    }

    /// A moment on the wire.
    async fn latency(&self) {
        let milliseconds = self.inner.lock().random.random_range(1..40);
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }
}

impl State {
    fn next_handle(&mut self, kind: &str) -> String {
        self.counter += 1;
        format!("{kind}-{:04}", self.counter)
    }

    /// Keeps the world as it was until now, for reads of the past.
    fn remember(&mut self) {
        if self.manners.settle.is_zero() {
            return;
        }
        let now = self.now();
        let settle = self.manners.settle;
        self.past.retain(|(moment, _)| *moment + settle >= now);
        self.past.push((now, self.things.clone()));
    }

    /// The same world for all reads of the first half of the settle window (late effects have the other).
    fn freeze(&mut self) {
        self.frozen = Some((Instant::now() + self.manners.settle / 2, self.things.clone()));
    }

    /// Deletions end, and late requests land, each at its own time, in order.
    fn pass_time(&mut self) {
        let now = Instant::now();
        loop {
            let end = self.things.values().filter_map(|thing| thing.gone_at).min().filter(|end| *end <= now);
            let landing = self.faults.next_landing().filter(|landing| *landing <= now);
            match (end, landing) {
                (None, None) => break,
                (Some(end), landing) if landing.is_none_or(|landing| end <= landing) => {
                    self.moment = Some(end);
                    self.vanish(|thing| thing.gone_at.is_some_and(|other| other <= end));
                }
                _ => {
                    let (landing, uid, part) = self.faults.land();
                    self.moment = Some(landing);
                    let _ = self.effect(&uid, &part, rules::Arrives::Late);
                }
            }
        }
        self.moment = None;
    }

    /// The moment that is being played: now, or when something happened that nobody looked at.
    fn now(&self) -> Instant {
        self.moment.unwrap_or_else(Instant::now)
    }

    /// Hosts go with their machines.
    fn vanish(&mut self, which: impl Fn(&Thing) -> bool) {
        let mut gone: Vec<String> = self.things.values().filter(|thing| which(thing)).map(|thing| thing.handle.clone()).collect();
        if gone.is_empty() {
            return;
        }
        let lives_on = |thing: &&Arc<Thing>| matches!(thing.id.kind.as_str(), crate::engine::HOST | BLUEPRINT);
        let on_them = self.things.values().filter(lives_on).filter(|thing| thing.needs.iter().any(|need| gone.contains(need)));
        let hosts: Vec<String> = on_them.map(|thing| thing.handle.clone()).collect();
        gone.extend(hosts);
        self.remember();
        self.things.retain(|handle, _| !gone.contains(handle));
    }

    /// The world as some read sees it: now, or a moment inside the first half of the settle window (late effects have the other).
    fn seen(&mut self) -> Things {
        self.pass_time();
        let settle = self.manners.settle;
        if let Some((until, things)) = &self.frozen
            && Instant::now() < *until
        {
            return things.clone();
        }
        if settle.is_zero() || !self.random.random_bool(0.4) {
            return self.things.clone();
        }
        let moment = Instant::now() - self.random.random_range(Duration::ZERO..settle / 2);
        let then = self.past.iter().find(|(changed, _)| *changed > moment);
        then.map_or_else(|| self.things.clone(), |(_, things)| things.clone())
    }
}
