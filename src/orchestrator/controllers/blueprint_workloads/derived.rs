//! What a blueprint asks of the cluster besides its workloads: a StorageClass per filesystem, a NodePort Service per listener.

use super::super::volume::PROVISIONER;
use crate::blueprint::Spec;
use crate::orchestrator::client::Object;
use k8s_openapi::api::core::v1::{Service, ServicePort};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

pub const BLUEPRINT: &str = "kprov.dev/blueprint";
pub const LOAD_BALANCER: &str = "kprov.dev/load-balancer";

pub fn storage_class(blueprint: &str, filesystem: &str) -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": filesystem, "labels": {BLUEPRINT: blueprint}},
        "provisioner": PROVISIONER, "reclaimPolicy": "Delete", "volumeBindingMode": "Immediate",
    })
}

/// One Service per listener at the node port that the provider's load balancers send to; and what cannot be made yet, and why.
/// `delivered` are the load balancers whose packets arrive with their own address and port, by name.
pub fn node_ports(
    blueprint: &str,
    spec: &Spec,
    delivered: &BTreeMap<String, String>,
    service: impl Fn(&str, &str) -> Option<Arc<Service>>,
) -> (Vec<Value>, Vec<String>) {
    let (mut made, mut missing) = (Vec::new(), Vec::new());
    for (balancer, listener, node_port) in spec.node_ports() {
        let shown = format!("load balancer {} port {}", balancer.name, listener.port);
        let Some((namespace, name)) = listener.service.split_once('/') else {
            missing.push(format!("{shown}: {} is not namespace/service", listener.service));
            continue;
        };
        let Some(target) = service(namespace, name).filter(|target| !target.deleting()) else {
            missing.push(format!("{shown}: the service {} is not there yet", listener.service));
            continue;
        };
        let wanted = i32::from(listener.target_port.unwrap_or(80));
        let spec = target.spec.clone().unwrap_or_default();
        let Some(port) = spec.ports.iter().flatten().find(|port| port.port == wanted) else {
            missing.push(format!("{shown}: the service {} has no port {wanted}", listener.service));
            continue;
        };
        if spec.selector.as_ref().is_none_or(|selector| selector.is_empty()) {
            missing.push(format!("{shown}: the service {} selects no pods", listener.service));
            continue;
        }
        let affinity = spec.session_affinity.unwrap_or_else(|| "None".into());
        let mut service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": name_of(&balancer.name, listener.port), "namespace": namespace,
                "labels": {BLUEPRINT: blueprint, LOAD_BALANCER: balancer.name},
            },
            "spec": {
                "type": "NodePort", "selector": spec.selector, "sessionAffinity": affinity,
                "ports": [node_port_of(port, node_port)],
            },
        });
        if let Some(config) = spec.session_affinity_config {
            service["spec"]["sessionAffinityConfig"] = json!(config);
        }
        if let Some(address) = delivered.get(&balancer.name) {
            let shown = &mut service["spec"]["ports"][0];
            if shown["targetPort"].is_null() {
                shown["targetPort"] = json!(port.port);
            }
            shown["port"] = json!(listener.port);
            service["spec"]["externalIPs"] = json!([address]);
        }
        made.push(service);
    }
    (made, missing)
}

/// Services of listeners that the blueprint no longer has, or wants at another node port: they go before others come, because a node port
/// is one Service's. Those whose target is not there stay.
pub fn outdated(blueprint: &str, spec: &Spec, services: &[Arc<Service>]) -> Vec<Arc<Service>> {
    let wanted: BTreeMap<(&str, String), u16> = spec
        .node_ports()
        .filter_map(|(balancer, listener, node_port)| {
            Some(((listener.service.split_once('/')?.0, name_of(&balancer.name, listener.port)), node_port))
        })
        .collect();
    let holds = |service: &Service, node_port: u16| {
        let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
        ports.into_iter().flatten().all(|port| port.node_port == Some(i32::from(node_port)))
    };
    let ours = |service: &&Arc<Service>| {
        service.label(BLUEPRINT) == Some(blueprint) && service.label(LOAD_BALANCER).is_some() && !service.deleting()
    };
    let is_right = |service: &Service| {
        wanted.get(&(service.namespace(), service.name().to_string())).is_some_and(|node_port| holds(service, *node_port))
    };
    services.iter().filter(ours).filter(|service| !is_right(service)).cloned().collect()
}

fn node_port_of(port: &ServicePort, node_port: u16) -> Value {
    let mut copied =
        json!({"name": "listener", "port": port.port, "protocol": port.protocol.as_deref().unwrap_or("TCP"), "nodePort": node_port});
    if let Some(target) = &port.target_port {
        copied["targetPort"] = json!(target);
    }
    copied
}

fn name_of(balancer: &str, port: u16) -> String {
    format!("kprov-{balancer}-{port}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listeners_service_goes_when_its_node_port_is_anothers_now() {
        let spec = |listeners: Value| -> Spec {
            serde_json::from_value(json!({"provider": "local", "machines": [], "loadBalancers": [{"name": "web", "listeners": listeners}]}))
                .unwrap()
        };
        let held = |name: &str, node_port: u16| -> Arc<Service> {
            let labels = json!({BLUEPRINT: "shop", LOAD_BALANCER: "web"});
            let metadata = json!({"name": name, "namespace": "shop", "labels": labels});
            Arc::new(
                serde_json::from_value(json!({"metadata": metadata, "spec": {"ports": [{"port": 80, "nodePort": node_port}]}})).unwrap(),
            )
        };
        let there = [held("kprov-web-80", 32000), held("kprov-web-443", 32001)];
        let check = |listeners: Value, expected: &[&str]| {
            let gone = outdated("shop", &spec(listeners), &there);
            assert_eq!(gone.iter().map(|service| service.name()).collect::<Vec<_>>(), expected);
        };
        let (http, tls) = (json!({"port": 80, "service": "shop/web"}), json!({"port": 443, "service": "shop/web"}));
        check(json!([http, tls]), &[]);
        check(json!([http]), &["kprov-web-443"]);
        check(json!([tls]), &["kprov-web-80", "kprov-web-443"]);
        check(json!([tls, http]), &["kprov-web-80", "kprov-web-443"]);
        check(json!([{"port": 81, "service": "shop/web"}, tls]), &["kprov-web-80"]);
        assert!(outdated("other", &spec(json!([])), &there).is_empty(), "another blueprint's are not ours");
    }

    #[test]
    fn a_listener_becomes_a_node_port_with_the_targets_selector() {
        let spec: Spec = serde_json::from_value(json!({
            "provider": "local", "machines": [],
            "loadBalancers": [{"name": "web", "listeners": [{"port": 80, "service": "shop/web"}, {"port": 443, "service": "shop/none"}, {"port": 81, "service": "shop/web", "targetPort": 9}]}],
        }))
        .unwrap();
        let web = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}});
        let (made, missing) = node_ports("shop", &spec, &BTreeMap::new(), |_, name| {
            (name == "web").then(|| Arc::new(serde_json::from_value(web.clone()).unwrap()))
        });
        assert_eq!(made.len(), 1);
        assert_eq!(
            made[0]["spec"]["ports"],
            json!([{"name": "listener", "port": 80, "protocol": "TCP", "nodePort": 32000, "targetPort": "http"}])
        );
        assert_eq!(made[0]["spec"]["selector"], json!({"app": "web"}));
        assert_eq!(made[0]["spec"]["externalIPs"], Value::Null);
        assert_eq!(made[0]["metadata"]["labels"], json!({BLUEPRINT: "shop", LOAD_BALANCER: "web"}));
        assert_eq!(
            missing,
            [
                "load balancer web port 443: the service shop/none is not there yet",
                "load balancer web port 81: the service shop/web has no port 9"
            ]
        );
        let mut spec = spec;
        spec.load_balancers[0].listeners = vec![serde_json::from_value(json!({"port": 8080, "service": "shop/web"})).unwrap()];
        let delivered = BTreeMap::from([("web".to_string(), "10.0.0.40".to_string())]);
        let (made, _) = node_ports("shop", &spec, &delivered, |_, _| Some(Arc::new(serde_json::from_value(web.clone()).unwrap())));
        assert_eq!(made[0]["spec"]["externalIPs"], json!(["10.0.0.40"]));
        assert_eq!(made[0]["spec"]["ports"][0]["port"], 8080, "packets come with the listener's port");
    }
}
