//! Field validation: names that no schema knows, names written twice, values of the wrong JSON type.

use super::KindRow;
use super::schema::{Schemas, Shape, Type};
use crate::blueprint::quantity::Quantity;
use base64::Engine;
use serde::de::DeserializeSeed;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::collections::HashSet;
use std::fmt;

/// More problems than these help nobody, and a hostile body must not make the answer grow without end.
const MAX_REPORTED: usize = 100;
const MAX_NAME_BYTES: usize = 256;

/// Paths of fields that the kind's schema does not know: `spec.replcias`. Empty for kinds without a schema.
/// `fieldValidation=Warn` sends `Warning: 299 - "unknown field \"spec.replcias\""` each; `Strict` answers 400 with `strict_message`.
pub fn unknown_fields(row: &KindRow, object: &Value) -> Vec<String> {
    let schemas = Schemas::builtin();
    let mut found = Vec::new();
    if let Some(of) = schemas.of(row) {
        unknown_in(schemas, &Shape::Object(of.id), object, &Path::Root, &mut found);
    }
    found
}

fn unknown_in(schemas: &Schemas, shape: &Shape, value: &Value, path: &Path, found: &mut Vec<String>) {
    if found.len() == MAX_REPORTED {
        return;
    }
    match (shape, value) {
        (Shape::Object(id), Value::Object(object)) => {
            let of = schemas.get(*id);
            for (name, value) in object {
                let path = Path::Field(path, name);
                match of.field(name) {
                    Some(field) => unknown_in(schemas, &field.shape, value, &path, found),
                    None if found.len() < MAX_REPORTED => found.push(path.to_string()),
                    None => return,
                }
            }
        }
        (Shape::List(inner), Value::Array(list)) => {
            for (at, value) in list.iter().enumerate() {
                unknown_in(schemas, inner, value, &Path::Item(path, at), found);
            }
        }
        (Shape::Map(inner), Value::Object(map)) => {
            for (name, value) in map {
                unknown_in(schemas, inner, value, &Path::Field(path, name), found);
            }
        }
        _ => {}
    }
}

/// Where a walk is. Written out only for what is reported: a body may hold one enormous name above very many fields.
enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Item(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Field(Path::Root, name) => out.write_str(shortened(name)),
            Path::Field(parent, name) => write!(out, "{parent}.{}", shortened(name)),
            Path::Item(parent, at) => write!(out, "{parent}[{at}]"),
        }
    }
}

/// Names longer than any real one are cut.
fn shortened(name: &str) -> &str {
    let end = (0..=MAX_NAME_BYTES.min(name.len())).rev().find(|end| name.is_char_boundary(*end));
    &name[..end.unwrap_or_default()]
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_string() } else { format!("{path}.{name}") }
}

/// Paths of fields that are written more than once in JSON text (a parser keeps only the last one). Text that is no JSON has none.
pub fn duplicate_fields(json: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    // A syntax error is the parser's to report; what was seen before it does not matter then.
    let _ = Walk { path: &Path::Root, found: &mut found }.deserialize(&mut serde_json::Deserializer::from_slice(json));
    found
}

struct Walk<'a> {
    path: &'a Path<'a>,
    found: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();
    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("JSON")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            let path = Path::Field(self.path, &name);
            if seen.contains(&name) {
                if self.found.len() == MAX_REPORTED {
                    return Err(A::Error::custom("enough"));
                }
                self.found.push(path.to_string());
            }
            map.next_value_seed(Walk { path: &path, found: self.found })?;
            seen.insert(name);
        }
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let mut at = 0;
        while list.next_element_seed(Walk { path: &Path::Item(self.path, at), found: self.found })?.is_some() {
            at += 1;
        }
        Ok(())
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// The text of one warning: `unknown field "spec.replcias"`.
pub fn unknown_warning(path: &str) -> String {
    format!("unknown field \"{path}\"")
}

/// The text of one warning: `duplicate field "spec.replicas"`.
pub fn duplicate_warning(path: &str) -> String {
    format!("duplicate field \"{path}\"")
}

/// The 400 message of `fieldValidation=Strict`.
pub fn strict_message(row: &KindRow, warnings: &[String]) -> String {
    unfit(row, &format!("strict decoding error: {}", warnings.join(", ")))
}

fn unfit(row: &KindRow, why: &str) -> String {
    format!("{} in version {:?} cannot be handled as a {}: {why}", row.kind, row.version, row.kind)
}

/// The 400 message when a value has a JSON type that the schema does not allow there; none if all fit.
pub fn decode_error(row: &KindRow, object: &Value) -> Option<String> {
    let schemas = Schemas::builtin();
    let of = schemas.of(row)?;
    let place = Place { of, path: String::new() };
    misfit(schemas, &Shape::Object(of.id), object, &place).map(|why| unfit(row, &why))
}

/// The struct whose field is looked at, and the whole path without indexes: how Go's decoder names a place.
struct Place<'a> {
    of: &'a Type,
    path: String,
}

fn misfit(schemas: &Schemas, shape: &Shape, value: &Value, place: &Place) -> Option<String> {
    match (shape, value) {
        (Shape::Anything, _) | (_, Value::Null) => None,
        (Shape::Object(id), Value::Object(object)) => {
            let of = schemas.get(*id);
            object
                .iter()
                .find_map(|(name, value)| misfit(schemas, &of.field(name)?.shape, value, &Place { of, path: join(&place.path, name) }))
        }
        (Shape::List(inner), Value::Array(list)) => list.iter().find_map(|value| misfit(schemas, inner, value, place)),
        (Shape::Map(inner), Value::Object(map)) => map.values().find_map(|value| misfit(schemas, inner, value, place)),
        (Shape::Text, Value::String(_)) | (Shape::Boolean, Value::Bool(_)) | (Shape::Number, Value::Number(_)) => None,
        (Shape::Integer32, Value::Number(number)) if number.as_i64().is_some_and(|number| i32::try_from(number).is_ok()) => None,
        (Shape::Integer64, Value::Number(number)) if number.is_i64() => None,
        (Shape::Integer32 | Shape::Integer64, Value::Number(number)) => Some(mismatch(schemas, shape, &format!("number {number}"), place)),
        (Shape::IntOrText, Value::Number(number)) if number.as_i64().is_some_and(|number| i32::try_from(number).is_ok()) => None,
        (Shape::IntOrText, Value::String(_)) => None,
        (Shape::Quantity, value) => Quantity::from_value(value)
            .err()
            .map(|_| "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'".to_string()),
        (Shape::Bytes, Value::String(text)) => base64::engine::general_purpose::STANDARD.decode(text).err().map(|error| {
            let at = match error {
                base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol { offset: at, .. } => at,
                _ => text.len(),
            };
            format!("illegal base64 data at input byte {at}")
        }),
        (Shape::Time, Value::String(text)) => text.parse::<k8s_openapi::jiff::Timestamp>().err().map(|_| {
            let text = shortened(text);
            format!("parsing time \"\\\"{text}\\\"\" as \"\\\"2006-01-02T15:04:05Z07:00\\\"\": cannot parse \"{text}\" as a time")
        }),
        (shape, value) => Some(mismatch(schemas, shape, json_type(value), place)),
    }
}

fn mismatch(schemas: &Schemas, shape: &Shape, given: &str, place: &Place) -> String {
    let wanted = go_type(schemas, shape);
    if place.path.is_empty() {
        return format!("json: cannot unmarshal {given} into Go value of type {wanted}");
    }
    format!("json: cannot unmarshal {given} into Go struct field {}.{} of type {wanted}", place.of.short_name(), place.path)
}

fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn go_type(schemas: &Schemas, shape: &Shape) -> String {
    match shape {
        Shape::Text => "string".into(),
        Shape::Time => "v1.Time".into(),
        Shape::Bytes => "[]uint8".into(),
        Shape::Integer32 => "int32".into(),
        Shape::Integer64 => "int64".into(),
        Shape::Number => "float64".into(),
        Shape::Boolean => "bool".into(),
        Shape::Quantity => "resource.Quantity".into(),
        Shape::IntOrText => "intstr.IntOrString".into(),
        Shape::Anything => "interface {}".into(),
        Shape::List(inner) => format!("[]{}", go_type(schemas, inner)),
        Shape::Map(inner) => format!("map[string]{}", go_type(schemas, inner)),
        Shape::Object(id) => format!("v1.{}", schemas.get(*id).short_name()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::api::kinds::Registry;
    use proptest::prelude::*;
    use serde_json::json;

    fn row(group: &str, kind: &str) -> &'static KindRow {
        Registry::builtin().find_kind(group, "v1", kind).expect(kind)
    }

    #[test]
    fn unknown_fields_are_named_with_their_path() {
        let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "labels": {"any": "thing"}, "nmae": 1},
            "spec": {"replcias": 1, "template": {"spec": {"containers": [{"name": "c"}, {"name": "d", "imagePulPolicy": "x"}]}}}});
        assert_eq!(
            unknown_fields(row("apps", "Deployment"), &deployment),
            ["metadata.nmae", "spec.replcias", "spec.template.spec.containers[1].imagePulPolicy"]
        );
        assert_eq!(unknown_fields(row("kprov.dev", "Blueprint"), &json!({"anything": 1})), Vec::<String>::new());
        let strict = strict_message(row("apps", "Deployment"), &[unknown_warning("spec.foo"), duplicate_warning("spec.replicas")]);
        assert_eq!(
            strict,
            "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: unknown field \"spec.foo\", duplicate field \"spec.replicas\""
        );
    }

    #[test]
    fn fields_written_twice_are_named_with_their_path() {
        assert_eq!(duplicate_fields(br#"{"a": 1, "b": [{"c": 1, "c": 2}], "a": {"d": null, "d": true}}"#), ["b[0].c", "a", "a.d"]);
        assert_eq!(duplicate_fields(br#"{"a": 1, "b": {"a": 1.5}}"#), Vec::<String>::new());
        assert_eq!(duplicate_fields(b"nonsense"), Vec::<String>::new());
        let many = format!("{{{}}}", vec!["\"a\":1"; 1000].join(","));
        assert_eq!(duplicate_fields(many.as_bytes()).len(), MAX_REPORTED);
    }

    #[test]
    fn one_enormous_name_above_many_fields_costs_no_more_than_its_size() {
        let name = "x".repeat(1 << 20);
        let fields: Vec<_> = (0..100_000).map(|at| format!("\"{at}\":1")).collect();
        let text = format!("{{\"{name}\":{{{},\"0\":2}}}}", fields.join(","));
        let found = duplicate_fields(text.as_bytes());
        assert_eq!(found, [format!("{}.0", "x".repeat(MAX_NAME_BYTES))]);
        let value = json!({"spec": {name.as_str(): 1}});
        assert!(unknown_fields(row("", "Pod"), &value)[0].len() < 1000);
    }

    fn check(group: &str, kind: &str, object: Value, why: &str) {
        let row = row(group, kind);
        let expected = (!why.is_empty()).then(|| format!("{kind} in version \"v1\" cannot be handled as a {kind}: {why}"));
        assert_eq!(decode_error(row, &object), expected);
    }

    #[test]
    fn values_of_the_wrong_type_are_named_as_upstreams_decoder_does() {
        let cannot = |given: &str, place: &str, wanted: &str| {
            format!("json: cannot unmarshal {given} into Go struct field {place} of type {wanted}")
        };
        check("apps", "Deployment", json!({"spec": {"replicas": "3"}}), &cannot("string", "DeploymentSpec.spec.replicas", "int32"));
        check("apps", "Deployment", json!({"spec": {"replicas": 1.5}}), &cannot("number 1.5", "DeploymentSpec.spec.replicas", "int32"));
        check("apps", "Deployment", json!({"spec": []}), &cannot("array", "Deployment.spec", "v1.DeploymentSpec"));
        check("", "Pod", json!({"spec": {"containers": {}}}), &cannot("object", "PodSpec.spec.containers", "[]v1.Container"));
        check(
            "",
            "Pod",
            json!({"spec": {"containers": [{"env": [{"name": "a", "value": 1}]}]}}),
            &cannot("number", "EnvVar.spec.containers.env.value", "string"),
        );
        check("", "ConfigMap", json!({"data": {"a": 1}}), &cannot("number", "ConfigMap.data", "string"));
        check("", "Pod", json!([]), "json: cannot unmarshal array into Go value of type v1.Pod");
        check("", "Secret", json!({"data": {"a": "#"}}), "illegal base64 data at input byte 0");
        let quantity = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
        check("", "PersistentVolumeClaim", json!({"spec": {"resources": {"requests": {"storage": "5 GB"}}}}), quantity);
    }

    #[test]
    fn what_fits_is_not_complained_about() {
        check(
            "",
            "Pod",
            json!({"metadata": {"creationTimestamp": null}, "spec": {"containers": [{"resources": {"limits": {"cpu": 1, "memory": "1Gi"}}}]}}),
            "",
        );
        check("", "Service", json!({"spec": {"ports": [{"port": 80, "targetPort": "http"}, {"port": 81, "targetPort": 8080}]}}), "");
        check("apps", "ControllerRevision", json!({"data": {"any": ["thing"]}, "revision": 1}), "");
        check("", "Event", json!({"eventTime": "2026-01-01T00:00:00.000001Z"}), "");
    }

    proptest! {
        #[test]
        fn no_text_makes_field_validation_panic(text in "[\\[\\]{}\",:a0-9 ]{0,40}") {
            duplicate_fields(text.as_bytes());
            if let Ok(value) = serde_json::from_str(&text) {

                for row in Registry::builtin().all() {
                    unknown_fields(row, &value);
                    decode_error(row, &value);
                }
            }
        }
    }
}
