//! One cluster, opened by a command that may change it: state folder locked, provider reached, uid known, trust at hand.

use super::progress::Progress;
use super::state::{self, Record, State};
use super::world::blueprint_door::{self, BlueprintDoor};
use super::world::hosts::Hosts;
use super::world::outside::{Outside, desired};
use super::world::{host_door, images, recover};
use crate::blueprint::Blueprint;
use crate::blueprint::schema::OF_SERVICE;
use crate::bootstrap::install::{self, Program};
use crate::bootstrap::spec::Image;
use crate::bootstrap::trust::Trust;
use crate::engine::handoff::{self, Epoch, Wish, Writer};
use crate::engine::journal::{FileJournal, wall_clock};
use crate::engine::{Cluster, Observed, Phase};
use crate::error::{Context as _, Error, Kind, Result};
use crate::orchestrator::client::Client;
use crate::providers::{self, Context, Provider, Settings};
use crate::remote::{Side, Ssh, Target, address};
use crate::sys::files;
use parking_lot::RwLock;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub struct Session {
    pub cluster: Cluster,
    pub provider: Arc<dyn Provider>,
    pub cancel: CancellationToken,
    settings: Settings,
    place: String,
    folder: PathBuf,
    /// Held by commands that may change the cluster.
    state: Option<State>,
    trust: Option<Arc<Trust>>,
    minds_interrupts: bool,
}

/// An API that restarts (its machine came back a moment ago) gets this long before the command line takes over.
const SILENCE: Duration = Duration::from_secs(15);
const ASK_AGAIN: Duration = Duration::from_millis(100);

impl Session {
    /// Finds the cluster by the operator's record, else by the provider's own tags, else names a new one. Nothing is made yet.
    pub async fn open(name: &str, settings: Settings) -> Result<Session> {
        let state = State::open(settings.provider, name)?;
        Self::reach(name, settings, Some(state)).await
    }

    /// For a look that changes nothing: no lock, so it works beside a running `up`.
    pub async fn view(record: Record) -> Result<Session> {
        Self::reach(&record.cluster.name, record.settings, None).await
    }

    async fn reach(name: &str, settings: Settings, state: Option<State>) -> Result<Session> {
        let folder = state::folder(settings.provider, name);
        let record = state::record(&folder)?;
        let known = match &record {
            Some(record) => Some(record.cluster.clone()),
            None => providers::find(&settings, name).await?,
        };
        let cluster = known.unwrap_or_else(|| Cluster { name: name.into(), uid: uuid::Uuid::new_v4().to_string() });
        let provider = providers::connect(&settings, &cluster).await?;
        let place = provider.place().await?;
        if let Some(record) = record {
            same_place(&record, &place)?;
        }
        let cancel = CancellationToken::new();
        Ok(Session { cluster, provider, cancel, settings, place, folder, state, trust: None, minds_interrupts: false })
    }

    /// From here on the first Ctrl-C only cancels: what is in flight is finished. Before, nothing is, and it ends the process.
    pub fn finish_what_is_begun(&mut self) -> Result<()> {
        if !self.minds_interrupts {
            super::on_first_interrupt(&self.cancel)?;
            self.minds_interrupts = true;
        }
        Ok(())
    }

    /// Before the first effect: from here on the state folder stays, whatever happens.
    pub fn remember(&self) -> Result<()> {
        let state = self.state.as_ref().ok_or_else(|| Error::internal("a look must not remember anything"))?;
        state.save(&Record { cluster: self.cluster.clone(), settings: self.settings.clone(), place: self.place.clone() })
    }

    /// The same with the keys that `borrow_trust` has found or made up.
    pub fn remember_trust(&self) -> Result<()> {
        self.remember()?;
        self.keep_trust(self.trust()?)
    }

    fn keep_trust(&self, trust: &Trust) -> Result<()> {
        trust.save(&self.folder.join("pki"))?;
        self.provider.hold_key(&trust.ssh.private);
        Ok(())
    }

    /// As the writer, which nobody else is from here on: another `up` that was at work since ours began may have installed machines, and
    /// then its keys are the cluster's. True when ours were exchanged for them.
    async fn adopt_trust(&mut self) -> Result<bool> {
        let ours = self.trust()?.clone();
        let observed = self.observe_provider().await?;
        let theirs = recover::trust(&self.cluster, self.provider.as_ref(), &observed, &self.folder, Some(&ours)).await;
        match theirs {
            Ok(Some(theirs)) if theirs.ca != ours.ca || theirs.ssh.private != ours.ssh.private => {
                tracing::info!("another kprov up has given the cluster its keys: they are ours now");
                self.keep_trust(&theirs)?;
                self.trust = Some(Arc::new(theirs));
                Ok(true)
            }
            Ok(_) => Ok(false),
            // A machine that boots or is ill tells nothing yet. Should it have other keys, it refuses ours later, and says so.
            Err(error) => {
                tracing::warn!("the cluster's keys could not be compared: {}", error.chain());
                Ok(false)
            }
        }
    }

    /// The cluster's keys: from the state folder, else read back from a control plane that has them, else made up now, and forgotten unless
    /// they are remembered. False for such.
    pub async fn borrow_trust(&mut self) -> Result<bool> {
        let known = self.known_trust().await?;
        let is_known = known.is_some();
        let trust = known.map_or_else(|| Trust::create(&self.cluster, SystemTime::now()), Ok)?;
        if is_known {
            self.provider.hold_key(&trust.ssh.private);
        }
        self.trust = Some(Arc::new(trust));
        Ok(is_known)
    }

    async fn known_trust(&self) -> Result<Option<Trust>> {
        if let Some(trust) = Trust::load(&self.folder.join("pki"), SystemTime::now())?.filter(|trust| trust.cluster == self.cluster) {
            // Another host's `up` may have been first: then its key is the cluster's.
            if self.provider.kept_key().await?.is_none_or(|kept| kept == trust.ssh.private) {
                return Ok(Some(trust));
            }
        }
        let observed = self.observe_provider().await?;
        recover::trust(&self.cluster, self.provider.as_ref(), &observed, &self.folder, None).await
    }

    pub fn trust(&self) -> Result<&Arc<Trust>> {
        self.trust.as_ref().ok_or_else(|| Error::internal("the cluster's trust was not established"))
    }

    /// The doors and the wishes for a blueprint.
    pub async fn world(&self, blueprint: &Blueprint, archives: &[PathBuf]) -> Result<Outside> {
        let trust = self.trust()?.clone();
        let images: Vec<Image> = archives.iter().map(|path| images::read(path)).collect::<Result<_>>()?;
        let hosts = Hosts {
            program: Program::current()?,
            provider: self.provider.clone(),
            images: Arc::new(RwLock::new(images.clone())),
            trust: trust.clone(),
        };
        let blueprint = &images::pinned(blueprint, &images);
        let context = Context {
            cluster: self.cluster.clone(),
            ssh_public_key: trust.ssh.public.clone(),
            service_load_balancers: self.service_load_balancers().await?,
        };
        let desired = desired(blueprint, self.provider.as_ref(), &context, &hosts).await?;
        let ssh = self.ssh()?;
        let blueprint_door = BlueprintDoor::new(trust.clone(), Some(blueprint.clone()));
        Ok(Outside {
            provider: self.provider.clone(),
            doors: vec![self.provider.clone(), host_door::outside(ssh, hosts), Arc::new(blueprint_door)],
            desired,
            images,
            blueprint: Some(blueprint.clone()),
            journal: FileJournal::open(&self.folder.join("journal"), wall_clock())?,
            cancel: self.cancel.clone(),
        })
    }

    /// Connections to the cluster's machines with its own key.
    pub fn ssh(&self) -> Result<Ssh> {
        Ssh::open(&self.folder, &self.trust()?.ssh)
    }

    /// Brings archives to every control plane that runs: from there the loop inside sends them on. Cheap when they are there.
    pub async fn bring(&self, images: &[Image], observed: &[Observed], progress: &Progress) -> Result<()> {
        if images.is_empty() {
            return Ok(());
        }
        let ssh = self.ssh()?;
        for machine in observed.iter().filter(|thing| blueprint_door::is_control_plane(thing) && thing.phase == Phase::Ready) {
            let connection = ssh.connect(&Target::of(machine, Side::Outside)?, SILENCE).await?;
            install::archives(&connection, images, &|text| progress.waiting(text)).await?;
        }
        Ok(())
    }

    /// The doors on the way down: everything that the provider holds, and nothing else.
    pub fn way_down(&self) -> Result<Outside> {
        Ok(Outside {
            provider: self.provider.clone(),
            doors: vec![self.provider.clone()],
            desired: Vec::new(),
            images: Vec::new(),
            blueprint: None,
            journal: FileJournal::open(&self.folder.join("journal"), wall_clock())?,
            cancel: self.cancel.clone(),
        })
    }

    pub async fn observe_provider(&self) -> Result<Vec<Observed>> {
        self.provider.observe(&[]).await
    }

    /// Load balancers that Services inside asked for: the loop's, not the blueprint's, and not ours to take away.
    async fn service_load_balancers(&self) -> Result<Vec<providers::resources::LoadBalancerSpec>> {
        let observed = self.observe_provider().await?;
        let asked =
            observed.iter().filter(|thing| thing.id.kind == providers::resources::LOAD_BALANCER && thing.id.name.starts_with(OF_SERVICE));
        Ok(asked.filter_map(|thing| serde_json::from_value(thing.spec.clone()).ok()).collect())
    }

    /// Becomes the writer, unless the loop inside is and works. True when the cluster turned out to have other keys than ours: then
    /// what was made from ours (a world) is void.
    pub async fn writer(&mut self) -> Result<(Writer, bool)> {
        let writer = handoff::take(self.provider.epochs(), Wish::Act, &owner()).await?;
        let is_first = matches!(&writer, Writer::Us(epoch) if epoch.epoch == 1);
        if is_first {
            self.give_way().await?;
        }
        let adopted = !is_first && self.adopt_trust().await?;
        let writer = match writer {
            Writer::Inside(_) if !self.loop_works().await? => handoff::take(self.provider.epochs(), Wish::Seize, &owner()).await?,
            writer => writer,
        };
        Ok((writer, adopted))
    }

    /// Two that begin at one moment, each with a new cluster in mind, would make two of one name. Each has written down that it is its own
    /// cluster's writer before it looks, so one of them sees the other at least; whoever does leaves nothing and says so.
    async fn give_way(&mut self) -> Result<()> {
        let name = &self.cluster.name;
        let others = match providers::clusters(&self.settings).await {
            // Whoever may see one cluster alone has no other in mind.
            Err(error) if error.kind == Kind::Provider => return Ok(()),
            others => others?,
        };
        if !others.iter().any(|other| other.name == *name && other.uid != self.cluster.uid) {
            return Ok(());
        }
        let error = Error::conflict(format!("could not go on: another kprov up has just begun a cluster called {name}"))
            .hint("run the same command again: it goes on with the cluster that is there");
        // There is nothing of ours but the word of who writes.
        let left = self.provider.leftovers().await;
        if let Some(state) = self.state.take().filter(|_| left.is_empty()) {
            state.remove()?;
        }
        Err(if left.is_empty() { error } else { error.because(format!("still there: {}", left.join(", "))) })
    }

    /// Raises the epoch to this command's own: whoever acted before is refused from now on.
    pub async fn seize(&self) -> Result<u64> {
        match handoff::take(self.provider.epochs(), Wish::Seize, &owner()).await? {
            Writer::Us(epoch) | Writer::Inside(epoch) => Ok(epoch.epoch),
        }
    }

    /// Why a run failed, when somebody else has become the writer meanwhile: machines that change hands fail in many ways.
    pub async fn overtaken(&self, ours: &Epoch, error: Error) -> Error {
        match self.provider.epochs().read().await {
            Ok(Some(now)) if now != *ours && error.kind != Kind::Conflict => {
                Error::conflict(format!("could not go on: {} took cluster {} over", now.owner, self.cluster.name)).because(error)
            }
            _ => error,
        }
    }

    /// Whether the loop inside is the writer.
    pub async fn is_handed_over(&self) -> Result<bool> {
        Ok(handoff::inside(self.provider.epochs()).await?.is_some())
    }

    /// From now on the loop inside acts; this command only watches.
    pub async fn hand_over(&self, ours: &Epoch) -> Result<()> {
        handoff::give(self.provider.epochs(), ours).await.map(drop)
    }

    /// A loop whose control plane machine is gone, or whose API stays silent, keeps nothing true any more.
    async fn loop_works(&self) -> Result<bool> {
        let deadline = Instant::now() + SILENCE;
        loop {
            let observed = self.observe_provider().await?;
            if !observed.iter().any(blueprint_door::is_control_plane) {
                return Ok(false);
            }
            if let Some(machine) = blueprint_door::control_plane(&observed) {
                let client = blueprint_door::api(self.trust()?, address(machine, Side::Outside)?)?;
                if let Ok(Ok(_)) = tokio::time::timeout_at(deadline, client.get_value("/version")).await {
                    return Ok(true);
                }
            }
            if Instant::now() > deadline {
                return Ok(false);
            }
            // The machine boots or the API starts: nothing tells us when, and an attempt costs nothing.
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// The API as administrator, at the control plane that works.
    pub fn api(&self, observed: &[Observed]) -> Result<Client> {
        blueprint_door::api(self.trust()?, address(self.control_plane(observed)?, Side::Outside)?)
    }

    fn control_plane<'a>(&self, observed: &'a [Observed]) -> Result<&'a Observed> {
        blueprint_door::control_plane(observed).ok_or_else(|| {
            Error::provider(format!("no control plane machine of cluster {} is running", self.cluster.name))
                .hint("kprov status shows the machines; kprov up makes them again")
        })
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    pub fn kubeconfig_text(&self, observed: &[Observed]) -> Result<String> {
        let address = address(self.control_plane(observed)?, Side::Outside)?;
        let server = format!("https://{}", SocketAddr::new(address, crate::orchestrator::config::API_PORT));
        Ok(self.trust()?.kubeconfig(&server))
    }

    pub fn save_kubeconfig(&self, observed: &[Observed]) -> Result<()> {
        let text = self.kubeconfig_text(observed)?;
        let path = self.kubeconfig();
        if std::fs::read_to_string(&path).is_ok_and(|kept| kept == text) {
            return Ok(());
        }
        files::write_atomic(&path, text.as_bytes(), 0o600).or_fail(Kind::Host, || format!("could not write {}", path.display()))
    }

    /// After `down` has proved that nothing is left.
    pub fn forget(self) -> Result<()> {
        self.state.map_or(Ok(()), State::remove)
    }
}

fn owner() -> String {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    format!("cli:{host}:{}", std::process::id())
}

/// A cluster does not move: another place would be another cluster, and the first would be forgotten while it costs money.
fn same_place(record: &Record, place: &str) -> Result<()> {
    if record.place.is_empty() || record.place == place {
        return Ok(());
    }
    let name = &record.cluster.name;
    Err(Error::input(format!("could not go on with cluster {name} in {place}: it is in {}", record.place))
        .hint("the blueprint, the credentials and the environment decide the place: say the same as when it was made")
        .hint(format!("a cluster does not move: take it away there first (kprov down {name}), or give the blueprint another name")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blueprint::ProviderName;

    #[test]
    fn a_cluster_is_where_it_was_made_and_an_old_record_does_not_say() {
        let check = |made: &str, now: &str, fine: bool| {
            let cluster = Cluster { name: "shop".into(), uid: "1".into() };
            let record = Record { cluster, settings: Settings::plain(ProviderName::Aws), place: made.into() };
            assert_eq!(same_place(&record, now).is_ok(), fine, "{made:?} {now:?}");
        };
        check("", "region b", true);
        check("region a", "region a", true);
        check("region a", "region b", false);
    }
}
