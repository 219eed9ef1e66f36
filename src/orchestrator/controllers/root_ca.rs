//! `kube-root-ca.crt` in every namespace: what pods check the API's certificate with.

use super::write::{Write, apply_all};
use super::{Context, Informers, ROOT_CA, each, work};
use crate::orchestrator::client::{Key, Object, Queue};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use serde_json::json;

pub fn decide(namespace: &Namespace, held: Option<&ConfigMap>, ca_pem: &str) -> Vec<Write> {
    if namespace.deleting() {
        return Vec::new();
    }
    let data = json!({"ca.crt": ca_pem});
    match held {
        None => {
            let about = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal \
                         service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";
            let metadata = json!({"name": ROOT_CA, "namespace": namespace.name(), "annotations": {"kubernetes.io/description": about}});
            vec![Write::create::<ConfigMap>(
                namespace.name(),
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}),
            )]
        }
        Some(map) if json!(map.data) == data => Vec::new(),
        Some(map) => {
            let mut wanted = data;
            for key in map.data.iter().flatten().map(|(key, _)| key).filter(|key| *key != "ca.crt") {
                wanted[key] = serde_json::Value::Null;
            }
            vec![Write::merge_at::<ConfigMap>(map, "", json!({"data": wanted}))]
        }
    }
}

pub fn start(context: &Context, informers: &Informers) {
    let queue: Queue<Key> = Queue::new();
    {
        let queue = queue.clone();
        each(&context.cancel, informers.namespaces.changes(), move |change| queue.add(change.key));
    }
    {
        let queue = queue.clone();
        each(&context.cancel, informers.root_ca_maps.changes(), move |change| queue.add(Key::new("", change.key.namespace)));
    }
    let (client, all, ca_pem) = (context.client.clone(), informers.clone(), context.ca_pem.clone());
    work(context, informers, queue, 4, move |key| {
        let (client, all, ca_pem) = (client.clone(), all.clone(), ca_pem.clone());
        async move {
            let Some(namespace) = all.namespaces.get_key(&key) else { return Ok(None) };
            let writes = decide(&namespace, all.root_ca_maps.get(&key.name, ROOT_CA).as_deref(), &ca_pem);
            match apply_all(&client, &writes).await {
                Err(failure) if failure.is_terminating() || failure.is_not_found() => Ok(None),
                outcome => Ok(outcome.map(|()| None)?),
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_certificate_is_put_back_and_nothing_else_stays_beside_it() {
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": "shop"}})).unwrap();
        assert!(matches!(&decide(&namespace, None, "PEM")[..], [Write::Create { body, .. }] if body["data"]["ca.crt"] == "PEM"));
        let map =
            |data| serde_json::from_value::<ConfigMap>(json!({"metadata": {"name": ROOT_CA, "namespace": "shop"}, "data": data})).unwrap();
        assert_eq!(decide(&namespace, Some(&map(json!({"ca.crt": "PEM"}))), "PEM"), []);
        let writes = decide(&namespace, Some(&map(json!({"ca.crt": "OLD", "x": "y"}))), "PEM");
        assert!(matches!(&writes[..], [Write::Patch { body, .. }] if body["data"] == json!({"ca.crt": "PEM", "x": null})));
        let leaving: Namespace =
            serde_json::from_value(json!({"metadata": {"name": "shop", "deletionTimestamp": "2026-01-01T00:00:00Z"}})).unwrap();
        assert_eq!(decide(&leaving, None, "PEM"), []);
    }
}
