//! A kind's objects in memory, kept current by list and watch.
//!
//! list (pages of 500) -> diff against what is held -> watch from the list's version -> list again on 410, and on a
//! version that the server has not reached; on anything else watch again from the last version seen. While the API is away the last
//! state stays readable.

use super::backoff::Backoff;
use super::{Body, Client, Failure, Kind, Object, Selector, Status, path};
use crate::error::Error;
use bytes::BytesMut;
use http::Method;
use http_body_util::BodyExt;
use parking_lot::RwLock;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// An object's place within its kind; `namespace` is empty for cluster-scoped kinds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Key { namespace: namespace.into(), name: name.into() }
    }
    pub fn of(object: &impl Object) -> Self {
        Key::new(object.namespace(), object.name())
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() { out.write_str(&self.name) } else { write!(out, "{}/{}", self.namespace, self.name) }
    }
}

/// `old` is `None` for a new object, `new` for a deleted one.
pub struct Change<K> {
    pub key: Key,
    pub old: Option<Arc<K>>,
    pub new: Option<Arc<K>>,
}

impl<K> Clone for Change<K> {
    fn clone(&self) -> Self {
        Change { key: self.key.clone(), old: self.old.clone(), new: self.new.clone() }
    }
}

/// Tells that something changed, however often, as one wake-up.
pub struct Notify {
    receiver: watch::Receiver<u64>,
}

impl Notify {
    /// Returns when something changed since the last return (the first call returns at once). Pending for ever once the informer is gone.
    pub async fn wait(&mut self) {
        if self.receiver.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

type IndexFunction<K> = Arc<dyn Fn(&K) -> Vec<String> + Send + Sync>;

struct Index<K> {
    values: IndexFunction<K>,
    keys: HashMap<String, BTreeSet<Key>>,
}

struct Store<K> {
    objects: BTreeMap<Key, Arc<K>>,
    indexes: HashMap<&'static str, Index<K>>,
    subscribers: Vec<mpsc::UnboundedSender<Change<K>>>,
}

struct Shared<K> {
    store: RwLock<Store<K>>,
    synced: watch::Sender<bool>,
    version: watch::Sender<u64>,
    stopped: CancellationToken,
}

/// Cheap to clone. The task behind it ends with the cancellation token, or when it is told to stop.
pub struct Informer<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Informer { shared: self.shared.clone() }
    }
}

impl<K: Kind> Informer<K> {
    /// All namespaces; narrow with the selector.
    pub fn start(client: Client, selector: Selector, cancel: &CancellationToken) -> Self {
        Self::start_at(client, path::<K>("", "", ""), selector, cancel)
    }
    /// One namespace only.
    pub fn start_in(client: Client, namespace: &str, selector: Selector, cancel: &CancellationToken) -> Self {
        Self::start_at(client, path::<K>(namespace, "", ""), selector, cancel)
    }
}

impl<K: Kind> Informer<super::WithRaw<K>> {
    /// Keeps the JSON beside the types.
    pub fn start_raw(client: Client, selector: Selector, cancel: &CancellationToken) -> Self {
        Self::start_at(client, path::<K>("", "", ""), selector, cancel)
    }
}

impl<K: Object> Informer<K> {
    /// Any collection, by its path: kinds known only from discovery.
    pub fn start_at(client: Client, path: String, selector: Selector, cancel: &CancellationToken) -> Self {
        let informer = Self::detached();
        let mut hasher = DefaultHasher::new();
        (&path, &selector, client.seed()).hash(&mut hasher);
        // 250 ms to 30 s: quick after a server restart, gentle while it stays away.
        let backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(30), hasher.finish());
        let mut reflector = Reflector { informer: informer.clone(), client, path, selector, version: None, backoff };
        let stopped = informer.shared.stopped.clone();
        super::spawn(cancel, async move {
            stopped.run_until_cancelled(reflector.run()).await;
        });
        informer
    }

    /// An informer that nobody feeds but `apply`: for tests of what reads it.
    pub fn detached() -> Self {
        let store = RwLock::new(Store { objects: BTreeMap::new(), indexes: HashMap::new(), subscribers: Vec::new() });
        let (synced, version) = (watch::Sender::new(false), watch::Sender::new(0));
        Informer { shared: Arc::new(Shared { store, synced, version, stopped: CancellationToken::new() }) }
    }

    /// Watches no more, before the token it was started with says so; what is held stays readable.
    pub fn stop(&self) {
        self.shared.stopped.cancel();
    }

    /// Returns once the first list has arrived whole.
    pub async fn synced(&self) {
        let mut receiver = self.shared.synced.subscribe();
        // The sender lives in `self`, so this cannot fail while we wait.
        let _ = receiver.wait_for(|synced| *synced).await;
    }
    pub fn is_synced(&self) -> bool {
        *self.shared.synced.borrow()
    }
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.shared.store.read().objects.get(&Key::new(namespace, name)).cloned()
    }
    pub fn get_key(&self, key: &Key) -> Option<Arc<K>> {
        self.shared.store.read().objects.get(key).cloned()
    }
    /// By namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.shared.store.read().objects.values().cloned().collect()
    }
    pub fn list_in(&self, namespace: &str) -> Vec<Arc<K>> {
        let store = self.shared.store.read();
        let from = Key::new(namespace, "");
        store.objects.range(from..).take_while(|(key, _)| key.namespace == namespace).map(|(_, object)| object.clone()).collect()
    }
    pub fn len(&self) -> usize {
        self.shared.store.read().objects.len()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps a second way to find objects; an index of the same name is kept as it is.
    pub fn add_index(&self, name: &'static str, values: impl Fn(&K) -> Vec<String> + Send + Sync + 'static) {
        let mut guard = self.shared.store.write();
        let store = &mut *guard;
        if store.indexes.contains_key(name) {
            return;
        }
        let mut index = Index { values: Arc::new(values), keys: HashMap::new() };
        for (key, object) in &store.objects {
            index.insert(key, object);
        }
        store.indexes.insert(name, index);
    }
    /// The objects for which the index function gave `value`. Panics on an index that was never added: a bug.
    pub fn by_index(&self, name: &'static str, value: &str) -> Vec<Arc<K>> {
        let store = self.shared.store.read();
        let index = store.indexes.get(name).unwrap_or_else(|| panic!("no index named {name}"));
        index.keys.get(value).into_iter().flatten().filter_map(|key| store.objects.get(key).cloned()).collect()
    }

    /// First every current object as new, then every change, in order.
    pub fn changes(&self) -> mpsc::UnboundedReceiver<Change<K>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut store = self.shared.store.write();
        for (key, object) in &store.objects {
            let _ = sender.send(Change { key: key.clone(), old: None, new: Some(object.clone()) });
        }
        store.subscribers.push(sender);
        receiver
    }
    pub fn changed(&self) -> Notify {
        let mut receiver = self.shared.version.subscribe();
        receiver.mark_changed();
        Notify { receiver }
    }

    /// Puts (`Some`) or removes (`None`) one object, as the watch does.
    pub fn apply(&self, key: Key, new: Option<Arc<K>>) {
        self.shared.store.write().apply(key, new);
        self.shared.version.send_modify(|version| *version += 1);
    }
    /// Declares the first list whole; the watch loop does, and tests on a detached informer.
    pub fn mark_synced(&self) {
        self.shared.synced.send_replace(true);
        self.shared.version.send_modify(|version| *version += 1);
    }
    /// Puts an object under its own key: for tests on a detached informer.
    pub fn put(&self, object: K) {
        self.apply(Key::of(&object), Some(Arc::new(object)));
    }
}

impl<K> Index<K> {
    fn insert(&mut self, key: &Key, object: &K) {
        for value in (self.values)(object) {
            self.keys.entry(value).or_default().insert(key.clone());
        }
    }
    fn remove(&mut self, key: &Key, object: &K) {
        for value in (self.values)(object) {
            if let Some(keys) = self.keys.get_mut(&value) {
                keys.remove(key);
                if keys.is_empty() {
                    self.keys.remove(&value);
                }
            }
        }
    }
}

impl<K: Object> Store<K> {
    fn apply(&mut self, key: Key, new: Option<Arc<K>>) {
        let old = match &new {
            Some(object) => self.objects.insert(key.clone(), object.clone()),
            None => self.objects.remove(&key),
        };
        if old.is_none() && new.is_none() {
            return;
        }
        for index in self.indexes.values_mut() {
            if let Some(object) = &old {
                index.remove(&key, object);
            }
            if let Some(object) = &new {
                index.insert(&key, object);
            }
        }
        let change = Change { key, old, new };
        self.subscribers.retain(|subscriber| subscriber.send(change.clone()).is_ok());
    }
}

/// A line of a watch may hold the largest object the API takes, with room for its envelope.
const LINE_LIMIT_BYTES: usize = 16 << 20;
/// The server closes a watch after this many seconds at the latest; so a server that died silently is noticed.
const WATCH_SECONDS: u64 = 300;
/// What the server may be late by before the connection counts as dead.
const WATCH_SLACK: Duration = Duration::from_secs(30);

/// An empty watch that ends sooner is a server in trouble: wait before asking again.
const WATCH_SHORT: Duration = Duration::from_secs(5);

struct Reflector<K> {
    informer: Informer<K>,
    client: Client,
    path: String,
    selector: Selector,
    /// Where to watch from; `None` asks for a list first.
    version: Option<String>,
    backoff: Backoff,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Bookmark {
    metadata: BookmarkMeta,
}
#[derive(Deserialize)]
struct BookmarkMeta {
    #[serde(rename = "resourceVersion")]
    resource_version: String,
}

impl<K: Object> Reflector<K> {
    async fn run(&mut self) {
        loop {
            if let Err(failure) = self.turn().await {
                if failure.is_expired() || failure.is_ahead() {
                    self.version = None;
                }
                tracing::debug!(path = %self.path, error = %Error::from(failure).chain(), "watch interrupted");
                tokio::time::sleep(self.backoff.next_delay()).await;
            }
        }
    }

    /// One list where one is needed, then one watch until it ends.
    async fn turn(&mut self) -> Result<(), Failure> {
        let version = match self.version.clone() {
            Some(version) => version,
            None => self.list().await?,
        };
        let query = [
            ("watch".to_string(), "1".to_string()),
            ("allowWatchBookmarks".into(), "true".into()),
            ("resourceVersion".into(), version),
            ("timeoutSeconds".into(), WATCH_SECONDS.to_string()),
        ];
        let response = self.client.open(Method::GET, &self.selector.path_with(&self.path, &query), None, "").await?;
        self.follow(response.into_body()).await
    }

    async fn list(&mut self) -> Result<String, Failure> {
        let list = self.client.list_pages(&self.path, &self.selector, |raw| Ok(decode::<K>(raw))).await?;
        let mut seen = HashSet::new();
        for (key, object) in list.items.into_iter().flatten() {
            seen.insert(key.clone());
            // An undecodable object counts as seen: what we hold of it stays, rather than looking deleted.
            if let Some(object) = object
                && self.informer.get_key(&key).is_none_or(|held| held.meta().resource_version != object.meta().resource_version)
            {
                self.informer.apply(key, Some(object));
            }
        }
        let held: Vec<Key> = self.informer.shared.store.read().objects.keys().cloned().collect();
        for key in held.into_iter().filter(|key| !seen.contains(key)) {
            self.informer.apply(key, None);
        }
        self.version = Some(list.resource_version.clone());
        if !self.informer.is_synced() {
            self.informer.mark_synced();
        }
        Ok(list.resource_version)
    }

    /// Frames -> lines -> events, until the server ends the watch.
    async fn follow(&mut self, mut body: Body) -> Result<(), Failure> {
        let started = tokio::time::Instant::now();
        let deadline = started + Duration::from_secs(WATCH_SECONDS) + WATCH_SLACK;
        let mut buffer = BytesMut::new();
        let mut searched = 0;
        let mut events = 0;
        loop {
            let frame = match tokio::time::timeout_at(deadline, body.frame()).await {
                Err(_) => return Err(Error::transient("could not follow the watch: the server went silent").into()),
                Ok(None) if events == 0 && started.elapsed() < WATCH_SHORT => {
                    return Err(Error::transient("could not follow the watch: it ended at once").into());
                }
                Ok(None) => {
                    self.backoff.reset();
                    return Ok(());
                }
                Ok(Some(Err(error))) => return Err(Error::transient("could not follow the watch").because(error).into()),
                Ok(Some(Ok(frame))) => frame,
            };
            let Ok(data) = frame.into_data() else { continue };
            buffer.extend_from_slice(&data);
            while let Some(end) = buffer[searched..].iter().position(|byte| *byte == b'\n') {
                let line = buffer.split_to(searched + end + 1);
                searched = 0;
                if line.iter().any(|byte| !byte.is_ascii_whitespace()) {
                    self.event(&line)?;
                    events += 1;
                    self.backoff.reset();
                }
            }
            searched = buffer.len();
            if buffer.len() > LINE_LIMIT_BYTES {
                self.version = None;
                return Err(Error::transient("could not follow the watch: an event is larger than any object may be").into());
            }
        }
    }

    fn event(&mut self, line: &[u8]) -> Result<(), Failure> {
        let event: Event = serde_json::from_slice(line).map_err(|error| {
            self.version = None;
            Error::transient("could not understand a watch event").because(error)
        })?;
        match event.kind.as_str() {
            "ADDED" | "MODIFIED" | "DELETED" => {
                if let Some((key, object)) = decode::<K>(event.object) {
                    let deleted = event.kind == "DELETED";
                    match object {
                        Some(object) if !deleted => self.informer.apply(key, Some(object)),
                        None if !deleted => {}
                        _ => self.informer.apply(key, None),
                    }
                }
                self.remember(event.object);
            }
            "BOOKMARK" => self.remember(event.object),
            "ERROR" => return Err(Failure::Status(Status::from_body(500, event.object.get().as_bytes()))),
            other => tracing::warn!(path = %self.path, kind = other, "unknown watch event"),
        }
        Ok(())
    }

    fn remember(&mut self, object: &RawValue) {
        if let Ok(bookmark) = serde_json::from_str::<Bookmark>(object.get()) {
            self.version = Some(bookmark.metadata.resource_version);
        }
    }
}

/// The key alone where the object does not fit its type; nothing where there is not even a key.
fn decode<K: Object>(raw: &RawValue) -> Option<(Key, Option<Arc<K>>)> {
    match serde_json::from_str::<K>(raw.get()) {
        Ok(object) => Some((Key::of(&object), Some(Arc::new(object)))),
        Err(error) => {
            let partial: super::Partial = serde_json::from_str(raw.get()).ok()?;
            let key = Key::of(&partial);
            tracing::warn!(%key, kind = std::any::type_name::<K>(), %error, "could not understand an object; keeping what is held of it");
            Some((key, None))
        }
    }
}

#[cfg(test)]
#[path = "informer_tests.rs"]
mod tests;
