//! Makes and deletes pods for an owner, keeping count of what is not yet seen.

use super::expectations::Expectations;
use super::write::{Write, apply_all};
use super::{Context, each, owners};
use crate::orchestrator::client::events::{Recorder, Subject};
use crate::orchestrator::client::{Change, Client, Failure, Informer, Key, Kind, Object, Queue, WithRaw, collect, path};
use futures::future::join_all;
use http::Method;
use k8s_openapi::Resource;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use std::sync::Arc;

/// A pod as the template says, managed by `owner`, named `<prefix><random>`.
pub fn from_template<O: Kind>(owner: &impl Object, template: &Value) -> Value {
    let mut metadata = json!({"generateName": format!("{}-", owner.name()), "ownerReferences": [owners::reference::<O>(owner)]});
    for field in ["labels", "annotations", "finalizers"] {
        if let Some(value) = template["metadata"].get(field) {
            metadata[field] = value.clone();
        }
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
}

/// What went wrong, for the owner's ReplicaFailure condition.
pub struct Trouble {
    pub reason: &'static str,
    pub failure: Failure,
}

#[derive(Clone)]
pub struct PodControl {
    pub client: Client,
    pub recorder: Recorder,
    pub expectations: Expectations,
}

/// Pods asked for at once per owner and turn: upstream's burst.
pub const BURST: usize = 500;

impl PodControl {
    /// The owner's pods that `counts`. Orphans among those become its own; pods that it no longer selects are let go.
    pub async fn claim<O: Kind>(
        &self,
        owner: &impl Object,
        all: &Informer<Pod>,
        selects: impl Fn(&Pod) -> bool,
        counts: impl Fn(&Pod) -> bool,
    ) -> Result<Vec<Arc<Pod>>, Failure> {
        let claim = owners::claim(owner, owners::candidates(all, owner), selects);
        let (mut mine, mut adopt) = (claim.mine, claim.adopt);
        mine.retain(|pod| counts(pod));
        adopt.retain(|pod| counts(pod));
        if !adopt.is_empty() && owners::lives::<O>(&self.client, owner).await? {
            for pod in adopt {
                owners::adopt::<O, Pod>(owner, &*pod).apply(&self.client).await?;
                mine.push(pod);
            }
        }
        let release: Vec<Write> = claim.release.iter().map(|pod| owners::release::<Pod>(owner, &**pod)).collect();
        apply_all(&self.client, &release).await?;
        Ok(mine)
    }

    /// In batches of 1, 2, 4, ...: a template that the API refuses costs one request, not hundreds.
    pub async fn create(&self, owner: &impl Object, subject: &Subject, bodies: Vec<Value>) -> Result<(), Trouble> {
        let mut left = &bodies[..];
        let mut size = 1;
        self.expectations.expect_creates(owner.uid(), left.len());
        while !left.is_empty() {
            let (batch, rest) = left.split_at(size.min(left.len()));
            let outcomes = join_all(batch.iter().map(|body| self.client.create::<Pod>(owner.namespace(), body))).await;
            let mut trouble = None;
            for outcome in outcomes {
                match outcome {
                    Ok(pod) => self.recorder.normal(subject.clone(), "SuccessfulCreate", format!("Created pod: {}", pod.name())),
                    Err(failure) => {
                        self.expectations.created(owner.uid(), 1);
                        trouble = Some(failure);
                    }
                }
            }
            if let Some(failure) = trouble {
                self.expectations.created(owner.uid(), rest.len());
                // The namespace goes away, and with it the owner.
                if failure.is_terminating() {
                    return Ok(());
                }
                self.recorder.warning(subject.clone(), "FailedCreate", format!("Error creating: {failure}"));
                return Err(Trouble { reason: "FailedCreate", failure });
            }
            left = rest;
            size *= 2;
        }
        Ok(())
    }

    pub async fn delete(&self, owner: &impl Object, subject: &Subject, pods: &[Arc<Pod>]) -> Result<(), Trouble> {
        for pod in pods {
            self.expectations.expect_delete(owner.uid(), pod.uid());
        }
        let outcomes = join_all(pods.iter().map(|pod| async move {
            let outcome = self.delete_present(pod).await;
            (pod, outcome)
        }));
        let mut trouble = None;
        for (pod, outcome) in outcomes.await {
            match outcome {
                Ok(()) => self.recorder.normal(subject.clone(), "SuccessfulDelete", format!("Deleted pod: {}", pod.name())),
                // Gone already, or another pod has the name now: its event may have come before it was expected.
                Err(failure) if failure.is_not_found() || failure.is_conflict() => self.expectations.deleted(owner.uid(), pod.uid()),
                Err(failure) => {
                    self.expectations.deleted(owner.uid(), pod.uid());
                    trouble = Some(failure);
                }
            }
        }
        match trouble {
            None => Ok(()),
            Some(failure) => {
                self.recorder.warning(subject.clone(), "FailedDelete", format!("Error deleting: {failure}"));
                Err(Trouble { reason: "FailedDelete", failure })
            }
        }
    }

    /// Deletes this very pod. Other than `Client::delete` it tells when there is none: then no event of its end need follow.
    async fn delete_present(&self, pod: &Pod) -> Result<(), Failure> {
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": pod.uid()}});
        let path = path::<Pod>(pod.namespace(), pod.name(), "");
        let answer = self.client.open(Method::DELETE, &path, Some(&options), "application/json").await?;
        collect(answer.into_body()).await?;
        Ok(())
    }
}

/// Queues owners of kind `O` when they or their pods change, and those that select a pod without an owner.
pub fn follow<O: Kind>(
    context: &Context,
    owners: &Informer<WithRaw<O>>,
    pods: &Informer<Pod>,
    expectations: &Expectations,
    queue: &Queue<Key>,
    selects: fn(&O, &Pod) -> bool,
) {
    {
        let (queue, expectations) = (queue.clone(), expectations.clone());
        each(&context.cancel, owners.changes(), move |change| {
            if let (Some(old), None) = (&change.old, &change.new) {
                expectations.forget(old.uid());
            }
            queue.add(change.key);
        });
    }
    let (queue, owners, expectations) = (queue.clone(), owners.clone(), expectations.clone());
    each(&context.cancel, pods.changes(), move |change| {
        observe::<O>(
            &change,
            &expectations,
            |namespace, name| queue.add(Key::new(namespace, name)),
            |pod| owners.list_in(pod.namespace()).iter().filter(|owner| selects(owner, pod)).for_each(|owner| queue.add(Key::of(&**owner))),
        );
    });
}

/// Settles expectations by a pod's change and tells the owners of kind `O` that are concerned; `orphan` is called for a pod without any.
fn observe<O: Resource>(change: &Change<Pod>, expectations: &Expectations, mut owner: impl FnMut(&str, &str), orphan: impl FnOnce(&Pod)) {
    let managed = |pod: &Arc<Pod>| pod.controller().filter(|held| held.kind == O::KIND && held.api_version == O::API_VERSION).cloned();
    let replaced = matches!((&change.old, &change.new), (Some(old), Some(new)) if old.uid() != new.uid());
    if let Some(old) = &change.old
        && let Some(held) = managed(old)
    {
        let gone = replaced || change.new.as_ref().is_none_or(|new| new.deleting());
        if gone {
            expectations.deleted(&held.uid, old.uid());
        }
        owner(old.namespace(), &held.name);
    }
    if let Some(new) = &change.new {
        match managed(new) {
            Some(held) => {
                if change.old.is_none() || replaced {
                    expectations.created(&held.uid, 1);
                    if new.deleting() {
                        expectations.deleted(&held.uid, new.uid());
                    }
                }
                owner(new.namespace(), &held.name);
            }
            None if new.controller().is_none() && !new.deleting() => orphan(new),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::client::{Body, Transport};
    use async_trait::async_trait;
    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::{BodyExt, Full};
    use k8s_openapi::api::apps::v1::ReplicaSet;

    /// Answers every request with one status.
    struct Answer(u16);

    #[async_trait]
    impl Transport for Answer {
        async fn call(&self, request: Request<Bytes>) -> crate::error::Result<Response<Body>> {
            assert_eq!((request.method(), request.uri().path()), (&Method::DELETE, "/api/v1/namespaces/shop/pods/web-1"));
            let options: Value = serde_json::from_slice(request.body()).unwrap();
            assert_eq!(options["preconditions"]["uid"], "p");
            let body = Full::new(Bytes::from_static(b"{}")).map_err(|never| match never {}).boxed_unsync();
            Ok(Response::builder().status(self.0).body(body).unwrap())
        }
    }

    /// (the delete went well, its event is still waited for)
    async fn check(status: u16, expected: (bool, bool)) {
        let owner: ReplicaSet = serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "shop", "uid": "o"}})).unwrap();
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "web-1", "namespace": "shop", "uid": "p"}})).unwrap();
        let expectations = Expectations::default();
        let client = Client::new(Arc::new(Answer(status)));
        let control = PodControl { client, recorder: Recorder::silent(), expectations: expectations.clone() };
        let outcome = control.delete(&owner, &Subject::of(&owner), &[Arc::new(pod)]).await;
        assert_eq!((outcome.is_ok(), expectations.unmet("o").is_some()), expected, "{status}");
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_delete_that_the_api_took_is_waited_for() {
        check(200, (true, true)).await;
        check(404, (true, false)).await;
        check(409, (true, false)).await;
        check(500, (false, false)).await;
    }
}
