//! A Deployment's status: counts and the conditions that `kubectl rollout status` and `kubectl wait` read.

use crate::orchestrator::client::time;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::time::Duration;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub replicas: i32,
    pub updated: i32,
    pub ready: i32,
    pub available: i32,
    pub unavailable: i32,
}

pub fn counts<'a>(sets: impl Iterator<Item = &'a ReplicaSet>, new: Option<&ReplicaSet>) -> Counts {
    let mut counts = Counts::default();
    let mut wanted = 0;
    for set in sets {
        wanted += set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        if let Some(status) = &set.status {
            counts.replicas += status.replicas;
            counts.ready += status.ready_replicas.unwrap_or(0);
            counts.available += status.available_replicas.unwrap_or(0);
        }
    }
    counts.updated = new.and_then(|set| set.status.as_ref()).map_or(0, |status| status.replicas);
    counts.unavailable = (wanted - counts.available).max(0);
    counts
}

/// What the roll-out's own steps say about progress in this turn.
pub enum Step {
    /// Only counts matter.
    None,
    Created(String),
    Found(String),
    CreateFailed(String),
    CollisionCount(i32),
}

pub struct Facts<'a> {
    pub deployment: &'a Deployment,
    pub counts: Counts,
    pub new: Option<&'a ReplicaSet>,
    pub sets: Vec<&'a ReplicaSet>,
    pub max_unavailable: i32,
    pub step: Step,
    /// Paused, being scaled or deleted: progress is not judged.
    pub idle: bool,
    pub now: Timestamp,
}

/// The whole status as a merge patch, and when to look again for the deadline's sake.
pub fn status(facts: &Facts) -> (Value, Option<Duration>) {
    let held = facts.deployment.status.clone().unwrap_or_default();
    let spec = facts.deployment.spec.as_ref();
    let replicas = spec.and_then(|spec| spec.replicas).unwrap_or(1);
    let mut conditions = held.conditions.clone().unwrap_or_default();
    let mut set = |kind: &str, value: &str, reason: &str, message: String| put(&mut conditions, kind, value, reason, message, facts.now);

    if facts.counts.available >= replicas - facts.max_unavailable {
        set("Available", "True", "MinimumReplicasAvailable", "Deployment has minimum availability.".into());
    } else {
        set("Available", "False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.".into());
    }
    progress(facts, &held, &mut conditions);
    let failure = facts.sets.iter().flat_map(|set| set.status.iter().flat_map(|status| status.conditions.iter().flatten()));
    conditions.retain(|condition| condition.type_ != "ReplicaFailure");
    if let Some(failure) = failure.into_iter().find(|condition| condition.type_ == "ReplicaFailure") {
        let held = held.conditions.iter().flatten().find(|held| held.type_ == "ReplicaFailure" && held.reason == failure.reason);
        conditions.push(held.cloned().unwrap_or_else(|| DeploymentCondition {
            type_: "ReplicaFailure".into(),
            status: failure.status.clone(),
            reason: failure.reason.clone(),
            message: failure.message.clone(),
            last_transition_time: failure.last_transition_time.clone(),
            last_update_time: failure.last_transition_time.clone(),
        }));
    }

    let or_null = |count: i32| if count == 0 { Value::Null } else { json!(count) };
    let mut status = json!({
        "observedGeneration": facts.deployment.metadata.generation,
        "replicas": or_null(facts.counts.replicas),
        "updatedReplicas": or_null(facts.counts.updated),
        "readyReplicas": or_null(facts.counts.ready),
        "availableReplicas": or_null(facts.counts.available),
        "unavailableReplicas": or_null(facts.counts.unavailable),
        "conditions": conditions,
    });
    if let Step::CollisionCount(count) = facts.step {
        status["collisionCount"] = json!(count);
    }
    let again = deadline_left(facts, &conditions);
    (status, again)
}

fn progress(facts: &Facts, held: &DeploymentStatus, conditions: &mut Vec<DeploymentCondition>) {
    let Some(deadline) = deadline(facts.deployment) else {
        conditions.retain(|condition| condition.type_ != "Progressing");
        return;
    };
    let current = conditions.iter().find(|condition| condition.type_ == "Progressing").cloned();
    let reason = current.as_ref().and_then(|condition| condition.reason.as_deref()).unwrap_or_default();
    let paused = facts.deployment.spec.as_ref().and_then(|spec| spec.paused).unwrap_or(false);
    let mut set = |value: &str, reason: &str, message: String| put(conditions, "Progressing", value, reason, message, facts.now);
    if reason != "ProgressDeadlineExceeded" {
        if paused && reason != "DeploymentPaused" {
            set("Unknown", "DeploymentPaused", "Deployment is paused".into());
        } else if !paused && reason == "DeploymentPaused" {
            set("Unknown", "DeploymentResumed", "Deployment is resumed".into());
        }
    }
    match &facts.step {
        Step::Created(name) => return set("True", "NewReplicaSetCreated", format!("Created new replica set \"{name}\"")),
        Step::Found(name) if current.is_none() => set("True", "FoundNewReplicaSet", format!("Found new replica set \"{name}\"")),
        Step::CreateFailed(message) => return set("False", "ReplicaSetCreateError", message.clone()),
        _ => {}
    }
    let complete = facts.counts.replicas == facts.counts.updated && reason == "NewReplicaSetAvailable";
    if facts.idle || complete {
        return;
    }
    let subject = match facts.new {
        Some(new) => format!("ReplicaSet \"{}\"", new.metadata.name.as_deref().unwrap_or_default()),
        None => format!("Deployment \"{}\"", facts.deployment.metadata.name.as_deref().unwrap_or_default()),
    };
    if is_complete(facts) {
        put(conditions, "Progressing", "True", "NewReplicaSetAvailable", format!("{subject} has successfully progressed."), facts.now);
    } else if is_progressing(&facts.counts, held) {
        let since =
            current.as_ref().filter(|condition| condition.status == "True").and_then(|condition| condition.last_transition_time.clone());
        // Every step forward restarts the deadline, so this one is renewed even when it says the same.
        conditions.retain(|condition| condition.type_ != "Progressing");
        put(conditions, "Progressing", "True", "ReplicaSetUpdated", format!("{subject} is progressing."), facts.now);
        if let (Some(since), Some(condition)) = (since, conditions.last_mut()) {
            condition.last_transition_time = Some(since);
        }
    } else if is_timed_out(conditions, deadline, facts.now) {
        put(conditions, "Progressing", "False", "ProgressDeadlineExceeded", format!("{subject} has timed out progressing."), facts.now);
    }
}

/// `None` where there is no deadline (absent, or the largest number as upstream reads it).
fn deadline(deployment: &Deployment) -> Option<i64> {
    let seconds = deployment.spec.as_ref()?.progress_deadline_seconds?;
    (seconds != i32::MAX).then_some(i64::from(seconds))
}

pub fn is_complete(facts: &Facts) -> bool {
    let replicas = facts.deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let counts = &facts.counts;
    counts.updated == replicas && counts.replicas == replicas && counts.available == replicas
}

fn is_progressing(new: &Counts, held: &DeploymentStatus) -> bool {
    let old = |value: Option<i32>| value.unwrap_or(0);
    let (replicas, updated) = (old(held.replicas), old(held.updated_replicas));
    new.updated > updated
        || new.replicas - new.updated < replicas - updated
        || new.ready > old(held.ready_replicas)
        || new.available > old(held.available_replicas)
}

fn is_timed_out(conditions: &[DeploymentCondition], deadline: i64, now: Timestamp) -> bool {
    let Some(condition) = conditions.iter().find(|condition| condition.type_ == "Progressing") else { return false };
    match condition.reason.as_deref() {
        Some("NewReplicaSetAvailable") => false,
        Some("ProgressDeadlineExceeded") => true,
        _ => condition.last_update_time.as_ref().is_some_and(|time| time.0.as_second() + deadline < now.as_second()),
    }
}

fn deadline_left(facts: &Facts, conditions: &[DeploymentCondition]) -> Option<Duration> {
    let deadline = deadline(facts.deployment)?;
    let condition = conditions.iter().find(|condition| condition.type_ == "Progressing")?;
    if facts.idle
        || matches!(condition.reason.as_deref(), Some("NewReplicaSetAvailable" | "ProgressDeadlineExceeded"))
        || is_complete(facts)
    {
        return None;
    }
    let due = condition.last_update_time.as_ref()?.0.as_second() + deadline + 1;
    Some(Duration::from_secs((due - facts.now.as_second()).max(1) as u64))
}

fn put(conditions: &mut Vec<DeploymentCondition>, kind: &str, status: &str, reason: &str, message: String, now: Timestamp) {
    let time = || Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(whole_seconds(now)));
    let mut condition = DeploymentCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_transition_time: time(),
        last_update_time: time(),
    };
    match conditions.iter_mut().find(|held| held.type_ == kind) {
        Some(held) if held.status == status && held.reason.as_deref() == Some(reason) => {}
        Some(held) => {
            if held.status == status {
                condition.last_transition_time = held.last_transition_time.clone();
            }
            *held = condition;
        }
        None => conditions.push(condition),
    }
}

fn whole_seconds(now: Timestamp) -> Timestamp {
    time::text(now).parse().expect("it was just written")
}
