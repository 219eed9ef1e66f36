//! Pods that nobody will ever finish: bound to a node that no longer exists, or on their way out without ever having been bound.

use super::{Context, Informers, each, pods, work};
use crate::orchestrator::client::{Delete, Key, Object, Queue};
use k8s_openapi::api::core::v1::{Node, Pod};

/// Whether the pod must be removed at once, given that its node exists or not (known for certain).
pub fn decide(pod: &Pod, node_exists: bool) -> bool {
    if pods::node(pod).is_empty() { pod.deleting() } else { !node_exists }
}

pub fn start(context: &Context, informers: &Informers) {
    let queue: Queue<Key> = Queue::new();
    {
        let (queue, nodes) = (queue.clone(), informers.nodes.clone());
        each(&context.cancel, informers.pods.changes(), move |change| {
            let Some(pod) = &change.new else { return };
            if decide(pod, nodes.get("", pods::node(pod)).is_some()) {
                queue.add(change.key);
            }
        });
    }
    {
        let (queue, pods) = (queue.clone(), informers.pods.clone());
        each(&context.cancel, informers.nodes.changes(), move |change| {
            if change.new.is_none() {
                pods.by_index("node", &change.key.name).iter().for_each(|pod| queue.add(Key::of(&**pod)));
            }
        });
    }
    let (client, all) = (context.client.clone(), informers.clone());
    work(context, informers, queue, 4, move |key| {
        let (client, all) = (client.clone(), all.clone());
        async move {
            let Some(pod) = all.pods.get_key(&key) else { return Ok(None) };
            let name = pods::node(&pod);
            // Our cache may lag behind a node that has just registered: absence must be certain.
            let exists = all.nodes.get("", name).is_some() || (!name.is_empty() && client.get::<Node>("", name).await?.is_some());
            if !decide(&pod, exists) {
                return Ok(None);
            }
            let delete = Delete { uid: Some(pod.uid().into()), grace_seconds: Some(0), propagation: None };
            match client.delete::<Pod>(&key.namespace, &key.name, &delete).await {
                Err(failure) if failure.is_conflict() => Ok(None),
                outcome => {
                    outcome?;
                    tracing::info!(pod = %key, node = name, "removed a pod whose node is gone");
                    Ok(None)
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_pods_that_cannot_end_by_themselves_are_removed() {
        let check = |node: &str, deleting: bool, exists: bool, expected: bool| {
            let deleted = deleting.then_some("2026-01-01T00:00:00Z");
            let pod = json!({"metadata": {"name": "p", "deletionTimestamp": deleted}, "spec": {"nodeName": node, "containers": []}});
            assert_eq!(decide(&serde_json::from_value(pod).unwrap(), exists), expected, "{node} {deleting} {exists}");
        };
        check("n", false, true, false);
        check("n", true, true, false);
        check("n", false, false, true);
        check("", false, false, false);
        check("", true, false, true);
    }
}
