//! What a Deployment asks of its ReplicaSets now: pure.

use super::super::owners;
use super::super::write::Write;
use super::arithmetic::{Share, Size, fence_posts, new_size, proportional, shrink_old};
use super::status::{Counts, Facts, Step, counts, is_complete};
use super::template::{HASH_LABEL, hash, same};
use crate::orchestrator::client::{Object, WithRaw};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

pub const REVISION: &str = "deployment.kubernetes.io/revision";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of a Deployment that say nothing about its ReplicaSets.
const OWN_ANNOTATIONS: [&str; 6] =
    ["kubectl.kubernetes.io/last-applied-configuration", REVISION, HISTORY, DESIRED, MAX, "deprecated.deployment.rollback.to"];

pub type Set = Arc<WithRaw<ReplicaSet>>;

pub struct Decision {
    /// To ReplicaSets, in order. A create is always the last.
    pub writes: Vec<Write>,
    /// The name of the set that is created.
    pub create: Option<String>,
    /// The Deployment's own revision annotation, where it must change.
    pub revision: Option<String>,
    pub step: Step,
    /// Progress is not judged in this turn.
    pub idle: bool,
    /// `ScalingReplicaSet` events.
    pub events: Vec<String>,
}

/// The numbers and the strategy of a Deployment.
struct Wanted {
    replicas: i32,
    surge: i32,
    unavailable: i32,
    recreate: bool,
    paused: bool,
    min_ready: i32,
    history: usize,
}

fn wanted(deployment: &Deployment) -> Wanted {
    let spec = deployment.spec.as_ref();
    let strategy = spec.and_then(|spec| spec.strategy.as_ref());
    let recreate = strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate");
    let replicas = spec.and_then(|spec| spec.replicas).unwrap_or(1);
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let posts = fence_posts(rolling.and_then(|r| r.max_surge.as_ref()), rolling.and_then(|r| r.max_unavailable.as_ref()), replicas);
    let (surge, unavailable) = if recreate { (0, 0) } else { posts };
    Wanted {
        replicas,
        surge,
        unavailable,
        recreate,
        paused: spec.and_then(|spec| spec.paused).unwrap_or(false),
        min_ready: spec.and_then(|spec| spec.min_ready_seconds).unwrap_or(0),
        history: spec.and_then(|spec| spec.revision_history_limit).unwrap_or(10).max(0) as usize,
    }
}

pub fn replicas_of(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

fn available_of(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

fn revision_of(set: &impl Object) -> i64 {
    set.annotation(REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The set that carries the deployment's template (the oldest such), and the others, oldest first.
pub fn split(deployment: &WithRaw<Deployment>, sets: &[Set]) -> (Option<Set>, Vec<Set>) {
    let template = &deployment.value()["spec"]["template"];
    let mut sets = sets.to_vec();
    sets.sort_by(|left, right| (&left.meta().creation_timestamp, left.name()).cmp(&(&right.meta().creation_timestamp, right.name())));
    let new = sets.iter().position(|set| same(template, &set.value()["spec"]["template"])).map(|at| sets.remove(at));
    (new, sets)
}

/// The changes asked of one existing set, gathered into one patch.
#[derive(Default)]
struct Edit {
    replicas: Option<i32>,
    min_ready: Option<i32>,
    annotations: Map<String, Value>,
}

struct Turn<'a> {
    deployment: &'a WithRaw<Deployment>,
    wanted: Wanted,
    edits: BTreeMap<String, Edit>,
    decision: Decision,
}

/// `old_pods_run`: a pod of an old set has not ended yet (asked only for Recreate).
pub fn decide(deployment: &WithRaw<Deployment>, sets: &[Set], old_pods_run: bool) -> Decision {
    let wanted = wanted(deployment);
    let decision = Decision { writes: Vec::new(), create: None, revision: None, step: Step::None, idle: false, events: Vec::new() };
    let mut turn = Turn { deployment, wanted, edits: BTreeMap::new(), decision };
    if deployment.deleting() {
        turn.decision.idle = true;
        return turn.decision;
    }
    let (new, old) = split(deployment, sets);
    if let Some(new) = &new {
        turn.follow_revision(new, &old);
    }
    let all: Vec<Set> = new.iter().chain(&old).cloned().collect();
    if turn.wanted.paused || turn.is_being_scaled(&all) {
        turn.decision.idle = true;
        turn.scale(new.as_ref(), &old);
        if turn.wanted.paused {
            turn.clean_up(&old);
        }
    } else if turn.wanted.recreate {
        turn.recreate(new.as_ref(), &old, old_pods_run);
    } else {
        turn.roll(new.as_ref(), &old);
    }
    turn.finish(&all)
}

impl Turn<'_> {
    /// The set in use has the highest revision; one that is used again gets a new one and remembers its old.
    fn follow_revision(&mut self, new: &Set, old: &[Set]) {
        let next = old.iter().map(|set| revision_of(&**set)).max().unwrap_or(0) + 1;
        let held = revision_of(&**new);
        let mut revision = held;
        let edit = self.edits.entry(new.name().into()).or_default();
        for (key, value) in carried(self.deployment) {
            if new.annotation(&key) != value.as_str() {
                edit.annotations.insert(key, value);
            }
        }
        if held < next {
            revision = next;
            edit.annotations.insert(REVISION.into(), json!(next.to_string()));
            if held > 0 {
                let history = new.annotation(HISTORY).map_or(held.to_string(), |history| format!("{history},{held}"));
                edit.annotations.insert(HISTORY.into(), json!(history));
            }
        }
        if new.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0) != self.wanted.min_ready {
            edit.min_ready = Some(self.wanted.min_ready);
        }
        self.decision.step = Step::Found(new.name().into());
        self.set_revision(revision);
    }

    fn set_revision(&mut self, revision: i64) {
        let text = revision.to_string();
        if self.deployment.annotation(REVISION) != Some(&text) {
            self.decision.revision = Some(text);
        }
    }

    /// The replica count changed since some active set was sized.
    fn is_being_scaled(&self, all: &[Set]) -> bool {
        all.iter().filter(|set| replicas_of(set) > 0).any(|set| {
            set.annotation(DESIRED).and_then(|text| text.parse::<i32>().ok()).is_some_and(|desired| desired != self.wanted.replicas)
        })
    }

    /// Returns whether the size changes.
    fn resize(&mut self, set: &Set, size: i32) -> bool {
        let held = replicas_of(set);
        let edit = self.edits.entry(set.name().into()).or_default();
        for (key, value) in [(DESIRED, self.wanted.replicas), (MAX, self.wanted.replicas + self.wanted.surge)] {
            let value = value.to_string();
            if set.annotation(key) != Some(&value) {
                edit.annotations.insert(key.into(), json!(value));
            }
        }
        if held == size {
            return false;
        }
        edit.replicas = Some(size);
        let direction = if size > held { "up" } else { "down" };
        self.decision.events.push(format!("Scaled {direction} replica set {} from {held} to {size}", set.name()));
        true
    }

    fn scale(&mut self, new: Option<&Set>, old: &[Set]) {
        let all: Vec<Set> = new.into_iter().chain(old).cloned().collect();
        let mut active: Vec<Set> = all.iter().filter(|set| replicas_of(set) > 0).cloned().collect();
        let only = match &active[..] {
            [] => new.cloned().or_else(|| all.iter().max_by_key(|set| set.meta().creation_timestamp.clone()).cloned()),
            [one] => Some(one.clone()),
            _ => None,
        };
        if let Some(only) = only {
            self.resize(&only, self.wanted.replicas);
            return;
        }
        let saturated = new.is_some_and(|new| {
            let desired = new.annotation(DESIRED).and_then(|text| text.parse::<i32>().ok());
            (replicas_of(new), desired, available_of(new)) == (self.wanted.replicas, Some(self.wanted.replicas), self.wanted.replicas)
        });
        if saturated {
            old.iter().filter(|set| replicas_of(set) > 0).for_each(|set| {
                self.resize(set, 0);
            });
            return;
        }
        if self.wanted.recreate {
            return;
        }
        // Growing favours the newest among equals, shrinking the oldest.
        let total: i32 = active.iter().map(|set| replicas_of(set)).sum();
        let growing = self.wanted.replicas + self.wanted.surge > total;
        active.sort_by(|left, right| {
            let age = left.meta().creation_timestamp.cmp(&right.meta().creation_timestamp);
            replicas_of(right).cmp(&replicas_of(left)).then(if growing { age.reverse() } else { age })
        });
        let status_replicas = self.deployment.status.as_ref().and_then(|status| status.replicas).unwrap_or(0);
        let shares: Vec<Share> = active
            .iter()
            .map(|set| Share {
                wanted: replicas_of(set),
                max_before: set.annotation(MAX).and_then(|text| text.parse().ok()).unwrap_or(status_replicas),
            })
            .collect();
        let sizes = proportional(&shares, self.wanted.replicas, self.wanted.surge);
        for (set, size) in active.iter().zip(sizes) {
            self.resize(set, size);
        }
    }

    fn roll(&mut self, new: Option<&Set>, old: &[Set]) {
        let all: i32 = new.into_iter().chain(old).map(|set| replicas_of(set)).sum();
        let Some(new) = new else {
            let size = new_size(0, all, self.wanted.replicas, self.wanted.surge);
            return self.create(old, size);
        };
        let size = new_size(replicas_of(new), all, self.wanted.replicas, self.wanted.surge);
        if self.resize(new, size) {
            return;
        }
        let size = |set: &Set| Size { wanted: replicas_of(set), available: available_of(set) };
        let held: Vec<Size> = old.iter().map(size).collect();
        let sizes = shrink_old(&held, size(new), self.wanted.replicas, self.wanted.unavailable);
        let mut changed = false;
        for (set, size) in old.iter().zip(sizes) {
            if size != replicas_of(set) {
                changed |= self.resize(set, size);
            }
        }
        if !changed && self.is_complete(new, old) {
            self.clean_up(old);
        }
    }

    fn recreate(&mut self, new: Option<&Set>, old: &[Set], old_pods_run: bool) {
        let mut changed = false;
        for set in old.iter().filter(|set| replicas_of(set) > 0) {
            changed |= self.resize(set, 0);
        }
        if changed || old_pods_run {
            return;
        }
        let Some(new) = new else { return self.create(old, self.wanted.replicas) };
        if !self.resize(new, self.wanted.replicas) && self.is_complete(new, old) {
            self.clean_up(old);
        }
    }

    fn is_complete(&self, new: &Set, old: &[Set]) -> bool {
        let counts: Counts = counts(old.iter().chain([new]).map(|set| &set.typed), Some(&new.typed));
        counts.replicas == self.wanted.replicas && counts.updated == counts.replicas && counts.available == counts.replicas
    }

    fn create(&mut self, old: &[Set], size: i32) {
        let revision = old.iter().map(|set| revision_of(&**set)).max().unwrap_or(0) + 1;
        let deployment = self.deployment.value();
        let mut template = deployment["spec"]["template"].clone();
        let collisions = self.deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
        let hash = hash(&template, collisions);
        let name = format!("{}-{hash}", self.deployment.name());
        template["metadata"]["labels"][HASH_LABEL] = json!(hash);
        let mut selector = deployment["spec"]["selector"].clone();
        selector["matchLabels"][HASH_LABEL] = json!(hash);
        let mut annotations: Map<String, Value> = carried(self.deployment).collect();
        annotations.insert(REVISION.into(), json!(revision.to_string()));
        annotations.insert(DESIRED.into(), json!(self.wanted.replicas.to_string()));
        annotations.insert(MAX.into(), json!((self.wanted.replicas + self.wanted.surge).to_string()));
        let mut spec = json!({"replicas": size, "selector": selector, "template": template});
        if self.wanted.min_ready > 0 {
            spec["minReadySeconds"] = json!(self.wanted.min_ready);
        }
        let body = json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {
                "name": name, "namespace": self.deployment.namespace(), "labels": spec["template"]["metadata"]["labels"],
                "annotations": annotations, "ownerReferences": [owners::reference::<Deployment>(self.deployment)],
            },
            "spec": spec,
        });
        if size > 0 {
            self.decision.events.push(format!("Scaled up replica set {name} from 0 to {size}"));
        }
        self.decision.step = Step::Created(name.clone());
        self.decision.create = Some(name);
        self.set_revision(revision);
        self.decision.writes.push(Write::create::<ReplicaSet>(self.deployment.namespace(), body));
    }

    /// Old sets beyond the history limit, lowest revision first; only those that are empty and settled.
    fn clean_up(&mut self, old: &[Set]) {
        let mut old: Vec<&Set> = old.iter().filter(|set| !set.deleting()).collect();
        let surplus = old.len().saturating_sub(self.wanted.history);
        old.sort_by_key(|set| revision_of(&***set));
        for set in old.into_iter().take(surplus) {
            let status = set.status.clone().unwrap_or_default();
            let settled = status.observed_generation.unwrap_or(0) >= set.meta().generation.unwrap_or(0);
            if status.replicas == 0 && replicas_of(set) == 0 && settled {
                self.decision.writes.push(Write::delete::<ReplicaSet>(&**set));
            }
        }
    }

    /// Edits become patches that hold only for the versions they were decided on.
    fn finish(mut self, all: &[Set]) -> Decision {
        let mut writes = Vec::new();
        for (name, edit) in &self.edits {
            let Some(set) = all.iter().find(|set| set.name() == name) else { continue };
            let mut body = json!({});
            if !edit.annotations.is_empty() {
                body["metadata"]["annotations"] = Value::Object(edit.annotations.clone());
            }
            if let Some(replicas) = edit.replicas {
                body["spec"]["replicas"] = json!(replicas);
            }
            if let Some(seconds) = edit.min_ready {
                body["spec"]["minReadySeconds"] = json!(seconds);
            }
            if body != json!({}) {
                writes.push(Write::merge_at::<ReplicaSet>(&**set, "", body));
            }
        }
        writes.append(&mut self.decision.writes);
        self.decision.writes = writes;
        self.decision
    }
}

/// The deployment's annotations that its sets carry too.
fn carried(deployment: &WithRaw<Deployment>) -> impl Iterator<Item = (String, Value)> {
    let annotations = deployment.meta().annotations.iter().flatten();
    annotations.filter(|(key, _)| !OWN_ANNOTATIONS.contains(&key.as_str())).map(|(key, value)| (key.clone(), json!(value)))
}

/// What the status is computed from.
pub fn facts<'a>(
    deployment: &'a WithRaw<Deployment>,
    new: Option<&'a Set>,
    sets: &'a [Set],
    step: Step,
    idle: bool,
    now: Timestamp,
) -> Facts<'a> {
    let wanted = wanted(deployment);
    let new = new.map(|set| &set.typed);
    let facts = Facts {
        deployment,
        counts: counts(sets.iter().map(|set| &set.typed), new),
        new,
        sets: sets.iter().map(|set| &set.typed).collect(),
        max_unavailable: wanted.unavailable,
        step,
        idle,
        now,
    };
    debug_assert!(!is_complete(&facts) || facts.counts.available == wanted.replicas);
    facts
}
