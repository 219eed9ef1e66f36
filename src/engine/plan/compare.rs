//! What a wish and a thing disagree on, and how to say it. Pure.

use super::super::Resource;
use serde_json::Value;

/// One disagreement, `path` from the top of the spec.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    pub path: Vec<String>,
    pub from: Value,
    pub to: Value,
}

/// Where `observed` disagrees with `desired`. Fields that `observed` leaves out cannot be read back and are not compared; a field only
/// `observed` has is a wish that was withdrawn.
pub fn difference(desired: &Value, observed: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    walk(&mut Vec::new(), desired, observed, &mut found);
    found
}

fn walk(path: &mut Vec<String>, desired: &Value, observed: &Value, found: &mut Vec<Difference>) {
    match (desired, observed) {
        (Value::Object(wish), Value::Object(thing)) => {
            for (field, value) in thing {
                path.push(field.clone());
                walk(path, wish.get(field).unwrap_or(&Value::Null), value, found);
                path.pop();
            }
        }
        _ if desired == observed => {}
        _ => found.push(Difference { path: path.clone(), from: observed.clone(), to: desired.clone() }),
    }
}

/// The reason to replace, when one of the differences cannot change in place.
pub fn replacing(wish: &Resource, differences: &[Difference]) -> Option<String> {
    let fixed: Vec<Difference> = differences
        .iter()
        .filter(|difference| difference.path.first().is_some_and(|field| wish.replace_on.contains(field)))
        .cloned()
        .collect();
    (!fixed.is_empty()).then(|| reason(&fixed))
}

/// "memory: 1Gi -> 2Gi, cpu: 1 -> 2"; long values are named, not shown.
pub fn reason(differences: &[Difference]) -> String {
    let mut parts: Vec<String> = differences.iter().map(say).collect();
    if parts.len() > 3 {
        let more = parts.len() - 2;
        parts.truncate(2);
        parts.push(format!("{more} more fields"));
    }
    parts.join(", ")
}

fn say(difference: &Difference) -> String {
    let path = difference.path.join(".");
    // Units come last in field names; people read them in the value.
    let (name, show): (&str, fn(&Value) -> Option<String>) = match () {
        _ if path.ends_with("Bytes") => (path.trim_end_matches("Bytes"), bytes),
        _ if path.ends_with("Millis") => (path.trim_end_matches("Millis"), millis),
        _ => (&path, plain),
    };
    match (show(&difference.from), show(&difference.to)) {
        (Some(from), Some(to)) => format!("{name}: {from} -> {to}"),
        _ => format!("{name} changed"),
    }
}

fn plain(value: &Value) -> Option<String> {
    let text = match value {
        Value::Null => "none".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let shown: Option<Vec<String>> = items.iter().map(|item| item.as_str().map(String::from)).collect();
            format!("[{}]", shown?.join(" "))
        }
        other => other.to_string(),
    };
    // Longer than this and the line no longer fits 80 columns beside its id.
    (text.len() <= 24 && !text.contains('\n')).then_some(text)
}

fn bytes(value: &Value) -> Option<String> {
    let count = value.as_u64()?;
    let units = [("Ti", 1u64 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];
    let unit = units.iter().find(|(_, size)| count >= *size && count % size == 0);
    Some(unit.map_or_else(|| count.to_string(), |(name, size)| format!("{}{name}", count / size)))
}

fn millis(value: &Value) -> Option<String> {
    let count = value.as_u64()?;
    Some(if count % 1000 == 0 { (count / 1000).to_string() } else { format!("{count}m") })
}
