//! What an object must look like before it is kept, with upstream's words.

pub mod names;

use super::{Cause, KindRow};
use serde_json::Value;

/// All problems of `new`; none means it may be kept. `old` is there on updates; `subresource` is empty for the object itself.
/// Answer `Status::invalid` when there are any.
pub fn validate(_row: &KindRow, _new: &Value, _old: Option<&Value>, _subresource: &str) -> Vec<Cause> {
    Vec::new()
}
