//! Objects as kept: JSON bytes with the resource version spliced in, and the few fields that selectors and checks look at.

use super::kinds::KindRow;
use super::route::Target;
use super::status::{Answer, Status};
use crate::orchestrator::store::{Entry, Payload};
use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;

/// `deployments.apps/shop/web`; cluster-scoped: `nodes/worker-1`.
pub fn key(row: &KindRow, namespace: &str, name: &str) -> String {
    format!("{}{name}", prefix(row, namespace))
}

/// All objects of a kind (of one namespace, unless that is empty or the kind has none).
pub fn prefix(row: &KindRow, namespace: &str) -> String {
    if row.namespaced && !namespace.is_empty() { format!("{}/{namespace}/", row.resource()) } else { format!("{}/", row.resource()) }
}

/// Where a target's object is kept.
pub fn key_of(row: &KindRow, target: &Target) -> String {
    key(row, &target.namespace, &target.name)
}

/// Kind and version first, then metadata with an empty resource version whose place is noted, then the rest.
pub fn encode(row: &KindRow, object: &Value) -> Payload {
    let empty = Map::new();
    let metadata = object.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
    let mut text = format!(r#"{{"kind":"{}","apiVersion":"{}","metadata":{{"#, row.kind, row.api_version());
    for (key, value) in metadata.iter().filter(|(key, _)| *key != "resourceVersion") {
        text.push_str(&format!("{}:{value},", Value::String(key.clone())));
    }
    text.push_str(r#""resourceVersion":""#);
    let revision_at = text.len();
    text.push_str("\"}");
    let others = object.as_object().into_iter().flatten();
    for (key, value) in others.filter(|(key, _)| !["kind", "apiVersion", "metadata"].contains(&key.as_str())) {
        text.push_str(&format!(",{}:{value}", Value::String(key.clone())));
    }
    text.push('}');
    Payload { bytes: text.into(), revision_at }
}

/// The whole object.
pub fn decode(entry: &Entry) -> Answer<Value> {
    serde_json::from_slice(entry.value()).map_err(|error| Status::internal(format!("could not read {}: {error}", entry.key())))
}

/// The fields of [`PATHS`] alone, read once per object and shared.
pub fn peek(entry: &Entry) -> &Value {
    entry.note(peek_bytes)
}

fn peek_bytes(bytes: &Bytes) -> Value {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    Pick(&WANTED).deserialize(&mut reader).unwrap_or(Value::Null)
}

/// What selectors and admission ask about objects: all selectable fields, and what makes an object's identity.
const PATHS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "metadata.labels",
    "metadata.deletionTimestamp",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "spec.unschedulable",
    "spec.clusterIP",
    "spec.type",
    "status.phase",
    "status.podIP",
    "status.podIPs",
    "status.nominatedNodeName",
    "status.replicas",
    "involvedObject",
    "reason",
    "reportingComponent",
    "source",
    "type",
];

/// A tree of field names; a leaf takes the whole value.
#[derive(Default)]
struct Wanted(BTreeMap<&'static str, Wanted>);

static WANTED: LazyLock<Wanted> = LazyLock::new(|| {
    let mut root = Wanted::default();
    for path in PATHS {
        path.split('.').fold(&mut root, |at, name| at.0.entry(name).or_default());
    }
    root
});

struct Pick<'a>(&'a Wanted);

impl<'de> DeserializeSeed<'de> for Pick<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.0.0.is_empty() { serde::Deserialize::deserialize(deserializer) } else { deserializer.deserialize_any(self) }
    }
}

/// Anything but a map where a map is due reads as null.
impl<'de> Visitor<'de> for Pick<'_> {
    type Value = Value;
    fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str("JSON")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut picked = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            match self.0.0.get(key.as_str()) {
                Some(wanted) => drop(picked.insert(key, map.next_value_seed(Pick(wanted))?)),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Value::Object(picked))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_str<E>(self, _: &str) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

/// `object.metadata.<field>` as text; empty if it is not there.
pub fn meta<'a>(object: &'a Value, field: &str) -> &'a str {
    text(object, "metadata", field)
}

/// `object.<part>.<field>` as text; empty if it is not there.
pub fn text<'a>(object: &'a Value, part: &str, field: &str) -> &'a str {
    object.get(part).and_then(|part| part.get(field)).and_then(Value::as_str).unwrap_or_default()
}

/// `metadata`, made if it is missing or no object.
pub fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    part_mut(object, "metadata")
}

/// `spec`, `status` and the like, made if missing or no object.
pub fn part_mut<'a>(object: &'a mut Value, part: &str) -> &'a mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let slot = object.as_object_mut().expect("it was just made one").entry(part).or_insert(Value::Null);
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    slot.as_object_mut().expect("it was just made one")
}

/// The texts of an array field; empty if it is not there.
pub fn texts(list: Option<&Value>) -> Vec<String> {
    list.and_then(Value::as_array).into_iter().flatten().filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

pub fn finalizers(object: &Value) -> Vec<String> {
    texts(object.pointer("/metadata/finalizers"))
}

pub fn is_terminating(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some_and(|time| !time.is_null())
}

/// Five characters, without vowels and look-alikes, as upstream's generated names end.
pub fn random_suffix() -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    (0..5).map(|_| char::from(LETTERS[rand::random_range(0..LETTERS.len())])).collect()
}

/// RFC 3339 in whole seconds, as Kubernetes writes times.
pub fn time(at: k8s_openapi::jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::api::kinds::Registry;
    use serde_json::json;

    #[test]
    fn revision_lands_in_metadata_and_nowhere_else() {
        let row = Registry::builtin().find("", "v1", "pods").expect("pods are served");
        let object = json!({"metadata": {"name": "resourceVersion", "resourceVersion": "9"}, "spec": {"resourceVersion": "\"}"}});
        let payload = encode(row, &object);
        let text = String::from_utf8(payload.at(42).to_vec()).expect("JSON is text");
        let read: Value = serde_json::from_str(&text).expect("it is JSON");
        let expected = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "resourceVersion", "resourceVersion": "42"}, "spec": {"resourceVersion": "\"}"}});
        assert_eq!(read, expected);
        assert!(text.starts_with(r#"{"kind":"Pod","apiVersion":"v1""#));
    }

    #[test]
    fn peek_reads_the_wanted_fields_of_any_shape() {
        let object = json!({"metadata": {"name": "a", "labels": {"x": "y"}, "annotations": {"big": "text"}}, "spec": {"nodeName": "n", "containers": [{}]}, "status": [1]});
        let peeked = peek_bytes(&object.to_string().into());
        assert_eq!(peeked, json!({"metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"nodeName": "n"}, "status": null}));
    }
}
