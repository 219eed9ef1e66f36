//! ReplicaSet: as many pods of a template as it says.

use super::expectations::{Expectations, sooner};
use super::pod_control::{self, BURST, PodControl, Trouble};
use super::pods::{self, Available};
use super::write::{Write, apply_all};
use super::{Clock, Context, Informers, work};
use crate::error::Error;
use crate::orchestrator::client::events::{Recorder, Subject};
use crate::orchestrator::client::selector::label_selector_matches;
use crate::orchestrator::client::{Key, Object, Queue, time};
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// How many to make, which to delete.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub create: usize,
    pub delete: Vec<Arc<Pod>>,
}

/// `active` are this set's pods that count; `related` those of all sets of the same owner, for spreading over nodes.
pub fn plan(set: &ReplicaSet, active: &[Arc<Pod>], related: &[Arc<Pod>], now: Timestamp) -> Plan {
    let wanted = replicas(set);
    if set.metadata.deletion_timestamp.is_some() || active.len() == wanted {
        return Plan::default();
    }
    if active.len() < wanted {
        return Plan { create: (wanted - active.len()).min(BURST), delete: Vec::new() };
    }
    let surplus = (active.len() - wanted).min(BURST);
    Plan { create: 0, delete: rank(active, related, now).into_iter().take(surplus).collect() }
}

fn replicas(set: &ReplicaSet) -> usize {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1).max(0) as usize
}

/// Who goes first, as upstream's ActivePodsWithRanks: unplaced, not running, not ready, cheap, crowded, young.
fn rank(active: &[Arc<Pod>], related: &[Arc<Pod>], now: Timestamp) -> Vec<Arc<Pod>> {
    let mut crowd: HashMap<&str, usize> = HashMap::new();
    for pod in related.iter().filter(|pod| pods::is_active(pod)) {
        *crowd.entry(pods::node(pod)).or_default() += 1;
    }
    let mut ranked: Vec<Arc<Pod>> = active.to_vec();
    ranked.sort_by(|left, right| {
        let coarse = |pod: &Pod| {
            let phase = match pods::phase(pod) {
                "Running" => 2,
                "Unknown" => 1,
                _ => 0,
            };
            let cost: i32 = pod.annotation("controller.kubernetes.io/pod-deletion-cost").and_then(|text| text.parse().ok()).unwrap_or(0);
            (!pods::node(pod).is_empty(), phase, pods::is_ready(pod), cost, Reverse(crowd.get(pods::node(pod)).copied().unwrap_or(0)))
        };
        coarse(left).cmp(&coarse(right)).then_with(|| by_age(left, right, now))
    });
    ranked
}

fn by_age(left: &Pod, right: &Pod, now: Timestamp) -> Ordering {
    let ready = |pod: &Pod| pods::ready_since(pod).map(|since| magnitude(since, now));
    let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|time| magnitude(time.0, now));
    ready(left)
        .cmp(&ready(right))
        .then_with(|| pods::restarts(right).cmp(&pods::restarts(left)))
        .then_with(|| created(left).cmp(&created(right)))
        .then_with(|| left.uid().cmp(right.uid()))
}

/// Ages in powers of two of nanoseconds: pods of about one age are chosen between by uid, that is, at random.
fn magnitude(since: Timestamp, now: Timestamp) -> u32 {
    let age = (now.as_nanosecond() - since.as_nanosecond()).max(0);
    (age as u64).checked_ilog2().unwrap_or(0)
}

/// The status as it should be, and when it changes by time alone.
pub fn status(set: &ReplicaSet, active: &[Arc<Pod>], trouble: Option<(&str, String)>, now: Timestamp) -> (Value, Option<Duration>) {
    let spec = set.spec.as_ref();
    let min_ready = spec.and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    let template = spec.and_then(|spec| spec.template.as_ref()?.metadata.as_ref()?.labels.clone()).unwrap_or_default();
    let labeled = active.iter().filter(|pod| template.iter().all(|(key, value)| pod.label(key) == Some(value))).count();
    let ready = active.iter().filter(|pod| pods::is_ready(pod)).count();
    let (mut available, mut again) = (0, None);
    for pod in active {
        match pods::available(pod, min_ready, now) {
            Available::Yes => available += 1,
            Available::No => {}
            Available::In(left) => again = Some(again.map_or(left, |held: Duration| held.min(left))),
        }
    }
    let or_null = |count: usize| if count == 0 { Value::Null } else { json!(count) };
    let status = json!({
        "replicas": active.len(),
        "fullyLabeledReplicas": or_null(labeled),
        "readyReplicas": or_null(ready),
        "availableReplicas": or_null(available),
        "observedGeneration": set.metadata.generation,
        "conditions": conditions(set, trouble, now),
    });
    (status, again)
}

fn conditions(set: &ReplicaSet, trouble: Option<(&str, String)>, now: Timestamp) -> Value {
    let held: Vec<&ReplicaSetCondition> = set.status.iter().flat_map(|status| status.conditions.iter().flatten()).collect();
    let others = held.iter().filter(|condition| condition.type_ != "ReplicaFailure");
    let mut conditions: Vec<Value> = others.map(|condition| json!(condition)).collect();
    if let Some((reason, message)) = trouble {
        let same = held.iter().find(|condition| condition.type_ == "ReplicaFailure" && condition.reason.as_deref() == Some(reason));
        conditions.push(match same {
            Some(condition) => json!(condition),
            None => json!({"type": "ReplicaFailure", "status": "True", "reason": reason, "message": message, "lastTransitionTime": time::text(now)}),
        });
    }
    if conditions.is_empty() { Value::Null } else { Value::Array(conditions) }
}

/// Whether writing `wanted` (a merge patch) over `held` would change anything.
pub fn differs(held: &Value, wanted: &Value) -> bool {
    let mut merged = held.clone();
    json_patch::merge(&mut merged, wanted);
    let mut held = held.clone();
    json_patch::merge(&mut held, &json!({}));
    merged != held
}

struct ReplicaSets {
    informers: Informers,
    control: PodControl,
    clock: Clock,
}

pub fn start(context: &Context, informers: &Informers, recorder: Recorder) {
    let queue: Queue<Key> = Queue::new();
    let expectations = Expectations::default();
    let control = PodControl { client: context.client.clone(), recorder, expectations: expectations.clone() };
    let this = Arc::new(ReplicaSets { informers: informers.clone(), control, clock: context.clock.clone() });
    pod_control::follow(context, &informers.replica_sets, &informers.pods, &expectations, &queue, selects);
    work(context, informers, queue, 8, move |key| {
        let this = this.clone();
        async move { this.sync(key).await }
    });
}

fn selects(set: &ReplicaSet, pod: &Pod) -> bool {
    set.spec.as_ref().is_some_and(|spec| label_selector_matches(&spec.selector, pod.metadata.labels.as_ref()))
}

impl ReplicaSets {
    async fn sync(&self, key: Key) -> Result<Option<Duration>, Error> {
        let Some(set) = self.informers.replica_sets.get_key(&key) else { return Ok(None) };
        let client = &self.control.client;
        let unmet = self.control.expectations.unmet(set.uid());
        let selected = |pod: &Pod| selects(&set, pod);
        let active = self.control.claim::<ReplicaSet>(&*set, &self.informers.pods, selected, pods::is_active).await?;
        let mut trouble = None;
        if unmet.is_none() {
            let plan = plan(&set, &active, &self.related(&*set), (self.clock)());
            trouble = self.carry_out(&set, plan).await.err();
        }
        let failed = trouble.as_ref().map(|trouble| (trouble.reason, trouble.failure.to_string()));
        let (wanted, again) = status(&set, &active, failed, (self.clock)());
        if differs(&json!(set.status), &wanted) {
            apply_all(client, &[Write::merge::<ReplicaSet>(&*set, "status", json!({"status": wanted}))]).await?;
        }
        trouble.map_or(Ok(sooner(again, unmet)), |trouble| Err(trouble.failure.into()))
    }

    async fn carry_out(&self, set: &crate::orchestrator::client::WithRaw<ReplicaSet>, plan: Plan) -> Result<(), Trouble> {
        let subject = Subject::of(&set.typed);
        if plan.create > 0 {
            let body = pod_control::from_template::<ReplicaSet>(set, &set.value()["spec"]["template"]);
            return self.control.create(set, &subject, vec![body; plan.create]).await;
        }
        self.control.delete(set, &subject, &plan.delete).await
    }

    /// Pods of every set that the same owner manages.
    fn related(&self, set: &impl Object) -> Vec<Arc<Pod>> {
        let own = || self.informers.pods.by_index("controller", set.uid());
        let Some(owner) = set.controller() else { return own() };
        let sets = self.informers.replica_sets.by_index("controller", &owner.uid);
        if sets.is_empty() {
            return own();
        }
        sets.iter().flat_map(|set| self.informers.pods.by_index("controller", set.uid())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-01T12:00:00Z";

    fn now() -> Timestamp {
        NOW.parse().unwrap()
    }

    fn set(replicas: i32, min_ready: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "set", "generation": 4},
            "spec": {"replicas": replicas, "minReadySeconds": min_ready, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}}},
        }))
        .unwrap()
    }

    fn pod(name: &str, node: &str, phase: &str, ready_at: Option<&str>, created: &str) -> Arc<Pod> {
        let conditions = match ready_at {
            Some(at) => json!([{"type": "Ready", "status": "True", "lastTransitionTime": at}]),
            None => json!([]),
        };
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": "shop", "uid": name, "labels": {"app": "web"}, "creationTimestamp": created},
                "spec": {"nodeName": node, "containers": []},
                "status": {"phase": phase, "conditions": conditions},
            }))
            .unwrap(),
        )
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
        pods.iter().map(|pod| pod.name()).collect()
    }

    #[test]
    fn pods_are_made_up_to_the_wanted_number_and_never_more_than_a_burst() {
        assert_eq!(plan(&set(3, 0), &[], &[], now()).create, 3);
        assert_eq!(plan(&set(2000, 0), &[], &[], now()).create, BURST);
        let two = [pod("a", "n", "Running", None, NOW), pod("b", "n", "Running", None, NOW)];
        assert_eq!(plan(&set(2, 0), &two, &two, now()), Plan::default());
    }

    #[test]
    fn the_least_useful_pods_go_first() {
        let old = "2026-01-01T00:00:00Z";
        let all = [
            pod("oldest", "n1", "Running", Some(old), old),
            pod("young", "n1", "Running", Some("2026-01-01T11:59:00Z"), "2026-01-01T11:58:00Z"),
            pod("crowded", "n2", "Running", Some(old), old),
            pod("neighbour", "n2", "Running", Some(old), old),
            pod("neighbour2", "n2", "Running", Some(old), old),
            pod("unready", "n3", "Running", None, old),
            pod("pending", "n3", "Pending", None, old),
            pod("unplaced", "", "Pending", None, old),
        ];
        let plan = plan(&set(0, 0), &all, &all, now());
        assert_eq!(names(&plan.delete), ["unplaced", "pending", "unready", "crowded", "neighbour", "neighbour2", "young", "oldest"]);
    }

    #[test]
    fn deletion_cost_beats_age() {
        let mut cheap = (*pod("cheap", "n1", "Running", Some("2026-01-01T00:00:00Z"), "2026-01-01T00:00:00Z")).clone();
        cheap.metadata.annotations = Some([("controller.kubernetes.io/pod-deletion-cost".to_string(), "-5".to_string())].into());
        let all = [pod("young", "n1", "Running", Some(NOW), NOW), Arc::new(cheap)];
        assert_eq!(names(&plan(&set(1, 0), &all, &all, now()).delete), ["cheap"]);
    }

    #[test]
    fn availability_waits_for_min_ready_seconds() {
        let all = [pod("a", "n", "Running", Some("2026-01-01T11:59:50Z"), NOW), pod("b", "n", "Running", None, NOW)];
        let (wanted, again) = status(&set(2, 30), &all, None, now());
        assert_eq!((&wanted["readyReplicas"], &wanted["availableReplicas"]), (&json!(1), &Value::Null));
        assert_eq!((again, &wanted["observedGeneration"]), (Some(Duration::from_secs(20)), &json!(4)));
        let (wanted, again) = status(&set(2, 10), &all, None, now());
        assert_eq!((&wanted["availableReplicas"], again), (&json!(1), None));
    }

    #[test]
    fn an_unchanged_status_is_not_written() {
        let (wanted, _) = status(&set(2, 0), &[], Some(("FailedCreate", "quota".into())), now());
        let mut held = json!({});
        json_patch::merge(&mut held, &wanted);
        let mut later = set(2, 0);
        later.status = serde_json::from_value(held).unwrap();
        let (again, _) = status(&later, &[], Some(("FailedCreate", "quota".into())), "2026-01-01T13:00:00Z".parse().unwrap());
        assert!(!differs(&json!(later.status), &again));
        let (recovered, _) = status(&later, &[], None, now());
        assert!(differs(&json!(later.status), &recovered));
    }
}
