//! What upstream fills in where a person said nothing. Applied on every write, before validation.

use super::KindRow;
use serde_json::Value;

/// Fills in defaults; a second call changes nothing.
pub fn defaults(_row: &KindRow, _object: &mut Value) {}
