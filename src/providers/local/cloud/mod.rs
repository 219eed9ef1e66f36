//! The local cloud itself: what a request does. Intent is on disk before anything is made, and everything else follows from records,
//! so the next daemon finishes what this one began.

mod lives;
mod observed;
mod serving;

use super::api::{Admit, Credentials, SwapEpoch};
use super::layout::{self, Layout};
use super::network::Network;
use super::record::{self, Body, Record, Stage};
use super::{fabric, hostkey, machine, sweep};
use crate::engine::handoff::Epoch;
use crate::engine::{Cluster, Id, Observed, Request, Verb};
use crate::error::{Context, Error, Kind, Result};
use crate::lb::Balancer;
use crate::providers::resources::{FILESYSTEM, FilesystemSpec, LOAD_BALANCER, LoadBalancerSpec, MACHINE, MachineSpec, NETWORK};
use crate::sys::files;
use lives::Life;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

pub struct Cloud {
    pub cluster: Cluster,
    pub layout: Layout,
    pub network: Network,
    /// Told once the last thing is gone and so is the folder.
    pub closed: watch::Sender<bool>,
    state: Mutex<State>,
    /// One action per thing at a time.
    turns: Mutex<HashMap<Id, Arc<tokio::sync::Mutex<()>>>>,
    version: watch::Sender<u64>,
    /// Tells this daemon's versions from its predecessor's.
    instance: String,
}

#[derive(Default)]
struct State {
    records: BTreeMap<Id, Record>,
    machines: HashMap<String, Life>,
    /// Before the next restart by the cloud.
    pauses: HashMap<String, Duration>,
    balancers: HashMap<String, Arc<Balancer>>,
    /// Why the network could not be opened, while it is not.
    network_trouble: Option<String>,
    epoch: Option<Epoch>,
    /// Requests under way; nothing closes meanwhile.
    active: usize,
    closing: bool,
}

impl Cloud {
    pub fn open(cluster: Cluster, layout: Layout, network: Network) -> Result<Arc<Cloud>> {
        let records = record::all(&layout)?.into_iter().map(|record| (record.id.clone(), record)).collect();
        let epoch = record::read(&layout.epoch())?;
        Ok(Arc::new(Cloud {
            cluster,
            layout,
            network,
            closed: watch::Sender::new(false),
            state: Mutex::new(State { records, epoch, ..State::default() }),
            turns: Mutex::default(),
            version: watch::Sender::new(0),
            instance: uuid::Uuid::new_v4().simple().to_string(),
        }))
    }

    /// Takes over from the daemon before: whatever it left half done is finished, whatever runs is watched.
    /// What this host refuses is said where it is missing, and tried again: a cloud that ended here could not even be asked why.
    pub async fn recover(self: &Arc<Self>) {
        let records: Vec<Record> = self.state.lock().records.values().cloned().collect();
        if let Some(network) = records.iter().find(|record| record.id.kind == NETWORK && record.stage == Stage::Made)
            && self.open_network(network).await.is_err()
        {
            tokio::spawn(self.clone().reopen_network());
        }
        let machines: Vec<String> =
            records.iter().filter(|record| record.id.kind == MACHINE).map(|record| record.id.name.clone()).collect();
        for name in sweep::unrecorded_machines(&self.layout, &machines) {
            let layout = self.layout.clone();
            let removed = name.clone();
            if let Err(error) = blocking(move || machine::remove(&layout, &removed)).await {
                tracing::warn!("could not remove what is left of {name}: {}", error.chain());
            }
        }
        for name in &machines {
            self.find_machine(name);
        }
        for record in records {
            let cloud = self.clone();
            let work = async move {
                let outcome = match record.stage {
                    Stage::Intent => cloud.turn(&record.id, async |cloud| cloud.make(&record.id).await.map(drop)).await,
                    Stage::Deleting => cloud.turn(&record.id, async |cloud| cloud.unmake(&record.id).await).await,
                    Stage::Made if record.id.kind == MACHINE => {
                        let begun = matches!(cloud.state.lock().machines.get(&record.id.name), Some(Life::Starting));
                        if begun {
                            let _ = cloud.turn(&record.id, async |cloud| cloud.start(&record.id.name).await).await;
                        }
                        cloud.revive(&record.id.name).await;
                        Ok(())
                    }
                    Stage::Made if record.id.kind == LOAD_BALANCER => {
                        cloud.turn(&record.id, async |cloud| cloud.serve(&record).await).await
                    }
                    Stage::Made => Ok(()),
                };
                if let Err(error) = outcome {
                    tracing::warn!("could not finish {}: {}", record.id, error.chain());
                }
            };
            tokio::spawn(work);
        }
    }

    // --- who may act ---

    pub fn epoch(&self) -> Option<Epoch> {
        self.state.lock().epoch.clone()
    }

    /// The same call again, after a lost reply, finds what it wanted in place.
    pub fn swap_epoch(&self, swap: SwapEpoch) -> Result<bool> {
        let mut state = self.state.lock();
        if state.epoch.as_ref() == Some(&swap.next) {
            return Ok(true);
        }
        if state.epoch != swap.expected {
            return Ok(false);
        }
        let text = serde_json::to_vec(&swap.next).or_fail(Kind::Internal, || "could not write the epoch")?;
        files::write_atomic(&self.layout.epoch(), &text, 0o600).or_fail(Kind::Host, || "could not write the epoch")?;
        state.epoch = Some(swap.next);
        drop(state);
        // The loop inside waits to become the writer.
        self.bump();
        Ok(true)
    }

    pub fn credentials(&self, token: &str, certificate: &str) -> Result<Credentials> {
        let state = self.state.lock();
        let subnet = state.records.values().find(|record| record.id.kind == NETWORK).and_then(|record| record.address);
        let subnet = subnet.ok_or_else(|| Error::provider("could not give credentials: the cluster has no network yet"))?;
        let address = (layout::address(subnet, layout::GATEWAY), layout::API_PORT).into();
        Ok(Credentials { cluster: self.cluster.clone(), address, token: token.into(), certificate: certificate.into() })
    }

    pub fn admit_key(&self, admit: &Admit) -> Result<()> {
        record::check_name(&crate::engine::Id::new(MACHINE, &admit.machine))?;
        machine::admit(&self.layout, &admit.machine, &admit.key, std::time::SystemTime::now())
    }

    // --- effects ---

    /// Returns when the thing is ready or gone. The flag says that this was the last one, and the cloud is closed.
    pub async fn execute(self: Arc<Self>, request: Request) -> Result<(Option<Observed>, bool)> {
        record::check_name(&request.id)?;
        self.begin()?;
        let outcome = self.turn(&request.id, async |cloud| cloud.act(&request).await).await;
        let closed = self.end(outcome.is_ok() && request.verb == Verb::Delete);
        if closed {
            self.close()?;
        }
        outcome.map(|observed| (observed, closed))
    }

    fn begin(&self) -> Result<()> {
        let mut state = self.state.lock();
        if state.closing {
            return Err(Error::transient("the local cloud of this cluster is closing"));
        }
        state.active += 1;
        Ok(())
    }

    fn end(&self, deleted: bool) -> bool {
        let mut state = self.state.lock();
        state.active -= 1;
        state.closing |= deleted && state.active == 0 && state.records.is_empty();
        state.closing
    }

    /// When nothing exists (an `up` that failed at once), the cloud need not stay. True also when it is closing already.
    pub fn close_if_unused(&self) -> Result<bool> {
        {
            let mut state = self.state.lock();
            if state.closing {
                return Ok(true);
            }
            if state.active > 0 || !state.records.is_empty() {
                return Ok(false);
            }
            state.closing = true;
        }
        self.close().map(|()| true)
    }

    /// Nothing is left: neither is this.
    fn close(&self) -> Result<()> {
        let removed = self.remove_all();
        match &removed {
            Ok(()) => drop(self.closed.send_replace(true)),
            // Whoever asks next tries again.
            Err(_) => self.state.lock().closing = false,
        }
        removed
    }

    fn remove_all(&self) -> Result<()> {
        let failed = || format!("could not remove {}", self.layout.folder.display());
        fabric::remove(&self.layout)?;
        crate::sys::cgroups::Group::new(self.layout.group("none")).or_fail(Kind::Host, failed)?.remove_empty_parents();
        fs::remove_dir_all(&self.layout.folder).or_fail(Kind::Host, failed)?;
        // Another cluster may have its folder there.
        let _ = fs::remove_dir(crate::sys::paths::LOCAL_CLOUD);
        let _ = fs::remove_dir(crate::sys::paths::DATA);
        Ok(())
    }

    /// Waits until nobody else works on the same thing.
    async fn turn<T>(self: &Arc<Self>, id: &Id, work: impl AsyncFnOnce(&Arc<Self>) -> Result<T>) -> Result<T> {
        let turn = self.turns.lock().entry(id.clone()).or_default().clone();
        let _turn = turn.lock().await;
        work(self).await
    }

    async fn act(self: &Arc<Self>, request: &Request) -> Result<Option<Observed>> {
        if let Some(current) = self.epoch().filter(|current| request.epoch < current.epoch) {
            let message = format!("another writer acts on this cluster: {} with epoch {}", current.owner, current.epoch);
            return Err(Error::conflict(message).because(format!("this request came with epoch {}", request.epoch)));
        }
        let is_meant = |record: &&Record| request.handle.as_ref().is_none_or(|handle| *handle == self.handle(record));
        let existing = self.state.lock().records.get(&request.id).filter(is_meant).cloned();
        let missing = || Error::provider(format!("{} does not exist", request.id));
        match (request.verb, existing) {
            (Verb::Create, None) => {
                let record = self.admit(Record::new(request)?)?;
                self.make(&record.id).await?;
            }
            (Verb::Create, Some(record)) if record.token != request.token => {
                return Err(Error::conflict(format!("{} exists already, made by another request", request.id)));
            }
            (Verb::Create, Some(record)) if record.digest != record::digest(&request.body) => {
                return Err(Error::provider(format!("could not create {}: the same token came with another body", request.id)));
            }
            (Verb::Create | Verb::Await | Verb::Repair, Some(Record { stage: Stage::Intent, id, .. })) => self.make(&id).await?,
            (Verb::Create | Verb::Await, Some(Record { stage: Stage::Made, .. })) => {}
            (Verb::Delete | Verb::Await, Some(Record { stage: Stage::Deleting, id, .. })) => self.unmake(&id).await?,
            (_, Some(Record { stage: Stage::Deleting, .. })) => {
                return Err(Error::transient(format!("{} is being deleted", request.id)));
            }
            (Verb::Delete, Some(mut record)) => {
                self.check_unused(&record)?;
                record.stage = Stage::Deleting;
                self.keep(record)?;
                self.unmake(&request.id).await?;
            }
            (Verb::Update, Some(record)) => self.update(record, Body::of(request)?).await?,
            (Verb::Repair, Some(record)) => self.repair(&record).await?,
            (Verb::Delete | Verb::Await, None) => return Ok(None),
            (Verb::Update | Verb::Repair, None) => return Err(missing()),
        }
        Ok(self.observe_one(&request.id))
    }

    /// Checks the wish, gives addresses and keys, and writes the intent.
    fn admit(&self, mut record: Record) -> Result<Record> {
        check_spec(&record)?;
        if record.id.kind == NETWORK {
            if self.state.lock().records.keys().any(|id| id.kind == NETWORK) {
                return Err(Error::provider("a cluster of the local cloud has one network"));
            }
            let mut chosen = record.clone();
            fabric::choose_subnet(|subnet| {
                chosen.address = Some(subnet);
                self.keep(chosen.clone())
            })?;
            return Ok(chosen);
        }
        let mut state = self.state.lock();
        let network = state.records.values().find(|other| other.id.kind == NETWORK && other.stage == Stage::Made);
        let subnet = network.and_then(|network| network.address);
        let subnet = subnet.ok_or_else(|| Error::provider(format!("could not create {}: the cluster has no network", record.id)))?;
        let taken: Vec<Ipv4Addr> = state.records.values().filter_map(|record| record.address).collect();
        let range = match record.id.kind.as_str() {
            MACHINE => Some(layout::MACHINES),
            LOAD_BALANCER => Some(layout::LOAD_BALANCERS),
            _ => None,
        };
        if let Some(range) = range {
            let full = || Error::provider(format!("could not create {}: the cluster's subnet {subnet}/24 is full", record.id));
            record.address = Some(layout::free_address(subnet, range, &taken).ok_or_else(full)?);
        }
        if record.id.kind == MACHINE {
            record.host_key = Some(hostkey::generate(&record.id.name)?.0);
        }
        record.save(&self.layout)?;
        state.records.insert(record.id.clone(), record.clone());
        drop(state);
        self.bump();
        Ok(record)
    }

    /// Writes the record, then shows it.
    fn keep(&self, record: Record) -> Result<()> {
        record.save(&self.layout)?;
        self.state.lock().records.insert(record.id.clone(), record);
        self.bump();
        Ok(())
    }

    fn record(&self, id: &Id) -> Result<Record> {
        self.state.lock().records.get(id).cloned().ok_or_else(|| Error::internal(format!("{id} is not on record")))
    }

    async fn make(self: &Arc<Self>, id: &Id) -> Result<()> {
        let mut record = self.record(id)?;
        match id.kind.as_str() {
            NETWORK => self.open_network(&record).await?,
            MACHINE => {
                if !matches!(self.state.lock().machines.get(&id.name), Some(Life::Running { .. })) {
                    self.start(&id.name).await?;
                }
            }
            LOAD_BALANCER => self.serve(&record).await?,
            _ => fs::create_dir_all(self.layout.filesystems().join(&id.name)).or_fail(Kind::Host, || format!("could not make {id}"))?,
        }
        record.stage = Stage::Made;
        self.keep(record)
    }

    async fn unmake(self: &Arc<Self>, id: &Id) -> Result<()> {
        let record = self.record(id)?;
        let (layout, name) = (self.layout.clone(), id.name.clone());
        match id.kind.as_str() {
            NETWORK => {
                self.network.close().await;
                blocking(move || fabric::remove(&layout)).await?;
            }
            MACHINE => {
                self.set_life(&name, Life::Stopped("deleted".into()));
                self.refresh_balancers().await;
                blocking(move || machine::remove(&layout, &name)).await?;
                self.state.lock().machines.remove(&id.name);
            }
            LOAD_BALANCER => {
                let balancer = self.state.lock().balancers.remove(&name);
                drop(balancer);
                if let Some(address) = record.address {
                    blocking(move || fabric::remove_address(&layout, address)).await?;
                }
            }
            _ => {
                let folder = layout.filesystems().join(&name);
                let failed = format!("could not remove {}", folder.display());
                blocking(move || match fs::remove_dir_all(&folder) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).or_fail(Kind::Host, || failed),
                    _ => Ok(()),
                })
                .await?;
            }
        }
        record.forget(&self.layout)?;
        self.state.lock().records.remove(id);
        self.bump();
        Ok(())
    }

    async fn update(self: &Arc<Self>, record: Record, body: Body) -> Result<()> {
        let record = Record { spec: body.spec, ..record };
        check_spec(&record)?;
        self.keep(record.clone())?;
        match record.id.kind.as_str() {
            MACHINE => {
                let (layout, spec) = (self.layout.clone(), record.spec::<MachineSpec>()?);
                blocking(move || machine::update(&layout, &record, &spec)).await
            }
            LOAD_BALANCER => self.serve(&record).await,
            _ => Ok(()),
        }
    }

    /// A machine that runs is left alone: the same request again must not stop it.
    async fn repair(self: &Arc<Self>, record: &Record) -> Result<()> {
        match record.id.kind.as_str() {
            MACHINE if !matches!(self.state.lock().machines.get(&record.id.name), Some(Life::Running { .. })) => {
                self.start(&record.id.name).await
            }
            MACHINE => Ok(()),
            LOAD_BALANCER => self.serve(record).await,
            NETWORK => self.open_network(record).await,
            _ => self.make(&record.id).await,
        }
    }

    /// Children before parents, whoever asks.
    fn check_unused(&self, record: &Record) -> Result<()> {
        let state = self.state.lock();
        let user = state.records.keys().find(|id| record.id.kind == NETWORK && **id != record.id);
        user.map_or(Ok(()), |user| Err(Error::provider(format!("could not delete {}: {user} still uses it", record.id))))
    }
}

/// A wish that this cloud can never fulfil is refused before anything exists.
fn check_spec(record: &Record) -> Result<()> {
    match record.id.kind.as_str() {
        NETWORK => Ok(()),
        MACHINE => record.spec::<MachineSpec>().map(drop),
        FILESYSTEM => record.spec::<FilesystemSpec>().map(drop),
        LOAD_BALANCER => match record.spec::<LoadBalancerSpec>()?.listeners.iter().find(|listener| listener.protocol != "TCP") {
            Some(other) => {
                Err(Error::provider(format!("could not create {}: the local load balancer serves TCP, not {}", record.id, other.protocol)))
            }
            None => Ok(()),
        },
        kind => Err(Error::provider(format!("the local cloud has no {kind}"))),
    }
}

/// System calls that take milliseconds, off the runtime's threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.or_fail(Kind::Internal, || "a task of the local cloud died")?
}
