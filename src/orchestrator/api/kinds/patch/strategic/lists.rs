//! Lists in strategic merge patches: what tells an element from the others, merging by that, and the order of the result.

use super::{DIRECTIVE, Merged, ORDER, cleaned, merge_map};
use crate::orchestrator::api::kinds::json::Object;
use crate::orchestrator::api::kinds::merge_keys::MergeRule;
use crate::orchestrator::api::kinds::place::Place;
use serde_json::Value;
use std::collections::{HashMap, HashSet};

/// Lists with a `$setElementOrder/<list>` beside them: merged, then brought into the wanted order.
pub fn merge_ordered_lists(place: Place, current: &mut Object, patch: &mut Object) -> Merged<()> {
    let orders: Vec<String> = patch.keys().filter(|name| name.starts_with(ORDER)).cloned().collect();
    for directive in orders {
        let name = directive[ORDER.len()..].to_string();
        let Some(Value::Array(order)) = patch.remove(&directive) else { return Err("invalid patch format of setElementOrder list".into()) };
        let (inner, rule) = place.field(&name);
        let key = rule.map_or("", |rule| rule.merge_key);
        let before = list_of(current.get(&name))?;
        let change = list_of(patch.get(&name))?;
        if let Some(change) = &change {
            check_order(change, &order, key)?;
        }
        let merged = match (before.clone(), change) {
            (None, None) => continue,
            (Some(before), None) => before,
            (None, Some(change)) => change.into_iter().filter_map(cleaned).collect(),
            (Some(before), Some(change)) => merge_list(inner, rule, before, change)?,
        };
        patch.remove(&name);
        let sorted = sort(merged, &order, before.as_deref().unwrap_or_default(), key)?;
        current.insert(name, Value::Array(sorted));
    }
    Ok(())
}

fn list_of(value: Option<&Value>) -> Merged<Option<Vec<Value>>> {
    match value {
        None => Ok(None),
        Some(Value::Array(list)) => Ok(Some(list.clone())),
        Some(_) => Err("invalid patch format of setElementOrder list".into()),
    }
}

/// The patch's elements must stand in the order list, in the same order.
fn check_order(change: &[Value], order: &[Value], key: &str) -> Merged<()> {
    if order.is_empty() || change.is_empty() {
        return Ok(());
    }
    let mut wanted = order.iter();
    for element in change.iter().filter(|element| element.get(DIRECTIVE).is_none()) {
        let identity = identity(element, key)?;
        if !wanted.any(|wanted| identity_of(wanted, key) == Some(identity)) {
            return Err(format!(
                "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                Value::from(change),
                Value::from(order)
            ));
        }
    }
    Ok(())
}

/// What tells an element from the others: itself, or the value of its merge key.
fn identity_of<'a>(element: &'a Value, key: &str) -> Option<&'a Value> {
    if key.is_empty() { Some(element) } else { element.get(key) }
}

fn identity<'a>(element: &'a Value, key: &str) -> Merged<&'a Value> {
    identity_of(element, key).ok_or_else(|| format!("map: {element} does not contain declared merge key: {key}"))
}

pub fn merge_list(place: Place, rule: Option<&MergeRule>, before: Vec<Value>, change: Vec<Value>) -> Merged<Vec<Value>> {
    let Some(rule) = rule.filter(|rule| rule.merges()) else { return Ok(change.into_iter().filter_map(cleaned).collect()) };
    if before.is_empty() && change.is_empty() {
        return Ok(before);
    }
    let maps = before.iter().chain(&change).filter(|element| element.is_object()).count();
    if maps == 0 {
        return merge_plain(before, change);
    }
    if maps != before.len() + change.len() || rule.merge_key.is_empty() {
        return Err(format!("the elements of list {:?} are not all of one type", rule.field));
    }
    let (original, patch) = (before.clone(), change.clone());
    let merged = merge_elements(place.item(), rule.merge_key, before, change)?;
    sort(merged, &patch, &original, rule.merge_key)
}

/// Lists of plain values are sets that grow; `$deleteFromPrimitiveList` shrinks them.
fn merge_plain(before: Vec<Value>, change: Vec<Value>) -> Merged<Vec<Value>> {
    let (original, patch) = (before.clone(), change.clone());
    let mut merged: Vec<Value> = Vec::with_capacity(before.len() + change.len());
    let mut seen = HashSet::new();
    for value in before.into_iter().chain(change) {
        if value.is_array() {
            return Err("lists of lists are not supported".into());
        }
        if seen.insert(value.to_string()) {
            merged.push(value);
        }
    }
    sort(merged, &patch, &original, "")
}

fn merge_elements(place: Place, key: &str, mut before: Vec<Value>, change: Vec<Value>) -> Merged<Vec<Value>> {
    let (special, plain): (Vec<_>, Vec<_>) =
        change.into_iter().partition(|element| element.get(DIRECTIVE).is_some_and(|directive| directive != "merge"));
    let (mut replaced, mut gone) = (false, HashSet::new());
    for element in &special {
        match element[DIRECTIVE].as_str() {
            Some("delete") => {
                gone.insert(identity(element, key)?.to_string());
            }
            Some("replace") => replaced = true,
            _ => return Err(format!("unknown patch type: {} in map: {element}", element[DIRECTIVE])),
        }
    }
    if replaced {
        return Ok(plain.into_iter().filter_map(cleaned).collect());
    }
    if !gone.is_empty() {
        before.retain(|element| element.get(key).is_none_or(|identity| !gone.contains(&identity.to_string())));
    }
    let mut places = places(&before, key);
    for element in plain {
        let wanted = identity(&element, key)?.to_string();
        match (places.get(&wanted).map(|at| &mut before[*at]), element) {
            (Some(found), Value::Object(change)) => {
                let Value::Object(current) = found.take() else { return Err("a list of objects holds something else".into()) };
                *found = Value::Object(merge_map(place, current, change)?);
            }
            (_, element) => {
                if let Some(element) = cleaned(element) {
                    places.insert(wanted, before.len());
                    before.push(element);
                }
            }
        }
    }
    Ok(before)
}

/// Where each element stands, by what identifies it: lists may be long, and looking through them again and again would be quadratic.
/// Of elements that share their identity the first counts.
fn places(list: &[Value], key: &str) -> HashMap<String, usize> {
    let mut places = HashMap::with_capacity(list.len());
    for (at, element) in list.iter().enumerate() {
        if let Some(identity) = identity_of(element, key) {
            places.entry(identity.to_string()).or_insert(at);
        }
    }
    places
}

pub fn delete_from_list(current: &mut Object, name: &str, gone: &Value) -> Merged<()> {
    let gone = gone.as_array().ok_or("invalid patch format of primitive list")?;
    if let Some(Value::Array(list)) = current.get_mut(name) {
        let gone = places(gone, "");
        list.retain(|value| !gone.contains_key(&value.to_string()));
    }
    Ok(())
}

/// Elements that `order` names come in that order; the others keep the places they had relative to them, as well as that is possible.
fn sort(merged: Vec<Value>, order: &[Value], before: &[Value], key: &str) -> Merged<Vec<Value>> {
    let (in_order, in_before) = (places(order, key), places(before, key));
    let (mut named, mut others) = (Vec::new(), Vec::new());
    for element in merged {
        let identity = identity(&element, key)?.to_string();
        let was = in_before.get(&identity).copied();
        match in_order.get(&identity) {
            Some(at) => named.push((*at, was, element)),
            None => others.push((was, element)),
        }
    }
    named.sort_by_key(|(at, _, _)| *at);
    others.sort_by_key(|(was, _)| *was);
    let mut sorted = Vec::with_capacity(named.len() + others.len());
    let mut others = others.into_iter().peekable();
    for (_, was, element) in named {
        while let (Some(was), Some((Some(other), _))) = (was, others.peek())
            && *other < was
        {
            sorted.extend(others.next().map(|(_, element)| element));
        }
        sorted.push(element);
    }
    sorted.extend(others.map(|(_, element)| element));
    Ok(sorted)
}
