//! Containers of pods and templates.

use super::common::Problems;
use super::names;
use crate::blueprint::quantity::Quantity;
use crate::orchestrator::api::kinds::json::{integer, list, map, text};
use crate::orchestrator::api::status::Cause;
use serde_json::Value;
use std::collections::HashSet;

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

/// What a container's checks need to know of its pod.
pub struct Around<'a> {
    pub volumes: HashSet<&'a str>,
    pub claims: HashSet<&'a str>,
}

/// Names must be unique over all of a pod's containers: `seen` goes from list to list.
pub fn containers<'a>(all: &'a [Value], path: &str, init: bool, around: &Around, seen: &mut HashSet<&'a str>, problems: &mut Problems) {
    for (at, container) in all.iter().enumerate() {
        let path = format!("{path}[{at}]");
        let name = text(container, "/name");
        if problems.text_required(container, "name", &path) {
            problems.syntax(container, "name", &path, names::dns_label);
            if !seen.insert(name) {
                problems.add(Cause::duplicate(format!("{path}.name"), &name.into()));
            }
        }
        one(container, &path, around, problems);
        if init {
            of_init(container, &path, problems);
        } else if container.get("restartPolicy").is_some_and(|policy| !policy.is_null()) {
            problems.forbidden(format!("{path}.restartPolicy"), "may not be set for non-init containers");
        } else {
            hooks_and_probes(container, &path, problems);
        }
    }
}

fn one(container: &Value, path: &str, around: &Around, problems: &mut Problems) {
    let image = text(container, "/image");
    if image.is_empty() {
        problems.required(format!("{path}.image"), "");
    } else if image.trim() != image {
        problems.invalid(format!("{path}.image"), &image.into(), "must not have leading or trailing whitespace");
    }
    problems.one_of(container, "imagePullPolicy", path, &["Always", "IfNotPresent", "Never"]);
    problems.one_of(container, "terminationMessagePolicy", path, &["FallbackToLogsOnError", "File"]);
    ports(container, path, problems);
    environment(container, path, problems);
    mounts(container, path, around, problems);
    resources(&container["resources"], &format!("{path}.resources"), problems);
}

fn ports(container: &Value, path: &str, problems: &mut Problems) {
    let mut seen = HashSet::new();
    for (at, port) in list(container, "/ports").iter().enumerate() {
        let path = format!("{path}.ports[{at}]");
        let name = text(port, "/name");
        if !name.is_empty() {
            problems.syntax(port, "name", &path, names::port_name);
            if !seen.insert(name) {
                problems.add(Cause::duplicate(format!("{path}.name"), &name.into()));
            }
        }
        match port.get("containerPort") {
            None | Some(Value::Null) => problems.required(format!("{path}.containerPort"), ""),
            Some(number) => problems.port(number, format!("{path}.containerPort")),
        }
        if let Some(number) = port.get("hostPort").filter(|number| **number != 0) {
            problems.port(number, format!("{path}.hostPort"));
        }
        problems.one_of(port, "protocol", &path, PROTOCOLS);
    }
}

fn environment(container: &Value, path: &str, problems: &mut Problems) {
    for (at, variable) in list(container, "/env").iter().enumerate() {
        let path = format!("{path}.env[{at}]");
        if problems.text_required(variable, "name", &path) {
            problems.syntax(variable, "name", &path, names::environment_name);
        }
        let Some(source) = variable.get("valueFrom") else { continue };
        let path = format!("{path}.valueFrom");
        if !text(variable, "/value").is_empty() {
            problems.invalid(&path, &"".into(), "may not be specified when `value` is not empty");
        }
        let kinds = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef"];
        let given: Vec<_> = kinds.iter().filter(|kind| source.get(**kind).is_some()).collect();
        match given.as_slice() {
            [] => {
                let detail = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
                problems.invalid(&path, &"".into(), detail);
            }
            [_, _, ..] => problems.invalid(&path, &"".into(), "may not have more than one field specified at a time"),
            [kind] => reference(&source[**kind], kind, &format!("{path}.{kind}"), problems),
        }
    }
    for (at, source) in list(container, "/envFrom").iter().enumerate() {
        let path = format!("{path}.envFrom[{at}]");
        let given: Vec<_> = ["configMapRef", "secretRef"].into_iter().filter(|kind| source.get(*kind).is_some()).collect();
        match given.as_slice() {
            [] => problems.invalid(&path, &"".into(), "must specify one of: `configMapRef` or `secretRef`"),
            [kind] => {
                problems.text_required(&source[*kind], "name", &format!("{path}.{kind}"));
            }
            _ => problems.invalid(&path, &"".into(), "may not have more than one field specified at a time"),
        }
    }
}

fn reference(source: &Value, kind: &str, path: &str, problems: &mut Problems) {
    match kind {
        "fieldRef" => {
            problems.text_required(source, "fieldPath", path);
        }
        "resourceFieldRef" => {
            problems.text_required(source, "resource", path);
        }
        _ => {
            // An empty reference name was accepted for years; upstream keeps it so.
            if problems.text_required(source, "key", path) {
                problems.syntax(source, "key", path, names::config_key);
            }
        }
    }
}

fn mounts(container: &Value, path: &str, around: &Around, problems: &mut Problems) {
    let mut places = HashSet::new();
    for (at, mount) in list(container, "/volumeMounts").iter().enumerate() {
        let path = format!("{path}.volumeMounts[{at}]");
        let (name, place) = (text(mount, "/name"), text(mount, "/mountPath"));
        if problems.text_required(mount, "name", &path) && !around.volumes.contains(name) {
            problems.add(Cause::not_found(format!("{path}.name"), &name.into()));
        }
        if problems.text_required(mount, "mountPath", &path) && !places.insert(place) {
            problems.invalid(format!("{path}.mountPath"), &place.into(), "must be unique");
        }
        let inside = text(mount, "/subPath");
        if inside.starts_with('/') {
            problems.invalid(format!("{path}.subPath"), &inside.into(), "must be a relative path");
        }
        no_way_up(inside, format!("{path}.subPath"), problems);
        problems.one_of(mount, "mountPropagation", &path, &["Bidirectional", "HostToContainer", "None"]);
    }
    for (at, device) in list(container, "/volumeDevices").iter().enumerate() {
        let path = format!("{path}.volumeDevices[{at}]");
        let name = text(device, "/name");
        if problems.text_required(device, "name", &path) && !around.claims.contains(name) {
            problems.add(Cause::not_found(format!("{path}.name"), &name.into()));
        }
        problems.text_required(device, "devicePath", &path);
    }
}

/// A path inside a volume must not lead out of it.
pub fn no_way_up(path: &str, field: String, problems: &mut Problems) {
    if path.split('/').any(|part| part == "..") {
        problems.invalid(field, &path.into(), "must not contain '..'");
    }
}

pub fn resources(resources: &Value, path: &str, problems: &mut Problems) {
    let amounts = |which: &str| map(resources, which).into_iter().flatten();
    let limits: Vec<_> = amounts("/limits").collect();
    for (which, name, value) in limits
        .iter()
        .map(|(name, value)| ("limits", *name, *value))
        .chain(amounts("/requests").map(|(name, value)| ("requests", name, value)))
    {
        let field = format!("{path}.{which}[{name}]");
        if let Err(detail) = names::qualified_name(name) {
            problems.invalid(&field, &name.as_str().into(), &detail);
        }
        let Ok(amount) = Quantity::from_value(value) else { continue };
        if amount < Quantity::ZERO {
            problems.invalid(&field, value, super::common::NOT_NEGATIVE);
        }
        let limit = limits.iter().find(|(limited, _)| *limited == name).map(|(_, limit)| *limit);
        if let (Some(limit), "requests") = (limit, which)
            && Quantity::from_value(limit).is_ok_and(|limit| amount > limit)
        {
            let shown = limit.as_str().map_or_else(|| limit.to_string(), String::from);
            problems.invalid(format!("{path}.requests"), value, &format!("must be less than or equal to {name} limit of {shown}"));
        }
    }
}

const HANDLERS: &[&str] = &["exec", "httpGet", "tcpSocket", "grpc"];

fn hooks_and_probes(container: &Value, path: &str, problems: &mut Problems) {
    for hook in ["postStart", "preStop"] {
        if let Some(handler) = container.pointer(&format!("/lifecycle/{hook}")) {
            let path = format!("{path}.lifecycle.{hook}");
            handler_of(handler, &["exec", "httpGet", "tcpSocket", "sleep"], &path, problems);
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get(name) {
            probe_of(probe, name, &format!("{path}.{name}"), problems);
        }
    }
}

fn probe_of(probe: &Value, name: &str, path: &str, problems: &mut Problems) {
    handler_of(probe, HANDLERS, path, problems);
    for name in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        problems.not_negative(probe, name, path);
    }
    if name != "readinessProbe" && integer(probe, "/successThreshold").is_some_and(|times| times != 1) {
        problems.invalid(format!("{path}.successThreshold"), &probe["successThreshold"], "must be 1");
    }
    if integer(probe, "/terminationGracePeriodSeconds").is_some_and(|seconds| seconds <= 0) {
        problems.invalid(
            format!("{path}.terminationGracePeriodSeconds"),
            &probe["terminationGracePeriodSeconds"],
            "must be greater than 0",
        );
    }
}

fn handler_of(handler: &Value, kinds: &[&str], path: &str, problems: &mut Problems) {
    let given = problems.exactly_one(handler, kinds, path, "must specify a handler type", "may not specify more than 1 handler type");
    for kind in given.into_iter().take(1) {
        let (handler, path) = (&handler[kind], format!("{path}.{kind}"));
        match kind {
            "exec" if list(handler, "/command").is_empty() => problems.required(format!("{path}.command"), ""),
            "httpGet" => {
                problems.text_required(handler, "path", &path);
                problems.port_or_name(&handler["port"], format!("{path}.port"));
                problems.one_of(handler, "scheme", &path, &["HTTP", "HTTPS"]);
            }
            "tcpSocket" => problems.port_or_name(&handler["port"], format!("{path}.port")),
            "grpc" => problems.port(&handler["port"], format!("{path}.port")),
            _ => {}
        }
    }
}

fn of_init(container: &Value, path: &str, problems: &mut Problems) {
    if text(container, "/restartPolicy") == "Always" {
        return hooks_and_probes(container, path, problems);
    }
    problems.one_of(container, "restartPolicy", path, &["Always"]);
    for name in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
        if container.get(name).is_some() {
            problems.forbidden(format!("{path}.{name}"), "may not be set for init containers without restartPolicy=Always");
        }
    }
}
