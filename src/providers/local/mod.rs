//! Machines, load balancers and shared filesystems on one Linux host: a small cloud that needs nothing but root.
//!
//! A daemon per cluster plays the cloud (`cloud`); machines are namespaces over the host's own files (`root`, `shim`); records on disk
//! are its data centre (`record`), so it can be killed anywhere. The command line reaches it over a socket, the loop inside the cluster
//! over TLS.

mod api;
mod client;
mod cloud;
mod daemon;
mod doctor;
mod fabric;
mod hostkey;
mod layout;
mod lock;
mod machine;
mod network;
mod record;
mod root;
mod secret;
mod shim;
mod sweep;

use crate::blueprint::Blueprint;
use crate::engine::handoff::{Epoch, EpochStore};
use crate::engine::{Action, Cluster, Door, Inputs, Observed, Progress, Request, Resource, Verb};
use crate::error::{Context as _, Error, Kind, Result};
use crate::providers::resources::{self, FILESYSTEM, LOAD_BALANCER, MACHINE, NETWORK};
use crate::providers::{Context, Provider};
use crate::sys::paths::LOCAL_CLOUD;
use async_trait::async_trait;
use client::Way;
use layout::Layout;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use daemon::main as daemon_main;
pub use doctor::{Finding, doctor, finding};
pub use shim::main as shim_main;
pub use sweep::leftovers;

/// A daemon that dies again and again is a fault to report, not to sit out.
const TRIES: u32 = 4;
const TRY_PAUSE: Duration = Duration::from_millis(50);
const NOTHING_PAUSE: Duration = Duration::from_secs(1);
/// What the daemon still does for a command that was killed: its last deletion, and its own end.
const LAST_WORK: Duration = Duration::from_secs(2);

/// The one network's logical name.
pub const FABRIC: &str = "fabric";

/// The cloud of one cluster, from the host or from inside.
pub struct Local {
    cluster: Cluster,
    way: Way,
    /// kprov, for the daemon to be.
    program: PathBuf,
}

impl Local {
    /// From the host, as root. Starts nothing: the daemon is started by the first request that has an effect.
    pub fn connect(cluster: &Cluster) -> Local {
        Local { cluster: cluster.clone(), way: Way::Socket(Layout::new(&cluster.uid)), program: daemon::OWN_PROGRAM.into() }
    }

    /// From inside the cluster, with what `loop_credentials` gave.
    pub fn from_credentials(credentials: &Value) -> Result<Local> {
        let credentials: api::Credentials =
            serde_json::from_value(credentials.clone()).or_fail(Kind::Input, || "could not read the local cloud's credentials")?;
        Ok(Local { cluster: credentials.cluster.clone(), way: Way::network(credentials)?, program: daemon::OWN_PROGRAM.into() })
    }

    /// For callers that are not kprov itself: the program to start as daemon.
    pub fn with_program(self, program: impl Into<PathBuf>) -> Local {
        Local { program: program.into(), ..self }
    }

    /// Waits until something is different from what `seen` (empty at first) names, 30 seconds at most. Returns the name of what is now:
    /// the loop sees a dead machine at once.
    pub async fn changed(&self, seen: &str) -> Result<String> {
        if !self.exists() {
            // Nothing tells when the first thing is made; who waits for that looks again.
            tokio::time::sleep(NOTHING_PAUSE).await;
            return Ok(String::new());
        }
        Ok(self.ask::<api::View>("GET", &format!("/v1/changes?after={seen}"), &()).await?.version)
    }

    /// Whether there is anything of this cluster to ask about.
    fn exists(&self) -> bool {
        match &self.way {
            Way::Socket(layout) => layout.cluster().exists(),
            Way::Network { .. } => true,
        }
    }

    /// A cloud in which nothing was made, or whose last thing went while nobody waited for it, would stay until it notices.
    async fn close(&self) {
        if !self.exists() {
            return;
        }
        match self.ask::<api::Executed>("POST", "/v1/close", &()).await {
            Ok(done) => until_ended(done.closing).await,
            Err(error) => tracing::debug!("{}", error.chain()),
        }
    }

    /// Starts the daemon on the host; from inside it is there or somebody else starts it.
    async fn wake(&self) -> Result<()> {
        match &self.way {
            Way::Socket(layout) => client::ensure_daemon(&self.program, layout, &self.cluster).await,
            Way::Network { .. } => Ok(()),
        }
    }

    /// Asks a daemon that may die or close meanwhile: every question is safe to repeat, and on the host the next daemon is started by
    /// asking again.
    async fn ask<T: DeserializeOwned>(&self, method: &str, path: &str, body: &impl Serialize) -> Result<T> {
        for _ in 1..TRIES {
            self.wake().await?;
            match self.way.call(method, path, body).await {
                // Gone with the last thing of the cluster: asking on would make it again.
                Err(error) if error.kind == Kind::Transient && matches!(self.way, Way::Socket(_)) && self.exists() => {
                    tokio::time::sleep(TRY_PAUSE).await;
                }
                other => return other,
            }
        }
        self.wake().await?;
        self.way.call(method, path, body).await
    }
}

/// A daemon that closes is a leftover until it has ended.
async fn until_ended(daemon: Option<i32>) {
    if let Some(daemon) = daemon {
        let _ = tokio::time::timeout(Duration::from_secs(5), crate::sys::process::ended(daemon)).await;
    }
}

/// All clusters of the local cloud on this host, whatever the operator's own state remembers.
pub fn clusters() -> Result<Vec<Cluster>> {
    // Another user's clusters are no reason to say that there are none.
    let denied = |error: &std::io::Error| error.kind() == std::io::ErrorKind::PermissionDenied;
    let hidden = |error| Error::host("could not look for the clusters of this host").because(error).hint("run kprov as root (sudo)");
    let mut found: Vec<Cluster> = Vec::new();
    for folder in std::fs::read_dir(LOCAL_CLOUD).into_iter().flatten().flatten() {
        match std::fs::read(folder.path().join("cluster.json")) {
            Ok(text) => found.extend(serde_json::from_slice(&text).ok()),
            Err(error) if denied(&error) => return Err(hidden(error)),
            Err(_) => {}
        }
    }
    found.sort_by(|a, b| (&a.name, &a.uid).cmp(&(&b.name, &b.uid)));
    Ok(found)
}

#[async_trait]
impl Door for Local {
    fn kinds(&self) -> &'static [&'static str] {
        &[NETWORK, MACHINE, FILESYSTEM, LOAD_BALANCER]
    }

    async fn observe(&self, _known: &[Observed]) -> Result<Vec<Observed>> {
        if !self.exists() {
            return Ok(Vec::new());
        }
        match self.ask::<api::View>("GET", "/v1/observe", &()).await {
            Err(_) if !self.exists() => Ok(Vec::new()),
            view => Ok(view?.resources),
        }
    }

    fn render(&self, action: &Action, _inputs: &Inputs) -> Result<Request> {
        let body = match action.verb {
            Verb::Create | Verb::Update => json!({"spec": action.spec}),
            Verb::Repair | Verb::Delete | Verb::Await => json!({}),
        };
        Ok(Request::of(&self.cluster, action, body))
    }

    async fn execute(&self, request: &Request, progress: Progress<'_>) -> Result<Option<Observed>> {
        if request.verb == Verb::Delete && !self.exists() {
            return Ok(None);
        }
        progress(match (request.verb, request.id.kind.as_str()) {
            (Verb::Create | Verb::Repair, MACHINE) => "starting, waiting for SSH",
            (Verb::Delete, _) => "removing",
            _ => "asking the local cloud",
        });
        let done = self.ask::<api::Executed>("POST", "/v1/execute", request).await;
        // The answer to the last deletion may be lost, but its effect shows.
        if request.verb == Verb::Delete && !self.exists() && done.as_ref().is_err_and(|error| error.kind == Kind::Transient) {
            return Ok(None);
        }
        let done = done?;
        until_ended(done.closing).await;
        Ok(done.observed)
    }
}

#[async_trait]
impl Provider for Local {
    fn name(&self) -> &'static str {
        "local"
    }

    async fn resources(&self, blueprint: &Blueprint, context: &Context) -> Result<Vec<Resource>> {
        let mut all = resources::expand(blueprint, context)?;
        // Limits and keys of a namespaced machine change in place; only another role makes it another machine.
        for machine in all.iter_mut().filter(|resource| resource.id.kind == MACHINE) {
            machine.replace_on = vec!["role".into()];
        }
        Ok(all)
    }

    async fn check(&self, resources: &[Resource]) -> Result<()> {
        // From inside the cluster the host has been checked long ago, and cannot be looked at.
        match &self.way {
            Way::Socket(_) => doctor::check(resources),
            Way::Network { .. } => Ok(()),
        }
    }

    fn epochs(&self) -> &dyn EpochStore {
        self
    }

    async fn changed(&self, seen: &str) -> Result<String> {
        Local::changed(self, seen).await
    }

    async fn admit_key(&self, machine: &Observed, public_key: &str) -> Result<()> {
        self.ask("POST", "/v1/admit", &api::Admit { machine: machine.id.name.clone(), key: public_key.into() }).await
    }

    async fn leftovers(&self) -> Vec<String> {
        let end = Instant::now() + LAST_WORK;
        loop {
            self.close().await;
            let left = leftovers(&self.cluster);
            if left.is_empty() || Instant::now() > end {
                return left;
            }
            tokio::time::sleep(TRY_PAUSE).await;
        }
    }

    async fn loop_credentials(&self) -> Result<Value> {
        match &self.way {
            Way::Socket(_) => self.ask("GET", "/v1/credentials", &()).await,
            Way::Network { credentials, .. } => serde_json::to_value(credentials).or_fail(Kind::Internal, || "could not write credentials"),
        }
    }
}

#[async_trait]
impl EpochStore for Local {
    async fn read(&self) -> Result<Option<Epoch>> {
        if !self.exists() {
            return Ok(None);
        }
        match self.ask("GET", "/v1/epoch", &()).await {
            Err(_) if !self.exists() => Ok(None),
            epoch => epoch,
        }
    }

    async fn swap(&self, expected: Option<&Epoch>, next: &Epoch) -> Result<bool> {
        if expected.is_some() && !self.exists() {
            return Ok(false);
        }
        self.ask("POST", "/v1/epoch", &api::SwapEpoch { expected: expected.cloned(), next: next.clone() }).await
    }
}
