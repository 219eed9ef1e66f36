//! Strategic merge patches: maps merge, lists merge by key where the schema says so, and directives delete, replace and order.
//! The rules are those of `k8s.io/apimachinery/pkg/util/strategicpatch`, with one difference: directives and nulls never stay in the
//! result, because objects here keep fields that no schema knows.

mod lists;
#[cfg(test)]
mod tests;

use crate::orchestrator::api::kinds::json::Object;
use crate::orchestrator::api::kinds::place::Place;
use crate::orchestrator::api::kinds::schema::{Schemas, Type};
use lists::{delete_from_list, merge_list, merge_ordered_lists};
use serde_json::{Map, Value};
use std::collections::HashSet;

const DIRECTIVE: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder/";
const DELETE: &str = "$deleteFromPrimitiveList/";

type Merged<T> = Result<T, String>;

/// `current` with `patch` merged into it.
pub fn merge(schemas: &Schemas, of: &Type, current: &Value, patch: Object) -> Merged<Value> {
    let current = current.as_object().cloned().ok_or("the current object is no JSON object")?;
    let place = Place::root(schemas, of);
    Ok(Value::Object(merge_map(place, current, patch)?))
}

fn merge_map(place: Place, mut current: Object, mut patch: Object) -> Merged<Object> {
    match patch.remove(DIRECTIVE) {
        None => {}
        Some(directive) if directive == "replace" => return Ok(cleaned_map(patch)),
        Some(directive) if directive == "delete" => return Ok(Map::new()),
        // The API conventions list it, although it says what would happen anyway.
        Some(directive) if directive == "merge" => {}
        Some(directive) => return Err(format!("unknown patch type: {directive} in map: {}", Value::Object(patch))),
    }
    retain_keys(&mut current, &mut patch)?;
    merge_ordered_lists(place, &mut current, &mut patch)?;
    for (name, change) in patch {
        if let Some(list) = name.strip_prefix(DELETE) {
            delete_from_list(&mut current, list, &change)?;
            continue;
        }
        if change.is_null() {
            current.remove(&name);
            continue;
        }
        let (inner, rule) = place.field(&name);
        let merged = match (current.remove(&name), change) {
            (Some(Value::Object(before)), Value::Object(change)) => Some(Value::Object(merge_map(inner, before, change)?)),
            (Some(Value::Array(before)), Value::Array(change)) => Some(Value::Array(merge_list(inner, rule, before, change)?)),
            // Nothing there, a plain value, or something of another type: the patch's value.
            (_, change) => cleaned(change),
        };
        if let Some(merged) = merged {
            current.insert(name, merged);
        }
    }
    Ok(current)
}

/// `$retainKeys` names all fields that may stay: what is in neither the patch nor that list goes.
fn retain_keys(current: &mut Object, patch: &mut Object) -> Merged<()> {
    let Some(retained) = patch.remove(RETAIN) else { return Ok(()) };
    let retained = retained.as_array().ok_or("invalid patch format of retainKeys")?;
    let retained: HashSet<&str> = retained.iter().filter_map(Value::as_str).collect();
    let kept = |name: &str| retained.contains(name);
    let unnamed =
        |(name, value): (&String, &Value)| !value.is_null() && !name.starts_with(DELETE) && !name.starts_with(ORDER) && !kept(name);
    if patch.iter().any(unnamed) {
        return Err("invalid patch format of retainKeys".into());
    }
    current.retain(|name, _| kept(name));
    Ok(())
}

/// A value of the patch as it may stand in an object: no directives, no nulls; nothing if it is a directive itself.
fn cleaned(value: Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::Object(object) if object.get(DIRECTIVE).is_some_and(|directive| directive != "merge") => None,
        Value::Object(object) => Some(Value::Object(cleaned_map(object))),
        Value::Array(list) => Some(Value::Array(list.into_iter().filter_map(cleaned).collect())),
        value => Some(value),
    }
}

fn cleaned_map(object: Object) -> Object {
    let directive = |name: &str| name == DIRECTIVE || name == RETAIN || name.starts_with(ORDER) || name.starts_with(DELETE);
    object.into_iter().filter(|(name, _)| !directive(name)).filter_map(|(name, value)| Some((name, cleaned(value)?))).collect()
}
