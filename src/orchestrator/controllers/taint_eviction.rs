//! Pods leave nodes with NoExecute taints that they do not tolerate, or no longer do. Nodes that are only silent are emptied a few at a time.

use super::write::Write;
use super::{Context, Informers, each, pods, work};
use crate::error::Error;
use crate::orchestrator::api::kinds::taints::UNREACHABLE;
use crate::orchestrator::client::events::{Recorder, Subject};
use crate::orchestrator::client::{Client, Key, Object, Queue};
use crate::orchestrator::scheduler::filter::tolerated;
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap, HashSet};
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

/// Whether the pod is due after `stayed` for another reason than that its node is silent: somebody's own taint is obeyed at once.
fn due_anyway(pod: &Pod, taints: &[Taint], stayed: Duration) -> bool {
    let others: Vec<Taint> = taints.iter().filter(|taint| taint.key != UNREACHABLE).cloned().collect();
    decide(pod, &others).is_some_and(|stay| stay <= stayed)
}

/// Silent nodes that are emptied at once, so that a small cluster heals quickly.
const AT_ONCE: u32 = 3;
/// Then one per this time, upstream's own rate: many nodes that fall silent together are more likely cut off than dead, and their pods would
/// all land on those that are left.
const ONE_PER: Duration = Duration::from_secs(10);

/// Which silent nodes may be emptied: a token bucket of nodes. Pure; times are passed in.
#[derive(Debug, Default)]
struct Turns {
    /// (since when its pods are to leave, node): who has been silent longest is next.
    line: BTreeSet<(Instant, String)>,
    admitted: HashSet<String>,
    /// When the bucket is full again.
    full_at: Option<Instant>,
}

impl Turns {
    /// `None`: the node's pods may be deleted, now and until `forget`. Else how long to wait before asking again.
    fn ask(&mut self, node: &str, since: Instant, now: Instant) -> Option<Duration> {
        if !self.admitted.contains(node) && !self.line.iter().any(|(_, waiting)| waiting == node) {
            self.line.insert((since, node.into()));
        }
        let mut wait = self.wait(now);
        while wait.is_zero()
            && let Some((_, next)) = self.line.pop_first()
        {
            self.full_at = Some(self.full_at.map_or(now, |full_at| full_at.max(now)) + ONE_PER);
            self.admitted.insert(next);
            wait = self.wait(now);
        }
        // Not the whole way to its turn: those before it may speak again meanwhile.
        (!self.admitted.contains(node)).then_some(wait)
    }

    /// Until the bucket has a token.
    fn wait(&self, now: Instant) -> Duration {
        let spent = self.full_at.map_or(Duration::ZERO, |full_at| full_at.saturating_duration_since(now));
        (spent + ONE_PER).saturating_sub(AT_ONCE * ONE_PER)
    }

    /// It speaks again, or is gone.
    fn forget(&mut self, node: &str) {
        self.admitted.remove(node);
        self.line.retain(|(_, waiting)| waiting != node);
    }
}

struct Eviction {
    client: Client,
    informers: Informers,
    recorder: Recorder,
    /// Since when each pod (by uid) is on a tainted node, by our own clock.
    since: Mutex<HashMap<String, Instant>>,
    turns: Mutex<Turns>,
}

pub fn start(context: &Context, informers: &Informers, recorder: Recorder) {
    let queue: Queue<Key> = Queue::new();
    let this = Arc::new(Eviction {
        client: context.client.clone(),
        informers: informers.clone(),
        recorder,
        since: Mutex::default(),
        turns: Mutex::default(),
    });
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
        let (queue, pods, this) = (queue.clone(), informers.pods.clone(), this.clone());
        each(&context.cancel, informers.nodes.changes(), move |change| {
            if !no_execute(change.new.as_deref()).iter().any(|taint| taint.key == UNREACHABLE) {
                this.turns.lock().forget(&change.key.name);
            }
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
        let taints = no_execute(node.as_deref());
        let Some(stay) = decide(&pod, &taints) else {
            if self.since.lock().remove(pod.uid()).is_some() {
                self.recorder.normal(Subject::of(&*pod), "TaintManagerEviction", format!("Cancelling deletion of Pod {key}"));
            }
            return Ok(None);
        };
        let since = *self.since.lock().entry(pod.uid().into()).or_insert_with(Instant::now);
        let now = Instant::now();
        let stayed = now.saturating_duration_since(since);
        let left = stay.saturating_sub(stayed);
        if !left.is_zero() {
            return Ok(Some(left));
        }
        if !due_anyway(&pod, &taints, stayed)
            && let Some(wait) = self.turns.lock().ask(pods::node(&pod), since, now)
        {
            return Ok(Some(wait));
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

    #[test]
    fn somebodys_own_taint_is_obeyed_whatever_the_silence() {
        let toleration = json!([{"key": UNREACHABLE, "operator": "Exists"}, {"key": "mine", "operator": "Exists", "tolerationSeconds": 5}]);
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": [], "tolerations": toleration}})).unwrap();
        let taints =
            |keys: &[&str]| keys.iter().map(|key| serde_json::from_value(json!({"key": key, "effect": "NoExecute"})).unwrap()).collect();
        for (keys, stayed, expected) in [
            (&[UNREACHABLE][..], 600, false),
            (&[UNREACHABLE, "mine"], 4, false),
            (&[UNREACHABLE, "mine"], 5, true),
            (&["mine"], 5, true),
            (&["other", UNREACHABLE], 0, true),
        ] {
            let taints: Vec<Taint> = taints(keys);
            assert_eq!(due_anyway(&pod, &taints, Duration::from_secs(stayed)), expected, "{keys:?} after {stayed} s");
        }
    }

    fn second(start: Instant, second: u64) -> Instant {
        start + Duration::from_secs(second)
    }

    /// All of `nodes` ask, once a second and in this order; returns who was admitted when.
    fn admissions(turns: &mut Turns, nodes: &[&str], start: Instant, seconds: std::ops::Range<u64>) -> Vec<(u64, String)> {
        let mut admitted = Vec::new();
        for at in seconds {
            for node in nodes {
                turns.ask(node, start, second(start, at));
                if turns.admitted.contains(*node) && !admitted.iter().any(|(_, held)| held == node) {
                    admitted.push((at, node.to_string()));
                }
            }
        }
        admitted
    }

    #[test]
    fn three_silent_nodes_are_emptied_at_once_and_then_one_every_10_s() {
        let (mut turns, start) = (Turns::default(), Instant::now());
        let admitted = admissions(&mut turns, &["a", "b", "c", "d", "e", "f"], start, 0..60);
        let expected = [(0, "a"), (0, "b"), (0, "c"), (10, "d"), (20, "e"), (30, "f")];
        assert_eq!(admitted, expected.map(|(at, node)| (at, node.to_string())));
        assert_eq!(turns.ask("a", start, second(start, 61)), None, "its later pods follow");
        // All are back: the bucket fills again, and no further than to its brim.
        ["a", "b", "c", "d", "e", "f"].iter().for_each(|node| turns.forget(node));
        let admitted = admissions(&mut turns, &["a", "b", "c", "d"], start, 1000..1011);
        assert_eq!(admitted.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [1000, 1000, 1000, 1010]);
    }

    #[test]
    fn the_longest_silent_is_next_whoever_asks() {
        let (mut turns, start) = (Turns::default(), Instant::now());
        for node in ["a", "b", "c"] {
            assert_eq!(turns.ask(node, start, start), None);
        }
        let now = second(start, 5);
        assert_eq!(turns.ask("late", second(start, 2), now), Some(Duration::from_secs(5)));
        assert_eq!(turns.ask("early", second(start, 1), now), Some(Duration::from_secs(5)));
        assert_eq!(turns.ask("beside", second(start, 1), now), Some(Duration::from_secs(5)));
        assert_eq!(turns.ask("late", second(start, 2), second(start, 10)), Some(Duration::from_secs(10)), "the token is another's");
        assert_eq!(turns.ask("beside", second(start, 1), second(start, 10)), None, "of two as long silent the first by name");
        turns.forget("early");
        assert_eq!(turns.ask("late", second(start, 2), second(start, 20)), None, "who speaks again leaves the line");
    }
}
