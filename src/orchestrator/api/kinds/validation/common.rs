//! Rules that many fields share, and the list that problems are gathered in.

use crate::orchestrator::api::kinds::Cause;
use crate::orchestrator::api::kinds::json::{list, map, text};
use serde_json::Value;
use std::collections::HashSet;

/// More problems than these help nobody.
const MAX_PROBLEMS: usize = 100;

pub const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
pub const IMMUTABLE: &str = "field is immutable";

/// What was found so far.
#[derive(Default)]
pub struct Problems(Vec<Cause>);

impl Problems {
    pub fn into_causes(self) -> Vec<Cause> {
        self.0
    }
    pub fn add(&mut self, cause: Cause) {
        if self.0.len() < MAX_PROBLEMS {
            self.0.push(cause);
        }
    }
    pub fn required(&mut self, field: impl Into<String>, detail: &str) {
        self.add(Cause::required(field, detail));
    }
    pub fn invalid(&mut self, field: impl Into<String>, value: &Value, detail: &str) {
        self.add(Cause::invalid(field, value, detail));
    }
    pub fn forbidden(&mut self, field: impl Into<String>, detail: &str) {
        self.add(Cause::forbidden(field, detail));
    }

    /// A text that must be there; false if it is not.
    pub fn text_required(&mut self, object: &Value, name: &str, path: &str) -> bool {
        let there = !text(object, &format!("/{name}")).is_empty();
        if !there {
            self.required(format!("{path}.{name}"), "");
        }
        there
    }
    /// One of a few texts; nothing is checked if the field is absent.
    pub fn one_of(&mut self, object: &Value, name: &str, path: &str, allowed: &[&str]) {
        if let Some(value) = object.get(name)
            && !value.as_str().is_some_and(|value| allowed.contains(&value))
        {
            self.add(Cause::not_supported(format!("{path}.{name}"), value, allowed));
        }
    }
    /// A text of the given syntax; nothing is checked if it is absent or empty.
    pub fn syntax(&mut self, object: &Value, name: &str, path: &str, rule: fn(&str) -> Result<(), String>) {
        let value = text(object, &format!("/{name}"));
        if let (false, Err(detail)) = (value.is_empty(), rule(value)) {
            self.invalid(format!("{path}.{name}"), &value.into(), &detail);
        }
    }
    /// A number that may be absent, but not negative.
    pub fn not_negative(&mut self, object: &Value, name: &str, path: &str) {
        self.range(object, name, path, 0..=i64::MAX, NOT_NEGATIVE);
    }
    pub fn range(&mut self, object: &Value, name: &str, path: &str, allowed: std::ops::RangeInclusive<i64>, detail: &str) {
        if let Some(number) = object.get(name).and_then(Value::as_i64)
            && !allowed.contains(&number)
        {
            self.invalid(format!("{path}.{name}"), &number.into(), detail);
        }
    }
    /// A port number.
    pub fn port(&mut self, value: &Value, field: impl Into<String>) {
        if !value.as_i64().is_some_and(|number| (1..=65535).contains(&number)) {
            self.invalid(field, value, "must be between 1 and 65535, inclusive");
        }
    }
    /// A port number or a port's name.
    pub fn port_or_name(&mut self, value: &Value, field: impl Into<String>) {
        match value {
            Value::String(name) => {
                if let Err(detail) = super::names::port_name(name) {
                    self.invalid(field, value, &detail);
                }
            }
            value => self.port(value, field),
        }
    }
    /// A label map.
    pub fn labels(&mut self, labels: Option<&Value>, path: &str) {
        for (key, value) in labels.and_then(Value::as_object).into_iter().flatten() {
            if let Err(detail) = super::names::qualified_name(key) {
                self.invalid(path, &key.as_str().into(), &detail);
            }
            if let Some(Err(detail)) = value.as_str().map(super::names::label_value) {
                self.invalid(path, value, &detail);
            }
        }
    }
    /// A `matchLabels`/`matchExpressions` object.
    pub fn label_selector(&mut self, selector: &Value, path: &str) {
        self.labels(selector.get("matchLabels"), &format!("{path}.matchLabels"));
        for (at, expression) in list(selector, "/matchExpressions").iter().enumerate() {
            let path = format!("{path}.matchExpressions[{at}]");
            let values = list(expression, "/values");
            match text(expression, "/operator") {
                "In" | "NotIn" if values.is_empty() => {
                    self.required(format!("{path}.values"), "must be specified when `operator` is 'In' or 'NotIn'");
                }
                "In" | "NotIn" => {}
                "Exists" | "DoesNotExist" if !values.is_empty() => {
                    self.forbidden(format!("{path}.values"), "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
                }
                "Exists" | "DoesNotExist" => {}
                other => self.invalid(format!("{path}.operator"), &other.into(), "not a valid selector operator"),
            }
            if let Err(detail) = super::names::qualified_name(text(expression, "/key")) {
                self.invalid(format!("{path}.key"), &text(expression, "/key").into(), &detail);
            }
        }
    }
    /// The field must be what it was.
    pub fn immutable(&mut self, new: Option<&Value>, old: Option<&Value>, field: &str) {
        if new != old {
            self.invalid(field, new.unwrap_or(&Value::Null), IMMUTABLE);
        }
    }
    /// Exactly one of `names` must be there; returns those that are.
    pub fn exactly_one<'n>(&mut self, object: &Value, names: &[&'n str], path: &str, none: &str, more: &str) -> Vec<&'n str> {
        let given: Vec<_> = names.iter().copied().filter(|name| object.get(*name).is_some_and(|value| !value.is_null())).collect();
        if given.is_empty() {
            self.required(path, none);
        }
        for name in given.iter().skip(1) {
            self.forbidden(format!("{path}.{name}"), more);
        }
        given
    }
}

/// The elements of a list, for looking many up.
pub fn set_of(list: &[Value]) -> HashSet<String> {
    list.iter().map(Value::to_string).collect()
}

/// The sum of the sizes of a map's keys and values.
pub fn bytes_of(object: &Value, name: &str) -> usize {
    map(object, &format!("/{name}")).into_iter().flatten().map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum()
}
