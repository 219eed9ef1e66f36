//! Config maps, secrets and claims that pods of this node use, each watched by its own name (a node may read no others), in memory for
//! as long as a pod uses them: a container restarts with its environment even while the API is away.

use crate::orchestrator::client::{Client, Informer, Kind, Selector};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Secret};
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How long a pod waits for the first answer before it says that it cannot have the object; it is tried again.
const FIRST_ANSWER: Duration = Duration::from_secs(10);

/// The API did not answer; says nothing about whether the object exists.
#[derive(Debug, thiserror::Error)]
#[error("could not read {kind} \"{name}\": the API did not answer")]
pub struct Unanswered {
    kind: &'static str,
    name: String,
}

#[derive(Clone)]
pub struct Objects {
    config_maps: Cache<ConfigMap>,
    secrets: Cache<Secret>,
    claims: Cache<PersistentVolumeClaim>,
}

impl Objects {
    /// `wake` receives the uid of every pod whose objects changed.
    pub fn new(client: Client, wake: mpsc::UnboundedSender<String>, cancel: CancellationToken) -> Objects {
        Objects {
            config_maps: Cache::new(client.clone(), wake.clone(), cancel.clone()),
            secrets: Cache::new(client.clone(), wake.clone(), cancel.clone()),
            claims: Cache::new(client, wake, cancel),
        }
    }

    /// `None` is "does not exist"; `user` is the uid of the pod that asks and hears of changes from now on.
    pub async fn config_map(&self, user: &str, namespace: &str, name: &str) -> Result<Option<Arc<ConfigMap>>, Unanswered> {
        self.config_maps.get(user, namespace, name).await
    }
    pub async fn secret(&self, user: &str, namespace: &str, name: &str) -> Result<Option<Arc<Secret>>, Unanswered> {
        self.secrets.get(user, namespace, name).await
    }
    pub async fn claim(&self, user: &str, namespace: &str, name: &str) -> Result<Option<Arc<PersistentVolumeClaim>>, Unanswered> {
        self.claims.get(user, namespace, name).await
    }

    /// The pod is gone: what nobody else uses is watched no more.
    pub fn release(&self, user: &str) {
        self.config_maps.release(user);
        self.secrets.release(user);
        self.claims.release(user);
    }
}

struct Entry<K> {
    informer: Informer<K>,
    users: Arc<Mutex<BTreeSet<String>>>,
}

/// By namespace and name.
type Entries<K> = HashMap<(String, String), Entry<K>>;

struct Cache<K> {
    client: Client,
    wake: mpsc::UnboundedSender<String>,
    cancel: CancellationToken,
    entries: Arc<Mutex<Entries<K>>>,
}

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Cache { client: self.client.clone(), wake: self.wake.clone(), cancel: self.cancel.clone(), entries: self.entries.clone() }
    }
}

impl<K: Kind> Cache<K> {
    fn new(client: Client, wake: mpsc::UnboundedSender<String>, cancel: CancellationToken) -> Self {
        Cache { client, wake, cancel, entries: Arc::default() }
    }

    async fn get(&self, user: &str, namespace: &str, name: &str) -> Result<Option<Arc<K>>, Unanswered> {
        let informer = self.informer(user, namespace, name);
        match tokio::time::timeout(FIRST_ANSWER, informer.synced()).await {
            Ok(()) => Ok(informer.get(namespace, name)),
            Err(_) => Err(Unanswered { kind: K::KIND, name: name.to_owned() }),
        }
    }

    fn informer(&self, user: &str, namespace: &str, name: &str) -> Informer<K> {
        let mut entries = self.entries.lock();
        let entry = entries.entry((namespace.to_owned(), name.to_owned())).or_insert_with(|| self.watch(namespace, name));
        entry.users.lock().insert(user.to_owned());
        entry.informer.clone()
    }

    fn watch(&self, namespace: &str, name: &str) -> Entry<K> {
        let selector = Selector::fields(format!("metadata.name={name}"));
        let informer = Informer::<K>::start_in(self.client.clone(), namespace, selector, &self.cancel);
        let users = Arc::new(Mutex::new(BTreeSet::new()));
        let (mut changes, to_wake, wake) = (informer.changes(), users.clone(), self.wake.clone());
        // Ends when the informer has stopped and nobody holds it any more.
        crate::orchestrator::client::spawn(&self.cancel, async move {
            while changes.recv().await.is_some() {
                to_wake.lock().iter().for_each(|user: &String| drop(wake.send(user.clone())));
            }
        });
        Entry { informer, users }
    }

    fn release(&self, user: &str) {
        self.entries.lock().retain(|_, entry| {
            let mut users = entry.users.lock();
            users.remove(user);
            if users.is_empty() {
                entry.informer.stop();
            }
            !users.is_empty()
        });
    }
}
