//! Label selectors: the grammar of `?labelSelector=`, and what objects say in `matchLabels` and `matchExpressions`.

use crate::orchestrator::api::kinds::validation::names;
use serde_json::Value;

/// Conditions on labels that must all hold; none matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Missing,
}

impl LabelSelector {
    /// From `?labelSelector=`: `app=web,tier!=db,env in (a,b),!old`. The error is the text of a 400 answer.
    pub fn parse(text: &str) -> Result<LabelSelector, String> {
        let mut parser = Parser { rest: text };
        let mut requirements = Vec::new();
        if parser.peek() == Token::End {
            return Ok(LabelSelector::default());
        }
        loop {
            requirements.push(parser.requirement().map_err(|error| format!("unable to parse requirement: {error}"))?);
            match parser.next() {
                Token::End => return Ok(LabelSelector { requirements }),
                // A trailing comma is an error, as upstream.
                Token::Comma => continue,
                token => return Err(format!("found '{}', expected: ',' or 'end of string'", token.text())),
            }
        }
    }
    /// From a `matchLabels`/`matchExpressions` object, as in `spec.selector`. Nothing selects nothing, an empty object selects all,
    /// as upstream's `LabelSelectorAsSelector`.
    pub fn from_value(selector: Option<&Value>) -> Result<Option<LabelSelector>, String> {
        let Some(selector) = selector.and_then(Value::as_object) else { return Ok(None) };
        let mut requirements = Vec::new();
        for (key, value) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let value = value.as_str().ok_or_else(|| format!("the value of label {key:?} is not a string"))?;
            requirements.push(Requirement { key: key.clone(), test: Test::In(vec![value.into()]) });
        }
        for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            requirements.push(Requirement::from_expression(expression)?);
        }
        Ok(Some(LabelSelector { requirements }))
    }
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }
    /// `get` looks a label up by its key.
    pub fn matches<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|requirement| requirement.matches(get(&requirement.key)))
    }
    /// On an object's `metadata.labels`.
    pub fn matches_object(&self, object: &Value) -> bool {
        self.matches_labels(object.pointer("/metadata/labels"))
    }
    pub fn matches_labels(&self, labels: Option<&Value>) -> bool {
        self.matches(|key| labels?.get(key)?.as_str())
    }
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        match &self.test {
            Test::In(values) => value.is_some_and(|value| values.iter().any(|allowed| allowed == value)),
            // An object without the label matches, as upstream.
            Test::NotIn(values) => value.is_none_or(|value| values.iter().all(|refused| refused != value)),
            Test::Exists => value.is_some(),
            Test::Missing => value.is_none(),
        }
    }
    fn from_expression(expression: &Value) -> Result<Requirement, String> {
        let text = |name: &str| expression.get(name).and_then(Value::as_str).unwrap_or_default();
        let values: Vec<String> = expression
            .get("values")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|value| value.as_str().map(String::from))
            .collect();
        let test = match text("operator") {
            "In" if values.is_empty() => return Err("for 'in', 'notin' operators, values set can't be empty".into()),
            "In" => Test::In(values),
            "NotIn" if values.is_empty() => return Err("for 'in', 'notin' operators, values set can't be empty".into()),
            "NotIn" => Test::NotIn(values),
            "Exists" => Test::Exists,
            "DoesNotExist" => Test::Missing,
            other => return Err(format!("{other:?} is not a valid label selector operator")),
        };
        Ok(Requirement { key: text("key").into(), test })
    }
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Token<'a> {
    Word(&'a str),
    Equals,
    NotEquals,
    Not,
    Open,
    Close,
    Comma,
    Other(&'a str),
    End,
}

impl Token<'_> {
    fn text(&self) -> &str {
        match self {
            Token::Word(text) | Token::Other(text) => text,
            Token::Equals => "=",
            Token::NotEquals => "!=",
            Token::Not => "!",
            Token::Open => "(",
            Token::Close => ")",
            Token::Comma => ",",
            Token::End => "",
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Token<'a> {
        Parser { rest: self.rest }.next()
    }
    fn next(&mut self) -> Token<'a> {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        let rest = self.rest;
        let special = |c: char| matches!(c, ' ' | '\t' | '\r' | '\n' | ',' | '(' | ')' | '=' | '!' | '<' | '>');
        let (token, length) = match rest.as_bytes() {
            [] => (Token::End, 0),
            [b',', ..] => (Token::Comma, 1),
            [b'(', ..] => (Token::Open, 1),
            [b')', ..] => (Token::Close, 1),
            [b'=', b'=', ..] => (Token::Equals, 2),
            [b'=', ..] => (Token::Equals, 1),
            [b'!', b'=', ..] => (Token::NotEquals, 2),
            [b'!', ..] => (Token::Not, 1),
            [b'<' | b'>', ..] => (Token::Other(&rest[..1]), 1),
            _ => {
                let length = rest.find(special).unwrap_or(rest.len());
                (Token::Word(&rest[..length]), length)
            }
        };
        self.rest = &rest[length..];
        token
    }
    fn requirement(&mut self) -> Result<Requirement, String> {
        let (negated, key) = match self.next() {
            Token::Not => (true, self.next()),
            token => (false, token),
        };
        let Token::Word(key) = key else { return Err(format!("found '{}', expected: identifier", key.text())) };
        names::qualified_name(key).map_err(|error| format!("<nil>: Invalid value: {key:?}: {error}"))?;
        let test = match self.peek() {
            _ if negated => Test::Missing,
            Token::End | Token::Comma => Test::Exists,
            Token::Equals => Test::In(vec![self.value_after_operator()?]),
            Token::NotEquals => Test::NotIn(vec![self.value_after_operator()?]),
            Token::Word("in") => Test::In(self.values_after_operator()?),
            Token::Word("notin") => Test::NotIn(self.values_after_operator()?),
            token => return Err(format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", token.text())),
        };
        Ok(Requirement { key: key.into(), test })
    }
    /// `app=` selects the empty value.
    fn value_after_operator(&mut self) -> Result<String, String> {
        self.next();
        match self.peek() {
            Token::End | Token::Comma => Ok(String::new()),
            Token::Word(value) => {
                self.next();
                names::label_value(value).map_err(|error| format!("<nil>: Invalid value: {value:?}: {error}"))?;
                Ok(value.into())
            }
            token => Err(format!("found '{}', expected: identifier", token.text())),
        }
    }
    fn values_after_operator(&mut self) -> Result<Vec<String>, String> {
        self.next();
        let open = self.next();
        if open != Token::Open {
            return Err(format!("found '{}' expected: '('", open.text()));
        }
        let mut values = Vec::new();
        loop {
            match self.next() {
                Token::Word(value) => values.push(value.to_string()),
                Token::Comma if self.peek() == Token::Comma || self.peek() == Token::Close || values.is_empty() => {
                    values.push(String::new())
                }
                Token::Comma => {}
                Token::Close if values.is_empty() => return Err("for 'in', 'notin' operators, values set can't be empty".into()),
                Token::Close => return Ok(values),
                token => return Err(format!("found '{}', expected: ',', ')' or identifier", token.text())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check_labels(selector: &str, labels: Value, expected: bool) {
        let parsed = LabelSelector::parse(selector).unwrap_or_else(|error| panic!("{selector}: {error}"));
        assert_eq!(parsed.matches_labels(Some(&labels)), expected, "{selector} on {labels}");
    }

    #[test]
    fn label_selectors_select_as_upstream_documents() {
        let web = json!({"app": "web", "env": "prod", "empty": ""});
        for (selector, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            (" app = web , env = prod ", true),
            ("app=db", false),
            ("app!=db", true),
            ("app!=web", false),
            ("missing!=x", true),
            ("missing=x", false),
            ("env in (prod, qa)", true),
            ("env in (qa)", false),
            ("env notin (qa,dev)", true),
            ("env notin (prod)", false),
            ("missing notin (prod)", true),
            ("app", true),
            ("!app", false),
            ("!missing", true),
            ("missing", false),
            ("empty=", true),
            ("app=,env=prod", false),
            ("app=web,!missing,env in (prod)", true),
            ("in=x", false),
            ("example.com/a!=b", true),
        ] {
            check_labels(selector, web.clone(), expected);
        }
    }

    #[test]
    fn a_malformed_label_selector_is_refused() {
        for selector in ["app in", "app in ()", "=web", "app=web,", "app=a=b", "app in (a", "app web", "app=$", "a/b/c=d", "x<5", ",", "!"]
        {
            assert!(LabelSelector::parse(selector).is_err(), "{selector}");
        }
    }

    #[test]
    fn an_absent_selector_selects_nothing_and_an_empty_one_everything() {
        assert_eq!(LabelSelector::from_value(None), Ok(None));
        let all = LabelSelector::from_value(Some(&json!({}))).expect("valid").expect("present");
        assert!(all.matches_labels(None));
    }

    #[test]
    fn expressions_of_objects_are_read() {
        let selector = json!({"matchLabels": {"app": "web"}, "matchExpressions": [
            {"key": "env", "operator": "In", "values": ["prod"]},
            {"key": "old", "operator": "DoesNotExist"},
        ]});
        let selector = LabelSelector::from_value(Some(&selector)).expect("valid").expect("present");
        assert!(selector.matches_labels(Some(&json!({"app": "web", "env": "prod"}))));
        assert!(!selector.matches_labels(Some(&json!({"app": "web", "env": "prod", "old": ""}))));
        assert!(LabelSelector::from_value(Some(&json!({"matchExpressions": [{"key": "a", "operator": "In"}]}))).is_err());
        assert!(LabelSelector::from_value(Some(&json!({"matchExpressions": [{"key": "a", "operator": "Gt"}]}))).is_err());
    }
}
