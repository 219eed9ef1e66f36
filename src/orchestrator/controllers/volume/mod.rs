//! Claims find volumes, or get one made on a shared filesystem; volumes whose claim is gone are kept or removed as their policy says.

mod decide;

use super::write::{Write, apply_all};
use super::{Context, Informers, each, pods, work};
use crate::error::Error;
use crate::orchestrator::client::events::{Recorder, Subject};
use crate::orchestrator::client::{Client, Key, Object, Queue};
use decide::{Next, claim_ref, class_of, decide_claim, decide_volume, folder};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Volumes of this provisioner are folders on a filesystem that every machine has mounted.
pub const PROVISIONER: &str = "kprov.dev/filesystem";
/// Where: `<root>/<storage class>/<volume>`.
pub const ROOT: &str = "/var/lib/kprov/filesystems";

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Item {
    Claim(Key),
    Volume(String),
}

impl fmt::Display for Item {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Item::Claim(key) => write!(out, "claim {key}"),
            Item::Volume(name) => write!(out, "volume {name}"),
        }
    }
}

struct Volumes {
    client: Client,
    informers: Informers,
    recorder: Recorder,
    queue: Queue<Item>,
}

pub fn start(context: &Context, informers: &Informers, recorder: Recorder) {
    let queue: Queue<Item> = Queue::new();
    let this = Volumes { client: context.client.clone(), informers: informers.clone(), recorder, queue: queue.clone() };
    let this = Arc::new(this);
    let reference = |volume: &PersistentVolume| {
        claim_ref(volume).map(|held| Key::new(held.namespace.as_deref().unwrap_or_default(), held.name.as_deref().unwrap_or_default()))
    };
    informers.volumes.add_index("claim", move |volume| reference(volume).map(|key| key.to_string()).into_iter().collect());
    {
        let this = this.clone();
        each(&context.cancel, informers.claims.changes(), move |change| {
            this.volumes_of(&change.key);
            this.queue.add(Item::Claim(change.key));
        });
    }
    {
        let this = this.clone();
        each(&context.cancel, informers.volumes.changes(), move |change| {
            let held = change.new.as_deref().or(change.old.as_deref()).and_then(reference);
            this.queue.add(Item::Volume(change.key.name.clone()));
            match held {
                Some(claim) => this.queue.add(Item::Claim(claim)),
                // A free volume may be what some claim waits for.
                None => this.waiting(|_| true),
            }
        });
    }
    {
        let this = this.clone();
        each(&context.cancel, informers.storage_classes.changes(), move |change| this.waiting(|claim| class_of(claim) == change.key.name));
    }
    {
        let this = this.clone();
        each(&context.cancel, informers.pods.changes(), move |change| {
            if change.new.as_ref().is_none_or(|pod| pods::is_finished(pod)) {
                change.old.iter().flat_map(|pod| claims_of(pod)).for_each(|claim| this.volumes_of(&claim));
            }
        });
    }
    work(context, informers, queue, 4, move |item| {
        let this = this.clone();
        async move { this.sync(item).await }
    });
}

impl Volumes {
    fn volumes_of(&self, claim: &Key) {
        for volume in self.informers.volumes.by_index("claim", &claim.to_string()) {
            self.queue.add(Item::Volume(volume.name().into()));
        }
    }

    fn waiting(&self, concerned: impl Fn(&PersistentVolumeClaim) -> bool) {
        let unbound = |claim: &PersistentVolumeClaim| claim.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Bound");
        for claim in self.informers.claims.list().iter().filter(|claim| unbound(claim) && concerned(claim)) {
            self.queue.add(Item::Claim(Key::of(&**claim)));
        }
    }

    async fn sync(&self, item: Item) -> Result<Option<Duration>, Error> {
        match item {
            Item::Claim(key) => {
                let Some(claim) = self.informers.claims.get_key(&key) else { return Ok(None) };
                let class = self.informers.storage_classes.get("", class_of(&claim));
                match decide_claim(&claim, &self.informers.volumes.list(), class.as_deref()) {
                    Next::Wait(reason, message, true) => self.recorder.warning(Subject::of(&*claim), reason, message),
                    Next::Wait(reason, message, false) => self.recorder.normal(Subject::of(&*claim), reason, message),
                    Next::Write(writes) => apply_all(&self.client, &writes).await?,
                    Next::Nothing | Next::Remove => {}
                }
                Ok(None)
            }
            Item::Volume(name) => {
                let Some(volume) = self.informers.volumes.get("", &name) else { return Ok(None) };
                let claim = self.claim(&volume).await?;
                let in_use = self.in_use(&volume);
                match decide_volume(&volume, claim.as_ref(), in_use) {
                    Next::Write(writes) => apply_all(&self.client, &writes).await?,
                    Next::Remove => self.remove(&volume).await?,
                    Next::Nothing | Next::Wait(..) => {}
                }
                Ok(None)
            }
        }
    }

    /// The claim that the volume is bound to. That it is gone is asked, never concluded from the cache: data hangs on it.
    async fn claim(&self, volume: &PersistentVolume) -> Result<Option<PersistentVolumeClaim>, Error> {
        let Some(held) = claim_ref(volume) else { return Ok(None) };
        let (namespace, name) = (held.namespace.as_deref().unwrap_or_default(), held.name.as_deref().unwrap_or_default());
        let same = |claim: &PersistentVolumeClaim| held.uid.as_deref() == Some(claim.uid());
        if let Some(claim) = self.informers.claims.get(namespace, name).filter(|claim| same(claim)) {
            return Ok(Some((*claim).clone()));
        }
        Ok(self.client.get::<PersistentVolumeClaim>(namespace, name).await?.filter(same))
    }

    fn in_use(&self, volume: &PersistentVolume) -> bool {
        let Some(held) = claim_ref(volume) else { return false };
        let key = Key::new(held.namespace.as_deref().unwrap_or_default(), held.name.as_deref().unwrap_or_default());
        self.informers.pods.list_in(&key.namespace).iter().any(|pod| !pods::is_finished(pod) && claims_of(pod).any(|claim| claim == key))
    }

    async fn remove(&self, volume: &PersistentVolume) -> Result<(), Error> {
        if let Some(folder) = folder(volume) {
            let shown = folder.display().to_string();
            let outcome = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(folder)).await;
            match outcome {
                Ok(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => {
                    let message = format!("could not remove {shown}: {error}");
                    self.recorder.warning(Subject::of(volume), "VolumeFailedDelete", message.clone());
                    return Err(Error::host(message));
                }
                Err(error) => return Err(Error::internal("could not wait for the removal of a folder").because(error)),
                _ => {}
            }
        }
        Ok(apply_all(&self.client, &[Write::delete::<PersistentVolume>(volume)]).await?)
    }
}

fn claims_of(pod: &Pod) -> impl Iterator<Item = Key> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let namespace = pod.namespace();
    volumes.filter_map(move |volume| Some(Key::new(namespace, &volume.persistent_volume_claim.as_ref()?.claim_name)))
}
