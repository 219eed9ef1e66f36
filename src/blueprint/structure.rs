//! A tree against the JSON Schema: unknown and missing fields, wrong types, numbers out of range. All of them, with their places.
//!
//! Knows the part of JSON Schema that `schemars` writes for the blueprint's types, no more.

use super::tree::{Data, Node, Place};
use serde_json::Value;
use std::net::IpAddr;

/// Where problems go: a place, a path like `spec.machines[0].count`, a message and a hint.
pub trait Report {
    fn report(&mut self, place: Place, path: &str, message: String, hint: Option<String>);
    /// Nobody reads further: checkers of long lists may stop.
    fn full(&self) -> bool;
}

/// Reports every difference between `node` and `schema`; `root` resolves references.
pub fn walk(node: &Node, schema: &Value, root: &Value, path: &str, report: &mut dyn Report) {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = reference
            .strip_prefix('#')
            .and_then(|pointer| root.pointer(pointer))
            .expect("schemars writes references into its own document");
        return walk(node, target, root, path, report);
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        // What may be left out is "this or null".
        let mut meant = choices.iter().filter(|choice| choice["type"] != "null");
        if let (Some(only), None, false) = (meant.next(), meant.next(), node.data == Data::Null) {
            return walk(node, only, root, path, report);
        }
        if !choices.iter().any(|choice| has_type(node, choice)) {
            let wanted: Vec<_> = choices.iter().flat_map(wanted_types).collect();
            wrong_type(node, &wanted, path, report);
        }
        return;
    }
    if !has_type(node, schema) {
        return wrong_type(node, &wanted_types(schema), path, report);
    }
    match &node.data {
        Data::Map(_) => walk_map(node, schema, root, path, report),
        Data::List(items) => {
            if items.is_empty() && schema["minItems"].as_u64() > Some(0) {
                report.report(node.place, path, format!("`{path}` is empty"), Some("at least one entry is needed".into()));
            }
            for (index, item) in items.iter().enumerate() {
                if report.full() {
                    return;
                }
                walk(item, &schema["items"], root, &format!("{path}[{index}]"), report);
            }
        }
        Data::Text(text) => walk_text(node, text, schema, path, report),
        Data::Number(number) => {
            let (least, most) = (schema["minimum"].as_i64(), schema["maximum"].as_i64());
            let value = number.as_i64();
            let outside = value.is_none_or(|value| least.is_some_and(|least| value < least) || most.is_some_and(|most| value > most));
            if let (true, Some(least), Some(most)) = (outside, least, most) {
                report.report(node.place, path, format!("{number} is out of range: {} goes from {least} to {most}", last(path)), None);
            }
        }
        Data::Null | Data::Bool(_) => {}
    }
}

fn walk_map(node: &Node, schema: &Value, root: &Value, path: &str, report: &mut dyn Report) {
    let known = schema["properties"].as_object();
    for (key, value) in node.fields() {
        if report.full() {
            return;
        }
        let below = if path.is_empty() { key.name.clone() } else { format!("{path}.{}", key.name) };
        match (known.and_then(|known| known.get(&key.name)), &schema["additionalProperties"]) {
            (Some(schema), _) => walk(value, schema, root, &below, report),
            (None, Value::Bool(false)) => {
                let names: Vec<&str> = known.into_iter().flat_map(|known| known.keys().map(String::as_str)).collect();
                let inside = if path.is_empty() { "a blueprint".into() } else { format!("`{path}`") };
                report.report(
                    key.place,
                    &below,
                    format!("unknown field `{}` in {inside}", key.name),
                    Some(did_you_mean(&key.name, &names)),
                );
            }
            (None, schema) => walk(value, schema, root, &below, report),
        }
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if node.field(name).is_none() {
            let inside = if path.is_empty() { "the blueprint".into() } else { format!("`{path}`") };
            let field = known.map_or(&Value::Null, |known| &known[name]);
            report.report(Place { width: 1, ..node.place }, path, format!("`{name}` is missing in {inside}"), describe(name, field, root));
        }
    }
}

fn walk_text(node: &Node, text: &str, schema: &Value, path: &str, report: &mut dyn Report) {
    if let Some(choices) = schema["enum"].as_array() {
        let choices: Vec<&str> = choices.iter().filter_map(Value::as_str).collect();
        if !choices.contains(&text) {
            report.report(node.place, path, format!("`{text}` is no {}", last(path)), Some(did_you_mean(text, &choices)));
        }
    }
    if schema["format"] == "ip" && text.parse::<IpAddr>().is_err() {
        report.report(node.place, path, format!("`{text}` is not an IP address"), Some("for instance 10.0.0.5".into()));
    }
    if let Some(wanted) = schema["const"].as_str().filter(|wanted| *wanted != text) {
        report.report(
            node.place,
            path,
            format!("{} is `{text}`", last(path)),
            Some(format!("a blueprint says `{}: {wanted}`", last(path))),
        );
    }
}

/// What to write for a missing field.
fn describe(name: &str, schema: &Value, root: &Value) -> Option<String> {
    let target = schema["$ref"].as_str().and_then(|reference| root.pointer(reference.strip_prefix('#')?)).unwrap_or(schema);
    if let Some(wanted) = schema["const"].as_str() {
        return Some(format!("write `{name}: {wanted}`"));
    }
    if let Some(choices) = target["enum"].as_array() {
        return Some(format!("one of {}", choices.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")));
    }
    schema["description"]
        .as_str()
        .or(target["description"].as_str())
        .map(|description| description.trim_end_matches('.').replace('\n', " "))
}

fn wrong_type(node: &Node, wanted: &[&str], path: &str, report: &mut dyn Report) {
    let article = |name: &&str| match *name {
        "integer" => "a whole number",
        "number" => "a number",
        "string" => "a text",
        "array" => "a list",
        "object" => "a map",
        "boolean" => "true or false",
        _ => "nothing",
    };
    let wanted_words: Vec<_> = wanted.iter().filter(|name| **name != "null").map(article).collect();
    let hint = match &node.data {
        Data::Null => Some("give it a value or remove the field".into()),
        Data::Map(_) if last(path) == "count" => Some("count is one number for now; a range ({min, max}) cannot be kept yet".into()),
        Data::Number(_) | Data::Bool(_) if wanted.contains(&"string") => Some("put it in quotes".into()),
        Data::Text(text) if wanted.contains(&"integer") && text.parse::<i64>().is_ok() => Some("write the number without quotes".into()),
        Data::Map(_) if wanted.contains(&"array") => Some("start each entry with `- `".into()),
        _ => None,
    };
    let what = if path.is_empty() { "the blueprint".into() } else { format!("`{path}`") };
    report.report(
        Place { width: if node.place.line == 0 { 0 } else { node.place.width }, ..node.place },
        path,
        format!("{what} must be {}, not {}", wanted_words.join(" or "), node.kind()),
        hint,
    );
}

fn wanted_types(schema: &Value) -> Vec<&str> {
    match &schema["type"] {
        Value::String(name) => vec![name],
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        _ => vec![],
    }
}

fn has_type(node: &Node, schema: &Value) -> bool {
    let wanted = wanted_types(schema);
    let has = |name: &str| match (&node.data, name) {
        (Data::Number(number), "integer") => number.is_i64() || number.is_u64(),
        (Data::Null, "null")
        | (Data::Bool(_), "boolean")
        | (Data::Number(_), "number")
        | (Data::Text(_), "string")
        | (Data::List(_), "array")
        | (Data::Map(_), "object") => true,
        _ => false,
    };
    wanted.is_empty() || wanted.into_iter().any(has)
}

/// The last word of a path: `count` of `spec.machines[0].count`.
pub fn last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// The nearest name, or all of them when none is near.
pub fn did_you_mean(wrong: &str, known: &[&str]) -> String {
    let folded = |text: &str| text.to_lowercase().replace(['-', '_'], "");
    let nearest =
        known.iter().map(|name| (strsim::damerau_levenshtein(&folded(wrong.get(..64).unwrap_or(wrong)), &folded(name)), name)).min();
    match nearest {
        // Up to a third of the letters may be wrong; beyond that a guess is noise.
        Some((distance, name)) if distance <= name.len().max(3) / 3 => format!("did you mean `{name}`?"),
        _ => format!("known here: {}", known.join(", ")),
    }
}
