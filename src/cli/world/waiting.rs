//! What a cluster still waits for, and why: the one judgement behind `up`, `status` and the Blueprint's own conditions. Pure.

use crate::blueprint::counted;
use crate::orchestrator::client::blueprint::BlueprintObject;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::sync::Arc;

/// One thing that is not yet as the blueprint wants it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Waiting {
    /// `node/worker-1`, `deployment/shop/web`, ...
    pub what: String,
    pub why: String,
}

impl fmt::Display for Waiting {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.what, self.why)
    }
}

/// The cluster's objects that the judgement reads.
#[derive(Default)]
pub struct Objects {
    pub nodes: Vec<Arc<Node>>,
    pub deployments: Vec<Arc<Deployment>>,
    pub replica_sets: Vec<Arc<ReplicaSet>>,
    pub daemon_sets: Vec<Arc<DaemonSet>>,
    pub claims: Vec<Arc<PersistentVolumeClaim>>,
    pub pods: Vec<Arc<Pod>>,
}

/// `machines` are the names of the nodes that should be there, `workloads` the blueprint's inline objects.
pub fn waiting(machines: &[String], workloads: &[Value], objects: &Objects) -> Vec<Waiting> {
    let nodes = machines.iter().filter_map(|name| node(name, &objects.nodes));
    nodes.chain(workloads.iter().filter_map(|object| workload(object, objects))).collect()
}

/// What the newest blueprint still waits for inside, in the cluster's own words: the loop that makes it true, and the API that takes its
/// workloads (or refuses one for good).
pub fn keeping(object: &BlueprintObject) -> Vec<Waiting> {
    let status = object.status.clone().unwrap_or_default();
    let ready = status["conditions"].as_array().into_iter().flatten().find(|condition| condition["type"] == "Ready");
    let looped = match ready {
        Some(ready) if is_new(&status, object) && ready["status"] == "True" => None,
        Some(ready) if is_new(&status, object) => Some(ready["message"].as_str().unwrap_or("converging").to_string()),
        _ => Some("the loop inside has not looked at its newest version yet".into()),
    };
    let workloads = &status["workloads"];
    let applied = match is_new(workloads, object) {
        true if workloads["applied"] == true => None,
        true => Some(workloads["message"].as_str().unwrap_or("could not be applied").to_string()),
        false => Some("not applied yet".into()),
    };
    let name = format!("blueprint/{}", object.metadata.name.as_deref().unwrap_or_default());
    let loop_waits = looped.map(|why| Waiting { what: name.clone(), why });
    loop_waits.into_iter().chain(applied.map(|why| Waiting { what: format!("workloads of {name}"), why })).collect()
}

/// Of the newest blueprint's workloads what the API refuses for good: waiting for them is in vain.
pub fn refused(object: &BlueprintObject) -> Vec<&str> {
    let workloads = object.status.as_ref().map(|status| &status["workloads"]);
    let new = workloads.filter(|told| is_new(told, object));
    new.and_then(|told| told["refused"].as_array()).into_iter().flatten().filter_map(Value::as_str).collect()
}

/// What the provider refuses the loop for good, told of the newest blueprint.
pub fn refused_inside(object: &BlueprintObject) -> Vec<Refusal> {
    let status = object.status.as_ref().filter(|status| is_new(status, object));
    status.and_then(|status| Vec::deserialize(&status["refused"]).ok()).unwrap_or_default()
}

/// In the loop's own words.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Refusal {
    pub why: String,
    pub hints: Vec<String>,
}

/// Told of the blueprint's newest version.
fn is_new(told: &Value, object: &BlueprintObject) -> bool {
    told["observedGeneration"].as_i64() >= object.metadata.generation
}

pub fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn node(name: &str, nodes: &[Arc<Node>]) -> Option<Waiting> {
    let why = match nodes.iter().find(|node| node.metadata.name.as_deref() == Some(name)) {
        None => "has not joined yet".to_string(),
        Some(node) if is_ready(node) => return None,
        Some(node) => {
            let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
            let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready");
            format!("not ready: {}", ready.and_then(|condition| condition.message.as_deref()).unwrap_or("has not reported yet"))
        }
    };
    Some(Waiting { what: format!("node/{name}"), why })
}

fn workload(object: &Value, objects: &Objects) -> Option<Waiting> {
    let kind = object["kind"].as_str()?;
    let name = object["metadata"]["name"].as_str()?;
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
    let why = match kind {
        "Deployment" => match find(&objects.deployments, |found| &found.metadata, namespace, name) {
            None => Some("is not there yet".to_string()),
            Some(found) => deployment(found),
        },
        "ReplicaSet" => match find(&objects.replica_sets, |found| &found.metadata, namespace, name) {
            None => Some("is not there yet".to_string()),
            Some(found) => {
                let wanted = found.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
                let available = found.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0);
                short(available, wanted)
            }
        },
        "DaemonSet" => match find(&objects.daemon_sets, |found| &found.metadata, namespace, name) {
            None => Some("is not there yet".to_string()),
            Some(found) => daemon_set(found),
        },
        "PersistentVolumeClaim" => match find(&objects.claims, |found| &found.metadata, namespace, name) {
            None => Some("is not there yet".to_string()),
            Some(found) => {
                let phase = found.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
                (phase != "Bound").then(|| format!("{phase}, no volume bound yet"))
            }
        },
        "Pod" => match find(&objects.pods, |found| &found.metadata, namespace, name) {
            None => Some("is not there yet".to_string()),
            Some(found) => pod(found),
        },
        _ => None,
    }?;
    let why = match first_trouble(namespace, object, objects) {
        Some(trouble) => format!("{why}; {trouble}"),
        None => why,
    };
    Some(Waiting { what: format!("{}/{namespace}/{name}", kind.to_lowercase()), why })
}

fn find<'a, K>(
    objects: &'a [Arc<K>],
    metadata: impl Fn(&K) -> &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    namespace: &str,
    name: &str,
) -> Option<&'a K> {
    let found = objects.iter().find(|object| {
        let metadata = metadata(object);
        metadata.name.as_deref() == Some(name) && metadata.namespace.as_deref().unwrap_or("default") == namespace
    });
    found.map(|object| object.as_ref())
}

fn deployment(found: &Deployment) -> Option<String> {
    let wanted = found.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let status = found.status.clone().unwrap_or_default();
    if status.observed_generation < found.metadata.generation {
        return Some("the controller has not seen its newest version yet".into());
    }
    let updated = status.updated_replicas.unwrap_or(0);
    if updated < wanted {
        return Some(format!("{updated} of {wanted} replicas updated"));
    }
    // As `kubectl rollout status`: while old ones are there, the available ones may be just those.
    let old = status.replicas.unwrap_or(0) - updated;
    if old > 0 {
        return Some(format!("{} to go, once the new ones are available", counted(usize::try_from(old).unwrap_or(0), "old replica")));
    }
    short(status.available_replicas.unwrap_or(0), wanted)
}

fn daemon_set(found: &DaemonSet) -> Option<String> {
    let status = found.status.clone().unwrap_or_default();
    if status.observed_generation < found.metadata.generation {
        return Some("the controller has not seen its newest version yet".into());
    }
    let (updated, wanted) = (status.updated_number_scheduled.unwrap_or(0), status.desired_number_scheduled);
    if updated < wanted {
        return Some(format!("{updated} of {wanted} pods updated"));
    }
    short(status.number_available.unwrap_or(0), wanted)
}

fn short(available: i32, wanted: i32) -> Option<String> {
    (available < wanted).then(|| format!("{available} of {wanted} replicas available"))
}

fn pod(found: &Pod) -> Option<String> {
    let status = found.status.clone().unwrap_or_default();
    let phase = status.phase.as_deref().unwrap_or("Pending");
    let ready = status.conditions.iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    (!ready && phase != "Succeeded").then(|| phase.to_string())
}

/// The newest pod of the workload's selector that says what is wrong: people want the cause, not the count, and not that of a former version.
fn first_trouble(namespace: &str, workload: &Value, objects: &Objects) -> Option<String> {
    let labels = workload["spec"]["selector"]["matchLabels"].as_object()?;
    let ours = |pod: &&Arc<Pod>| {
        let theirs = pod.metadata.labels.as_ref();
        pod.metadata.namespace.as_deref() == Some(namespace)
            && labels.iter().all(|(key, value)| theirs.and_then(|theirs| theirs.get(key)).map(String::as_str) == value.as_str())
    };
    let mut pods: Vec<_> = objects.pods.iter().filter(ours).collect();
    pods.sort_by_key(|pod| std::cmp::Reverse(pod.metadata.creation_timestamp.as_ref().map(|made| made.0)));
    pods.into_iter().find_map(|pod| {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let status = pod.status.as_ref()?;
        let container = status.container_statuses.iter().flatten().find_map(|container| {
            let waiting = container.state.as_ref()?.waiting.as_ref()?;
            let reason = waiting.reason.as_deref().filter(|reason| *reason != "ContainerCreating" && *reason != "PodInitializing")?;
            Some(format!("{name}: {reason}: {}", waiting.message.as_deref().unwrap_or("")))
        });
        let unscheduled = || {
            let condition =
                status.conditions.iter().flatten().find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")?;
            Some(format!("{name}: {}", condition.message.as_deref().unwrap_or("not scheduled")))
        };
        container.or_else(unscheduled)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object<K: serde::de::DeserializeOwned>(value: Value) -> Arc<K> {
        Arc::new(serde_json::from_value(value).expect("object"))
    }

    fn check(machines: &[&str], workloads: &[Value], objects: &Objects, expected: &[&str]) {
        let machines: Vec<String> = machines.iter().map(|name| name.to_string()).collect();
        let lines: Vec<String> = waiting(&machines, workloads, objects).iter().map(Waiting::to_string).collect();
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_node_is_waited_for_until_it_is_ready() {
        let ready = object(json!({"metadata": {"name": "a"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}));
        let broken = object(
            json!({"metadata": {"name": "b"}, "status": {"conditions": [{"type": "Ready", "status": "False", "message": "no network"}]}}),
        );
        let objects = Objects { nodes: vec![ready, broken], ..Objects::default() };
        check(&["a", "b", "c"], &[], &objects, &["node/b: not ready: no network", "node/c: has not joined yet"]);
    }

    #[test]
    fn a_deployment_names_the_cause_when_a_pod_gives_one() {
        let wish = json!({"kind": "Deployment", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"selector": {"matchLabels": {"app": "web"}}}});
        check(&[], std::slice::from_ref(&wish), &Objects::default(), &["deployment/shop/web: is not there yet"]);
        let pod = object(json!({"metadata": {"name": "web-1", "namespace": "shop", "labels": {"app": "web"}}, "status": {
            "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}]}}));
        let found = |available: i32| {
            object(json!({"metadata": {"name": "web", "namespace": "shop", "generation": 1},
                "spec": {"replicas": 3, "selector": {}, "template": {}},
                "status": {"observedGeneration": 1, "updatedReplicas": 3, "availableReplicas": available}}))
        };
        let objects = |available| Objects { deployments: vec![found(available)], pods: vec![Arc::clone(&pod)], ..Objects::default() };
        check(
            &[],
            std::slice::from_ref(&wish),
            &objects(1),
            &["deployment/shop/web: 1 of 3 replicas available; web-1: ErrImagePull: no such image"],
        );
        check(&[], &[wish], &objects(3), &[]);
    }

    #[test]
    fn what_serves_of_a_former_version_is_not_what_is_wanted() {
        let wish = json!({"kind": "Deployment", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"selector": {"matchLabels": {"app": "web"}}}});
        let pod = |name: &str, made: &str, reason: &str| {
            object(json!({"metadata": {"name": name, "namespace": "shop", "labels": {"app": "web"}, "creationTimestamp": made}, "status": {
                "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"waiting": {"reason": reason, "message": "why"}}}]}}))
        };
        let status = json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 1, "availableReplicas": 1});
        let web = object(json!({"metadata": {"name": "web", "namespace": "shop", "generation": 2},
            "spec": {"replicas": 1, "selector": {}, "template": {}}, "status": status}));
        let pods = vec![pod("a-old", "2026-01-01T00:00:00Z", "CrashLoopBackOff"), pod("b-new", "2026-01-02T00:00:00Z", "ErrImagePull")];
        let objects = Objects { deployments: vec![web], pods, ..Objects::default() };
        let expected = "deployment/shop/web: 1 old replica to go, once the new ones are available; b-new: ErrImagePull: why";
        check(&[], &[wish], &objects, &[expected]);

        let wish = json!({"kind": "DaemonSet", "metadata": {"name": "log", "namespace": "shop"}});
        let status = json!({"observedGeneration": 2, "currentNumberScheduled": 3, "desiredNumberScheduled": 3, "numberMisscheduled": 0,
            "numberReady": 3, "numberAvailable": 3, "updatedNumberScheduled": 1});
        let log = object(json!({"metadata": {"name": "log", "namespace": "shop", "generation": 2},
            "spec": {"selector": {}, "template": {}}, "status": status}));
        let objects = Objects { daemon_sets: vec![log], ..Objects::default() };
        check(&[], &[wish], &objects, &["daemonset/shop/log: 1 of 3 pods updated"]);
    }

    #[test]
    fn a_blueprint_waits_for_the_loop_and_for_its_workloads() {
        let check = |status: Value, expected: &[&str]| {
            let object = blueprint(status);
            assert_eq!(keeping(&object).iter().map(Waiting::to_string).collect::<Vec<_>>(), expected);
        };
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let applied = |generation: u32, applied: bool| json!({"observedGeneration": generation, "applied": applied, "message": "Service/bad is invalid"});
        check(json!({"observedGeneration": 2, "conditions": ready, "workloads": applied(2, true)}), &[]);
        check(
            json!({"observedGeneration": 2, "conditions": ready, "workloads": applied(2, false)}),
            &["workloads of blueprint/shop: Service/bad is invalid"],
        );
        check(
            json!({"observedGeneration": 2, "conditions": ready, "workloads": applied(1, true)}),
            &["workloads of blueprint/shop: not applied yet"],
        );
        check(
            json!({"observedGeneration": 1, "conditions": ready, "workloads": applied(2, true)}),
            &["blueprint/shop: the loop inside has not looked at its newest version yet"],
        );
        check(
            json!({"observedGeneration": 2, "conditions": [{"type": "Ready", "status": "False", "message": "no quota"}], "workloads": applied(2, true)}),
            &["blueprint/shop: no quota"],
        );
    }

    #[test]
    fn what_is_refused_for_good_is_told_apart_and_only_of_the_newest_version() {
        let workloads = |generation: u32, refused: Value| {
            blueprint(json!({"workloads": {"observedGeneration": generation, "applied": false, "refused": refused, "message": "no"}}))
        };
        assert_eq!(refused(&workloads(2, json!(["service/shop/web: no port"]))), ["service/shop/web: no port"]);
        for waits in [workloads(2, json!([])), workloads(1, json!(["service/shop/web: no port"])), blueprint(json!(null))] {
            assert_eq!(refused(&waits), Vec::<&str>::new());
        }
    }

    #[test]
    fn what_the_provider_refuses_the_loop_is_told_of_the_newest_version_alone() {
        let told =
            |generation: u32, refused: Value| refused_inside(&blueprint(json!({"observedGeneration": generation, "refused": refused})));
        let denied = Refusal { why: "could not read who writes".into(), hints: vec!["grant it".into()] };
        assert_eq!(told(2, json!([{"why": "could not read who writes", "hints": ["grant it"]}])), [denied]);
        assert_eq!(told(1, json!([{"why": "could not read who writes", "hints": []}])), []);
        assert_eq!((told(2, json!([])), told(2, json!(null))), (vec![], vec![]));
    }

    fn blueprint(status: Value) -> BlueprintObject {
        let object =
            json!({"metadata": {"name": "shop", "generation": 2}, "spec": {"provider": "local", "machines": []}, "status": status});
        serde_json::from_value(object).expect("an object")
    }
}
