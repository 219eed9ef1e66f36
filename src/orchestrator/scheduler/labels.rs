//! Label and node selectors as the scheduler reads them (k8s-openapi types). Pure.

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use std::collections::BTreeMap;

pub type Labels = BTreeMap<String, String>;

/// A missing selector matches nothing, an empty one everything (the API's rule for pod affinity and topology spread).
pub fn selector_matches(selector: Option<&LabelSelector>, labels: &Labels) -> bool {
    let Some(selector) = selector else { return false };
    let by_label = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    by_label
        && selector.match_expressions.iter().flatten().all(|requirement| {
            let values = requirement.values.as_deref().unwrap_or_default();
            expression_matches(&requirement.operator, values, labels.get(&requirement.key))
        })
}

/// Terms are alternatives; within a term every expression must hold. A term without any expression matches no node.
pub fn node_selector_matches(selector: &NodeSelector, name: &str, labels: &Labels) -> bool {
    selector.node_selector_terms.iter().any(|term| node_term_matches(term, name, labels))
}

pub fn node_term_matches(term: &NodeSelectorTerm, name: &str, labels: &Labels) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|requirement| requirement_matches(requirement, labels.get(&requirement.key)))
        && fields.iter().all(|requirement| requirement.key == "metadata.name" && requirement_matches(requirement, Some(&name.to_string())))
}

fn requirement_matches(requirement: &NodeSelectorRequirement, actual: Option<&String>) -> bool {
    expression_matches(&requirement.operator, requirement.values.as_deref().unwrap_or_default(), actual)
}

fn expression_matches(operator: &str, values: &[String], actual: Option<&String>) -> bool {
    match operator {
        "In" => actual.is_some_and(|actual| values.contains(actual)),
        "NotIn" => actual.is_none_or(|actual| !values.contains(actual)),
        "Exists" => actual.is_some(),
        "DoesNotExist" => actual.is_none(),
        "Gt" => compare(actual, values).is_some_and(|(actual, limit)| actual > limit),
        "Lt" => compare(actual, values).is_some_and(|(actual, limit)| actual < limit),
        _ => false,
    }
}

fn compare(actual: Option<&String>, values: &[String]) -> Option<(i64, i64)> {
    Some((actual?.parse().ok()?, values.first()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(selector: Value, labels: &[(&str, &str)], expected: bool) {
        let selector: LabelSelector = serde_json::from_value(selector).expect("selector");
        let labels: Labels = labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        assert_eq!(selector_matches(Some(&selector), &labels), expected, "{selector:?} against {labels:?}");
    }

    #[test]
    fn selectors_follow_the_operators_of_the_api() {
        check(json!({}), &[("app", "web")], true);
        check(json!({"matchLabels": {"app": "web"}}), &[("app", "web")], true);
        check(json!({"matchLabels": {"app": "web"}}), &[("app", "db")], false);
        check(json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "web"]}]}), &[("app", "web")], true);
        check(json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}), &[], true);
        check(json!({"matchExpressions": [{"key": "app", "operator": "Exists"}]}), &[], false);
        check(json!({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}), &[], true);
        assert!(!selector_matches(None, &Labels::new()), "a missing selector matches nothing");
    }

    #[test]
    fn a_node_term_without_expressions_matches_no_node() {
        let selector: NodeSelector = serde_json::from_value(json!({"nodeSelectorTerms": [{}]})).expect("selector");
        assert!(!node_selector_matches(&selector, "n", &Labels::new()));
        let selector: NodeSelector = serde_json::from_value(
            json!({"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}]}),
        )
        .expect("selector");
        assert!(node_selector_matches(&selector, "n", &Labels::new()));
        assert!(!node_selector_matches(&selector, "m", &Labels::new()));
    }
}
