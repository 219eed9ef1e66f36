//! Field selectors: `?fieldSelector=` over the few fields that each kind offers.

use crate::orchestrator::api::kinds::KindRow;
use serde_json::Value;

/// Conditions on a few fields that must all hold; none matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<Term>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    path: String,
    value: String,
    equal: bool,
}

/// Fields that can be selected, beside `metadata.name` everywhere and `metadata.namespace` in namespaced kinds.
const SELECTABLE: &[(&str, &str, &[&str])] = &[
    (
        "",
        "Pod",
        &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
    ),
    (
        "",
        "Event",
        &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
    ),
    ("", "Secret", &["type"]),
    ("", "Node", &["spec.unschedulable"]),
    ("", "Namespace", &["status.phase"]),
    ("", "Service", &["spec.clusterIP", "spec.type"]),
    ("apps", "ReplicaSet", &["status.replicas"]),
];

impl FieldSelector {
    /// From `?fieldSelector=`: `spec.nodeName=worker-1,status.phase!=Failed`. The error is the text of a 400 answer.
    pub fn parse(row: &KindRow, text: &str) -> Result<FieldSelector, String> {
        let mut terms = Vec::new();
        for part in split_terms(text).into_iter().filter(|part| !part.is_empty()) {
            let (path, value, equal) = operator(part).ok_or_else(|| format!("invalid selector: '{text}'; can't understand '{part}'"))?;
            if !selectable(row, path) {
                return Err(format!("field label not supported: {path}"));
            }
            terms.push(Term { path: path.into(), value: unescape(value)?, equal });
        }
        Ok(FieldSelector { terms })
    }
    /// `metadata.name=<name>`.
    pub fn name(name: &str) -> FieldSelector {
        FieldSelector { terms: vec![Term { path: "metadata.name".into(), value: name.into(), equal: true }] }
    }
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }
    /// The value `path` must equal, when the selector says so: lets a list start from an index.
    pub fn required(&self, path: &str) -> Option<&str> {
        self.terms.iter().find(|term| term.equal && term.path == path).map(|term| term.value.as_str())
    }
    /// True if only metadata is looked at, so the object's body need not be parsed.
    pub fn only_metadata(&self) -> bool {
        self.terms.iter().all(|term| term.path.starts_with("metadata."))
    }
    pub fn matches(&self, object: &Value) -> bool {
        self.terms.iter().all(|term| (field(object, &term.path) == term.value) == term.equal)
    }
}

fn selectable(row: &KindRow, path: &str) -> bool {
    path == "metadata.name"
        || (path == "metadata.namespace" && row.namespaced)
        || SELECTABLE.iter().any(|(group, kind, paths)| row.is(group, kind) && paths.contains(&path))
}

/// A missing field is the empty string, a missing number 0, a missing boolean false, as in upstream's field sets.
fn field(object: &Value, path: &str) -> String {
    let text = |path: &str| match object.pointer(&format!("/{}", path.replace('.', "/"))) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::Bool(value)) => value.to_string(),
        _ => String::new(),
    };
    let or = |value: String, empty: &str| if value.is_empty() { empty.to_string() } else { value };
    match path {
        "spec.unschedulable" | "spec.hostNetwork" => or(text(path), "false"),
        "status.replicas" => or(text(path), "0"),
        "source" => or(text("source.component"), &text("reportingComponent")),
        "status.podIPs" => {
            let ips = object.pointer("/status/podIPs").and_then(Value::as_array).into_iter().flatten();
            ips.filter_map(|ip| ip.get("ip")?.as_str()).collect::<Vec<_>>().join(",")
        }
        path => text(path),
    }
}

/// Splits at commas that no backslash protects.
fn split_terms(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn operator(part: &str) -> Option<(&str, &str, bool)> {
    let at = part.find(['=', '!'])?;
    let (path, rest) = part.split_at(at);
    [("!=", false), ("==", true), ("=", true)].iter().find_map(|(sign, equal)| Some((path, rest.strip_prefix(sign)?, *equal)))
}

fn unescape(value: &str) -> Result<String, String> {
    let mut plain = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(escaped @ ('\\' | ',' | '=')) => plain.push(escaped),
                other => {
                    return Err(format!(
                        "invalid field selector: invalid escape sequence: \\{}",
                        other.map(String::from).unwrap_or_default()
                    ));
                }
            },
            '=' => return Err(format!("invalid field selector: unescaped character in value: =, value {value:?}")),
            c => plain.push(c),
        }
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::api::kinds::Registry;
    use serde_json::json;

    #[test]
    fn field_selectors_look_at_the_fields_upstream_offers() {
        let pods = Registry::builtin().find("", "v1", "pods").expect("served");
        let pod = json!({"metadata": {"name": "a", "namespace": "shop"}, "spec": {"nodeName": "worker-1"}, "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]}});
        for (selector, expected) in [
            ("", true),
            ("metadata.name=a", true),
            ("metadata.name!=a", false),
            ("metadata.namespace==shop", true),
            ("spec.nodeName=worker-1,status.phase=Running", true),
            ("spec.nodeName=", false),
            ("status.phase!=Failed,status.phase!=Succeeded", true),
            ("status.podIPs=10.0.0.1", true),
            ("spec.hostNetwork=false", true),
        ] {
            assert_eq!(FieldSelector::parse(pods, selector).expect(selector).matches(&pod), expected, "{selector}");
        }
        assert_eq!(FieldSelector::parse(pods, "spec.foo=x"), Err("field label not supported: spec.foo".into()));
        assert_eq!(FieldSelector::parse(pods, "nonsense"), Err("invalid selector: 'nonsense'; can't understand 'nonsense'".into()));
        let nodes = Registry::builtin().find("", "v1", "nodes").expect("served");
        assert!(FieldSelector::parse(nodes, "metadata.namespace=x").is_err());
        assert!(FieldSelector::parse(nodes, "spec.unschedulable=false").expect("offered").matches(&json!({})));
    }

    #[test]
    fn an_index_can_ask_what_a_field_must_be() {
        let pods = Registry::builtin().find("", "v1", "pods").expect("served");
        let selector = FieldSelector::parse(pods, "spec.nodeName=worker-1,status.phase!=Failed").expect("valid");
        assert_eq!(selector.required("spec.nodeName"), Some("worker-1"));
        assert_eq!(selector.required("status.phase"), None);
        assert!(!selector.only_metadata());
        assert!(FieldSelector::name("a").only_metadata());
    }
}
