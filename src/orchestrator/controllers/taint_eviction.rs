//! Pods leave nodes with NoExecute taints that they do not tolerate, or no longer do.

use super::write::Write;
use super::{Context, Informers, each, pods, work};
use crate::error::Error;
use crate::orchestrator::client::events::{Recorder, Subject};
use crate::orchestrator::client::{Client, Key, Object, Queue};
use crate::orchestrator::scheduler::filter::tolerated;
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long the pod may stay: `None` for ever, zero not at all. Counted from when its node got the taints.
pub fn decide(pod: &Pod, taints: &[Taint]) -> Option<Duration> {
    if taints.is_empty() || pod.deleting() {
        return None;
    }
    let tolerations: &[Toleration] = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let mut shortest = None;
    for taint in taints {
        let mut used = tolerations.iter().filter(|toleration| tolerated(std::slice::from_ref(*toleration), taint)).peekable();
        if used.peek().is_none() {
            return Some(Duration::ZERO);
        }
        for seconds in used.filter_map(|toleration| toleration.toleration_seconds) {
            let stay = Duration::from_secs(seconds.max(0) as u64);
            shortest = Some(shortest.map_or(stay, |held: Duration| held.min(stay)));
        }
    }
    shortest
}

fn no_execute(node: Option<&Node>) -> Vec<Taint> {
    let taints = node.and_then(|node| node.spec.as_ref()?.taints.clone()).unwrap_or_default();
    taints.into_iter().filter(|taint| taint.effect == "NoExecute").collect()
}

struct Eviction {
    client: Client,
    informers: Informers,
    recorder: Recorder,
    /// Since when each pod (by uid) is on a tainted node, by our own clock.
    since: Mutex<HashMap<String, Instant>>,
}

pub fn start(context: &Context, informers: &Informers, recorder: Recorder) {
    let queue: Queue<Key> = Queue::new();
    let this = Eviction { client: context.client.clone(), informers: informers.clone(), recorder, since: Mutex::default() };
    let this = Arc::new(this);
    {
        let (queue, this) = (queue.clone(), this.clone());
        each(&context.cancel, informers.pods.changes(), move |change| {
            match (&change.old, &change.new) {
                (Some(old), None) => drop(this.since.lock().remove(old.uid())),
                (_, Some(new)) if !pods::node(new).is_empty() => queue.add(change.key),
                _ => {}
            };
        });
    }
    {
        let (queue, pods) = (queue.clone(), informers.pods.clone());
        each(&context.cancel, informers.nodes.changes(), move |change| {
            if no_execute(change.old.as_deref()) != no_execute(change.new.as_deref()) {
                pods.by_index("node", &change.key.name).iter().for_each(|pod| queue.add(Key::of(&**pod)));
            }
        });
    }
    work(context, informers, queue, 4, move |key| {
        let this = this.clone();
        async move { this.sync(key).await }
    });
}

impl Eviction {
    async fn sync(&self, key: Key) -> Result<Option<Duration>, Error> {
        let Some(pod) = self.informers.pods.get_key(&key) else { return Ok(None) };
        let node = self.informers.nodes.get("", pods::node(&pod));
        let Some(stay) = decide(&pod, &no_execute(node.as_deref())) else {
            if self.since.lock().remove(pod.uid()).is_some() {
                self.recorder.normal(Subject::of(&*pod), "TaintManagerEviction", format!("Cancelling deletion of Pod {key}"));
            }
            return Ok(None);
        };
        let since = *self.since.lock().entry(pod.uid().into()).or_insert_with(Instant::now);
        let left = stay.saturating_sub(since.elapsed());
        if !left.is_zero() {
            return Ok(Some(left));
        }
        self.recorder.normal(Subject::of(&*pod), "TaintManagerEviction", format!("Marking for deletion Pod {key}"));
        match Write::delete::<Pod>(&*pod).apply(&self.client).await {
            // Another pod has the name now.
            Err(failure) if failure.is_conflict() => Ok(None),
            outcome => Ok(outcome.map(|()| None)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(tolerations: Value, expected: Option<u64>) {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": [], "tolerations": tolerations}})).unwrap();
        let taint: Taint = serde_json::from_value(json!({"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"})).unwrap();
        assert_eq!(decide(&pod, &[taint]), expected.map(Duration::from_secs));
        assert_eq!(decide(&pod, &[]), None);
    }

    #[test]
    fn tolerations_say_how_long() {
        let key = "node.kubernetes.io/unreachable";
        check(json!([]), Some(0));
        check(json!([{"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]), Some(300));
        check(json!([{"key": key, "operator": "Exists", "effect": "NoExecute"}]), None);
        check(json!([{"operator": "Exists"}]), None);
        check(json!([{"operator": "Exists"}, {"key": key, "operator": "Exists", "tolerationSeconds": 5}]), Some(5));
        check(json!([{"key": "other", "operator": "Exists"}]), Some(0));
    }
}
