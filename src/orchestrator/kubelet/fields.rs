//! The downward API: a pod's own fields and its containers' resources as text, for environments and files.

use super::observed::find_container;
use super::resources::{Amounts, amounts};
use crate::blueprint::quantity::Quantity;
use k8s_openapi::api::core::v1::{Pod, ResourceFieldSelector};
use std::collections::BTreeMap;

/// What is known only at run time, and the node's own size (what a container without a limit may use).
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub host_ip: String,
    pub pod_ips: Vec<String>,
    pub node: Amounts,
}

/// `metadata.labels['app']` and the like; the error is a clause for a container's waiting message.
pub fn field(pod: &Pod, facts: &Facts, path: &str) -> Result<String, String> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let text = |value: Option<&String>| value.cloned().unwrap_or_default();
    let of = |map: Option<&BTreeMap<String, String>>, key: &str| text(map.and_then(|map| map.get(key)));
    if let Some(key) = subscript(path, "metadata.labels") {
        return Ok(of(meta.labels.as_ref(), key));
    }
    if let Some(key) = subscript(path, "metadata.annotations") {
        return Ok(of(meta.annotations.as_ref(), key));
    }
    Ok(match path {
        "metadata.name" => text(meta.name.as_ref()),
        "metadata.namespace" => text(meta.namespace.as_ref()),
        "metadata.uid" => text(meta.uid.as_ref()),
        "metadata.labels" => list(meta.labels.as_ref()),
        "metadata.annotations" => list(meta.annotations.as_ref()),
        "spec.nodeName" => text(spec.and_then(|spec| spec.node_name.as_ref())),
        "spec.serviceAccountName" => text(spec.and_then(|spec| spec.service_account_name.as_ref())),
        "status.hostIP" | "status.hostIPs" => facts.host_ip.clone(),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        other => return Err(format!("unsupported fieldPath: {other}")),
    })
}

fn subscript<'a>(path: &'a str, map: &str) -> Option<&'a str> {
    path.strip_prefix(map)?.strip_prefix("['")?.strip_suffix("']")
}

/// `key="value"` lines, escaped, in key order: upstream's format of whole maps.
fn list(map: Option<&BTreeMap<String, String>>) -> String {
    let lines = map.into_iter().flatten().map(|(key, value)| format!("{key}={value:?}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// `limits.cpu` and the like, divided and rounded up; an absent limit is the node's allocatable amount.
pub fn resource(pod: &Pod, facts: &Facts, selector: &ResourceFieldSelector, own: &str) -> Result<String, String> {
    let name = selector.container_name.as_deref().unwrap_or(own);
    let container = find_container(pod, name).ok_or_else(|| format!("container {name} not found"))?;
    let amounts = amounts(container);
    let divisor =
        selector.divisor.as_ref().map(|divisor| divisor.0.as_str()).filter(|divisor| !matches!(*divisor, "" | "0")).unwrap_or("1");
    let divisor = Quantity::parse(divisor).map_err(|error| format!("divisor {divisor:?} is not a quantity: {error}"))?.millis().max(1);
    let millis = match selector.resource.as_str() {
        "limits.cpu" => amounts.cpu_limit_millis.or(facts.node.cpu_limit_millis).unwrap_or(0),
        "requests.cpu" => amounts.cpu_request_millis.unwrap_or(0),
        "limits.memory" => amounts.memory_limit_bytes.or(facts.node.memory_limit_bytes).unwrap_or(0).saturating_mul(1000),
        "requests.memory" => amounts.memory_request_bytes.unwrap_or(0).saturating_mul(1000),
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => 0,
        other => return Err(format!("unsupported container resource: {other}")),
    };
    Ok((millis as i128 + divisor as i128 - 1).div_euclid(divisor as i128).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "labels": {"app": "web", "tier": "a\"b"}},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "250m", "memory": "64Mi"}}}]}
        }))
        .unwrap()
    }

    #[test]
    fn fields_read_as_upstream_writes_them() {
        let facts = Facts { host_ip: "10.0.0.1".into(), pod_ips: vec!["10.244.0.2".into()], ..Facts::default() };
        let check = |path: &str, wanted: Result<&str, &str>| {
            assert_eq!(field(&pod(), &facts, path).as_deref().map_err(String::as_str), wanted, "{path}")
        };
        check("metadata.name", Ok("web"));
        check("metadata.labels['app']", Ok("web"));
        check("metadata.labels", Ok("app=\"web\"\ntier=\"a\\\"b\""));
        check("metadata.annotations['none']", Ok(""));
        check("status.podIP", Ok("10.244.0.2"));
        check("spec.secrets", Err("unsupported fieldPath: spec.secrets"));
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let check = |resource_name: &str, divisor: &str, wanted: &str| {
            let selector = serde_json::from_value(json!({"resource": resource_name, "divisor": divisor})).unwrap();
            assert_eq!(resource(&pod(), &Facts::default(), &selector, "c").unwrap(), wanted);
        };
        check("limits.cpu", "1", "1");
        check("limits.cpu", "1m", "250");
        check("limits.memory", "1Mi", "64");
        check("limits.memory", "0", "67108864");
    }
}
