//! Services of type LoadBalancer: what the infrastructure loop is to make for them, and what it tells back.
//!
//! The finalizer is set before the loop hears of a Service, and taken away only when the loop says that its load balancer is gone, so none
//! is ever left behind.

use super::write::{Write, apply_all};
use super::{Context, Informers, each, work};
use crate::blueprint::schema::OF_SERVICE;
use crate::error::Result;
use crate::orchestrator::client::{Client, Key, Object, Queue};
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

pub const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    pub port: u16,
    /// `TCP` or `UDP`.
    pub protocol: String,
    pub node_port: u16,
}

/// A load balancer that must exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// `svc-<first 8 of the Service's uid>`.
    pub name: String,
    pub service: Key,
    pub listeners: Vec<Listener>,
}

/// The logical name of a Service's load balancer.
pub fn name_of(service: &Service) -> String {
    format!("{OF_SERVICE}{}", service.uid().chars().take(8).collect::<String>())
}

/// Everything that must exist, by Service. What is not named here and was made for a Service must go.
pub fn wanted(services: &[Arc<Service>]) -> Vec<Wanted> {
    services.iter().filter(|service| wants(service) && service.has_finalizer(FINALIZER)).filter_map(|service| one(service)).collect()
}

fn wants(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    !service.deleting()
        && spec.and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer")
        && spec.and_then(|spec| spec.load_balancer_class.as_deref()).is_none()
}

fn one(service: &Service) -> Option<Wanted> {
    let ports = service.spec.as_ref()?.ports.iter().flatten();
    let listeners: Option<Vec<Listener>> = ports
        .map(|port| {
            let node_port = port.node_port.filter(|number| *number > 0)?;
            Some(Listener {
                port: port.port.try_into().ok()?,
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                node_port: node_port.try_into().ok()?,
            })
        })
        .collect();
    let listeners = listeners.filter(|listeners| !listeners.is_empty())?;
    Some(Wanted { name: name_of(service), service: Key::of(service), listeners })
}

/// What to write for one Service. `existing` maps the load balancers that are there to their addresses (`None` while being made).
pub fn decide(service: &Service, existing: &BTreeMap<String, Option<String>>) -> Vec<Write> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let held = json!(status.and_then(|status| status.ingress.clone()).unwrap_or_default());
    if wants(service) {
        let Some(Some(address)) = existing.get(&name_of(service)) else { return Vec::new() };
        let ingress = match address.parse::<std::net::IpAddr>() {
            Ok(ip) => json!([{"ip": ip.to_string(), "ipMode": "VIP"}]),
            Err(_) => json!([{"hostname": address}]),
        };
        if held == ingress {
            return Vec::new();
        }
        return vec![Write::merge_at::<Service>(service, "status", json!({"status": {"loadBalancer": {"ingress": ingress}}}))];
    }
    if !service.has_finalizer(FINALIZER) || existing.contains_key(&name_of(service)) {
        return Vec::new();
    }
    let keep: Vec<&String> = service.metadata.finalizers.iter().flatten().filter(|name| *name != FINALIZER).collect();
    let mut writes = Vec::new();
    if held != json!([]) && !service.deleting() {
        writes.push(Write::merge::<Service>(service, "status", json!({"status": {"loadBalancer": {"ingress": null}}})));
    }
    writes.push(Write::merge::<Service>(service, "", json!({"metadata": {"uid": service.uid(), "finalizers": keep}})));
    writes
}

/// Tells Services what the infrastructure loop observed: addresses of what is there, absence of what is gone.
pub async fn report(client: &Client, services: &[Arc<Service>], existing: &BTreeMap<String, Option<String>>) -> Result<()> {
    for service in services {
        match apply_all(client, &decide(service, existing)).await {
            // Our picture of the Service is old; the next round has a newer one.
            Err(failure) if failure.is_conflict() => {}
            outcome => outcome?,
        }
    }
    Ok(())
}

/// Puts the finalizer on, before anything is made for the Service.
fn finalize(service: &Service) -> Vec<Write> {
    if !wants(service) || service.has_finalizer(FINALIZER) {
        return Vec::new();
    }
    let mut finalizers: Vec<Value> = service.metadata.finalizers.iter().flatten().map(|name| json!(name)).collect();
    finalizers.push(json!(FINALIZER));
    vec![Write::merge_at::<Service>(service, "", json!({"metadata": {"finalizers": finalizers}}))]
}

pub(super) fn start(context: &Context, informers: &Informers) {
    let queue: Queue<Key> = Queue::new();
    {
        let queue = queue.clone();
        each(&context.cancel, informers.services.changes(), move |change| queue.add(change.key));
    }
    let (client, services) = (context.client.clone(), informers.services.clone());
    work(context, informers, queue, 2, move |key| {
        let (client, services) = (client.clone(), services.clone());
        async move {
            let Some(service) = services.get_key(&key) else { return Ok(None) };
            Ok(apply_all(&client, &finalize(&service)).await.map(|()| None)?)
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(more: Value) -> Arc<Service> {
        let mut object = json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "0123456789", "finalizers": [FINALIZER]},
            "spec": {"type": "LoadBalancer", "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]},
        });
        json_patch::merge(&mut object, &more);
        Arc::new(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn only_finalized_services_with_node_ports_are_asked_for() {
        let listener = Listener { port: 80, protocol: "TCP".into(), node_port: 30080 };
        let whole = Wanted { name: "svc-01234567".into(), service: Key::new("shop", "web"), listeners: vec![listener] };
        let check = |more: Value, expected: Vec<Wanted>| assert_eq!(wanted(&[service(more)]), expected);
        check(json!({}), vec![whole]);
        check(json!({"metadata": {"finalizers": null}}), vec![]);
        check(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}), vec![]);
        check(json!({"spec": {"type": "NodePort"}}), vec![]);
        check(json!({"spec": {"ports": [{"port": 80}]}}), vec![]);
        check(json!({"spec": {"loadBalancerClass": "other"}}), vec![]);
    }

    #[test]
    fn the_finalizer_stays_until_the_load_balancer_is_gone() {
        let there = |address: Option<&str>| BTreeMap::from([("svc-01234567".to_string(), address.map(str::to_string))]);
        let leaving = service(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
        assert_eq!(decide(&leaving, &there(Some("10.0.0.9"))), []);
        assert!(
            matches!(&decide(&leaving, &BTreeMap::new())[..], [Write::Patch { body, .. }] if body["metadata"]["finalizers"] == json!([]))
        );
        assert_eq!(decide(&service(json!({})), &there(None)), []);
        let told = |address: &str| match &decide(&service(json!({})), &there(Some(address)))[..] {
            [Write::Patch { body, .. }] => body["status"]["loadBalancer"]["ingress"].clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(told("10.0.0.9"), json!([{"ip": "10.0.0.9", "ipMode": "VIP"}]));
        assert_eq!(told("lb.example"), json!([{"hostname": "lb.example"}]));
        assert!(matches!(&finalize(&service(json!({"metadata": {"finalizers": null}})))[..], [Write::Patch { .. }]));
    }
}
