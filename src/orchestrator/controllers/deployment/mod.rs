//! Deployment: which ReplicaSets there are and how large each is, one template change after another.

mod arithmetic;
mod decide;
mod status;
mod template;

#[cfg(test)]
mod tests;

pub use arithmetic::resolve;
pub use template::hash;

use super::write::{Write, apply_all};
use super::{Clock, Context, Informers, each, owners, pods, replicaset, work};
use crate::error::Error;
use crate::orchestrator::client::events::{Recorder, Subject};
use crate::orchestrator::client::selector::label_selector_matches;
use crate::orchestrator::client::{Client, Failure, Key, Object, Patch, Queue, WithRaw};
use decide::{Decision, REVISION, Set, decide, facts, split};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use serde_json::json;
use status::{Step, status};
use std::sync::Arc;
use std::time::Duration;

struct Deployments {
    client: Client,
    informers: Informers,
    recorder: Recorder,
    clock: Clock,
}

pub fn start(context: &Context, informers: &Informers, recorder: Recorder) {
    let queue: Queue<Key> = Queue::new();
    let this = Deployments { client: context.client.clone(), informers: informers.clone(), recorder, clock: context.clock.clone() };
    let this = Arc::new(this);
    {
        let queue = queue.clone();
        each(&context.cancel, informers.deployments.changes(), move |change| queue.add(change.key));
    }
    {
        let (queue, deployments) = (queue.clone(), informers.deployments.clone());
        each(&context.cancel, informers.replica_sets.changes(), move |change| {
            for set in change.old.iter().chain(&change.new) {
                match set.controller() {
                    Some(owner) if owner.kind == "Deployment" => queue.add(Key::new(set.namespace(), &owner.name)),
                    Some(_) => {}
                    None => {
                        deployments.list_in(set.namespace()).iter().filter(|d| selects(d, &**set)).for_each(|d| queue.add(Key::of(&**d)));
                    }
                }
            }
        });
    }
    {
        // Recreate waits for the last old pod to be gone.
        let (queue, informers) = (queue.clone(), informers.clone());
        each(&context.cancel, informers.pods.clone().changes(), move |change| {
            let ended = change.new.as_ref().is_none_or(|pod| pods::is_finished(pod));
            let owner = change.old.as_ref().filter(|_| ended).and_then(|pod| pod.controller().cloned());
            if let Some(owner) = owner.filter(|owner| owner.kind == "ReplicaSet")
                && let Some(set) = informers.replica_sets.get(&change.key.namespace, &owner.name)
                && let Some(owner) = set.controller()
            {
                queue.add(Key::new(&change.key.namespace, &owner.name));
            }
        });
    }
    work(context, informers, queue, 8, move |key| {
        let this = this.clone();
        async move { this.sync(key).await }
    });
}

fn selects(deployment: &Deployment, set: &impl Object) -> bool {
    deployment.spec.as_ref().is_some_and(|spec| label_selector_matches(&spec.selector, set.meta().labels.as_ref()))
}

impl Deployments {
    async fn sync(&self, key: Key) -> Result<Option<Duration>, Error> {
        let Some(deployment) = self.informers.deployments.get_key(&key) else { return Ok(None) };
        let sets = self.claim(&deployment).await?;
        let decision = decide(&deployment, &sets, self.old_pods_run(&deployment, &sets));
        let (step, failure) = self.carry_out(&deployment, &sets, &decision).await?;

        let mut version = deployment.version().to_string();
        if let Some(revision) = &decision.revision {
            let patch = json!({"metadata": {"annotations": {REVISION: revision}}});
            let patched = self.client.patch::<Deployment>(&key.namespace, &key.name, "", Patch::Merge, &patch).await;
            match patched {
                // Unchanged but for our annotation: the status below still belongs to what we decided on.
                Ok(patched) if patched.meta().generation == deployment.meta().generation => version = patched.version().into(),
                Ok(_) => return Ok(Some(Duration::from_millis(1))),
                Err(failure) if failure.is_not_found() => return Ok(None),
                Err(failure) => return Err(failure.into()),
            }
        }
        let (new, _) = split(&deployment, &sets);
        let (wanted, again) = status(&facts(&deployment, new.as_ref(), &sets, step, decision.idle, (self.clock)()));
        if replicaset::differs(&json!(deployment.status), &wanted) {
            let body = json!({"metadata": {"resourceVersion": version}, "status": wanted});
            apply_all(&self.client, &[Write::merge::<Deployment>(&*deployment, "status", body)]).await?;
        }
        failure.map_or(Ok(again), |failure| Err(failure.into()))
    }

    /// This deployment's sets, after adoption and release.
    async fn claim(&self, deployment: &WithRaw<Deployment>) -> Result<Vec<Set>, Error> {
        let claim = owners::claim(deployment, owners::candidates(&self.informers.replica_sets, deployment), |set| selects(deployment, set));
        if !claim.adopt.is_empty() && owners::lives::<Deployment>(&self.client, deployment).await? {
            let adopt: Vec<Write> = claim.adopt.iter().map(|set| owners::adopt::<Deployment, ReplicaSet>(deployment, &**set)).collect();
            apply_all(&self.client, &adopt).await?;
        }
        let release: Vec<Write> = claim.release.iter().map(|set| owners::release::<ReplicaSet>(deployment, &**set)).collect();
        apply_all(&self.client, &release).await?;
        Ok(claim.mine)
    }

    fn old_pods_run(&self, deployment: &WithRaw<Deployment>, sets: &[Set]) -> bool {
        let (_, old) = split(deployment, sets);
        old.iter().flat_map(|set| self.informers.pods.by_index("controller", set.uid())).any(|pod| !pods::is_finished(&pod))
    }

    /// Writes, then what to say about progress. A refused create is told in the status before it is tried again.
    async fn carry_out(
        &self,
        deployment: &WithRaw<Deployment>,
        sets: &[Set],
        decision: &Decision,
    ) -> Result<(Step, Option<Failure>), Error> {
        let subject = Subject::of(&deployment.typed);
        for write in &decision.writes {
            match write.apply(&self.client).await {
                Ok(()) => {}
                Err(failure) if failure.is_terminating() => return Ok((Step::None, None)),
                Err(failure) if failure.is_not_found() => {}
                Err(failure) if failure.is_already_exists() => return self.collision(deployment, decision).await,
                Err(failure) if matches!(write, Write::Create { .. }) => {
                    self.recorder.warning(subject, "ReplicaSetCreateError", format!("Failed to create new replica set: {failure}"));
                    return Ok((Step::CreateFailed(failure.to_string()), Some(failure)));
                }
                Err(failure) => return Err(failure.into()),
            }
        }
        for message in &decision.events {
            self.recorder.normal(subject.clone(), "ScalingReplicaSet", message.clone());
        }
        let step = match &decision.step {
            Step::Created(name) => Step::Created(name.clone()),
            Step::Found(name) if !sets.is_empty() => Step::Found(name.clone()),
            _ => Step::None,
        };
        Ok((step, None))
    }

    /// The name is taken: by ourselves a moment ago (the cache will show it), or by a hash collision (the next name differs).
    async fn collision(&self, deployment: &WithRaw<Deployment>, decision: &Decision) -> Result<(Step, Option<Failure>), Error> {
        let name = decision.create.as_deref().unwrap_or_default();
        let held = self.client.get_value(&crate::orchestrator::client::path::<ReplicaSet>(deployment.namespace(), name, "")).await?;
        let Some(held) = held else {
            return Err(Error::conflict(format!("could not create the replica set {name}: it exists and then it does not")));
        };
        let ours = held["metadata"]["ownerReferences"].as_array().into_iter().flatten().any(|owner| owner["uid"] == deployment.uid());
        if ours && template::same(&deployment.value()["spec"]["template"], &held["spec"]["template"]) {
            return Ok((Step::Created(name.into()), None));
        }
        let count = deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0) + 1;
        Ok((Step::CollisionCount(count), None))
    }
}
