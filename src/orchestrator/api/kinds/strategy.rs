//! Which parts of an object a writer may set: status belongs to the system, generation counts changes of the wanted state.

use super::KindRow;
use serde_json::Value;

/// Before defaults and validation of a create: resets status and starts the generation. Name, uid, creation time and resource
/// version are the storage's to set.
pub fn prepare_create(row: &KindRow, new: &mut Value) {
    let Some(object) = new.as_object_mut() else { return };
    if row.has_status {
        object.remove("status");
    }
    if row.has_generation
        && let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut)
    {
        metadata.insert("generation".into(), 1.into());
    }
}

/// Before validation of an update: keeps what `subresource` (empty: the object itself) may not change as it was.
pub fn prepare_update(row: &KindRow, new: &mut Value, old: &Value, subresource: &str) {
    let Some(object) = new.as_object_mut() else { return };
    if !row.has_status {
        return;
    }
    let kept = if subresource == "status" { "spec" } else { "status" };
    match old.get(kept) {
        Some(value) => object.insert(kept.into(), value.clone()),
        None => object.remove(kept),
    };
}
