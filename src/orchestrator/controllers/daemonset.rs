//! DaemonSet: one pod of a template on every node that it may run on.

use super::deployment::{hash, resolve};
use super::expectations::{Expectations, sooner};
use super::pod_control::{self, PodControl, Trouble};
use super::pods::{self, Available};
use super::replicaset::differs;
use super::write::{Write, apply_all};
use super::{Clock, Context, Informers, each, work};
use crate::error::Error;
use crate::orchestrator::client::events::{Recorder, Subject};
use crate::orchestrator::client::selector::label_selector_matches;
use crate::orchestrator::client::{Key, Object, Queue, WithRaw};
use crate::orchestrator::scheduler::filter::tolerated;
use crate::orchestrator::scheduler::labels::node_selector_matches;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

const HASH_LABEL: &str = "controller-revision-hash";

/// On which nodes to make a pod, and which pods to delete.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub create: Vec<String>,
    pub delete: Vec<Arc<Pod>>,
}

/// A DaemonSet and what is computed from it once.
pub struct View<'a> {
    pub set: &'a WithRaw<DaemonSet>,
    template: Value,
    spec: PodSpec,
    hash: String,
}

impl<'a> View<'a> {
    pub fn new(set: &'a WithRaw<DaemonSet>) -> Self {
        let template = set.value()["spec"]["template"].clone();
        let hash = hash(&template, set.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0));
        let mut spec = set.spec.as_ref().and_then(|spec| spec.template.spec.clone()).unwrap_or_default();
        let added = tolerations(&spec);
        spec.tolerations.get_or_insert_default().extend(added);
        View { set, template, spec, hash }
    }

    /// (may start there, may stay there)
    fn fits(&self, node: &Node) -> (bool, bool) {
        let labels = node.metadata.labels.clone().unwrap_or_default();
        let named = self.spec.node_name.as_deref().is_none_or(|name| name.is_empty() || name == node.name());
        let selected = self.spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
        let affinity = self.spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        let required = affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
        if !named || !selected || required.is_some_and(|required| !node_selector_matches(required, node.name(), &labels)) {
            return (false, false);
        }
        let tolerations = self.spec.tolerations.as_deref().unwrap_or_default();
        let taints: Vec<&Taint> = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).collect();
        let untolerated = |effect: &str| taints.iter().any(|taint| taint.effect == effect && !tolerated(tolerations, taint));
        let stays = !untolerated("NoExecute");
        (stays && !untolerated("NoSchedule"), stays)
    }

    fn is_updated(&self, pod: &Pod) -> bool {
        pod.label(HASH_LABEL) == Some(&self.hash)
    }

    /// The pod for one node: bound by the scheduler, through an affinity that only this node satisfies.
    pub fn pod(&self, node: &str) -> Value {
        let mut pod = pod_control::from_template::<DaemonSet>(self.set, &self.template);
        pod["metadata"]["labels"][HASH_LABEL] = json!(self.hash);
        pod["metadata"]["labels"]["pod-template-generation"] = json!(self.set.meta().generation.unwrap_or(1).to_string());
        let field = json!([{"key": "metadata.name", "operator": "In", "values": [node]}]);
        let required = &mut pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
        match required.as_array_mut().filter(|terms| !terms.is_empty()) {
            Some(terms) => terms.iter_mut().for_each(|term| term["matchFields"] = field.clone()),
            None => *required = json!([{"matchFields": field}]),
        }
        pod["spec"]["tolerations"] = {
            let mut all = self.template["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
            all.extend(tolerations(&self.spec).iter().map(|toleration| json!(toleration)));
            Value::Array(all)
        };
        pod
    }
}

/// A daemon stays through what makes other pods leave.
fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let exists = |key: &str, effect: &str| Toleration {
        key: Some(format!("node.kubernetes.io/{key}")),
        operator: Some("Exists".into()),
        effect: Some(effect.into()),
        ..Toleration::default()
    };
    let mut all = vec![exists("not-ready", "NoExecute"), exists("unreachable", "NoExecute")];
    all.extend(["disk-pressure", "memory-pressure", "pid-pressure", "unschedulable"].map(|key| exists(key, "NoSchedule")));
    if spec.host_network == Some(true) {
        all.push(exists("network-unavailable", "NoSchedule"));
    }
    all
}

/// The node a pod runs on, or is meant for.
fn node_of(pod: &Pod) -> Option<&str> {
    if !pods::node(pod).is_empty() {
        return Some(pods::node(pod));
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let mut fields = terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    fields.find(|field| field.key == "metadata.name")?.values.as_ref()?.first().map(String::as_str)
}

fn by_node(all: &[Arc<Pod>]) -> BTreeMap<&str, Vec<&Arc<Pod>>> {
    let mut by_node: BTreeMap<&str, Vec<&Arc<Pod>>> = BTreeMap::new();
    for pod in all {
        by_node.entry(node_of(pod).unwrap_or_default()).or_default().push(pod);
    }
    by_node
}

/// `all` are the pods of this set.
pub fn plan(view: &View, nodes: &[Arc<Node>], all: &[Arc<Pod>], now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if view.set.deleting() {
        return plan;
    }
    let held = by_node(all);
    for node in nodes {
        let (starts, stays) = view.fits(node);
        let here: Vec<&Arc<Pod>> = held.get(node.name()).into_iter().flatten().copied().filter(|pod| !pod.deleting()).collect();
        let leaving = held.get(node.name()).is_some_and(|pods| pods.iter().any(|pod| pod.deleting()));
        if !stays {
            plan.delete.extend(here.into_iter().cloned());
            continue;
        }
        let (finished, mut running): (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) = here.into_iter().partition(|pod| pods::is_finished(pod));
        plan.delete.extend(finished.into_iter().cloned());
        running.sort_by_key(|pod| (pod.meta().creation_timestamp.clone(), pod.uid().to_string()));
        plan.delete.extend(running.iter().skip(1).copied().cloned());
        // The old one must be gone first: both may want the same host port or folder.
        if running.is_empty() && starts && !leaving {
            plan.create.push(node.name().into());
        }
    }
    plan.delete.extend(meant_for_no_node(nodes, &held));
    roll(view, nodes, &held, now, &mut plan);
    plan
}

/// Pods that were made for a node which went before they were bound: no other node is theirs, so they would wait for ever. A bound pod of a
/// node that is gone is the pod collector's; one without a name to go by was not made here and may be bound yet.
fn meant_for_no_node(nodes: &[Arc<Node>], held: &BTreeMap<&str, Vec<&Arc<Pod>>>) -> Vec<Arc<Pod>> {
    let names: BTreeSet<&str> = nodes.iter().map(|node| node.name()).collect();
    let homeless = held.iter().filter(|(node, _)| !node.is_empty() && !names.contains(*node)).flat_map(|(_, pods)| pods);
    homeless.filter(|pod| pods::node(pod).is_empty() && !pod.deleting()).map(|pod| (*pod).clone()).collect()
}

/// Replaces pods of an old template: the broken at once, the working as far as `maxUnavailable` allows.
fn roll(view: &View, nodes: &[Arc<Node>], held: &BTreeMap<&str, Vec<&Arc<Pod>>>, now: Timestamp, plan: &mut Plan) {
    let spec = view.set.spec.as_ref();
    let strategy = spec.and_then(|spec| spec.update_strategy.as_ref());
    if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete") {
        return;
    }
    let min_ready = spec.and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    let wanted: Vec<&Arc<Node>> = nodes.iter().filter(|node| view.fits(node).0).collect();
    let limit = strategy.and_then(|strategy| strategy.rolling_update.as_ref()?.max_unavailable.as_ref());
    let limit = resolve(limit.unwrap_or(&IntOrString::Int(1)), wanted.len() as i32, true).max(1) as usize;
    let (mut unavailable, mut working) = (0, Vec::new());
    for node in wanted {
        let pod = held.get(node.name()).into_iter().flatten().find(|pod| pods::is_active(pod) && !plan.delete.contains(pod));
        match pod {
            Some(pod) if pods::available(pod, min_ready, now) == Available::Yes => {
                if !view.is_updated(pod) {
                    working.push((*pod).clone());
                }
            }
            Some(pod) => {
                unavailable += 1;
                if !view.is_updated(pod) {
                    plan.delete.push((*pod).clone());
                }
            }
            None => unavailable += 1,
        }
    }
    plan.delete.extend(working.into_iter().take(limit.saturating_sub(unavailable)));
}

pub fn status(view: &View, nodes: &[Arc<Node>], all: &[Arc<Pod>], now: Timestamp) -> (Value, Option<Duration>) {
    let min_ready = view.set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    let held = by_node(all);
    let (mut desired, mut current, mut misscheduled, mut ready, mut available, mut updated) = (0, 0, 0, 0, 0, 0);
    let mut again: Option<Duration> = None;
    for node in nodes {
        let mut here: Vec<_> = held.get(node.name()).into_iter().flatten().filter(|pod| pods::is_active(pod)).collect();
        here.sort_by_key(|pod| (pod.meta().creation_timestamp.clone(), pod.uid().to_string()));
        if !view.fits(node).0 {
            misscheduled += i32::from(!here.is_empty());
            continue;
        }
        desired += 1;
        let Some(pod) = here.first() else { continue };
        current += 1;
        ready += i32::from(pods::is_ready(pod));
        updated += i32::from(view.is_updated(pod));
        match pods::available(pod, min_ready, now) {
            Available::Yes => available += 1,
            Available::No => {}
            Available::In(left) => again = Some(again.map_or(left, |held| held.min(left))),
        }
    }
    let or_null = |count: i32| if count == 0 { Value::Null } else { json!(count) };
    let status = json!({
        "desiredNumberScheduled": desired, "currentNumberScheduled": current, "numberMisscheduled": misscheduled, "numberReady": ready,
        "numberAvailable": or_null(available), "numberUnavailable": or_null(desired - available), "updatedNumberScheduled": or_null(updated),
        "observedGeneration": view.set.meta().generation,
    });
    (status, again)
}

struct DaemonSets {
    informers: Informers,
    control: PodControl,
    clock: Clock,
}

pub fn start(context: &Context, informers: &Informers, recorder: Recorder) {
    let queue: Queue<Key> = Queue::new();
    let expectations = Expectations::default();
    let control = PodControl { client: context.client.clone(), recorder, expectations: expectations.clone() };
    let this = Arc::new(DaemonSets { informers: informers.clone(), control, clock: context.clock.clone() });
    pod_control::follow(context, &informers.daemon_sets, &informers.pods, &expectations, &queue, selects);
    {
        // Where pods may run depends on labels and taints; a node's heartbeats are nothing to us.
        let (queue, sets) = (queue.clone(), informers.daemon_sets.clone());
        each(&context.cancel, informers.nodes.changes(), move |change| {
            let place = |node: &Option<Arc<Node>>| node.as_ref().map(|node| (node.metadata.labels.clone(), node.spec.clone()));
            if place(&change.old) != place(&change.new) {
                sets.list().iter().for_each(|set| queue.add(Key::of(&**set)));
            }
        });
    }
    work(context, informers, queue, 4, move |key| {
        let this = this.clone();
        async move { this.sync(key).await }
    });
}

fn selects(set: &DaemonSet, pod: &Pod) -> bool {
    set.spec.as_ref().is_some_and(|spec| label_selector_matches(&spec.selector, pod.metadata.labels.as_ref()))
}

impl DaemonSets {
    async fn sync(&self, key: Key) -> Result<Option<Duration>, Error> {
        let Some(set) = self.informers.daemon_sets.get_key(&key) else { return Ok(None) };
        let client = &self.control.client;
        let unmet = self.control.expectations.unmet(set.uid());
        let mine = self.control.claim::<DaemonSet>(&*set, &self.informers.pods, |pod| selects(&set, pod), |_| true).await?;
        let view = View::new(&set);
        let nodes = self.informers.nodes.list();
        let mut trouble = None;
        if unmet.is_none() {
            trouble = self.carry_out(&view, plan(&view, &nodes, &mine, (self.clock)())).await.err();
        }
        let (wanted, again) = status(&view, &nodes, &mine, (self.clock)());
        if differs(&json!(set.status), &wanted) {
            apply_all(client, &[Write::merge::<DaemonSet>(&*set, "status", json!({"status": wanted}))]).await?;
        }
        trouble.map_or(Ok(sooner(again, unmet)), |trouble| Err(trouble.failure.into()))
    }

    async fn carry_out(&self, view: &View<'_>, plan: Plan) -> Result<(), Trouble> {
        let subject = Subject::of(&view.set.typed);
        self.control.delete(view.set, &subject, &plan.delete).await?;
        let bodies = plan.create.iter().take(pod_control::BURST).map(|node| view.pod(node)).collect();
        self.control.create(view.set, &subject, bodies).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(more: Value) -> WithRaw<DaemonSet> {
        let mut object = json!({
            "metadata": {"name": "log", "namespace": "shop", "uid": "d", "generation": 1},
            "spec": {"selector": {"matchLabels": {"app": "log"}}, "template": {"metadata": {"labels": {"app": "log"}}, "spec": {"containers": [{"name": "c", "image": "v1"}]}}},
        });
        json_patch::merge(&mut object, &more);
        serde_json::from_value(object).unwrap()
    }

    fn node(name: &str, more: Value) -> Arc<Node> {
        let mut object = json!({"metadata": {"name": name, "labels": {"disk": "ssd"}}, "spec": {}});
        json_patch::merge(&mut object, &more);
        Arc::new(serde_json::from_value(object).unwrap())
    }

    /// The pod that `set` would make for `node`, bound and ready or not.
    fn pod(set: &WithRaw<DaemonSet>, node: &str, ready: bool) -> Arc<Pod> {
        let mut pod = View::new(set).pod(node);
        pod["metadata"]["name"] = json!(format!("log-{node}"));
        pod["metadata"]["uid"] = json!(format!("uid-{node}"));
        pod["spec"]["nodeName"] = json!(node);
        pod["status"] = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn check(set: &WithRaw<DaemonSet>, nodes: &[Arc<Node>], pods: &[Arc<Pod>], create: &[&str], delete: &[&str]) {
        let plan = plan(&View::new(set), nodes, pods, "2026-01-02T00:00:00Z".parse().unwrap());
        let deleted: Vec<&str> = plan.delete.iter().map(|pod| pods::node(pod)).collect();
        assert_eq!((plan.create, deleted), (create.iter().map(|name| name.to_string()).collect(), delete.to_vec()));
    }

    #[test]
    fn every_fitting_node_gets_one_pod() {
        let nodes = [node("a", json!({})), node("b", json!({"metadata": {"labels": {"disk": "hdd"}}}))];
        check(&set(json!({})), &nodes, &[], &["a", "b"], &[]);
        check(&set(json!({})), &nodes, &[pod(&set(json!({})), "a", true)], &["b"], &[]);
        let ssd = set(json!({"spec": {"template": {"spec": {"nodeSelector": {"disk": "ssd"}}}}}));
        check(&ssd, &nodes, &[], &["a"], &[]);
        check(&ssd, &nodes, &[pod(&ssd, "b", true)], &["a"], &["b"]);
    }

    #[test]
    fn taints_keep_new_pods_away_and_silence_does_not_drive_old_ones_out() {
        let tainted = |key: &str, effect: &str| node("a", json!({"spec": {"taints": [{"key": key, "effect": effect}]}}));
        let plain = set(json!({}));
        check(&plain, &[tainted("mine", "NoSchedule")], &[], &[], &[]);
        check(&plain, &[tainted("mine", "NoSchedule")], &[pod(&plain, "a", true)], &[], &[]);
        check(&plain, &[tainted("mine", "NoExecute")], &[pod(&plain, "a", true)], &[], &["a"]);
        check(&plain, &[tainted("node.kubernetes.io/unreachable", "NoExecute")], &[pod(&plain, "a", false)], &[], &[]);
    }

    #[test]
    fn a_new_template_rolls_node_by_node_and_the_broken_first() {
        let (old, new) = (set(json!({})), set(json!({"spec": {"template": {"spec": {"priority": 1}}}})));
        let nodes = [node("a", json!({})), node("b", json!({})), node("c", json!({}))];
        check(&new, &nodes, &[pod(&old, "a", true), pod(&old, "b", true), pod(&old, "c", true)], &[], &["a"]);
        check(&new, &nodes, &[pod(&old, "b", true), pod(&old, "c", true)], &["a"], &[]);
        check(&new, &nodes, &[pod(&new, "a", false), pod(&old, "b", true), pod(&old, "c", true)], &[], &[]);
        check(&new, &nodes, &[pod(&new, "a", true), pod(&old, "b", true), pod(&old, "c", true)], &[], &["b"]);
        check(&new, &nodes, &[pod(&old, "a", false), pod(&old, "b", true), pod(&old, "c", true)], &[], &["a"]);
        let on_delete = set(json!({"spec": {"updateStrategy": {"type": "OnDelete"}, "template": {"spec": {"priority": 1}}}}));
        check(&on_delete, &nodes[..1], &[pod(&old, "a", false)], &[], &[]);
    }

    #[test]
    fn a_pod_is_meant_for_its_node_before_it_is_bound() {
        let plain = set(json!({}));
        let mut waiting = (*pod(&plain, "a", false)).clone();
        waiting.spec.as_mut().unwrap().node_name = None;
        check(&plain, &[node("a", json!({}))], &[Arc::new(waiting)], &[], &[]);
    }

    #[test]
    fn an_unbound_pod_whose_node_is_gone_is_deleted_once() {
        let plain = set(json!({}));
        let unbound = |name: &str, more: Value| {
            let mut value = json!(*pod(&plain, name, false));
            json_patch::merge(&mut value, &json!({"spec": {"nodeName": null}, "status": {"phase": "Pending"}}));
            json_patch::merge(&mut value, &more);
            Arc::new(serde_json::from_value::<Pod>(value).unwrap())
        };
        let delete = |pods: &[Arc<Pod>]| {
            let plan = plan(&View::new(&plain), &[node("a", json!({}))], pods, "2026-01-02T00:00:00Z".parse().unwrap());
            plan.delete.iter().map(|pod| pod.name().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(delete(&[unbound("a", json!({})), unbound("gone", json!({}))]), ["log-gone"]);
        let nothing: [&str; 0] = [];
        assert_eq!(delete(&[unbound("gone", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}))]), nothing);
        assert_eq!(delete(&[unbound("gone", json!({"spec": {"affinity": null}}))]), nothing, "nobody knows where it may run");
        assert_eq!(delete(&[pod(&plain, "gone", true)]), nothing, "a bound pod is left to the pod collector");
    }

    #[test]
    fn the_status_counts_nodes() {
        let plain = set(json!({}));
        let nodes = [node("a", json!({})), node("b", json!({})), node("c", json!({}))];
        let (wanted, _) =
            status(&View::new(&plain), &nodes, &[pod(&plain, "a", true), pod(&plain, "b", false)], "2026-01-02T00:00:00Z".parse().unwrap());
        let counts = [
            "desiredNumberScheduled",
            "currentNumberScheduled",
            "numberReady",
            "numberAvailable",
            "numberUnavailable",
            "updatedNumberScheduled",
        ];
        assert_eq!(counts.map(|name| wanted[name].as_i64().unwrap()), [3, 2, 1, 1, 2, 2]);
    }
}
