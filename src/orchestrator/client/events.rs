//! Events about objects, as `kubectl describe` shows them: the same event again raises a count instead of making another object.

use super::{Client, Object, Patch};
use k8s_openapi::Resource;
use k8s_openapi::api::core::v1::Event;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// What an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subject {
    pub api_version: String,
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// e.g. `spec.containers{web}`; empty for the whole object.
    pub field_path: String,
}

impl Subject {
    pub fn of<K: Object + Resource>(object: &K) -> Self {
        let meta = object.meta();
        Subject {
            api_version: K::API_VERSION.into(),
            kind: K::KIND.into(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            field_path: String::new(),
        }
    }
    pub fn field(mut self, path: impl Into<String>) -> Self {
        self.field_path = path.into();
        self
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Entry {
    subject: Subject,
    warning: bool,
    reason: String,
    message: String,
}

/// How many different events are remembered for counting; the oldest are forgotten and would start again at one.
const REMEMBERED: usize = 4096;
/// How many wait for the API while it is away; more are dropped, as upstream does.
const WAITING: usize = 1000;

/// Upstream's spam filter: what is said about one object for one reason is bounded, whatever the messages.
const AT_ONCE: u32 = 25;
const ONE_PER: Duration = Duration::from_secs(300);
/// Below this many it is not worth looking for allowances to forget.
const FEW: usize = 1024;

/// What may still be said, by (object's uid, reason): a token bucket each, kept as the time at which it is full again. Then it is forgotten.
#[derive(Default)]
struct Allowances {
    full_at: HashMap<(String, String), Instant>,
    /// How many there are when full ones are looked for; doubles with what must be kept, so that looking stays cheap.
    sweep_at: usize,
}

impl Allowances {
    /// Whether one more event may be written now; if so it is counted.
    fn take(&mut self, subject: &Subject, reason: &str, now: Instant) -> bool {
        if self.full_at.len() >= self.sweep_at.max(FEW) {
            self.full_at.retain(|_, full_at| *full_at > now);
            self.sweep_at = self.full_at.len() * 2;
        }
        let own_uid = (!subject.uid.is_empty()).then(|| subject.uid.clone());
        let who = own_uid.unwrap_or_else(|| format!("{}/{}/{}", subject.kind, subject.namespace, subject.name));
        let held = self.full_at.entry((who, reason.into())).or_insert(now);
        let full_at = (*held).max(now) + ONE_PER;
        let allowed = full_at.duration_since(now) <= AT_ONCE * ONE_PER;
        if allowed {
            *held = full_at;
        }
        allowed
    }
}

/// Cheap to clone. Recording never waits and never fails.
#[derive(Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Entry>,
    allowances: Arc<Mutex<Allowances>>,
}

impl Recorder {
    /// `component` is e.g. `kubelet`, `host` the node it runs on (empty for the control plane).
    pub fn start(client: Client, component: &str, host: &str, cancel: &tokio_util::sync::CancellationToken) -> Self {
        let (sender, mut receiver) = mpsc::channel::<Entry>(WAITING);
        let writer = Writer { client, component: component.into(), host: host.into(), seen: Arc::new(Mutex::new(Seen::default())) };
        super::spawn(cancel, async move {
            while let Some(entry) = receiver.recv().await {
                writer.write(entry).await;
            }
        });
        Recorder { sender, allowances: Arc::default() }
    }

    /// One that nobody reads: for tests.
    pub fn silent() -> Self {
        Recorder { sender: mpsc::channel(1).0, allowances: Arc::default() }
    }

    pub fn normal(&self, subject: Subject, reason: &str, message: impl Into<String>) {
        self.record(subject, false, reason, message.into());
    }
    pub fn warning(&self, subject: Subject, reason: &str, message: impl Into<String>) {
        self.record(subject, true, reason, message.into());
    }
    fn record(&self, subject: Subject, warning: bool, reason: &str, message: String) {
        // Before the queue, so that one noisy object does not crowd out the others there.
        if !self.allowances.lock().take(&subject, reason, Instant::now()) {
            return;
        }
        // Full means the API has been away for long; what is lost is talk, not state.
        let _ = self.sender.try_send(Entry { subject, warning, reason: reason.into(), message: message.chars().take(1024).collect() });
    }
}

#[derive(Default)]
struct Seen {
    counts: HashMap<Entry, u32>,
    order: VecDeque<Entry>,
}

impl Seen {
    fn count(&mut self, entry: &Entry) -> u32 {
        if let Some(count) = self.counts.get_mut(entry) {
            *count += 1;
            return *count;
        }
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.counts.remove(&oldest);
        }
        self.counts.insert(entry.clone(), 1);
        self.order.push_back(entry.clone());
        1
    }
}

struct Writer {
    client: Client,
    component: String,
    host: String,
    seen: Arc<Mutex<Seen>>,
}

impl Writer {
    /// The name is a digest of what is said about whom, so the same event after a restart finds its object again.
    async fn write(&self, entry: Entry) {
        let count = self.seen.lock().count(&entry);
        let namespace = if entry.subject.namespace.is_empty() { "default" } else { &entry.subject.namespace };
        let name = self.name(&entry);
        let now = super::time::now_text();
        let outcome = if count > 1 {
            let patch = json!({"count": count, "lastTimestamp": now});
            match self.client.patch::<Event>(namespace, &name, "", Patch::Merge, &patch).await {
                Err(failure) if failure.is_not_found() => self.create(namespace, &name, &entry, count, &now).await,
                other => other.map(drop),
            }
        } else {
            self.create(namespace, &name, &entry, count, &now).await
        };
        if let Err(failure) = outcome {
            tracing::debug!(error = %crate::error::Error::from(failure).chain(), reason = %entry.reason, "could not record an event");
        }
    }

    async fn create(&self, namespace: &str, name: &str, entry: &Entry, count: u32, now: &str) -> Result<(), super::Failure> {
        let body = self.body(namespace, name, entry, count, now);
        match self.client.create::<Event>(namespace, &body).await {
            Err(failure) if failure.is_already_exists() => {
                let held = self.client.get::<Event>(namespace, name).await;
                let mut patch = json!({"lastTimestamp": now});
                // A node may write events but not read them: then only the time is renewed.
                if let Ok(Some(held)) = held {
                    patch["count"] = json!(held.count.unwrap_or(0) + 1);
                }
                self.client.patch::<Event>(namespace, name, "", Patch::Merge, &patch).await.map(drop)
            }
            other => other.map(drop),
        }
    }

    fn name(&self, entry: &Entry) -> String {
        let mut digest = Sha256::new();
        for part in
            [&self.component, &self.host, &entry.subject.uid, &entry.subject.kind, &entry.subject.field_path, &entry.reason, &entry.message]
        {
            digest.update(part.as_bytes());
            digest.update([0]);
        }
        let digest = hex::encode(digest.finalize());
        let subject: String = entry.subject.name.chars().take(200).collect();
        format!("{}.{}", subject.trim_end_matches(['.', '-']), &digest[..16])
    }

    fn body(&self, namespace: &str, name: &str, entry: &Entry, count: u32, now: &str) -> Value {
        let subject = &entry.subject;
        let mut involved = json!({"apiVersion": subject.api_version, "kind": subject.kind, "name": subject.name, "uid": subject.uid});
        if !subject.namespace.is_empty() {
            involved["namespace"] = json!(subject.namespace);
        }
        if !subject.field_path.is_empty() {
            involved["fieldPath"] = json!(subject.field_path);
        }
        let mut source = json!({"component": self.component});
        if !self.host.is_empty() {
            source["host"] = json!(self.host);
        }
        json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": involved,
            "reason": entry.reason, "message": entry.message,
            "type": if entry.warning { "Warning" } else { "Normal" },
            "source": source, "reportingComponent": self.component, "reportingInstance": self.host,
            "firstTimestamp": now, "lastTimestamp": now, "count": count,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(uid: &str, name: &str) -> Subject {
        Subject {
            api_version: "v1".into(),
            kind: "Pod".into(),
            namespace: "shop".into(),
            name: name.into(),
            uid: uid.into(),
            field_path: String::new(),
        }
    }

    fn minutes(minutes: u64) -> Duration {
        Duration::from_secs(60 * minutes)
    }

    /// How many of `tries` are let through.
    fn let_through(allowances: &mut Allowances, subject: &Subject, reason: &str, now: Instant, tries: usize) -> usize {
        (0..tries).filter(|_| allowances.take(subject, reason, now)).count()
    }

    #[test]
    fn one_object_and_reason_may_say_25_at_once_and_then_one_per_5_minutes() {
        let (mut allowances, start) = (Allowances::default(), Instant::now());
        let pod = subject("u", "web");
        for (at, expected) in [(0, 25), (4, 0), (5, 1), (6, 0), (10, 1), (25, 3), (10_000, 25)] {
            assert_eq!(let_through(&mut allowances, &pod, "BackOff", start + minutes(at), 40), expected, "after {at} minutes");
        }
    }

    #[test]
    fn others_are_not_silenced() {
        let (mut allowances, start) = (Allowances::default(), Instant::now());
        assert_eq!(let_through(&mut allowances, &subject("u", "web"), "BackOff", start, 40), 25);
        assert_eq!(let_through(&mut allowances, &subject("u", "web"), "Killing", start, 2), 2);
        assert_eq!(let_through(&mut allowances, &subject("v", "web"), "BackOff", start, 2), 2);
        assert_eq!(let_through(&mut allowances, &subject("", "one"), "BackOff", start, 40), 25);
        assert_eq!(let_through(&mut allowances, &subject("", "two"), "BackOff", start, 2), 2);
    }

    #[test]
    fn full_allowances_are_forgotten_and_spent_ones_are_not() {
        let (mut allowances, start) = (Allowances::default(), Instant::now());
        let noisy = subject("noisy", "noisy");
        let_through(&mut allowances, &noisy, "BackOff", start, 40);
        for number in 0..20 * FEW {
            // Ten pods a second, each of which is started once.
            let now = start + Duration::from_millis(100 * number as u64);
            assert!(allowances.take(&subject(&number.to_string(), "pod"), "Started", now));
            assert!(allowances.full_at.len() <= 8 * FEW, "{} are held", allowances.full_at.len());
        }
        assert!(allowances.full_at.contains_key(&("noisy".to_string(), "BackOff".to_string())));
    }
}
