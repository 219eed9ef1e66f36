//! Kubernetes manifests of a blueprint: files and folders read, documents split, lists unfolded, every object checked for its name.

use super::structure::Report;
use super::tree::{Data, Node, Place};
use serde_json::Value;

/// One object of the workloads, as it will be applied.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Where it came from, for messages.
    pub file: String,
    pub value: Value,
}

impl Object {
    pub fn is(&self, api_version: &str, kind: &str) -> bool {
        self.value["apiVersion"] == api_version && self.value["kind"] == kind
    }
    pub fn name(&self) -> &str {
        self.value["metadata"]["name"].as_str().unwrap_or_default()
    }
    /// `default` where none is written, as kubectl has it.
    pub fn namespace(&self) -> &str {
        self.value["metadata"]["namespace"].as_str().unwrap_or("default")
    }
    /// Equal for two manifests of one object.
    pub fn identity(&self) -> (String, String, String, String) {
        let text = |field: &str| self.value[field].as_str().unwrap_or_default().to_string();
        // deployments of apps/v1 and apps/v1beta1 are one object: the version is left out.
        let api_version = text("apiVersion");
        let group = api_version.rsplit_once('/').map_or("", |(group, _)| group).to_string();
        (group, text("kind"), self.namespace().into(), self.name().into())
    }
    pub fn title(&self) -> String {
        format!("{} {}/{}", self.value["kind"].as_str().unwrap_or_default(), self.namespace(), self.name())
    }
}

/// What is wrong with one object, as whoever is to take it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// `spec.containers[0].name`; empty for the object as a whole.
    pub field: String,
    pub message: String,
}

/// Says what a cluster would refuse of an object: given from outside, since this room knows no API.
pub type Judge<'a> = &'a dyn Fn(&Value) -> Vec<Finding>;

/// Where nobody asks what a cluster would take.
pub fn unjudged(_: &Value) -> Vec<Finding> {
    Vec::new()
}

/// Adds the objects of one document; `kind: List` is unfolded. What is no object, and what `judge` finds, is reported.
pub fn collect(document: &Node, file: &str, path: &str, judge: Judge<'_>, objects: &mut Vec<Object>, report: &mut dyn Report) {
    let Data::Map(_) = document.data else {
        let hint = "a manifest starts with apiVersion, kind and metadata".to_string();
        return report.report(document.place, path, format!("{} is not a Kubernetes object", document.kind()), Some(hint));
    };
    let kind = document.text_of("kind").unwrap_or_default();
    if let (true, Some(Data::List(items))) = (kind.ends_with("List"), document.field("items").map(|items| &items.data)) {
        // A list inside a list is no more than its items; depth is bounded by the tree's own.
        for (index, item) in items.iter().enumerate() {
            collect(item, file, &below(path, &format!("items[{index}]")), judge, objects, report);
        }
        return;
    }
    let before = Place { width: 1, ..document.place };
    let mut whole = true;
    for name in ["apiVersion", "kind"] {
        whole &= required(document, name, before, &below(path, name), report);
    }
    match document.field("metadata") {
        Some(metadata) if matches!(metadata.data, Data::Map(_)) => {
            whole &= required(metadata, "name", Place { width: 1, ..metadata.place }, &below(path, "metadata.name"), report);
            if let Some(namespace) = metadata.field("namespace").filter(|namespace| namespace.text().is_none()) {
                report.report(
                    namespace.place,
                    &below(path, "metadata.namespace"),
                    "the namespace must be a text".into(),
                    quotes(namespace),
                );
                whole = false;
            }
        }
        _ => {
            report.report(before, path, "the object has no metadata.name".into(), Some("add `metadata: {name: ...}`".into()));
            whole = false;
        }
    }
    if kind == super::schema::KIND && document.text_of("apiVersion") == Some(super::schema::API_VERSION) {
        report.report(before, path, "a blueprint cannot be a workload of a blueprint".into(), None);
        whole = false;
    }
    if whole {
        let value = document.to_value();
        for finding in judge(&value) {
            let place = Place { width: 1, ..nearest(document, &finding.field).place };
            report.report(place, &below(path, &finding.field), finding.message, None);
        }
        objects.push(Object { file: file.into(), value });
    }
}

/// The innermost node on the way to `field` that is written in the document.
fn nearest<'a>(document: &'a Node, field: &str) -> &'a Node {
    let mut node = document;
    for part in field.split(['.', '[']) {
        let next = match part.strip_suffix(']') {
            Some(index) => index.parse::<usize>().ok().and_then(|index| node.items().get(index)),
            None => node.field(part),
        };
        let Some(next) = next else { break };
        node = next;
    }
    node
}

fn required(holder: &Node, name: &str, place: Place, path: &str, report: &mut dyn Report) -> bool {
    let what = if name == "name" { "metadata.name" } else { name };
    match holder.field(name) {
        Some(Node { data: Data::Text(text), .. }) if !text.is_empty() => return true,
        Some(node) if !matches!(node.data, Data::Null | Data::Text(_)) => {
            report.report(node.place, path, format!("`{what}` must be a text, not {}", node.kind()), quotes(node));
        }
        found => {
            let place = found.map_or(place, |node| node.place);
            let hint = (name == "name" && holder.field("generateName").is_some())
                .then(|| "generateName would make a new object at every `kprov up`: write a name".into());
            report.report(place, path, format!("the object has no {what}"), hint);
        }
    }
    false
}

fn quotes(node: &Node) -> Option<String> {
    matches!(node.data, Data::Number(_) | Data::Bool(_)).then(|| "put it in quotes".into())
}

fn below(path: &str, name: &str) -> String {
    match (path, name) {
        ("", path) | (path, "") => path.into(),
        _ => format!("{path}.{name}"),
    }
}
