//! Table answers: the columns `kubectl get` prints, with upstream's words.

use super::KindRow;
use jiff::Timestamp;
use serde_json::{Value, json};

/// The `includeObject` query parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    Metadata,
    Object,
}

/// A `meta.k8s.io/v1` Table of `objects`; `list_metadata` is the list's (or null for one object, whose resourceVersion is used).
pub fn table(_row: &KindRow, _objects: &[Value], _now: Timestamp, _include: IncludeObject, list_metadata: Value) -> Value {
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_metadata, "columnDefinitions": [], "rows": []})
}
