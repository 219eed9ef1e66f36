//! Reading of protobuf bodies, which kubectl's typed commands (`create configmap`, `drain`) send and no server may refuse.
//!
//! Answers are always JSON, which every client accepts beside it. The decoder is driven by the table in `fields.txt`.

use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::sync::LazyLock;

/// Every body starts so; a `runtime.Unknown` follows.
const MAGIC: &[u8] = b"k8s\0";
/// No kind nests deeper than half of this; a hostile body might.
const MOST_DEPTH: usize = 64;

struct Field {
    name: &'static str,
    kind: Type,
    shape: Shape,
    inline: bool,
    pointer: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Shape {
    One,
    List,
    Map,
}

#[derive(Clone, Copy)]
enum Type {
    Text,
    Integer,
    Bool,
    Double,
    Bytes,
    Time,
    Quantity,
    IntOrString,
    /// JSON in bytes.
    Raw,
    Message(&'static str),
}

type Messages = HashMap<&'static str, HashMap<u64, Field>>;

static MESSAGES: LazyLock<Messages> = LazyLock::new(|| {
    let mut messages = Messages::new();
    let mut current = "";
    for line in include_str!("fields.txt").lines().filter(|line| !line.starts_with('#')) {
        match line.strip_prefix(' ') {
            None => current = line,
            Some(field) => {
                let mut words = field.split(' ');
                let mut word = || words.next().expect("each line of the table has three words");
                let number = word().parse().expect("the first is a number");
                messages.entry(current).or_default().insert(number, Field::of(word(), word()));
            }
        }
    }
    messages
});

impl Field {
    fn of(name: &'static str, code: &'static str) -> Field {
        let (code, inline) = code.strip_prefix('^').map_or((code, false), |code| (code, true));
        let (code, pointer) = code.strip_suffix('?').map_or((code, false), |code| (code, true));
        let (code, shape) = match (code.strip_prefix("[]"), code.strip_prefix("{}")) {
            (Some(code), _) => (code, Shape::List),
            (_, Some(code)) => (code, Shape::Map),
            _ => (code, Shape::One),
        };
        let kind = match code {
            "string" => Type::Text,
            "int" => Type::Integer,
            "bool" => Type::Bool,
            "double" => Type::Double,
            "bytes" => Type::Bytes,
            "time" | "microtime" => Type::Time,
            "quantity" => Type::Quantity,
            "intorstring" => Type::IntOrString,
            "raw" => Type::Raw,
            message => Type::Message(message),
        };
        Field { name, kind, shape, inline, pointer }
    }
}

/// A body as the JSON object it stands for. The error is the text of a 400 answer.
pub fn decode(body: &[u8]) -> Result<Value, String> {
    let unknown =
        body.strip_prefix(MAGIC).ok_or("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")?;
    let (mut api_version, mut kind, mut raw, mut content_type) = (String::new(), String::new(), &[][..], String::new());
    for part in Parts(unknown) {
        match part? {
            (1, Wire::Bytes(meta)) => {
                for part in Parts(meta) {
                    match part? {
                        (1, Wire::Bytes(bytes)) => api_version = text(bytes)?,
                        (2, Wire::Bytes(bytes)) => kind = text(bytes)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            (4, Wire::Bytes(bytes)) => content_type = text(bytes)?,
            _ => {}
        }
    }
    if content_type == "application/json" {
        return serde_json::from_slice(raw).map_err(|error| error.to_string());
    }
    let name = message_name(&api_version, &kind);
    let (name, _) =
        MESSAGES.get_key_value(name.as_str()).ok_or_else(|| format!("no kind {kind:?} is registered for version {api_version:?}"))?;
    let mut object = message(name, raw, 0)?;
    object.insert("kind".into(), json!(kind));
    object.insert("apiVersion".into(), json!(api_version));
    Ok(Value::Object(object))
}

/// `authentication.k8s.io/v1`, `TokenRequest` -> `authentication.v1.TokenRequest`.
fn message_name(api_version: &str, kind: &str) -> String {
    if kind == "DeleteOptions" {
        return "meta.v1.DeleteOptions".into();
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("core", api_version));
    format!("{}.{version}.{kind}", group.split('.').next().unwrap_or_default())
}

fn message(name: &'static str, bytes: &[u8], depth: usize) -> Result<Map<String, Value>, String> {
    let fields = MESSAGES.get(name).ok_or_else(|| format!("{name} is unknown"))?;
    if depth > MOST_DEPTH {
        return Err("the message is nested too deeply".into());
    }
    let mut object = Map::new();
    for part in Parts(bytes) {
        let (number, wire) = part?;
        let Some(field) = fields.get(&number) else { continue };
        if field.shape == Shape::Map {
            let (key, value) = map_entry(field, wire, depth)?;
            let map = object.entry(field.name).or_insert_with(|| json!({}));
            map.as_object_mut().into_iter().for_each(|map| drop(map.insert(key.clone(), value.clone())));
            continue;
        }
        let value = value(field, wire, depth)?;
        match field.shape {
            Shape::List => {
                let list = object.entry(field.name).or_insert_with(|| json!([]));
                list.as_array_mut().into_iter().for_each(|list| list.push(value.clone()));
            }
            _ if field.inline => object.extend(value.as_object().cloned().unwrap_or_default()),
            _ if !field.pointer && is_zero(&value) => {}
            _ => drop(object.insert(field.name.into(), value)),
        }
    }
    Ok(object)
}

/// Go writes every field that is no pointer, also those nobody set. Empty messages stay: `emptyDir: {}` says something.
fn is_zero(value: &Value) -> bool {
    matches!(value, Value::Null | Value::Bool(false)) || value.as_str() == Some("") || value.as_f64() == Some(0.0)
}

fn map_entry(field: &Field, wire: Wire, depth: usize) -> Result<(String, Value), String> {
    let Wire::Bytes(bytes) = wire else { return Err(mismatch(field)) };
    let (mut key, mut found) = (String::new(), None);
    for part in Parts(bytes) {
        match part? {
            (1, Wire::Bytes(bytes)) => key = text(bytes)?,
            (2, wire) => found = Some(value(field, wire, depth)?),
            _ => {}
        }
    }
    Ok((key, found.unwrap_or_else(|| json!(""))))
}

fn value(field: &Field, wire: Wire, depth: usize) -> Result<Value, String> {
    use base64::Engine;
    Ok(match (field.kind, wire) {
        (Type::Text, Wire::Bytes(bytes)) => json!(text(bytes)?),
        // Negative numbers are sign-extended to 64 bits on the wire.
        (Type::Integer, Wire::Varint(number)) => json!(number.cast_signed()),
        (Type::Bool, Wire::Varint(number)) => json!(number != 0),
        (Type::Double, Wire::Fixed64(bits)) => json!(f64::from_bits(bits)),
        (Type::Bytes, Wire::Bytes(bytes)) => json!(base64::engine::general_purpose::STANDARD.encode(bytes)),
        (Type::Time, Wire::Bytes(bytes)) => time(bytes)?,
        (Type::Quantity, Wire::Bytes(bytes)) => json!(first_text(bytes)?),
        (Type::IntOrString, Wire::Bytes(bytes)) => int_or_string(bytes)?,
        (Type::Raw, Wire::Bytes(bytes)) => raw(bytes)?,
        // Go's type is a plain list of texts.
        (Type::Message(name), Wire::Bytes(bytes)) if name.ends_with(".ExtraValue") => {
            message(name, bytes, depth + 1)?.remove("items").unwrap_or_else(|| json!([]))
        }
        (Type::Message(name), Wire::Bytes(bytes)) => Value::Object(message(name, bytes, depth + 1)?),
        _ => return Err(mismatch(field)),
    })
}

fn mismatch(field: &Field) -> String {
    format!("proto: wrong wireType for field {}", field.name)
}

fn text(bytes: &[u8]) -> Result<String, String> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| "proto: a string is not UTF-8".into())
}

fn first_text(bytes: &[u8]) -> Result<String, String> {
    let first = Parts(bytes).find_map(|part| match part {
        Ok((1, Wire::Bytes(bytes))) => Some(text(bytes)),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    });
    first.unwrap_or_else(|| Ok("0".into()))
}

/// Seconds and nanoseconds since 1970; nothing at all is no time.
fn time(bytes: &[u8]) -> Result<Value, String> {
    let (mut seconds, mut nanoseconds) = (None, 0);
    for part in Parts(bytes) {
        match part? {
            (1, Wire::Varint(number)) => seconds = Some(number.cast_signed()),
            (2, Wire::Varint(number)) => nanoseconds = i32::try_from(number).unwrap_or(0),
            _ => {}
        }
    }
    let Some(seconds) = seconds else { return Ok(Value::Null) };
    let at = k8s_openapi::jiff::Timestamp::new(seconds, nanoseconds).map_err(|error| error.to_string())?;
    Ok(json!(if nanoseconds == 0 { super::object::time(at) } else { at.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string() }))
}

fn int_or_string(bytes: &[u8]) -> Result<Value, String> {
    let (mut is_text, mut number, mut found) = (false, 0, String::new());
    for part in Parts(bytes) {
        match part? {
            (1, Wire::Varint(kind)) => is_text = kind == 1,
            (2, Wire::Varint(value)) => number = value.cast_signed(),
            (3, Wire::Bytes(bytes)) => found = text(bytes)?,
            _ => {}
        }
    }
    Ok(if is_text { json!(found) } else { json!(number) })
}

fn raw(bytes: &[u8]) -> Result<Value, String> {
    for part in Parts(bytes) {
        if let (1, Wire::Bytes(bytes)) = part? {
            return serde_json::from_slice(bytes).map_err(|error| error.to_string());
        }
    }
    Ok(Value::Null)
}

enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32,
    Bytes(&'a [u8]),
}

/// The fields of a message as they stand on the wire.
struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    fn part(&mut self) -> Option<(u64, Wire<'a>)> {
        let tag = self.varint()?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Wire::Fixed32)?,
            _ => return None,
        };
        Some((tag >> 3, wire))
    }
    fn varint(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let (first, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }
}

impl<'a> Iterator for Parts<'a> {
    type Item = Result<(u64, Wire<'a>), String>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        Some(self.part().ok_or_else(|| {
            self.0 = &[];
            "unexpected EOF".to_owned()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::api::kinds::Registry;
    use proptest::prelude::*;

    #[test]
    fn bodies_of_kubectl_are_read() {
        // kubectl 1.32: create configmap x --from-literal=a=b
        let map = b"k8s\x00\n\x0f\n\x02v1\x12\tConfigMap\x12\x1b\n\x11\n\x01x\x12\x00\x1a\x00\"\x00*\x002\x008\x00B\x00\x12\x06\n\x01a\x12\x01b\x1a\x00\"\x00";
        assert_eq!(decode(map), Ok(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"a": "b"}})));
        // kubectl 1.32: create deployment web --image=x
        let deployment = b"k8s\x00\n\x15\n\x07apps/v1\x12\nDeployment\x12\xa3\x01\n\x1f\n\x03web\x12\x00\x1a\x00\"\x00*\x002\x008\x00B\x00Z\n\n\x03app\x12\x03web\x12r\x08\x01\x12\x0c\n\n\n\x03app\x12\x03web\x1aX\n\x1c\n\x00\x12\x00\x1a\x00\"\x00*\x002\x008\x00B\x00Z\n\n\x03app\x12\x03web\x128\x12\x1a\n\x01x\x12\x01x*\x00B\x00j\x00r\x00\x80\x01\x00\x88\x01\x00\x90\x01\x00\xa2\x01\x00\x1a\x002\x00B\x00J\x00R\x00X\x00`\x00h\x00\x82\x01\x00\x8a\x01\x00\x9a\x01\x00\xc2\x01\x00\"\x02\n\x00(\x008\x00\x1a\x0c\x08\x00\x10\x00\x18\x00 \x00(\x008\x00\x1a\x00\"\x00";
        let expected = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"app": "web"}},
            "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "strategy": {}, "template": {"metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "x", "image": "x", "resources": {}}]}}}, "status": {}});
        assert_eq!(decode(deployment), Ok(expected));
    }

    #[test]
    fn every_built_in_kind_and_every_type_it_uses_is_in_the_table() {
        for row in Registry::builtin().all().iter().filter(|row| row.group != "kprov.dev") {
            let name = message_name(&row.api_version(), &row.kind);
            assert!(MESSAGES.contains_key(name.as_str()), "{name}");
        }
        for (message, fields) in MESSAGES.iter() {
            for field in fields.values() {
                if let Type::Message(name) = field.kind {
                    assert!(MESSAGES.contains_key(name), "{message}.{}: {name}", field.name);
                }
            }
        }
    }

    #[test]
    fn cut_and_foreign_bodies_are_refused() {
        for body in [&b""[..], b"{}", b"k8s\0\n\x0f\n\x02v1", b"k8s\0\n\x0f\n\x02v1\x12\tNonsensee"] {
            assert!(decode(body).is_err(), "{body:?}");
        }
    }

    proptest! {
        #[test]
        fn no_body_panics(tail in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(&[b"k8s\0\n\x09\n\x02v1\x12\x03Pod\x12\x40", tail.as_slice()].concat());
        }
    }
}
