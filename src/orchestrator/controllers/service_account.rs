//! The `default` ServiceAccount of every namespace.

use super::write::{Write, apply_all};
use super::{Context, Informers, each, work};
use crate::orchestrator::client::{Key, Object, Queue};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use serde_json::json;

pub fn decide(namespace: &Namespace, held: Option<&ServiceAccount>) -> Vec<Write> {
    if namespace.deleting() || held.is_some() {
        return Vec::new();
    }
    let name = namespace.name();
    let body = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}});
    vec![Write::create::<ServiceAccount>(name, body)]
}

pub fn start(context: &Context, informers: &Informers) {
    let queue: Queue<Key> = Queue::new();
    {
        let queue = queue.clone();
        each(&context.cancel, informers.namespaces.changes(), move |change| queue.add(change.key));
    }
    {
        let queue = queue.clone();
        each(&context.cancel, informers.service_accounts.changes(), move |change| {
            if change.new.is_none() && change.key.name == "default" {
                queue.add(Key::new("", change.key.namespace));
            }
        });
    }
    let (client, all) = (context.client.clone(), informers.clone());
    work(context, informers, queue, 4, move |key| {
        let (client, all) = (client.clone(), all.clone());
        async move {
            let Some(namespace) = all.namespaces.get_key(&key) else { return Ok(None) };
            let writes = decide(&namespace, all.service_accounts.get(&key.name, "default").as_deref());
            match apply_all(&client, &writes).await {
                Err(failure) if failure.is_terminating() || failure.is_not_found() => Ok(None),
                outcome => Ok(outcome.map(|()| None)?),
            }
        }
    });
}
