//! The patch formats of the API, applied to one object.

#[cfg(test)]
pub mod hostile_tests;
mod strategic;

use super::KindRow;
use super::schema::Schemas;
use json_patch::{Patch, PatchOperation};
use serde_json::Value;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    /// `application/json-patch+json`, RFC 6902.
    Json,
    /// `application/merge-patch+json`, RFC 7386.
    Merge,
    /// `application/strategic-merge-patch+json`.
    Strategic,
}

/// Why a patch was refused: what the `Status` answer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub code: u16,
    /// `BadRequest`, `Invalid`, `UnsupportedMediaType`, `RequestEntityTooLarge`.
    pub reason: &'static str,
    pub message: String,
}

/// As upstream: more operations than this are an attack or a mistake.
const MAX_OPERATIONS: usize = 10_000;
/// What all `copy` operations of one patch may copy: they can double an object with a few bytes each.
const MAX_COPIED_BYTES: usize = 3 << 20;
/// The JSON reader's own limit; values that a patch builds must stay readable, and recursion over them bounded.
const MAX_DEPTH: usize = 120;

impl PatchType {
    /// From the `Content-Type` header, parameters ignored.
    pub fn from_content_type(content_type: &str) -> Option<PatchType> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Some(PatchType::Json),
            "application/merge-patch+json" => Some(PatchType::Merge),
            "application/strategic-merge-patch+json" => Some(PatchType::Strategic),
            _ => None,
        }
    }
}

/// The object after the patch. Bounded in time, size and depth by the size of `current` and `patch`.
pub fn apply(row: &KindRow, kind: PatchType, current: &Value, patch: &[u8]) -> Result<Value, Refused> {
    let schema = Schemas::builtin().of(row);
    match kind {
        PatchType::Json => json(current, patch),
        PatchType::Merge => {
            let mut new = current.clone();
            json_patch::merge(&mut new, &Value::Object(object(patch)?));
            Ok(new)
        }
        PatchType::Strategic => match schema {
            None => Err(Refused {
                code: 415,
                reason: "UnsupportedMediaType",
                message: "the body of the request was in an unknown format - accepted media types include: \
                    application/json-patch+json, application/merge-patch+json"
                    .into(),
            }),
            Some(schema) => strategic::merge(Schemas::builtin(), schema, current, object(patch)?).map_err(bad),
        },
    }
}

fn bad(message: String) -> Refused {
    Refused { code: 400, reason: "BadRequest", message }
}

fn object(patch: &[u8]) -> Result<super::json::Object, Refused> {
    let patch: Value = serde_json::from_slice(patch).map_err(|error| bad(format!("error decoding patch: {error}")))?;
    match patch {
        Value::Object(object) => Ok(object),
        _ => Err(bad("error decoding patch: a JSON object is expected".into())),
    }
}

fn json(current: &Value, patch: &[u8]) -> Result<Value, Refused> {
    let Patch(operations) = serde_json::from_slice(patch).map_err(|error| bad(format!("error decoding patch: {error}")))?;
    if operations.len() > MAX_OPERATIONS {
        let message = format!("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}", operations.len());
        return Err(Refused { code: 413, reason: "RequestEntityTooLarge", message });
    }
    let invalid = |message: String| Refused { code: 422, reason: "Invalid", message };
    let mut new = current.clone();
    let mut copied = 0;
    for operation in operations {
        copied += copied_bytes(&new, &operation);
        if copied > MAX_COPIED_BYTES {
            return Err(invalid(format!(
                "unable to copy, the accumulated size increase of copy operations is {copied}, exceeding the limit {MAX_COPIED_BYTES}"
            )));
        }
        if depth_after(&new, &operation) > MAX_DEPTH {
            return Err(invalid("the patched object would be nested too deeply".into()));
        }
        json_patch::patch(&mut new, std::slice::from_ref(&operation)).map_err(|error| invalid(error.to_string()))?;
    }
    Ok(new)
}

fn copied_bytes(document: &Value, operation: &PatchOperation) -> usize {
    match operation {
        PatchOperation::Copy(copy) => document.pointer(copy.from.as_str()).map_or(0, |value| value.to_string().len()),
        _ => 0,
    }
}

/// How deep the place that the operation writes to will be.
fn depth_after(document: &Value, operation: &PatchOperation) -> usize {
    let at = |pointer: &str| document.pointer(pointer).map_or(0, depth);
    let (path, inside) = match operation {
        PatchOperation::Add(add) => (&add.path, depth(&add.value)),
        PatchOperation::Replace(replace) => (&replace.path, depth(&replace.value)),
        PatchOperation::Copy(copy) => (&copy.path, at(copy.from.as_str())),
        PatchOperation::Move(change) => (&change.path, at(change.from.as_str())),
        PatchOperation::Remove(_) | PatchOperation::Test(_) => return 0,
    };
    path.as_str().matches('/').count() + inside
}

fn depth(value: &Value) -> usize {
    let deepest = match value {
        Value::Array(list) => list.iter().map(depth).max(),
        Value::Object(object) => object.values().map(depth).max(),
        _ => None,
    };
    1 + deepest.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::api::kinds::Registry;
    use proptest::prelude::*;
    use serde_json::json;

    fn patched(kind: PatchType, group: &str, name: &str, current: Value, patch: Value) -> Result<Value, Refused> {
        let row = Registry::builtin().find_kind(group, "v1", name).expect(name);
        apply(row, kind, &current, patch.to_string().as_bytes())
    }

    #[test]
    fn json_patches_apply_in_order_and_all_or_nothing() {
        let patch = json!([{"op": "add", "path": "/a", "value": 1}, {"op": "copy", "from": "/a", "path": "/b"}, {"op": "test", "path": "/b", "value": 1}]);
        assert_eq!(patched(PatchType::Json, "", "Pod", json!({}), patch), Ok(json!({"a": 1, "b": 1})));
        let refused = patched(PatchType::Json, "", "Pod", json!({"a": 1}), json!([{"op": "test", "path": "/a", "value": 2}]));
        assert_eq!(refused.map_err(|refused| refused.code), Err(422));
        let refused = patched(PatchType::Json, "", "Pod", json!({}), json!({"op": "add"}));
        assert_eq!(refused.map_err(|refused| refused.code), Err(400));
    }

    #[test]
    fn copies_can_neither_blow_an_object_up_nor_nest_it_without_end() {
        let doubling: Vec<_> = (0..60).map(|_| json!({"op": "copy", "from": "/a", "path": "/a/-"})).collect();
        let refused = patched(PatchType::Json, "", "Pod", json!({"a": ["y".repeat(100)]}), doubling.into());
        assert_eq!(refused.map_err(|refused| refused.code).err(), Some(422));
        let deepening: Vec<_> = (0..200).map(|_| json!({"op": "copy", "from": "", "path": "/a"})).collect();
        assert!(patched(PatchType::Json, "", "Pod", json!({}), deepening.into()).is_err());
        let nesting: Vec<_> = (0..400).map(|_| json!({"op": "move", "from": "/a", "path": "/a/a"})).collect();
        assert!(patched(PatchType::Json, "", "Pod", json!({"a": {}}), nesting.into()).is_err());
        let many: Vec<_> = (0..10_001).map(|_| json!({"op": "test", "path": "", "value": {}})).collect();
        assert_eq!(patched(PatchType::Json, "", "Pod", json!({}), many.into()).map_err(|refused| refused.code), Err(413));
    }

    #[test]
    fn merge_patches_replace_lists_and_drop_nulls() {
        let result = patched(
            PatchType::Merge,
            "kprov.dev",
            "Blueprint",
            json!({"spec": {"a": [1], "b": 1, "c": 2}}),
            json!({"spec": {"a": [2], "b": null}}),
        );
        assert_eq!(result, Ok(json!({"spec": {"a": [2], "c": 2}})));
        assert_eq!(patched(PatchType::Merge, "", "Pod", json!({}), json!([])).map_err(|refused| refused.code), Err(400));
    }

    #[test]
    fn kinds_without_a_schema_refuse_strategic_patches() {
        let refused = patched(PatchType::Strategic, "kprov.dev", "Blueprint", json!({}), json!({})).expect_err("refused");
        assert_eq!((refused.code, refused.reason), (415, "UnsupportedMediaType"));
    }

    #[test]
    fn content_types_name_the_format() {
        assert_eq!(PatchType::from_content_type("application/merge-patch+json; charset=utf-8"), Some(PatchType::Merge));
        assert_eq!(PatchType::from_content_type("application/json"), None);
    }

    pub(super) fn any_json() -> impl Strategy<Value = Value> {
        let key = prop_oneof![
            Just("spec"),
            Just("metadata"),
            Just("containers"),
            Just("name"),
            Just("ports"),
            Just("env"),
            Just("finalizers"),
            Just("strategy"),
            Just("template"),
            Just("$patch"),
            Just("$retainKeys"),
            Just("$setElementOrder/containers"),
            Just("$setElementOrder/finalizers"),
            Just("$deleteFromPrimitiveList/finalizers"),
            Just("containerPort"),
            Just("volumes"),
            Just("x")
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0..3).prop_map(Value::from),
            prop_oneof![Just("a"), Just("b"), Just("delete"), Just("replace"), Just("merge")].prop_map(Value::from)
        ];
        leaf.prop_recursive(6, 64, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(key.clone().prop_map(String::from), inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }
}
