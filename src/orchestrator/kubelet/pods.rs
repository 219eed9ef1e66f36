//! The pods of this node: a worker for each, signals handed to the right one, and what earlier runs left behind swept away.

use super::cri::events::Happening;
use super::cri::messages::Map;
use super::observed::{LABEL_CONTAINER_NAME, LABEL_POD_NAME, LABEL_POD_NAMESPACE, LABEL_POD_UID, Nanos, SECOND};
use super::sandbox::uid;
use super::worker::{self, Signal};
use super::{Context, cgroups, container, logs, resources};
use crate::orchestrator::client::{Change, Informer};
use k8s_openapi::api::core::v1::Pod;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The safety net under the event streams, and how often log sizes are looked at (upstream's figure for both is 1 s and 10 s).
const RELIST: Duration = Duration::from_secs(10);

/// How long the API may take to say which pods are here; after that the checkpoints of an earlier run do. The API comes first because it
/// also knows which containers were ready: a restart of the agent is not to be seen from outside.
const PATIENCE: Duration = Duration::from_secs(2);

pub struct Pods {
    context: Arc<Context>,
    informer: Informer<Pod>,
    workers: HashMap<String, UnboundedSender<Signal>>,
    tasks: JoinSet<String>,
    /// What the last relist saw: state by sandbox or container id.
    seen: HashMap<String, i32>,
    /// How far the wall's clock was ahead of the workers' then.
    ahead: Nanos,
    /// What the burstable pods asked for together when their group was last weighed.
    burstable: Option<i64>,
}

impl Pods {
    pub fn new(context: Arc<Context>, informer: Informer<Pod>) -> Pods {
        Pods { context, informer, workers: HashMap::new(), tasks: JoinSet::new(), seen: HashMap::new(), ahead: 0, burstable: None }
    }

    /// `objects` brings uids of pods whose config maps and the like changed.
    pub async fn run(
        mut self,
        mut happenings: UnboundedReceiver<Happening>,
        mut objects: UnboundedReceiver<String>,
        cancel: CancellationToken,
    ) {
        let mut changes = self.informer.changes();
        let informer = self.informer.clone();
        let synced = informer.synced();
        tokio::pin!(synced);
        let mut is_synced = false;
        let patience = tokio::time::sleep(PATIENCE);
        tokio::pin!(patience);
        let mut may_load = true;
        let mut relist = tokio::time::interval(RELIST);
        relist.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = cancel.cancelled() => return,
                Some(change) = changes.recv() => self.change(change),
                () = &mut synced, if !is_synced => {
                    (is_synced, may_load) = (true, false);
                    self.sweep().await;
                    self.weigh();
                }
                () = &mut patience, if may_load => {
                    may_load = false;
                    self.load_checkpoints();
                }
                Some(happening) = happenings.recv() => self.happening(happening),
                Some(user) = objects.recv() => self.send(&user, Signal::Objects),
                Some(ended) = self.tasks.join_next() => self.ended(ended),
                _ = relist.tick() => {
                    self.relist().await;
                    if is_synced {
                        self.weigh();
                    }
                }
            }
        }
    }

    fn send(&self, uid: &str, signal: Signal) {
        if let Some(worker) = self.workers.get(uid) {
            let _ = worker.send(signal);
        }
    }

    fn change(&mut self, change: Change<Pod>) {
        let Change { old, new, .. } = change;
        if let Some(old) = &old
            && new.as_ref().is_none_or(|new| uid(new) != uid(old))
        {
            self.send(uid(old), Signal::Removed);
        }
        if let Some(pod) = new {
            self.put(pod);
        }
    }

    fn put(&mut self, pod: Arc<Pod>) {
        match self.workers.get(uid(&pod)) {
            Some(worker) => drop(worker.send(Signal::Pod(pod))),
            None => {
                let key = uid(&pod).to_owned();
                let worker = worker::spawn(self.context.clone(), pod, &mut self.tasks);
                self.workers.insert(key, worker);
            }
        }
    }

    fn ended(&mut self, ended: Result<String, tokio::task::JoinError>) {
        match ended {
            Ok(uid) => drop(self.workers.remove(&uid)),
            Err(error) => {
                tracing::error!(%error, "a pod's worker failed; starting it again");
                self.workers.retain(|_, worker| !worker.is_closed());
                let missing: Vec<Arc<Pod>> = self.informer.list().into_iter().filter(|pod| !self.workers.contains_key(uid(pod))).collect();
                missing.into_iter().for_each(|pod| self.put(pod));
            }
        }
    }

    fn happening(&mut self, happening: Happening) {
        let _ = self.context.happenings.send(happening.clone());
        let (id, signal) = match happening {
            Happening::Exited(id) => (id.clone(), Signal::Exited(id)),
            Happening::OutOfMemory(id) => (id.clone(), Signal::OutOfMemory(id)),
            Happening::Reconnected => {
                return self.workers.values().for_each(|worker| drop(worker.send(Signal::Wake)));
            }
        };
        let owner = self.context.owners.lock().get(&id).cloned();
        if let Some(owner) = owner {
            self.send(&owner, signal);
        }
    }

    /// Pods that ran here before this process: they are kept even while the API is away.
    fn load_checkpoints(&mut self) {
        let entries = std::fs::read_dir(self.context.volumes.root()).into_iter().flatten().flatten();
        for entry in entries {
            let pod = std::fs::read(entry.path().join("pod.json")).ok().and_then(|bytes| serde_json::from_slice::<Pod>(&bytes).ok());
            if let Some(pod) = pod.filter(|pod| uid(pod) == entry.file_name().to_string_lossy()) {
                self.put(Arc::new(pod));
            }
        }
    }

    /// Once the API's list is whole: what is not on it goes.
    async fn sweep(&mut self) {
        let wanted: BTreeSet<String> = self.informer.list().iter().map(|pod| uid(pod).to_owned()).collect();
        self.informer.list().into_iter().for_each(|pod| self.put(pod));
        for (key, worker) in &self.workers {
            if !wanted.contains(key) {
                let _ = worker.send(Signal::Removed);
            }
        }
        let known: BTreeSet<String> = self.workers.keys().cloned().collect();
        tokio::spawn(sweep_leftovers(self.context.clone(), known));
    }

    /// Upstream does this once a minute.
    fn weigh(&mut self) {
        let burstable = resources::burstable_millis(self.informer.list().iter().map(|pod| &**pod));
        if self.burstable.replace(burstable) == Some(burstable) {
            return;
        }
        let classes = cgroups::classes(self.context.driver, self.context.size().allocatable().cpu_millis, burstable);
        tokio::spawn(async move {
            for (class, amounts) in classes {
                if let Err(error) = cgroups::make(class, amounts).await {
                    tracing::warn!(error = %error.chain(), class, "pods have no weights by their class");
                }
            }
        });
    }

    /// What others have written down (tokens, deadlines) is due at another moment once somebody has set the clock: all look again.
    fn mind_the_clock(&mut self) {
        let ahead = worker::wall() - worker::now();
        if (ahead - std::mem::replace(&mut self.ahead, ahead)).abs() > SECOND {
            tracing::warn!("the clock was set");
            self.workers.values().for_each(|worker| drop(worker.send(Signal::Wake)));
        }
    }

    async fn relist(&mut self) {
        self.mind_the_clock();
        let runtime = &self.context.runtime;
        let lists = futures::future::try_join(runtime.list_sandboxes(Map::new()), runtime.list_containers(Map::new())).await;
        let (sandboxes, containers) = match lists {
            Ok(lists) => lists,
            Err(refusal) => return tracing::warn!(%refusal, "could not list what runs on this node"),
        };
        for container in containers.iter().filter(|container| container.state == super::cri::messages::container_state::RUNNING) {
            let label = |key: &str| container.labels.get(key).map(String::as_str).unwrap_or_default();
            let folder = format!("{}_{}_{}", label(LABEL_POD_NAMESPACE), label(LABEL_POD_NAME), label(LABEL_POD_UID));
            let attempt = container.metadata.as_ref().map_or(0, |metadata| metadata.attempt);
            let log = self.context.logs.join(folder).join(container::log_path(label(LABEL_CONTAINER_NAME), attempt));
            if let Err(error) = logs::rotate::rotate(runtime, &container.id, &log).await {
                tracing::warn!(%error, log = %log.display(), "could not rotate a log");
            }
        }
        let label = |labels: &Map| labels.get(LABEL_POD_UID).cloned().unwrap_or_default();
        let sandboxes = sandboxes.into_iter().map(|sandbox| (label(&sandbox.labels), sandbox.id, sandbox.state));
        let containers = containers.into_iter().map(|container| (label(&container.labels), container.id, container.state));
        let now: Vec<(String, String, i32)> = sandboxes.chain(containers).collect();
        let changed: BTreeSet<String> =
            now.iter().filter(|(_, id, state)| self.seen.get(id) != Some(state)).map(|(uid, _, _)| uid.clone()).collect();
        let alive: BTreeSet<&String> = now.iter().map(|(_, id, _)| id).collect();
        let gone: BTreeSet<String> = {
            let owners = self.context.owners.lock();
            self.seen.keys().filter(|id| !alive.contains(id)).filter_map(|id| owners.get(id).cloned()).collect()
        };
        self.seen = now.into_iter().map(|(_, id, state)| (id, state)).collect();
        changed.union(&gone).for_each(|uid| self.send(uid, Signal::Wake));
    }
}

/// Sandboxes (and with them their addresses), cgroups and folders of pods that nobody knows.
async fn sweep_leftovers(context: Arc<Context>, known: BTreeSet<String>) {
    match context.runtime.list_sandboxes(Map::new()).await {
        Ok(sandboxes) => {
            for sandbox in sandboxes {
                let owner = sandbox.labels.get(LABEL_POD_UID).cloned().unwrap_or_default();
                if known.contains(&owner) {
                    continue;
                }
                tracing::info!(sandbox = sandbox.id, pod = owner, "removing what a forgotten pod left");
                let stopped = context.runtime.stop_sandbox(&sandbox.id).await;
                if let Err(refusal) = match stopped {
                    Ok(()) => context.runtime.remove_sandbox(&sandbox.id).await,
                    refused => refused,
                } {
                    tracing::warn!(%refusal, sandbox = sandbox.id, "could not remove a forgotten sandbox");
                }
            }
        }
        Err(refusal) => tracing::warn!(%refusal, "could not look for forgotten sandboxes"),
    }
    for (owner, parent) in cgroups::pods() {
        if !known.contains(&owner) {
            cgroups::remove(&parent).await;
        }
    }
    for entry in std::fs::read_dir(context.volumes.root()).into_iter().flatten().flatten() {
        let owner = entry.file_name().to_string_lossy().into_owned();
        if !known.contains(&owner)
            && let Err(error) = context.volumes.clean(&owner).await
        {
            tracing::warn!(%error, pod = owner, "could not remove a forgotten pod's volumes");
        }
    }
    for entry in std::fs::read_dir(&context.logs).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.rsplit('_').next().is_some_and(|owner| !known.contains(owner)) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
