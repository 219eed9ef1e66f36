//! Pods and pod templates.

use super::common::{Problems, set_of};
use super::container::{Around, containers, no_way_up};
use super::{Case, names};
use crate::orchestrator::api::kinds::json::{Object, list, text};
use crate::orchestrator::api::status::Cause;
use serde_json::Value;
use std::collections::HashSet;

pub fn pod(case: &Case, problems: &mut Problems) {
    spec(&case.new["spec"], "spec", problems);
    if let Some(old) = case.old {
        update(&case.new["spec"], &old["spec"], problems);
    }
}

/// A template inside a Deployment and its kin; `path` leads to it.
pub fn template(template: &Value, path: &str, kind: &str, problems: &mut Problems) {
    problems.labels(template.pointer("/metadata/labels"), &format!("{path}.metadata.labels"));
    spec(&template["spec"], &format!("{path}.spec"), problems);
    // A workload that keeps pods running has no use for pods that may stop.
    if let Some(policy) = template.pointer("/spec/restartPolicy").filter(|policy| **policy != "Always") {
        problems.add(Cause::not_supported(format!("{path}.spec.restartPolicy"), policy, &["Always"]));
    }
    if template.pointer("/spec/activeDeadlineSeconds").is_some() {
        problems.forbidden(format!("{path}.spec.activeDeadlineSeconds"), &format!("activeDeadlineSeconds in {kind} is not Supported"));
    }
}

fn spec(spec: &Value, path: &str, problems: &mut Problems) {
    let around = volumes(spec, path, problems);
    let mut seen = HashSet::new();
    let wanted = list(spec, "/containers");
    if wanted.is_empty() {
        problems.required(format!("{path}.containers"), "");
    }
    containers(wanted, &format!("{path}.containers"), false, &around, &mut seen, problems);
    containers(list(spec, "/initContainers"), &format!("{path}.initContainers"), true, &around, &mut seen, problems);
    problems.one_of(spec, "restartPolicy", path, &["Always", "OnFailure", "Never"]);
    problems.one_of(spec, "dnsPolicy", path, &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]);
    if text(spec, "/dnsPolicy") == "None" && list(spec, "/dnsConfig/nameservers").is_empty() {
        problems.required(format!("{path}.dnsConfig.nameservers"), "must provide at least one DNS nameserver when `dnsPolicy` is None");
    }
    problems.not_negative(spec, "terminationGracePeriodSeconds", path);
    problems.range(spec, "activeDeadlineSeconds", path, 1..=i64::from(i32::MAX), "must be between 1 and 2147483647, inclusive");
    problems.labels(spec.get("nodeSelector"), &format!("{path}.nodeSelector"));
    for (name, rule) in [
        ("serviceAccountName", names::dns_subdomain as fn(&str) -> _),
        ("nodeName", names::dns_subdomain),
        ("priorityClassName", names::dns_subdomain),
        ("schedulerName", names::qualified_name),
        ("hostname", names::dns_label),
        ("subdomain", names::dns_label),
    ] {
        problems.syntax(spec, name, path, rule);
    }
    for (at, alias) in list(spec, "/hostAliases").iter().enumerate() {
        problems.syntax(alias, "ip", &format!("{path}.hostAliases[{at}]"), names::ip);
    }
    tolerations(spec, path, problems);
    affinity(spec, path, problems);
    host_ports(spec, path, problems);
}

fn volumes<'a>(spec: &'a Value, path: &str, problems: &mut Problems) -> Around<'a> {
    let mut around = Around { volumes: HashSet::new(), claims: HashSet::new() };
    for (at, volume) in list(spec, "/volumes").iter().enumerate() {
        let path = format!("{path}.volumes[{at}]");
        let name = text(volume, "/name");
        if problems.text_required(volume, "name", &path) {
            problems.syntax(volume, "name", &path, names::dns_label);
            if !around.volumes.insert(name) {
                problems.add(Cause::duplicate(format!("{path}.name"), &name.into()));
            }
            if volume.get("persistentVolumeClaim").is_some() || volume.get("ephemeral").is_some() {
                around.claims.insert(name);
            }
        }
        let sources: Vec<_> =
            volume.as_object().into_iter().flatten().filter(|(name, value)| *name != "name" && !value.is_null()).collect();
        match sources.as_slice() {
            [] => problems.required(&path, "must specify a volume type"),
            [(kind, source), rest @ ..] => {
                source_of(kind, source, &format!("{path}.{kind}"), problems);
                for (name, _) in rest {
                    problems.forbidden(format!("{path}.{name}"), "may not specify more than 1 volume type");
                }
            }
        }
    }
    around
}

const HOST_PATH_TYPES: &[&str] = &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

pub fn source_of(kind: &str, source: &Value, path: &str, problems: &mut Problems) {
    match kind {
        "hostPath" => {
            if problems.text_required(source, "path", path) {
                no_way_up(text(source, "/path"), format!("{path}.path"), problems);
            }
            problems.one_of(source, "type", path, HOST_PATH_TYPES);
        }
        "secret" => {
            problems.text_required(source, "secretName", path);
            files(source, path, problems);
        }
        "configMap" => {
            problems.text_required(source, "name", path);
            files(source, path, problems);
        }
        "downwardAPI" => files(source, path, problems),
        "persistentVolumeClaim" => {
            problems.text_required(source, "claimName", path);
        }
        "projected" => {
            files(source, path, problems);
            for (at, projection) in list(source, "/sources").iter().enumerate() {
                for (kind, source) in projection.as_object().into_iter().flatten() {
                    let path = format!("{path}.sources[{at}].{kind}");
                    match kind.as_str() {
                        "secret" | "configMap" => {
                            problems.text_required(source, "name", &path);
                        }
                        "serviceAccountToken" => {
                            problems.text_required(source, "path", &path);
                            problems.range(
                                source,
                                "expirationSeconds",
                                &path,
                                600..=1 << 32,
                                "may not specify a duration less than 10 minutes",
                            );
                        }
                        _ => {}
                    }
                    files(source, &path, problems);
                }
            }
        }
        _ => {}
    }
}

/// `defaultMode` and `items` of sources that hold files.
fn files(source: &Value, path: &str, problems: &mut Problems) {
    const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
    problems.range(source, "defaultMode", path, 0..=0o777, MODE);
    for (at, item) in list(source, "/items").iter().enumerate() {
        let path = format!("{path}.items[{at}]");
        if item.get("fieldRef").is_none() && item.get("resourceFieldRef").is_none() {
            problems.text_required(item, "key", &path);
        }
        if problems.text_required(item, "path", &path) {
            let place = text(item, "/path");
            if place.starts_with('/') {
                problems.invalid(format!("{path}.path"), &place.into(), "must be a relative path");
            }
            no_way_up(place, format!("{path}.path"), problems);
        }
        problems.range(item, "mode", &path, 0..=0o777, MODE);
    }
}

fn tolerations(spec: &Value, path: &str, problems: &mut Problems) {
    for (at, toleration) in list(spec, "/tolerations").iter().enumerate() {
        let path = format!("{path}.tolerations[{at}]");
        let (key, operator) = (text(toleration, "/key"), text(toleration, "/operator"));
        problems.syntax(toleration, "key", &path, names::qualified_name);
        if key.is_empty() && operator != "Exists" {
            problems.invalid(
                format!("{path}.operator"),
                &operator.into(),
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        if toleration.get("tolerationSeconds").is_some() && text(toleration, "/effect") != "NoExecute" {
            problems.invalid(format!("{path}.effect"), &toleration["effect"], "effect must be 'NoExecute' when `tolerationSeconds` is set");
        }
        if operator == "Exists" && !text(toleration, "/value").is_empty() {
            problems.invalid(format!("{path}.operator"), &toleration["value"], "value must be empty when `operator` is 'Exists'");
        }
        if !operator.is_empty() {
            problems.one_of(toleration, "operator", &path, &["Equal", "Exists"]);
        }
        if !text(toleration, "/effect").is_empty() {
            problems.one_of(toleration, "effect", &path, &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
        }
    }
}

fn affinity(spec: &Value, path: &str, problems: &mut Problems) {
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    if let Some(selector) = spec.pointer(&format!("/affinity/nodeAffinity/{required}")) {
        let path = format!("{path}.affinity.nodeAffinity.{required}.nodeSelectorTerms");
        let terms = list(selector, "/nodeSelectorTerms");
        if terms.is_empty() {
            problems.required(&path, "must have at least one node selector term");
        }
        for (at, term) in terms.iter().enumerate() {
            for (inner, expression) in list(term, "/matchExpressions").iter().enumerate() {
                let path = format!("{path}[{at}].matchExpressions[{inner}]");
                problems.one_of(expression, "operator", &path, &["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]);
            }
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        for (at, term) in list(spec, &format!("/affinity/{kind}/{required}")).iter().enumerate() {
            let path = format!("{path}.affinity.{kind}.{required}[{at}]");
            if text(term, "/topologyKey").is_empty() {
                problems.required(format!("{path}.topologyKey"), "can not be empty");
            }
            if let Some(selector) = term.get("labelSelector") {
                problems.label_selector(selector, &format!("{path}.labelSelector"));
            }
        }
    }
}

/// On the host's network a port is the host's.
fn host_ports(spec: &Value, path: &str, problems: &mut Problems) {
    if spec.get("hostNetwork") != Some(&Value::Bool(true)) {
        return;
    }
    for list_name in ["containers", "initContainers"] {
        for (at, container) in list(spec, &format!("/{list_name}")).iter().enumerate() {
            for (inner, port) in list(container, "/ports").iter().enumerate() {
                if port.get("hostPort").is_some_and(|host| Some(host) != port.get("containerPort")) {
                    let field = format!("{path}.{list_name}[{at}].ports[{inner}].containerPort");
                    problems.invalid(field, &port["containerPort"], "must match `hostPort` when `hostNetwork` is true");
                }
            }
        }
    }
}

const UPDATE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
    `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` \
    (allow it to be set to 1 if it was previously negative)";

fn update(new: &Value, old: &Value, problems: &mut Problems) {
    for name in ["containers", "initContainers"] {
        if list(new, &format!("/{name}")).len() != list(old, &format!("/{name}")).len() {
            return problems.forbidden(format!("spec.{name}"), "pod updates may not add or remove containers");
        }
    }
    if !set_of(list(old, "/tolerations")).is_subset(&set_of(list(new, "/tolerations"))) {
        return problems.forbidden("spec.tolerations", "existing toleration can not be modified except its tolerationSeconds");
    }
    if let (Some(old), new) =
        (old.get("activeDeadlineSeconds").and_then(Value::as_i64), new.get("activeDeadlineSeconds").and_then(Value::as_i64))
    {
        match new {
            None => problems.invalid("spec.activeDeadlineSeconds", &Value::Null, "must not update from a positive integer to nil value"),
            Some(new) if new > old => {
                problems.invalid("spec.activeDeadlineSeconds", &new.into(), "must be less than or equal to previous value");
            }
            _ => {}
        }
    }
    if fixed(new) != fixed(old) {
        problems.forbidden("spec", UPDATE);
    }
}

/// The spec without what may change.
fn fixed(spec: &Value) -> Option<Object> {
    let mut spec = spec.as_object()?.clone();
    for name in ["activeDeadlineSeconds", "tolerations"] {
        spec.remove(name);
    }
    for name in ["containers", "initContainers"] {
        for container in spec.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut) {
            container.remove("image");
        }
    }
    Some(spec)
}

#[cfg(test)]
mod tests {
    use super::super::tests::problems;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Value {
        json!({"spec": spec})
    }
    /// A pod whose one container has `more`.
    fn with(more: Value) -> Value {
        let mut container = json!({"name": "c", "image": "a:1"});
        container.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
        pod(json!({"containers": [container]}))
    }
    fn check(pod: Value, expected: &[&str]) {
        assert_eq!(problems("", "Pod", pod, None), expected);
    }

    #[test]
    fn a_plain_pod_is_fine() {
        check(with(json!({})), &[]);
        check(
            pod(
                json!({"containers": [{"name": "c", "image": "a", "volumeMounts": [{"name": "v", "mountPath": "/v"}], "ports": [{"containerPort": 80, "name": "http"}],
                "livenessProbe": {"httpGet": {"port": "http"}}, "resources": {"limits": {"cpu": 1}}}],
                "initContainers": [{"name": "i", "image": "a"}, {"name": "s", "image": "a", "restartPolicy": "Always", "startupProbe": {"tcpSocket": {"port": 1}}}],
                "volumes": [{"name": "v", "projected": {"sources": [{"configMap": {"name": "x"}}, {"serviceAccountToken": {"path": "t"}}]}}]}),
            ),
            &[],
        );
    }

    #[test]
    fn names_and_images_are_needed_once_each() {
        check(pod(json!({})), &["spec.containers: Required value"]);
        check(
            pod(json!({"containers": [{"name": "c", "image": "a"}, {"name": "c"}, {"image": "a"}]})),
            &[
                "spec.containers[1].name: Duplicate value: \"c\"",
                "spec.containers[1].image: Required value",
                "spec.containers[2].name: Required value",
            ],
        );
        check(
            pod(json!({"containers": [{"name": "c", "image": "a"}], "initContainers": [{"name": "c", "image": "a"}]})),
            &["spec.initContainers[0].name: Duplicate value: \"c\""],
        );
    }

    #[test]
    fn ports_are_checked() {
        check(
            with(
                json!({"ports": [{"containerPort": 0}, {"containerPort": 80, "name": "a", "protocol": "x"}, {"containerPort": 70000, "name": "a"}, {}]}),
            ),
            &[
                "spec.containers[0].ports[0].containerPort: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.containers[0].ports[1].protocol: Unsupported value: \"x\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
                "spec.containers[0].ports[2].name: Duplicate value: \"a\"",
                "spec.containers[0].ports[2].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
                "spec.containers[0].ports[3].containerPort: Required value",
            ],
        );
    }

    #[test]
    fn environments_are_checked() {
        check(
            with(
                json!({"env": [{"value": "x"}, {"name": "A=B"}, {"name": "A", "valueFrom": {}}, {"name": "B", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}),
            ),
            &[
                "spec.containers[0].env[0].name: Required value",
                "spec.containers[0].env[1].name: Invalid value: \"A=B\": a valid environment variable name must consist only of printable ASCII characters other than '='",
                "spec.containers[0].env[2].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
                "spec.containers[0].env[3].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
            ],
        );
    }

    #[test]
    fn mounts_need_their_volume() {
        check(
            with(json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]})),
            &["spec.containers[0].volumeMounts[0].name: Not found: \"v\""],
        );
        check(
            pod(json!({"containers": [{"name": "c", "image": "a"}], "volumes": [
                {"name": "a", "emptyDir": {}, "hostPath": {"path": "/x"}}, {"name": "a", "secret": {}}, {"name": "b", "hostPath": {"path": "/a/../b", "type": "x"}}]})),
            &[
                "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
                "spec.volumes[1].name: Duplicate value: \"a\"",
                "spec.volumes[1].secret.secretName: Required value",
                "spec.volumes[2].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
                "spec.volumes[2].hostPath.type: Unsupported value: \"x\": supported values: \"\", \"BlockDevice\", \"CharDevice\", \"Directory\", \"DirectoryOrCreate\", \"File\", \"FileOrCreate\", \"Socket\"",
            ],
        );
    }

    #[test]
    fn probes_have_exactly_one_handler() {
        check(with(json!({"livenessProbe": {}})), &["spec.containers[0].livenessProbe: Required value: must specify a handler type"]);
        check(
            with(json!({"readinessProbe": {"exec": {"command": ["x"]}, "tcpSocket": {"port": 1}, "periodSeconds": -1}})),
            &[
                "spec.containers[0].readinessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type",
                "spec.containers[0].readinessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0",
            ],
        );
        check(
            with(json!({"livenessProbe": {"exec": {}, "successThreshold": 2}})),
            &[
                "spec.containers[0].livenessProbe.exec.command: Required value",
                "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
            ],
        );
        check(
            pod(
                json!({"containers": [{"name": "c", "image": "a"}], "initContainers": [{"name": "i", "image": "a", "livenessProbe": {"exec": {"command": ["x"]}}}]}),
            ),
            &["spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always"],
        );
    }

    #[test]
    fn requests_stay_below_limits() {
        check(
            with(json!({"resources": {"limits": {"cpu": "500m", "memory": "-1"}, "requests": {"cpu": 1, "memory": "-1"}}})),
            &[
                "spec.containers[0].resources.limits[memory]: Invalid value: \"-1\": must be greater than or equal to 0",
                "spec.containers[0].resources.requests: Invalid value: \"1\": must be less than or equal to cpu limit of 500m",
                "spec.containers[0].resources.requests[memory]: Invalid value: \"-1\": must be greater than or equal to 0",
            ],
        );
    }

    #[test]
    fn a_running_pod_changes_its_images_and_little_else() {
        let old = with(json!({}));
        let update = |change: fn(&mut Value)| {
            let mut new = old.clone();
            change(&mut new);
            problems("", "Pod", new, Some(old.clone()))
        };
        assert_eq!(update(|_| {}), Vec::<String>::new());
        assert_eq!(update(|pod| pod["spec"]["containers"][0]["image"] = "a:1-2".into()), Vec::<String>::new());
        assert_eq!(update(|pod| pod["spec"]["tolerations"] = json!([{"operator": "Exists"}])), Vec::<String>::new());
        let refused = update(|pod| pod["spec"]["nodeName"] = "elsewhere".into());
        assert!(
            refused.len() == 1 && refused[0].starts_with("spec: Forbidden: pod updates may not change fields other than"),
            "{refused:?}"
        );
        let refused = update(|pod| pod["spec"]["containers"] = json!([{"name": "c", "image": "a:1"}, {"name": "d", "image": "a:1"}]));
        assert_eq!(refused, ["spec.containers: Forbidden: pod updates may not add or remove containers"]);
    }
}
