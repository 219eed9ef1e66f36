//! Google's own description of its APIs, cut to the methods in use by `discovery.py`: every request is held against it.

use regex::Regex;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::OnceLock;

pub struct Schema {
    services: BTreeMap<String, Service>,
}

#[derive(Deserialize)]
struct Service {
    methods: Vec<Method>,
    schemas: BTreeMap<String, Value>,
    parameters: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct Method {
    id: String,
    method: String,
    path: String,
    parameters: BTreeMap<String, Value>,
    body: Option<String>,
}

/// A request that is one of Google's.
pub struct Call {
    /// `compute.networks.insert`.
    pub method: String,
    /// Of the path and of the query.
    pub parameters: BTreeMap<String, String>,
    pub body: Value,
    /// What Google would not have taken.
    pub problems: Vec<String>,
}

/// The one that all fakes of this process use.
pub fn shared() -> &'static Schema {
    static SHARED: OnceLock<Schema> = OnceLock::new();
    SHARED.get_or_init(Schema::read)
}

impl Schema {
    pub fn read() -> Schema {
        let mut text = String::new();
        let packed = &include_bytes!("discovery.json.gz")[..];
        flate2::read::GzDecoder::new(packed).read_to_string(&mut text).expect("discovery.json.gz is whole");
        Schema { services: serde_json::from_str(&text).expect("discovery.json.gz is what discovery.py writes") }
    }

    /// `None` when Google has no such method.
    pub fn call(&self, verb: &str, path: &str, query: &str, body: Value) -> Option<Call> {
        for service in self.services.values() {
            for method in service.methods.iter().filter(|method| method.method == verb) {
                if let Some(parameters) = path_parameters(&method.path, path.trim_start_matches('/')) {
                    return Some(service.check(method, parameters, query, body));
                }
            }
        }
        None
    }
}

/// `{name}` parts of a template, when the rest is equal.
fn path_parameters(template: &str, path: &str) -> Option<BTreeMap<String, String>> {
    let (ours, theirs): (Vec<&str>, Vec<&str>) = (template.split('/').collect(), path.split('/').collect());
    if ours.len() != theirs.len() {
        return None;
    }
    let mut parameters = BTreeMap::new();
    for (part, text) in ours.iter().zip(theirs) {
        match part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
            Some(name) => drop(parameters.insert(name.to_string(), text.to_string())),
            None if *part == text => {}
            None => return None,
        }
    }
    Some(parameters)
}

impl Service {
    fn check(&self, method: &Method, path: BTreeMap<String, String>, query: &str, body: Value) -> Call {
        let mut problems = Vec::new();
        let mut parameters = path;
        // Filestore's templates flatten one parameter into several, which have no description of their own.
        for (name, text) in &parameters {
            if let Some(rule) = method.parameters.get(name) {
                self.value(rule, &Value::String(text.clone()), name, true, &mut problems);
            }
        }
        for (name, text) in form_urlencoded::parse(query.as_bytes()) {
            // Clients may write system parameters with a dollar.
            let plain = name.trim_start_matches('$').to_string();
            match method.parameters.get(&plain).or_else(|| self.parameters.get(&plain)) {
                Some(rule) => self.value(rule, &Value::String(text.to_string()), &plain, true, &mut problems),
                None if name == "$apiVersion" => {}
                // `json;enum-encoding=int` is not in the document's enumeration.
                None => problems.push(format!("unknown parameter {name}")),
            }
            parameters.insert(plain, text.to_string());
        }
        for (name, rule) in method.parameters.iter().filter(|(_, rule)| rule["required"] == true) {
            let flattened = name == "name" || name == "parent";
            if !parameters.contains_key(name) && !flattened {
                problems.push(format!("{name} is required ({})", rule["location"]));
            }
        }
        // Google takes a change without one, but a repeat of it is then another change.
        if method.parameters.contains_key("requestId") && !parameters.contains_key("requestId") {
            problems.push("a change without a requestId".into());
        }
        match &method.body {
            Some(schema) => self.value(&serde_json::json!({"$ref": schema}), &body, schema, false, &mut problems),
            None if !body.is_null() && body != serde_json::json!({}) => problems.push("a body where there is none".into()),
            None => {}
        }
        Call { method: method.id.clone(), parameters, body, problems }
    }

    fn value(&self, rule: &Value, value: &Value, at: &str, is_text: bool, problems: &mut Vec<String>) {
        if let Some(name) = rule["$ref"].as_str() {
            return match self.schemas.get(name) {
                Some(schema) => self.value(schema, value, at, is_text, problems),
                None => problems.push(format!("{at}: no schema {name}")),
            };
        }
        if rule["readOnly"] == true {
            problems.push(format!("{at} is for output only"));
        }
        match rule["type"].as_str().unwrap_or("any") {
            "object" => self.object(rule, value, at, problems),
            "array" => match value.as_array() {
                Some(items) => items.iter().for_each(|item| self.value(&rule["items"], item, &format!("{at}[]"), false, problems)),
                None => problems.push(format!("{at} is no array")),
            },
            "string" => text(rule, value, at, problems),
            "boolean" if is_text => {}
            "boolean" if !value.is_boolean() => problems.push(format!("{at} is no boolean")),
            "integer" | "number" if !is_text && !value.is_number() => problems.push(format!("{at} is no number: {value}")),
            "integer" | "number" if is_text && value.as_str().is_some_and(|text| text.parse::<f64>().is_err()) => {
                problems.push(format!("{at} is no number: {value}"));
            }
            _ => {}
        }
    }

    fn object(&self, rule: &Value, value: &Value, at: &str, problems: &mut Vec<String>) {
        let Some(fields) = value.as_object() else { return problems.push(format!("{at} is no object")) };
        for (name, value) in fields {
            let at = format!("{at}.{name}");
            match (&rule["properties"][name], &rule["additionalProperties"]) {
                (Value::Null, Value::Null) => problems.push(format!("{at} is unknown")),
                (Value::Null, other) => self.value(other, value, &at, false, problems),
                (known, _) => self.value(known, value, &at, false, problems),
            }
        }
    }
}

fn text(rule: &Value, value: &Value, at: &str, problems: &mut Vec<String>) {
    // Enumerations may travel by number, whose names the documents do not give.
    if value.is_u64() && rule["enum"].is_array() {
        return;
    }
    let Some(text) = value.as_str() else { return problems.push(format!("{at} is no text: {value}")) };
    let is_alt = at == "alt" && text.starts_with("json");
    if let Some(values) = rule["enum"].as_array().filter(|_| !is_alt)
        && !values.iter().any(|one| one == text)
    {
        problems.push(format!("{at} cannot be {text:?}"));
    }
    if matches!(rule["format"].as_str(), Some("int64" | "uint64")) && text.parse::<i128>().is_err() {
        problems.push(format!("{at} is no number: {text:?}"));
    }
    let pattern = rule["pattern"].as_str().and_then(|pattern| Regex::new(&format!("^(?:{pattern})$")).ok());
    if pattern.is_some_and(|pattern| !pattern.is_match(text)) {
        problems.push(format!("{at} does not match {}: {text:?}", rule["pattern"]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NETWORKS: &str = "/compute/v1/projects/shop-1/global/networks";

    fn check(body: Value, expected: &[&str]) {
        let call = Schema::read().call("POST", NETWORKS, "$alt=json&requestId=x", body).expect("a method");
        assert_eq!(call.problems, expected);
    }

    #[test]
    fn a_change_without_a_request_id_is_a_mistake_where_google_takes_one() {
        let problems = |verb: &str, path: &str| Schema::read().call(verb, path, "", Value::Null).expect("a method").problems;
        let instance = "/compute/v1/projects/shop-1/zones/europe-west1-b/instances/i";
        let missing = ["a change without a requestId"];
        assert_eq!(problems("POST", &format!("{instance}/start")), missing);
        assert_eq!(problems("DELETE", instance), missing);
        assert!(problems("GET", instance).is_empty(), "a look is no change");
        assert!(problems("POST", "/compute/v1/projects/shop-1/global/operations/operation-1/wait").is_empty());
        assert!(problems("DELETE", "/v1/projects/shop-1/locations/europe-west1-b/instances/i").is_empty(), "Filestore has none");
    }

    #[test]
    fn a_request_is_held_against_googles_own_description() {
        check(json!({"name": "kprov-a", "autoCreateSubnetworks": false}), &[]);
        check(json!({"name": "kprov-a", "colour": "blue"}), &["Network.colour is unknown"]);
        check(json!({"name": "kprov-a", "autoCreateSubnetworks": "no"}), &["Network.autoCreateSubnetworks is no boolean"]);
        check(
            json!({"name": "kprov-a", "routingConfig": {"routingMode": "SIDEWAYS"}}),
            &["Network.routingConfig.routingMode cannot be \"SIDEWAYS\""],
        );
        let call = Schema::read().call("POST", NETWORKS, "colour=blue&requestId=x", json!({})).expect("a method");
        assert_eq!(call.problems, ["unknown parameter colour"]);
        assert!(Schema::read().call("POST", "/compute/v1/projects/shop-1/global/gardens", "", json!({})).is_none());
    }
}
