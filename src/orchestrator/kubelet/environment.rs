//! A container's environment, command and arguments from all their sources; pure.

use super::cri::messages::KeyValue;
use super::fields::{self, Facts};
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVarSource, Pod, Secret, Service};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Objects that a container names, fetched before; `None` is "does not exist".
#[derive(Default, Clone)]
pub struct Sources {
    pub config_maps: BTreeMap<String, Option<Arc<ConfigMap>>>,
    pub secrets: BTreeMap<String, Option<Arc<Secret>>>,
    /// Of the pod's namespace, and `default/kubernetes`.
    pub services: Vec<Arc<Service>>,
}

/// The names of config maps and secrets that a container's environment refers to.
pub fn references(container: &Container) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut config_maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
    for source in container.env_from.iter().flatten() {
        config_maps.extend(source.config_map_ref.iter().map(|source| source.name.clone()));
        secrets.extend(source.secret_ref.iter().map(|source| source.name.clone()));
    }
    for source in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
        config_maps.extend(source.config_map_key_ref.iter().map(|source| source.name.clone()));
        secrets.extend(source.secret_key_ref.iter().map(|source| source.name.clone()));
    }
    (config_maps, secrets)
}

/// The error is the message of `CreateContainerConfigError`.
pub fn build(pod: &Pod, container: &Container, facts: &Facts, sources: &Sources) -> Result<Vec<KeyValue>, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
    let services = service_variables(&sources.services, namespace, links);
    let mut own: BTreeMap<String, String> = BTreeMap::new();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(from) = &source.config_map_ref {
            match sources.config_maps.get(&from.name).cloned().flatten() {
                Some(map) => own.extend(map.data.iter().flatten().map(|(key, value)| (format!("{prefix}{key}"), value.clone()))),
                None if from.optional == Some(true) => {}
                None => return Err(format!("configmap \"{}\" not found", from.name)),
            }
        }
        if let Some(from) = &source.secret_ref {
            match sources.secrets.get(&from.name).cloned().flatten() {
                Some(secret) => own.extend(
                    secret
                        .data
                        .iter()
                        .flatten()
                        .map(|(key, value)| (format!("{prefix}{key}"), String::from_utf8_lossy(&value.0).into_owned())),
                ),
                None if from.optional == Some(true) => {}
                None => return Err(format!("secret \"{}\" not found", from.name)),
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (_, Some(from)) => match value_from(pod, container, facts, sources, from)? {
                Some(value) => value,
                None => continue,
            },
            (value, None) => {
                let look = |name: &str| own.get(name).or_else(|| services.get(name)).cloned();
                expand(value.as_deref().unwrap_or_default(), look)
            }
        };
        own.insert(variable.name.clone(), value);
    }
    for (name, value) in services {
        own.entry(name).or_insert(value);
    }
    Ok(own.into_iter().map(|(key, value)| KeyValue { key, value }).collect())
}

fn value_from(pod: &Pod, container: &Container, facts: &Facts, sources: &Sources, from: &EnvVarSource) -> Result<Option<String>, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(selector) = &from.field_ref {
        return fields::field(pod, facts, &selector.field_path).map(Some);
    }
    if let Some(selector) = &from.resource_field_ref {
        return fields::resource(pod, facts, selector, &container.name).map(Some);
    }
    if let Some(selector) = &from.config_map_key_ref {
        let optional = selector.optional == Some(true);
        let map = sources.config_maps.get(&selector.name).cloned().flatten();
        let value = map.as_ref().and_then(|map| map.data.as_ref()?.get(&selector.key).cloned());
        return match value {
            Some(value) => Ok(Some(value)),
            None if optional => Ok(None),
            None if map.is_none() => Err(format!("configmap \"{}\" not found", selector.name)),
            None => Err(format!("couldn't find key {} in ConfigMap {namespace}/{}", selector.key, selector.name)),
        };
    }
    if let Some(selector) = &from.secret_key_ref {
        let optional = selector.optional == Some(true);
        let secret = sources.secrets.get(&selector.name).cloned().flatten();
        let value = secret.as_ref().and_then(|secret| secret.data.as_ref()?.get(&selector.key).cloned());
        return match value {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if optional => Ok(None),
            None if secret.is_none() => Err(format!("secret \"{}\" not found", selector.name)),
            None => Err(format!("couldn't find key {} in Secret {namespace}/{}", selector.key, selector.name)),
        };
    }
    Ok(Some(String::new()))
}

/// `$(NAME)` becomes its value, `$$` a dollar; what is unknown stays as written.
pub fn expand(text: &str, look: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            match look(name) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out + rest
}

/// Command, arguments and the like, with the container's own variables in them.
pub fn expand_all(texts: Option<&Vec<String>>, variables: &[KeyValue]) -> Vec<String> {
    let look = |name: &str| variables.iter().find(|variable| variable.key == name).map(|variable| variable.value.clone());
    texts.into_iter().flatten().map(|text| expand(text, look)).collect()
}

fn service_variables(services: &[Arc<Service>], namespace: &str, links: bool) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for service in services {
        let meta = &service.metadata;
        let (name, of) = (meta.name.as_deref().unwrap_or_default(), meta.namespace.as_deref().unwrap_or_default());
        let api = of == "default" && name == "kubernetes";
        let Some(spec) = service.spec.as_ref().filter(|_| api || (links && of == namespace)) else { continue };
        let Some(address) = spec.cluster_ip.as_deref().filter(|address| !matches!(*address, "" | "None")) else { continue };
        let Some(first) = spec.ports.as_ref().and_then(|ports| ports.first()) else { continue };
        let prefix = variable_name(name);
        variables.insert(format!("{prefix}_SERVICE_HOST"), address.to_owned());
        variables.insert(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
        variables.insert(format!("{prefix}_PORT"), url(address, first));
        for port in spec.ports.iter().flatten() {
            if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
                variables.insert(format!("{prefix}_SERVICE_PORT_{}", variable_name(port_name)), port.port.to_string());
            }
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let head = format!("{prefix}_PORT_{}_{protocol}", port.port);
            variables.insert(format!("{head}_PROTO"), protocol.to_lowercase());
            variables.insert(format!("{head}_PORT"), port.port.to_string());
            variables.insert(format!("{head}_ADDR"), address.to_owned());
            variables.insert(head, url(address, port));
        }
    }
    variables
}

fn variable_name(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

fn url(address: &str, port: &k8s_openapi::api::core::v1::ServicePort) -> String {
    let protocol = port.protocol.as_deref().unwrap_or("TCP").to_lowercase();
    let address = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    format!("{protocol}://{address}:{}", port.port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn references_expand_and_escapes_stay() {
        let check = |text: &str, wanted: &str| {
            assert_eq!(expand(text, |name| (name == "A").then(|| "1".to_owned())), wanted);
        };
        check("a$(A)b", "a1b");
        check("$$(A)", "$(A)");
        check("$(B) $ $(A", "$(B) $ $(A");
        check("$(A)$(A)", "11");
    }

    fn built(container: serde_json::Value) -> Result<BTreeMap<String, String>, String> {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": {"containers": [container]}})).unwrap();
        let map: ConfigMap = serde_json::from_value(json!({"data": {"color": "red"}})).unwrap();
        let secret: Secret = serde_json::from_value(json!({"data": {"word": "c2VzYW1l"}})).unwrap();
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "my-db", "namespace": "shop"},
            "spec": {"clusterIP": "10.96.0.7", "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}]}
        }))
        .unwrap();
        let sources = Sources {
            config_maps: [("c".to_owned(), Some(Arc::new(map)))].into(),
            secrets: [("s".to_owned(), Some(Arc::new(secret)))].into(),
            services: vec![Arc::new(service)],
        };
        let spec = super::super::observed::containers(&pod)[0].clone();
        let list = build(&pod, &spec, &Facts::default(), &sources)?;
        Ok(list.into_iter().map(|variable| (variable.key, variable.value)).collect())
    }

    #[test]
    fn every_source_reaches_the_environment() {
        let variables = built(json!({
            "name": "web",
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "c"}}, {"secretRef": {"name": "s"}}],
            "env": [
                {"name": "A", "value": "$(P_color)-$(MY_DB_SERVICE_HOST)"},
                {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "word"}}},
                {"name": "MAYBE", "valueFrom": {"configMapKeyRef": {"name": "none", "key": "k", "optional": true}}},
            ]
        }))
        .unwrap();
        let check = |name: &str, wanted: Option<&str>| assert_eq!(variables.get(name).map(String::as_str), wanted, "{name}");
        check("P_color", Some("red"));
        check("word", Some("sesame"));
        check("A", Some("red-10.96.0.7"));
        check("NAME", Some("web"));
        check("KEY", Some("sesame"));
        check("MAYBE", None);
        check("MY_DB_PORT_5432_TCP", Some("tcp://10.96.0.7:5432"));
        check("MY_DB_SERVICE_PORT_SQL", Some("5432"));
    }

    #[test]
    fn a_missing_source_is_a_configuration_error() {
        let check = |from, wanted: &str| {
            assert_eq!(built(json!({"name": "web", "env": [{"name": "A", "valueFrom": from}]})).unwrap_err(), wanted);
        };
        check(json!({"configMapKeyRef": {"name": "x", "key": "k"}}), "configmap \"x\" not found");
        check(json!({"configMapKeyRef": {"name": "c", "key": "k"}}), "couldn't find key k in ConfigMap shop/c");
        check(json!({"secretKeyRef": {"name": "s", "key": "k"}}), "couldn't find key k in Secret shop/s");
    }
}
