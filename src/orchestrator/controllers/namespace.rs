//! A namespace on its way out: everything in it is deleted, then the namespace itself.

use super::discovery::{self, Resource};
use super::{Context, Informers, each, work};
use crate::error::Error;
use crate::orchestrator::client::{Client, Delete, Failure, Key, Object, Propagation, Queue, Selector, path};
use futures::future::join_all;
use k8s_openapi::api::core::v1::Namespace;
use serde_json::{Value, json};
use std::time::Duration;

const FINALIZER: &str = "kubernetes";

/// Something other than deletion events may empty it (a finalizer's owner), so it is looked at again after this long.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The order in which kinds go: what makes things before what it makes, so that nothing is made again in vain.
fn order(resource: &Resource) -> u8 {
    match resource.kind.as_str() {
        "Deployment" | "DaemonSet" | "StatefulSet" | "CronJob" => 0,
        "ReplicaSet" | "Job" | "Service" => 1,
        "Pod" => 2,
        _ => 3,
    }
}

/// What is left to do with one object found there: delete it unless it is on its way.
pub fn decide(object: &Value) -> Option<Delete> {
    let metadata = &object["metadata"];
    metadata["deletionTimestamp"].is_null().then(|| Delete {
        uid: metadata["uid"].as_str().map(str::to_string),
        grace_seconds: None,
        propagation: Some(Propagation::Background),
    })
}

pub fn start(context: &Context, informers: &Informers) {
    let queue: Queue<Key> = Queue::new();
    {
        let queue = queue.clone();
        each(&context.cancel, informers.namespaces.changes(), move |change| {
            if change.new.as_ref().is_some_and(|namespace| namespace.deleting()) {
                queue.add(change.key);
            }
        });
    }
    {
        // Pods take their time to end: the last one to go is the moment to go on.
        let (queue, namespaces, pods) = (queue.clone(), informers.namespaces.clone(), informers.pods.clone());
        each(&context.cancel, informers.pods.changes(), move |change| {
            let namespace = &change.key.namespace;
            if change.new.is_none()
                && namespaces.get("", namespace).is_some_and(|held| held.deleting())
                && pods.list_in(namespace).is_empty()
            {
                queue.add(Key::new("", namespace));
            }
        });
    }
    let (client, all) = (context.client.clone(), informers.clone());
    work(context, informers, queue, 4, move |key| {
        let (client, all) = (client.clone(), all.clone());
        async move {
            match all.namespaces.get_key(&key) {
                Some(namespace) if namespace.deleting() => empty(&client, &namespace).await,
                _ => Ok(None),
            }
        }
    });
}

async fn empty(client: &Client, namespace: &Namespace) -> Result<Option<Duration>, Error> {
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.clone()).unwrap_or_default();
    if !finalizers.iter().any(|held| held == FINALIZER) {
        return Ok(None);
    }
    let mut resources: Vec<Resource> = discovery::resources(client).await?.into_iter().filter(|resource| resource.namespaced).collect();
    resources.sort_by_key(order);
    let mut left = Vec::new();
    for resource in &resources {
        let remaining = clear(client, resource, namespace.name()).await?;
        if remaining > 0 {
            left.push(format!("{} has {remaining} resource instances", resource.plural));
        }
    }
    if !left.is_empty() {
        tell(client, namespace, &left.join(", ")).await?;
        return Ok(Some(LOOK_AGAIN));
    }
    finalize(client, namespace.name()).await?;
    Ok(None)
}

/// Deletes the kind's objects; returns how many are still there.
async fn clear(client: &Client, resource: &Resource, namespace: &str) -> Result<usize, Failure> {
    let collection = resource.path(namespace, "");
    let found = client.list_values(&collection, &Selector::all()).await?.items;
    if found.is_empty() {
        return Ok(0);
    }
    for batch in found.chunks(50) {
        let deletes = batch.iter().filter_map(|object| Some((object["metadata"]["name"].as_str()?, decide(object)?)));
        let outcomes =
            join_all(deletes.map(|(name, delete)| async move { client.delete_value(&resource.path(namespace, name), &delete).await }));
        for outcome in outcomes.await {
            match outcome {
                Err(failure) if !failure.is_conflict() => return Err(failure),
                _ => {}
            }
        }
    }
    Ok(client.list_values(&collection, &Selector::all()).await?.items.len())
}

/// What it waits for, for `kubectl describe namespace`.
async fn tell(client: &Client, namespace: &Namespace, left: &str) -> Result<(), Failure> {
    let message = format!("Some resources are remaining: {left}");
    let held = namespace.status.iter().flat_map(|status| status.conditions.iter().flatten());
    if held.into_iter().any(|condition| condition.type_ == "NamespaceContentRemaining" && condition.message.as_deref() == Some(&message)) {
        return Ok(());
    }
    let condition = json!({
        "type": "NamespaceContentRemaining", "status": "True", "reason": "SomeResourcesRemain", "message": message,
        "lastTransitionTime": crate::orchestrator::client::time::now_text(),
    });
    let body = json!({"status": {"conditions": [condition]}});
    match client.patch_value(&path::<Namespace>("", namespace.name(), "status"), crate::orchestrator::client::Patch::Merge, &body).await {
        Err(failure) if !failure.is_not_found() => Err(failure),
        _ => Ok(()),
    }
}

async fn finalize(client: &Client, name: &str) -> Result<(), Failure> {
    let path = path::<Namespace>("", name, "");
    let Some(mut live) = client.get_value(&path).await? else { return Ok(()) };
    if live["metadata"]["deletionTimestamp"].is_null() {
        return Ok(());
    }
    if let Some(finalizers) = live["spec"]["finalizers"].as_array_mut() {
        finalizers.retain(|held| held != FINALIZER);
    }
    match client.replace_value(&format!("{path}/finalize"), &live).await {
        Err(failure) if !failure.is_not_found() => Err(failure),
        _ => Ok(()),
    }
}
