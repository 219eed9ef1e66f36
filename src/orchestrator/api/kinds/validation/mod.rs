//! What an object must look like before it is kept, with upstream's words.

pub mod names;

use super::KindRow;
use serde_json::Value;

/// One problem of one field: an entry of `status.details.causes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Such as `spec.containers[0].name`.
    pub field: String,
    /// Such as `FieldValueInvalid`.
    pub reason: &'static str,
    /// Such as `Invalid value: -1: must be greater than or equal to 0`, without the field.
    pub message: String,
}

/// All problems of `new`; none means it may be kept. `old` is there on updates; `subresource` is empty for the object itself.
/// Answer 422 `Invalid` with `invalid_message` when there are any.
pub fn validate(_row: &KindRow, _new: &Value, _old: Option<&Value>, _subresource: &str) -> Vec<Cause> {
    Vec::new()
}

/// The message of the 422 answer: `Pod "web" is invalid: spec.containers: Required value`.
pub fn invalid_message(row: &KindRow, name: &str, causes: &[Cause]) -> String {
    let lines: Vec<_> = causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
    let all = if lines.len() == 1 { lines[0].clone() } else { format!("[{}]", lines.join(", ")) };
    format!("{} \"{name}\" is invalid: {all}", row.group_kind())
}
