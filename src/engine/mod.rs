//! Desired and observed -> a plan of actions; the loop that carries them out until nothing is left to do.
//!
//! The four words to learn: a [`Resource`] is what should exist, an [`Observed`] is what does, an [`Action`] is one effect as data,
//! a [`Door`] is the only place where effects happen. `kprov plan`, `up`, `down`, the loop inside the cluster and the simulation
//! tests run this same code with other doors.

pub mod converge;
pub mod event;
pub mod handoff;
pub mod journal;
pub mod lint;
pub mod plan;
#[cfg(test)]
mod sim;

use crate::error::Result;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// The two kinds the planner knows by name: `host/x` lives on `machine/x`, goes with it, and is made again with it.
pub const MACHINE: &str = "machine";
pub const HOST: &str = "host";

/// A resource's logical id: stable over re-runs, unique in a cluster, written on everything we make. Prints as `machine/worker-1`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Id {
    /// `network`, `machine`, `filesystem`, `load-balancer`, `host`, ...; each kind has exactly one door.
    pub kind: String,
    pub name: String,
}

impl Id {
    pub fn new(kind: impl Into<String>, name: impl Into<String>) -> Self {
        Id { kind: kind.into(), name: name.into() }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.kind, self.name)
    }
}

/// Whose things these are. `uid` is the ownership tag on every resource; `name` is for people and never looked up by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    pub name: String,
    pub uid: String,
}

/// Something that should exist.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resource {
    pub id: Id,
    /// The whole wish, normalised by whoever expands the blueprint: equal wishes are equal values.
    pub spec: Value,
    /// Created after these and deleted before them.
    pub needs: Vec<Id>,
    /// Top-level fields of `spec` that cannot change in place: a difference there means delete and create (the next generation).
    #[serde(default)]
    pub replace_on: Vec<String>,
    /// What people read in the plan, e.g. "1 cpu, 1Gi memory".
    #[serde(default)]
    pub summary: String,
}

/// Something that exists (or is on its way in or out) and carries our cluster's tag.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Observed {
    pub id: Id,
    /// The provider's own id of it (an instance id, a directory name).
    pub handle: String,
    /// Counts re-creations of the same logical id; part of the idempotency token.
    pub generation: u32,
    pub phase: Phase,
    /// The spec as last applied, as far as the door can tell; fields a door cannot read back are left out and not compared, at any
    /// depth. A load balancer that still sends to a machine's former address leaves that machine out, and so gets an update.
    pub spec: Value,
    /// What others need to know of it: addresses, host keys, health. Shapes are documented at each door.
    pub outputs: Value,
    /// Deleted before these.
    pub needs: Vec<Id>,
}

/// Where a resource is in its life, as the provider sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "phase", content = "why")]
pub enum Phase {
    /// Started, not finished.
    Pending,
    Ready,
    /// Exists but does not work; `Verb::Repair` may help. The text says why.
    Broken(String),
    /// Delete was accepted; gone only when no longer observed.
    Deleting,
}

/// What an action does to its resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verb {
    Create,
    /// Changes it in place.
    Update,
    /// Starts it again, keeping its disk and addresses.
    Repair,
    Delete,
    /// Somebody (an earlier run) started it; wait until it is ready or gone.
    Await,
}

impl fmt::Display for Verb {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Verb::Create => "create",
            Verb::Update => "update",
            Verb::Repair => "repair",
            Verb::Delete => "delete",
            Verb::Await => "await",
        })
    }
}

/// An action's name inside its plan. The handle tells two things of one logical id apart (a replacement, a duplicate).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Key {
    pub id: Id,
    pub verb: Verb,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle: Option<String>,
}

impl fmt::Display for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.verb, self.id)
    }
}

/// One effect, as data: printed in the plan, executed, shown as progress, written to the journal and the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Action {
    pub verb: Verb,
    pub id: Id,
    pub generation: u32,
    /// The wish. For Delete an empty object, but for a host `{"drain": bool}`: false when the whole cluster goes, and then the door
    /// only stops the control plane's services (the fence before everything else goes) and leaves workers to their machines' end.
    pub spec: Value,
    /// The handle of what exists, for every verb but Create.
    pub handle: Option<String>,
    /// Actions that must be finished first.
    pub after: Vec<Key>,
    /// Why: "not there", "memory: 1Gi -> 2Gi", "no longer in the blueprint".
    pub reason: String,
    pub summary: String,
}

impl Action {
    pub fn key(&self) -> Key {
        Key { id: self.id.clone(), verb: self.verb, handle: self.handle.clone() }
    }
}

/// The outputs of what exists when an action starts, by logical id: how an action refers to things made a moment ago.
pub type Inputs = BTreeMap<Id, Observed>;

/// A rendered effect: the bytes that a retry sends again unchanged, and the token that makes the receiver do it once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    pub verb: Verb,
    pub id: Id,
    pub generation: u32,
    pub handle: Option<String>,
    /// From (cluster uid, id, generation); at most 64 ASCII characters.
    pub token: String,
    /// The writer's epoch. Renderers leave 0; the engine sets it at each sending, so a replay by a later writer carries the later
    /// epoch while everything else stays byte for byte. A receiver that keeps epochs refuses a lower one with `Kind::Conflict`.
    #[serde(default)]
    pub epoch: u64,
    /// Never holds a secret: it is written to the journal.
    pub body: Value,
}

impl Request {
    /// The request for `action` with the door's own `body`; what most renderers end with.
    pub fn of(cluster: &Cluster, action: &Action, body: Value) -> Self {
        Request {
            verb: action.verb,
            id: action.id.clone(),
            generation: action.generation,
            handle: action.handle.clone(),
            token: token(&cluster.uid, &action.id, action.generation),
            epoch: 0,
            body,
        }
    }
}

/// The idempotency token: the same for every try of one generation, another for the next (clouds refuse the token of a machine that
/// is gone). 48 hexadecimal characters: below EC2's limit of 64.
pub fn token(cluster_uid: &str, id: &Id, generation: u32) -> String {
    let digest = Sha256::digest(format!("{cluster_uid}\n{id}\n{generation}"));
    hex::encode(&digest[..24])
}

/// How far an action is, for people: one short line, replaced by the next.
pub type Progress<'a> = &'a (dyn Fn(&str) + Send + Sync);

/// A rate that the receiver's owner documents: so many of one bucket at once, then so many per second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    pub bucket: &'static str,
    pub burst: u32,
    pub per_second: f64,
}

/// The only place where effects happen: a provider, the hosts over SSH, the cluster's own API. Owns the kinds it names.
#[async_trait]
pub trait Door: Send + Sync {
    /// The kinds of resource behind this door. No two doors share one.
    fn kinds(&self) -> &'static [&'static str];

    /// For how long after an effect a read may still not show it. Zero for a receiver that reads what it wrote; inside this window
    /// "not found" means "not yet".
    fn settle(&self) -> Duration {
        Duration::ZERO
    }

    /// How many requests it carries at once. The default: a local cloud starts so many machines on two cores.
    fn at_once(&self) -> usize {
        16
    }

    /// How fast such requests may follow each other; `None` where nobody limits them.
    fn pace(&self, request: &Request) -> Option<Pace> {
        let _ = request;
        None
    }

    /// Everything of this cluster behind the door, found by our tag alone. `known` is what doors asked earlier have seen (the engine
    /// asks doors in the order they are given: a door comes after those whose kinds its own resources need).
    async fn observe(&self, known: &[Observed]) -> Result<Vec<Observed>>;

    /// Pure: what would be sent for this action. The engine journals it before it sends it.
    fn render(&self, action: &Action, inputs: &Inputs) -> Result<Request>;

    /// Sends it, and returns when the resource is ready (or gone, for Delete, and then also when it was gone already). The same
    /// request twice has the effect of one. A Create answers `None` when its token once made something that is gone again: the engine
    /// goes on to the next generation. Errors of kind `Transient` may be tried again with the same request; `Conflict` means a newer
    /// writer; all others are final for this run. The future may be dropped at any await (crash, deadline): the next run sends again.
    async fn execute(&self, request: &Request, progress: Progress<'_>) -> Result<Option<Observed>>;
}
