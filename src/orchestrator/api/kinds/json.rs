//! Short ways to read and fill JSON objects whose shape nobody has checked yet.

use serde_json::{Map, Value};

pub type Object = Map<String, Value>;

/// The text at a pointer such as `/spec/type`, empty if there is none.
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

pub fn integer(value: &Value, pointer: &str) -> Option<i64> {
    value.pointer(pointer).and_then(Value::as_i64)
}

pub fn truth(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer).and_then(Value::as_bool).unwrap_or_default()
}

/// The elements of the list at a pointer; none if there is no list.
pub fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub fn map<'a>(value: &'a Value, pointer: &str) -> Option<&'a Object> {
    value.pointer(pointer).and_then(Value::as_object)
}

/// The field as text, empty if it is none.
pub fn field<'a>(object: &'a Object, name: &str) -> &'a str {
    object.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// True if the field is absent, null or the empty text: what upstream's defaulting takes for "not said".
pub fn unset(object: &Object, name: &str) -> bool {
    match object.get(name) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        _ => false,
    }
}

/// Sets a field that nobody has set.
pub fn fill(object: &mut Object, name: &str, value: impl Into<Value>) {
    if unset(object, name) {
        object.insert(name.into(), value.into());
    }
}

/// The object in a field, if it is one.
pub fn child<'a>(object: &'a mut Object, name: &str) -> Option<&'a mut Object> {
    object.get_mut(name).and_then(Value::as_object_mut)
}

/// The object in a field, made if there is nothing.
pub fn child_made<'a>(object: &'a mut Object, name: &str) -> Option<&'a mut Object> {
    if object.get(name).is_none_or(Value::is_null) {
        object.insert(name.into(), Value::Object(Map::new()));
    }
    child(object, name)
}

/// The objects of a list in a field.
pub fn each<'a>(object: &'a mut Object, name: &str) -> impl Iterator<Item = &'a mut Object> {
    object.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}
