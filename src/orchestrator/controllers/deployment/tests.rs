//! Decisions of a Deployment, by tables.

use super::super::write::Write;
use super::decide::{Set, decide, facts, split};
use super::status::{Step, status};
use crate::orchestrator::client::{Object, WithRaw};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Arc;

fn deployment(replicas: i32, image: &str, more: Value) -> WithRaw<Deployment> {
    let mut object = json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "d", "generation": 2, "resourceVersion": "9", "annotations": {"team": "a"}},
        "spec": {
            "replicas": replicas, "progressDeadlineSeconds": 600, "revisionHistoryLimit": 2, "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image, "futureField": 1}]}},
        },
    });
    json_patch::merge(&mut object, &more);
    serde_json::from_value(object).unwrap()
}

/// A set of `image`, `wanted` and `available`, with a revision.
fn set(image: &str, wanted: i32, available: i32, revision: i32) -> Set {
    set_of(&deployment(3, image, json!({})), image, wanted, available, revision)
}

fn set_of(deployment: &WithRaw<Deployment>, image: &str, wanted: i32, available: i32, revision: i32) -> Set {
    let decision = decide(deployment, &[], false);
    let Some(Write::Create { body, .. }) = decision.writes.first() else { panic!("no create") };
    let mut body = body.clone();
    let labels = body["spec"]["template"]["metadata"]["labels"].clone();
    body["metadata"]["name"] = json!(format!("web-{image}"));
    body["metadata"]["uid"] = json!(image);
    body["metadata"]["creationTimestamp"] = json!(format!("2026-01-01T00:00:{revision:02}Z"));
    body["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = json!(revision.to_string());
    body["metadata"]["resourceVersion"] = json!("5");
    body["spec"]["replicas"] = json!(wanted);
    body["spec"]["template"]["metadata"]["labels"] = labels;
    body["status"] = json!({"replicas": wanted, "readyReplicas": available, "availableReplicas": available});
    Arc::new(serde_json::from_value::<WithRaw<ReplicaSet>>(body).unwrap())
}

/// `name=size` per patch that sizes, `+name=size` per create, `-name` per delete.
fn sizes(writes: &[Write]) -> Vec<String> {
    writes
        .iter()
        .filter_map(|write| match write {
            Write::Create { body, .. } => {
                Some(format!("+{}={}", body["spec"]["template"]["spec"]["containers"][0]["image"].as_str()?, body["spec"]["replicas"]))
            }
            Write::Patch { path, body, .. } => {
                body["spec"].get("replicas").map(|size| format!("{}={size}", path.rsplit('-').next().unwrap()))
            }
            Write::Delete { path, .. } => Some(format!("-{}", path.rsplit('-').next().unwrap())),
        })
        .collect()
}

fn check(deployment: &WithRaw<Deployment>, sets: &[Set], expected: &[&str]) {
    assert_eq!(sizes(&decide(deployment, sets, false).writes), expected);
}

#[test]
fn the_first_set_is_whole_and_keeps_fields_no_type_knows() {
    let decision = decide(&deployment(3, "v1", json!({})), &[], false);
    let Write::Create { body, .. } = &decision.writes[0] else { panic!("no create") };
    assert_eq!(body["spec"]["replicas"], 3);
    assert_eq!(body["spec"]["template"]["spec"]["containers"][0]["futureField"], 1);
    let hash = body["metadata"]["labels"]["pod-template-hash"].as_str().unwrap();
    assert_eq!(body["metadata"]["name"], format!("web-{hash}"));
    assert_eq!(body["spec"]["selector"]["matchLabels"], json!({"app": "web", "pod-template-hash": hash}));
    assert_eq!(body["metadata"]["annotations"]["team"], "a");
    assert_eq!(decision.revision.as_deref(), Some("1"));
}

#[test]
fn a_new_template_rolls_step_by_step() {
    let new = deployment(3, "v2", json!({}));
    check(&new, &[set("v1", 3, 3, 1)], &["+v2=1"]);
    check(&new, &[set("v1", 3, 3, 1), set("v2", 1, 0, 2)], &[]);
    check(&new, &[set("v1", 3, 3, 1), set("v2", 1, 1, 2)], &["v1=2"]);
    check(&new, &[set("v1", 2, 2, 1), set("v2", 1, 1, 2)], &["v2=2"]);
    check(&new, &[set("v1", 0, 0, 1), set("v2", 3, 3, 2)], &[]);
}

#[test]
fn rollback_uses_the_old_set_again_with_a_new_revision() {
    let back = deployment(3, "v1", json!({}));
    let decision = decide(&back, &[set("v1", 0, 0, 1), set("v2", 3, 3, 2)], false);
    assert_eq!(sizes(&decision.writes), ["v1=1"]);
    let Write::Patch { body, .. } = &decision.writes[0] else { panic!("no patch") };
    assert_eq!(body["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "3");
    assert_eq!(body["metadata"]["annotations"]["deployment.kubernetes.io/revision-history"], "1");
    assert_eq!(body["metadata"]["resourceVersion"], "5");
    assert_eq!(decision.revision.as_deref(), Some("3"));
}

#[test]
fn scaling_resizes_the_only_active_set_and_both_in_a_rollout() {
    check(&deployment(5, "v1", json!({})), &[set("v1", 3, 3, 1)], &["v1=5"]);
    check(&deployment(0, "v1", json!({})), &[set("v1", 3, 3, 1)], &["v1=0"]);
    check(&deployment(6, "v2", json!({})), &[set("v1", 2, 2, 1), set("v2", 2, 1, 2)], &["v1=3", "v2=4"]);
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let paused = |replicas| deployment(replicas, "v2", json!({"spec": {"paused": true}}));
    check(&paused(3), &[set("v1", 3, 3, 1)], &[]);
    check(&paused(4), &[set("v1", 3, 3, 1)], &["v1=4"]);
}

#[test]
fn recreate_waits_until_no_old_pod_runs() {
    let new = deployment(3, "v2", json!({"spec": {"strategy": {"type": "Recreate", "rollingUpdate": null}}}));
    check(&new, &[set("v1", 3, 3, 1)], &["v1=0"]);
    assert!(decide(&new, &[set("v1", 0, 0, 1)], true).writes.is_empty());
    check(&new, &[set("v1", 0, 0, 1)], &["+v2=3"]);
}

#[test]
fn history_beyond_the_limit_goes_when_the_rollout_is_done() {
    let sets = [set("v1", 0, 0, 1), set("v2", 0, 0, 2), set("v3", 0, 0, 3), set("v4", 3, 3, 4)];
    let mut decided = sizes(&decide(&deployment(3, "v4", json!({})), &sets, false).writes);
    decided.retain(|write| write.starts_with('-'));
    assert_eq!(decided, ["-v1"]);
}

fn conditions(deployment: &WithRaw<Deployment>, sets: &[Set], step: Step, now: &str) -> (Vec<String>, Value) {
    let now: Timestamp = now.parse().unwrap();
    let (new, _) = split(deployment, sets);
    let (wanted, _) = status(&facts(deployment, new.as_ref(), sets, step, false, now));
    let text = |condition: &Value| {
        format!(
            "{}={}:{}",
            condition["type"].as_str().unwrap(),
            condition["status"].as_str().unwrap(),
            condition["reason"].as_str().unwrap()
        )
    };
    (wanted["conditions"].as_array().unwrap().iter().map(text).collect(), wanted)
}

#[test]
fn conditions_tell_the_story_of_a_rollout() {
    let start = "2026-01-01T00:00:00Z";
    let mut web = deployment(3, "v1", json!({}));
    let mut step = |sets: &[Set], step: Step, now: &str| {
        let (seen, wanted) = conditions(&web, sets, step, now);
        let mut next = web.value();
        json_patch::merge(&mut next, &json!({"status": wanted}));
        web = serde_json::from_value(next).unwrap();
        seen
    };
    assert_eq!(
        step(&[], Step::Created("web-v1".into()), start),
        ["Available=False:MinimumReplicasUnavailable", "Progressing=True:NewReplicaSetCreated"]
    );
    assert_eq!(step(&[set("v1", 3, 1, 1)], Step::None, start)[1], "Progressing=True:ReplicaSetUpdated");
    assert_eq!(step(&[set("v1", 3, 1, 1)], Step::None, "2026-01-01T00:09:59Z")[1], "Progressing=True:ReplicaSetUpdated");
    assert_eq!(step(&[set("v1", 3, 1, 1)], Step::None, "2026-01-01T00:10:02Z")[1], "Progressing=False:ProgressDeadlineExceeded");
    assert_eq!(
        step(&[set("v1", 3, 3, 1)], Step::None, "2026-01-01T00:20:00Z"),
        ["Available=True:MinimumReplicasAvailable", "Progressing=True:NewReplicaSetAvailable"]
    );
    // Losing a pod after that is no roll-out that stalls.
    assert_eq!(step(&[set("v1", 3, 2, 1)], Step::None, "2026-01-01T09:00:00Z")[1], "Progressing=True:NewReplicaSetAvailable");
    assert_eq!(set("v1", 1, 1, 1).name(), "web-v1");
}
