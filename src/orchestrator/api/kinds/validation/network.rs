//! Services and EndpointSlices.

use super::common::Problems;
use super::{Case, names};
use crate::orchestrator::api::kinds::json::{list, text};
use crate::orchestrator::api::status::Cause;
use serde_json::Value;
use std::collections::HashSet;

pub fn service(case: &Case, problems: &mut Problems) {
    let spec = &case.new["spec"];
    let kind = text(spec, "/type");
    let address = text(spec, "/clusterIP");
    ports(spec, kind, address == "None", problems);
    problems.one_of(spec, "type", "spec", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    problems.one_of(spec, "sessionAffinity", "spec", &["ClientIP", "None"]);
    problems.one_of(spec, "externalTrafficPolicy", "spec", &["Cluster", "Local"]);
    problems.one_of(spec, "internalTrafficPolicy", "spec", &["Cluster", "Local"]);
    problems.labels(spec.get("selector"), "spec.selector");
    if let Some(seconds) = spec.pointer("/sessionAffinityConfig/clientIP/timeoutSeconds").and_then(Value::as_i64)
        && !(1..=86400).contains(&seconds)
    {
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        problems.invalid(field, &seconds.into(), "must be greater than 0 and less than 86400");
    }
    match kind {
        "ExternalName" => {
            if !address.is_empty() {
                problems.forbidden("spec.clusterIPs[0]", "may not be set when `type` is 'ExternalName'");
            }
            if problems.text_required(spec, "externalName", "spec") {
                problems.syntax(spec, "externalName", "spec", |name| names::dns_subdomain(name.trim_end_matches('.')));
            }
        }
        "NodePort" | "LoadBalancer" if address == "None" => {
            problems.invalid("spec.clusterIPs[0]", &address.into(), &format!("may not be set to 'None' for {kind} services"));
        }
        _ if !address.is_empty() && address != "None" => {
            if let Err(detail) = names::ip(address) {
                problems.invalid("spec.clusterIPs[0]", &address.into(), &detail);
            }
        }
        _ => {}
    }
    if let (false, Some(first)) = (address.is_empty(), list(spec, "/clusterIPs").first())
        && *first != address
    {
        problems.invalid("spec.clusterIPs", &spec["clusterIPs"], "first value must match `clusterIP`");
    }
    for (at, external) in list(spec, "/externalIPs").iter().enumerate() {
        if let Err(detail) = names::ip(external.as_str().unwrap_or_default()) {
            problems.invalid(format!("spec.externalIPs[{at}]"), external, &detail);
        }
    }
    for (at, range) in list(spec, "/loadBalancerSourceRanges").iter().enumerate() {
        if range.as_str().is_none_or(|range| range.trim().parse::<ipnet::IpNet>().is_err()) {
            let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            problems.invalid(format!("spec.loadBalancerSourceRanges[{at}]"), range, detail);
        }
    }
    if let Some(old) = case.old {
        update(spec, &old["spec"], problems);
    }
}

fn ports(spec: &Value, kind: &str, headless: bool, problems: &mut Problems) {
    let ports = list(spec, "/ports");
    if ports.is_empty() && !headless && kind != "ExternalName" {
        problems.required("spec.ports", "");
    }
    let (mut named, mut numbered, mut on_nodes) = (HashSet::new(), HashSet::new(), HashSet::new());
    for (at, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{at}]");
        let (name, protocol) = (text(port, "/name"), text(port, "/protocol"));
        if name.is_empty() && ports.len() > 1 {
            problems.required(format!("{path}.name"), "");
        } else if !name.is_empty() {
            problems.syntax(port, "name", &path, names::dns_label);
            if !named.insert(name) {
                problems.add(Cause::duplicate(format!("{path}.name"), &name.into()));
            }
        }
        problems.port(&port["port"], format!("{path}.port"));
        problems.one_of(port, "protocol", &path, &["SCTP", "TCP", "UDP"]);
        // A headless service sends nothing to its target port, so upstream accepts any other there.
        problems.port_or_name(&port["targetPort"], format!("{path}.targetPort"));
        if !numbered.insert((protocol, port["port"].as_i64())) {
            problems.add(Cause::duplicate(path.clone(), port));
        }
        let node_port = port["nodePort"].as_i64().unwrap_or_default();
        if node_port == 0 {
            continue;
        }
        if kind == "ClusterIP" {
            problems.forbidden(format!("{path}.nodePort"), "may not be used when `type` is 'ClusterIP'");
        } else if !on_nodes.insert((protocol, node_port)) {
            problems.add(Cause::duplicate(format!("{path}.nodePort"), &node_port.into()));
        }
    }
}

/// An allocated address stays for as long as the service has one.
fn update(new: &Value, old: &Value, problems: &mut Problems) {
    let (before, after) = (text(old, "/clusterIP"), text(new, "/clusterIP"));
    if text(new, "/type") != "ExternalName" && text(old, "/type") != "ExternalName" && !before.is_empty() && before != after {
        problems.invalid("spec.clusterIPs[0]", &new["clusterIPs"], "may not change once set");
    }
}

pub fn endpoint_slice(case: &Case, problems: &mut Problems) {
    let slice = case.new;
    let kind = text(slice, "/addressType");
    if kind.is_empty() {
        problems.required("addressType", "");
    } else if !["IPv4", "IPv6", "FQDN"].contains(&kind) {
        problems.add(Cause::not_supported("addressType", &kind.into(), &["FQDN", "IPv4", "IPv6"]));
    }
    if let Some(old) = case.old {
        problems.immutable(slice.get("addressType"), old.get("addressType"), "addressType");
    }
    let endpoints = list(slice, "/endpoints");
    if endpoints.len() > 1000 {
        problems.add(Cause::too_many("endpoints", endpoints.len(), 1000));
    }
    for (at, endpoint) in endpoints.iter().enumerate() {
        addresses(endpoint, kind, &format!("endpoints[{at}]"), problems);
    }
    let ports = list(slice, "/ports");
    if ports.len() > 20_000 {
        problems.add(Cause::too_many("ports", ports.len(), 20_000));
    }
    let mut named = HashSet::new();
    for (at, port) in ports.iter().enumerate() {
        let path = format!("ports[{at}]");
        let name = text(port, "/name");
        problems.syntax(port, "name", &path, names::dns_label);
        if !named.insert(name) {
            problems.add(Cause::duplicate(format!("{path}.name"), &name.into()));
        }
        if let Some(number) = port.get("port") {
            problems.port(number, format!("{path}.port"));
        }
        problems.one_of(port, "protocol", &path, &["SCTP", "TCP", "UDP"]);
    }
}

fn addresses(endpoint: &Value, kind: &str, path: &str, problems: &mut Problems) {
    let addresses = list(endpoint, "/addresses");
    if addresses.is_empty() {
        problems.required(format!("{path}.addresses"), "must contain at least 1 address");
    }
    if addresses.len() > 100 {
        problems.add(Cause::too_many(format!("{path}.addresses"), addresses.len(), 100));
    }
    for (at, address) in addresses.iter().enumerate() {
        let text = address.as_str().unwrap_or_default();
        let problem = match (kind, text.parse::<std::net::IpAddr>()) {
            ("IPv4", Ok(ip)) if ip.is_ipv4() => None,
            ("IPv4", _) => Some("must be a valid IPv4 address".to_string()),
            ("IPv6", Ok(ip)) if ip.is_ipv6() => None,
            ("IPv6", _) => Some("must be a valid IPv6 address".into()),
            ("FQDN", _) => names::dns_subdomain(text).err(),
            _ => None,
        };
        if let Some(detail) = problem {
            problems.invalid(format!("{path}.addresses[{at}]"), address, &detail);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::problems;
    use serde_json::{Value, json};

    fn check(spec: Value, old: Option<Value>, expected: &[&str]) {
        let object = |spec: Value| json!({"spec": spec});
        assert_eq!(problems("", "Service", object(spec), old.map(object)), expected);
    }

    #[test]
    fn ports_are_there_and_distinct() {
        check(json!({"ports": [{"port": 80}]}), None, &[]);
        check(json!({}), None, &["spec.ports: Required value"]);
        check(json!({"clusterIP": "None"}), None, &[]);
        check(
            json!({"ports": [{"port": 80}, {"port": 80, "name": "a"}, {"port": 0, "name": "a", "targetPort": "UPPER"}]}),
            None,
            &[
                "spec.ports[0].name: Required value",
                "spec.ports[1]: Duplicate value: {\"name\":\"a\",\"port\":80,\"protocol\":\"TCP\",\"targetPort\":80}",
                "spec.ports[2].name: Duplicate value: \"a\"",
                "spec.ports[2].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.ports[2].targetPort: Invalid value: \"UPPER\": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
            ],
        );
        check(
            json!({"ports": [{"port": 80, "nodePort": 32000}]}),
            None,
            &["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
        );
    }

    #[test]
    fn types_and_addresses_fit_together() {
        check(
            json!({"type": "X", "ports": [{"port": 1}]}),
            None,
            &["spec.type: Unsupported value: \"X\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\""],
        );
        check(json!({"type": "ExternalName"}), None, &["spec.externalName: Required value"]);
        check(
            json!({"type": "NodePort", "clusterIP": "None", "ports": [{"port": 1}]}),
            None,
            &["spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services"],
        );
        check(
            json!({"clusterIP": "x", "ports": [{"port": 1}]}),
            None,
            &["spec.clusterIPs[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"],
        );
        let old = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 1}]});
        check(
            json!({"clusterIP": "10.96.0.2", "ports": [{"port": 1}]}),
            Some(old),
            &["spec.clusterIPs[0]: Invalid value: [\"10.96.0.2\"]: may not change once set"],
        );
    }

    #[test]
    fn slices_hold_addresses_of_their_type() {
        let check = |slice: Value, old: Option<Value>, expected: &[&str]| {
            assert_eq!(problems("discovery.k8s.io", "EndpointSlice", slice, old), expected)
        };
        let good = json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}]});
        check(good.clone(), None, &[]);
        check(json!({"endpoints": []}), None, &["addressType: Required value"]);
        check(
            json!({"addressType": "IPv4", "endpoints": [{"addresses": []}, {"addresses": ["::1"]}], "ports": [{"port": 80}, {"port": 81}]}),
            Some(good.clone()),
            &[
                "endpoints[0].addresses: Required value: must contain at least 1 address",
                "endpoints[1].addresses[0]: Invalid value: \"::1\": must be a valid IPv4 address",
                "ports[1].name: Duplicate value: \"\"",
            ],
        );
        let mut moved = good.clone();
        moved["addressType"] = "FQDN".into();
        moved["endpoints"] = json!([]);
        check(moved, Some(good), &["addressType: Invalid value: \"FQDN\": field is immutable"]);
    }
}
