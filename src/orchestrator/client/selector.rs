//! Which objects of a kind are meant: by labels and fields on the wire, and the same label rules in memory.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use std::collections::BTreeMap;

/// Label and field selectors as the API takes them, e.g. `app=web,tier!=db` and `spec.nodeName=worker-1`; empty means all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Selector {
    pub labels: String,
    pub fields: String,
}

impl Selector {
    pub fn all() -> Self {
        Selector::default()
    }
    pub fn labels(labels: impl Into<String>) -> Self {
        Selector { labels: labels.into(), fields: String::new() }
    }
    pub fn fields(fields: impl Into<String>) -> Self {
        Selector { labels: String::new(), fields: fields.into() }
    }
    /// `path?query`, with this selector's and the given parameters percent-encoded.
    pub fn path_with(&self, path: &str, query: &[(String, String)]) -> String {
        let mut parts: Vec<(&str, &str)> = query.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        if !self.labels.is_empty() {
            parts.push(("labelSelector", &self.labels));
        }
        if !self.fields.is_empty() {
            parts.push(("fieldSelector", &self.fields));
        }
        let query: Vec<String> = parts.iter().map(|(name, value)| format!("{name}={}", percent_encode(value))).collect();
        if query.is_empty() { path.to_string() } else { format!("{path}?{}", query.join("&")) }
    }
}

/// Everything but RFC 3986's unreserved characters.
pub fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Plain `key: value` selectors (Services): empty selects nothing.
pub fn map_matches(selector: &BTreeMap<String, String>, labels: Option<&BTreeMap<String, String>>) -> bool {
    !selector.is_empty() && selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

/// `LabelSelector` (ReplicaSets and the like): an empty one selects everything.
pub fn label_selector_matches(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    let empty = BTreeMap::new();
    let labels = labels.unwrap_or(&empty);
    let equal = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    equal
        && selector.match_expressions.iter().flatten().all(|rule| {
            let value = labels.get(&rule.key);
            let listed = value.is_some_and(|value| rule.values.iter().flatten().any(|wanted| wanted == value));
            match rule.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    fn check(key: &str, operator: &str, values: &[&str], expected: bool) {
        let rule = LabelSelectorRequirement {
            key: key.into(),
            operator: operator.into(),
            values: Some(values.iter().map(|value| value.to_string()).collect()),
        };
        let selector = LabelSelector { match_labels: None, match_expressions: Some(vec![rule]) };
        let labels = BTreeMap::from([("app".to_string(), "web".to_string())]);
        assert_eq!(label_selector_matches(&selector, Some(&labels)), expected, "{key} {operator} {values:?}");
    }

    #[test]
    fn expressions_follow_upstream() {
        check("app", "In", &["web", "db"], true);
        check("app", "In", &["db"], false);
        check("app", "NotIn", &["db"], true);
        check("tier", "NotIn", &["db"], true);
        check("app", "Exists", &[], true);
        check("tier", "DoesNotExist", &[], true);
        check("app", "Unknown", &[], false);
    }

    #[test]
    fn selectors_are_percent_encoded() {
        let selector = Selector { labels: "app=web,tier in (a b)".into(), fields: String::new() };
        assert_eq!(selector.path_with("/api/v1/pods", &[]), "/api/v1/pods?labelSelector=app%3Dweb%2Ctier%20in%20%28a%20b%29");
    }
}
