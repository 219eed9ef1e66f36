//! Defaults of Services. Addresses and node ports are allocated elsewhere.

use crate::orchestrator::api::kinds::json::{Object, child, child_made, each, field, fill, unset};
use serde_json::{Value, json};

pub fn service(object: &mut Object) {
    let Some(spec) = child(object, "spec") else { return };
    fill(spec, "sessionAffinity", "None");
    fill(spec, "type", "ClusterIP");
    match field(spec, "sessionAffinity") {
        "None" => {
            spec.remove("sessionAffinityConfig");
        }
        "ClientIP" => {
            if let Some(client) = child_made(spec, "sessionAffinityConfig").and_then(|config| child_made(config, "clientIP")) {
                fill(client, "timeoutSeconds", 10800);
            }
        }
        _ => {}
    }
    each(spec, "ports").for_each(port);
    let external = matches!(field(spec, "type"), "NodePort" | "LoadBalancer");
    let addresses = spec.get("externalIPs").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    if external || addresses {
        fill(spec, "externalTrafficPolicy", "Cluster");
    }
    if field(spec, "type") == "LoadBalancer" {
        fill(spec, "allocateLoadBalancerNodePorts", true);
    }
    if matches!(field(spec, "type"), "ClusterIP" | "NodePort" | "LoadBalancer") {
        fill(spec, "internalTrafficPolicy", "Cluster");
        families(spec);
        cluster_ips(spec);
    }
}

fn port(port: &mut Object) {
    fill(port, "protocol", "TCP");
    let said = !unset(port, "targetPort") && port.get("targetPort") != Some(&json!(0));
    if let (false, Some(number)) = (said, port.get("port").cloned()) {
        port.insert("targetPort".into(), number);
    }
}

/// Clusters have one address family, IPv4. A headless service without a selector could hold any, so upstream asks for both.
fn families(spec: &mut Object) {
    let selects = spec.get("selector").and_then(Value::as_object).is_some_and(|selector| !selector.is_empty());
    if field(spec, "clusterIP") == "None" && !selects && unset(spec, "ipFamilies") && unset(spec, "ipFamilyPolicy") {
        spec.insert("ipFamilyPolicy".into(), "RequireDualStack".into());
        spec.insert("ipFamilies".into(), json!(["IPv4", "IPv6"]));
        return;
    }
    fill(spec, "ipFamilyPolicy", "SingleStack");
    fill(spec, "ipFamilies", json!(["IPv4"]));
}

fn cluster_ips(spec: &mut Object) {
    match (unset(spec, "clusterIP"), spec.get("clusterIPs").and_then(Value::as_array).and_then(|list| list.first()).cloned()) {
        (false, None) => {
            let address = field(spec, "clusterIP").to_string();
            spec.insert("clusterIPs".into(), json!([address]));
        }
        (true, Some(first)) => {
            spec.insert("clusterIP".into(), first);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::check;
    use super::*;

    #[test]
    fn a_service_is_reachable_inside_on_its_own_port() {
        check(
            "",
            "Service",
            json!({"spec": {"selector": {"app": "web"}, "ports": [{"port": 80}, {"port": 81, "targetPort": "http", "protocol": "UDP"}]}}),
            json!({"spec": {"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster", "selector": {"app": "web"},
                "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
                "ports": [{"port": 80, "targetPort": 80, "protocol": "TCP"}, {"port": 81, "targetPort": "http", "protocol": "UDP"}]}}),
        );
    }

    #[test]
    fn a_load_balancer_is_reachable_outside() {
        check(
            "",
            "Service",
            json!({"spec": {"type": "LoadBalancer", "sessionAffinity": "ClientIP", "clusterIP": "10.96.0.9", "selector": {"a": "b"}}}),
            json!({"spec": {"type": "LoadBalancer", "sessionAffinity": "ClientIP", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"],
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}}, "selector": {"a": "b"},
                "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Cluster", "allocateLoadBalancerNodePorts": true,
                "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"}}),
        );
    }

    #[test]
    fn an_external_name_has_no_addresses() {
        check(
            "",
            "Service",
            json!({"spec": {"type": "ExternalName", "externalName": "example.com"}}),
            json!({"spec": {"type": "ExternalName", "externalName": "example.com", "sessionAffinity": "None"}}),
        );
    }

    #[test]
    fn a_headless_service_without_selector_may_hold_both_families() {
        check(
            "",
            "Service",
            json!({"spec": {"clusterIP": "None"}}),
            json!({"spec": {"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster", "clusterIP": "None",
                "clusterIPs": ["None"], "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack"}}),
        );
    }
}
