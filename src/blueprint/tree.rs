//! YAML or JSON text to a tree that knows where everything stands. Bounded: bombs, depth and size end in one clear problem.
//!
//! A typed read stops at the first mistake; this tree lets the checker report all of them. Plain scalars mean what they mean to
//! kubectl (YAML 1.1 as Go reads it): `0644` is octal and `yes` is true, so a manifest does the same here as there.

use granit_parser::{Event, Parser, ScalarStyle, Span};
use serde_json::{Map, Number, Value};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

/// Nodes of one file with all aliases expanded: upstream's largest bundles of definitions have about 60,000.
const MOST_NODES: usize = 250_000;
/// Bytes of text with all aliases expanded.
const MOST_TEXT: usize = 16 << 20;
/// Below serde_json's own limit of 128, so that what is read here can be read again from JSON.
const MOST_DEPTH: usize = 100;
/// Mistakes of one file that are worth showing.
const MOST_MISTAKES: usize = 100;

/// A place in a file; both count from 1 and columns count characters. Line 0 is "nowhere" (an object that came from no file).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    pub line: usize,
    pub column: usize,
    /// Characters to underline; at least 1.
    pub width: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub place: Place,
    pub data: Data,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    pub place: Place,
    pub name: String,
}

/// What is wrong with the text itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Mistake {
    pub place: Place,
    pub message: String,
    pub hint: Option<String>,
}

/// Every document of the text that could be read, and what was wrong. A syntax error ends the reading.
pub fn read(text: &str) -> (Vec<Node>, Vec<Mistake>) {
    let options =
        granit_parser::options! { emit_unresolved_aliases: true, flow_nesting_limit: MOST_DEPTH, block_nesting_limit: MOST_DEPTH };
    let mut builder = Builder::default();
    for event in Parser::new_from_str_with_options(text, options) {
        let step = match event {
            Ok((event, span)) => builder.take(event, span),
            Err(error) => {
                let marker = error.marker();
                let place = Place { line: marker.line(), column: marker.col() + 1, width: 1 };
                Err(Mistake { place, message: format!("this is not YAML: {}", error.info()), hint: syntax_hint(text, marker.line()) })
            }
        };
        if let Err(fatal) = step {
            builder.mistakes.push(fatal);
            break;
        }
        if builder.mistakes.len() >= MOST_MISTAKES {
            break;
        }
    }
    (builder.documents, builder.mistakes)
}

fn syntax_hint(text: &str, line: usize) -> Option<String> {
    let source = text.lines().nth(line.saturating_sub(1))?;
    let indent = &source[..source.len() - source.trim_start().len()];
    if indent.contains('\t') {
        return Some("indent with spaces; YAML does not allow tabs there".into());
    }
    None
}

impl Node {
    /// An object that came from no file.
    pub fn from_value(value: &Value) -> Node {
        let data = match value {
            Value::Null => Data::Null,
            Value::Bool(value) => Data::Bool(*value),
            Value::Number(value) => Data::Number(value.clone()),
            Value::String(value) => Data::Text(value.clone()),
            Value::Array(items) => Data::List(items.iter().map(Node::from_value).collect()),
            Value::Object(fields) => {
                let pair =
                    |(name, value): (&String, &Value)| (Key { place: Place::default(), name: name.clone() }, Node::from_value(value));
                Data::Map(fields.iter().map(pair).collect())
            }
        };
        Node { place: Place::default(), data }
    }

    pub fn to_value(&self) -> Value {
        match &self.data {
            Data::Null => Value::Null,
            Data::Bool(value) => Value::Bool(*value),
            Data::Number(value) => Value::Number(value.clone()),
            Data::Text(value) => Value::String(value.clone()),
            Data::List(items) => Value::Array(items.iter().map(Node::to_value).collect()),
            Data::Map(fields) => {
                Value::Object(fields.iter().map(|(key, value)| (key.name.clone(), value.to_value())).collect::<Map<_, _>>())
            }
        }
    }

    pub fn field(&self, name: &str) -> Option<&Node> {
        self.fields().iter().find(|(key, _)| key.name == name).map(|(_, value)| value)
    }

    /// Empty for everything but a map.
    pub fn fields(&self) -> &[(Key, Node)] {
        if let Data::Map(fields) = &self.data { fields } else { &[] }
    }

    /// Empty for everything but a list.
    pub fn items(&self) -> &[Node] {
        if let Data::List(items) = &self.data { items } else { &[] }
    }

    pub fn text(&self) -> Option<&str> {
        if let Data::Text(text) = &self.data { Some(text) } else { None }
    }

    /// The text under a field of a map.
    pub fn text_of(&self, name: &str) -> Option<&str> {
        self.field(name).and_then(Node::text)
    }

    pub fn whole_number(&self) -> Option<i64> {
        if let Data::Number(number) = &self.data { number.as_i64() } else { None }
    }

    /// For messages: "got a map".
    pub fn kind(&self) -> &'static str {
        match &self.data {
            Data::Null => "nothing",
            Data::Bool(_) => "true or false",
            Data::Number(_) => "a number",
            Data::Text(_) => "a text",
            Data::List(_) => "a list",
            Data::Map(_) => "a map",
        }
    }
}

/// What an anchored subtree costs each time it is repeated.
#[derive(Clone, Copy, Default)]
struct Cost {
    nodes: usize,
    text: usize,
    depth: usize,
}

enum Open {
    List {
        place: Place,
        anchor: usize,
        before: Cost,
        deepest: usize,
        items: Vec<Node>,
    },
    Map {
        place: Place,
        anchor: usize,
        before: Cost,
        deepest: usize,
        fields: Vec<(Key, Node)>,
        names: BTreeMap<String, Place>,
        key: Option<Key>,
        merged: Vec<Node>,
    },
}

#[derive(Default)]
struct Builder {
    documents: Vec<Node>,
    mistakes: Vec<Mistake>,
    open: Vec<Open>,
    anchors: HashMap<usize, (Node, Cost)>,
    /// Nodes and text so far, aliases expanded.
    spent: Cost,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Mistake> {
        let place = place(&span);
        match event {
            Event::DocumentStart(..) => self.anchors.clear(),
            Event::Scalar(text, style, anchor, tag) => {
                let data = self.scalar(text, style, tag.as_deref(), place);
                let cost = Cost { nodes: 1, text: if let Data::Text(text) = &data { text.len() } else { 0 }, depth: 1 };
                self.add(Node { place, data }, cost, anchor, place)?;
            }
            Event::SequenceStart(_, anchor, _) => {
                self.deep_enough(place, 1)?;
                self.open.push(Open::List { place, anchor, before: self.spent, deepest: 0, items: Vec::new() });
            }
            Event::MappingStart(_, anchor, _) => {
                self.deep_enough(place, 1)?;
                let (fields, names, merged) = Default::default();
                self.open.push(Open::Map { place, anchor, before: self.spent, deepest: 0, fields, names, key: None, merged });
            }
            Event::SequenceEnd | Event::MappingEnd => self.close()?,
            Event::Alias(anchor) => match self.anchors.get(&anchor).cloned() {
                Some((node, cost)) => self.add(node, cost, 0, place)?,
                None => {
                    return Err(Mistake { place, message: "this alias is inside of what it repeats".into(), hint: None });
                }
            },
            Event::UnresolvedAlias(name) => {
                self.mistake(
                    place,
                    format!("no anchor `&{name}` stands before this alias"),
                    Some("quote the text if it just starts with *".into()),
                );
                self.add(Node { place, data: Data::Null }, Cost { nodes: 1, text: 0, depth: 1 }, 0, place)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn mistake(&mut self, place: Place, message: String, hint: Option<String>) {
        self.mistakes.push(Mistake { place, message, hint });
    }

    fn deep_enough(&self, place: Place, more: usize) -> Result<(), Mistake> {
        if self.open.len() + more <= MOST_DEPTH {
            return Ok(());
        }
        Err(Mistake { place, message: format!("this is nested more than {MOST_DEPTH} levels deep"), hint: None })
    }

    fn close(&mut self) -> Result<(), Mistake> {
        let (node, anchor, before, deepest) = match self.open.pop() {
            Some(Open::List { place, anchor, before, deepest, items }) => {
                (Node { place, data: Data::List(items) }, anchor, before, deepest)
            }
            Some(Open::Map { place, anchor, before, deepest, mut fields, mut names, merged, .. }) => {
                for (key, value) in merged.iter().flat_map(Node::fields) {
                    if !names.contains_key(&key.name) {
                        names.insert(key.name.clone(), key.place);
                        fields.push((key.clone(), value.clone()));
                    }
                }
                (Node { place, data: Data::Map(fields) }, anchor, before, deepest)
            }
            None => return Ok(()),
        };
        let inside = Cost { nodes: self.spent.nodes - before.nodes, text: self.spent.text - before.text, depth: 0 };
        let cost = Cost { nodes: 1, text: 0, depth: deepest + 1 };
        let place = node.place;
        if anchor != 0 {
            self.anchors.insert(anchor, (node.clone(), Cost { nodes: inside.nodes + 1, text: inside.text, depth: deepest + 1 }));
        }
        self.add(node, cost, 0, place)
    }

    /// Puts a finished node where it belongs: the key or value of the open map, the open list, or a document of its own.
    fn add(&mut self, node: Node, cost: Cost, anchor: usize, place: Place) -> Result<(), Mistake> {
        self.spent.nodes += cost.nodes;
        self.spent.text += cost.text;
        if self.spent.nodes > MOST_NODES || self.spent.text > MOST_TEXT {
            let message =
                format!("the file holds too much: more than {MOST_NODES} values or {} MiB of text, aliases expanded", MOST_TEXT >> 20);
            return Err(Mistake { place, message, hint: Some("write large manifests to files of their own".into()) });
        }
        self.deep_enough(place, cost.depth.saturating_sub(1))?;
        if anchor != 0 {
            self.anchors.insert(anchor, (node.clone(), cost));
        }
        let mut mistake = None;
        match self.open.last_mut() {
            None => self.documents.push(node),
            Some(Open::List { items, deepest, .. }) => {
                *deepest = (*deepest).max(cost.depth);
                items.push(node);
            }
            Some(Open::Map { fields, names, key, deepest, merged, .. }) => {
                *deepest = (*deepest).max(cost.depth);
                match key.take() {
                    None => *key = Some(as_key(node, place, &mut mistake)),
                    Some(key) if key.name == "<<" => match node.data {
                        Data::Map(_) => merged.push(node),
                        Data::List(items) if items.iter().all(|item| matches!(item.data, Data::Map(_))) => merged.extend(items),
                        _ => mistake = Some(Mistake { place, message: "`<<` merges a map or a list of maps".into(), hint: None }),
                    },
                    Some(key) => match names.get(&key.name) {
                        Some(first) => {
                            let message = format!("`{}` is written twice", key.name);
                            mistake =
                                Some(Mistake { place: key.place, message, hint: Some(format!("the first one is on line {}", first.line)) });
                        }
                        None => {
                            names.insert(key.name.clone(), key.place);
                            fields.push((key, node));
                        }
                    },
                }
            }
        }
        self.mistakes.extend(mistake);
        Ok(())
    }

    fn scalar(&mut self, text: Cow<'_, str>, style: ScalarStyle, tag: Option<&granit_parser::Tag>, place: Place) -> Data {
        // A key is a text whatever it looks like: `80: x` has the key "80".
        let is_key = matches!(self.open.last(), Some(Open::Map { key: None, .. }));
        match tag {
            None => {}
            Some(tag) if tag.is_yaml_core_schema_tag("str") || tag.original() == "!" => return Data::Text(text.into_owned()),
            Some(tag) if tag.is_yaml_core_schema() => {}
            Some(tag) => {
                self.mistake(
                    place,
                    format!("the tag `{}` means nothing here", tag.original()),
                    Some("quote the text if it just starts with !".into()),
                );
            }
        }
        if style != ScalarStyle::Plain || is_key { Data::Text(text.into_owned()) } else { plain(text) }
    }
}

fn as_key(node: Node, place: Place, mistake: &mut Option<Mistake>) -> Key {
    let name = match node.data {
        Data::Text(name) => name,
        // Only an alias can bring a scalar that was read as a value.
        Data::Null => "null".into(),
        Data::Bool(value) => value.to_string(),
        Data::Number(value) => value.to_string(),
        Data::List(_) | Data::Map(_) => {
            *mistake = Some(Mistake {
                place,
                message: "a field's name must be a text".into(),
                hint: Some("quote it if it starts with { or [; templates must be rendered first".into()),
            });
            String::new()
        }
    };
    Key { place, name }
}

fn place(span: &Span) -> Place {
    let width = if span.start.line() == span.end.line() { span.end.col().saturating_sub(span.start.col()) } else { 1 };
    Place { line: span.start.line().max(1), column: span.start.col() + 1, width: width.max(1) }
}

/// What a plain scalar means, as sigs.k8s.io/yaml (Go's YAML 1.1) reads it.
fn plain(text: Cow<'_, str>) -> Data {
    match text.as_ref() {
        "" | "~" | "null" | "Null" | "NULL" => return Data::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Data::Bool(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => return Data::Bool(false),
        _ => {}
    }
    match number(&text) {
        Some(number) => Data::Number(number),
        None => Data::Text(text.into_owned()),
    }
}

fn number(text: &str) -> Option<Number> {
    let first = *text.as_bytes().first()?;
    // Most scalars are words; nothing else than these starts a number.
    if !(first.is_ascii_digit() || matches!(first, b'-' | b'+' | b'.')) {
        return None;
    }
    let (sign, digits) = match first {
        b'-' => ("-", &text[1..]),
        b'+' => ("", &text[1..]),
        _ => ("", text),
    };
    let digits = digits.replace('_', "");
    let radix = |prefix: &str, radix: u32| digits.strip_prefix(prefix).map(|rest| (rest.to_string(), radix));
    let octal = || {
        (digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|digit| (b'0'..=b'7').contains(&digit)))
            .then(|| (digits[1..].to_string(), 8))
    };
    if let Some((rest, radix)) = radix("0x", 16).or_else(|| radix("0o", 8)).or_else(|| radix("0b", 2)).or_else(octal) {
        if rest.starts_with(['+', '-']) {
            return None;
        }
        let whole = i128::from_str_radix(&format!("{sign}{rest}"), radix).ok()?;
        return i64::try_from(whole).map(Number::from).or_else(|_| u64::try_from(whole).map(Number::from)).ok();
    }
    if digits.bytes().all(|digit| digit.is_ascii_digit()) && !digits.is_empty() && (digits.len() == 1 || !digits.starts_with('0')) {
        let whole = format!("{sign}{digits}");
        if let Ok(number) = whole.parse::<i64>() {
            return Some(number.into());
        }
        if let Ok(number) = whole.parse::<u64>() {
            return Some(number.into());
        }
    }
    // Go's pattern for floats: digits with a point and/or an exponent; no "inf", "nan" or "1_000.5e" that Rust might take or not.
    let shape = digits.bytes().all(|letter| letter.is_ascii_digit() || matches!(letter, b'.' | b'e' | b'E' | b'+' | b'-'));
    if shape
        && digits.starts_with(|letter: char| letter.is_ascii_digit() || letter == '.')
        && digits.bytes().any(|letter| letter.is_ascii_digit())
    {
        return format!("{sign}{digits}").parse::<f64>().ok().and_then(Number::from_f64);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blueprint::tests::damage;
    use crate::sys::fuzz::fuzz;
    use proptest::prelude::*;
    use serde_json::json;

    fn check(text: &str, expected: Value) {
        let (documents, mistakes) = read(text);
        assert_eq!(mistakes, [], "{text}");
        assert_eq!(Value::Array(documents.iter().map(Node::to_value).collect()), expected, "{text}");
    }

    fn mistakes(text: &str) -> Vec<String> {
        read(text).1.iter().map(|mistake| format!("{}:{} {}", mistake.place.line, mistake.place.column, mistake.message)).collect()
    }

    #[test]
    fn plain_scalars_mean_what_they_mean_to_kubectl() {
        check("[1, -1, +1, 0644, 0o644, 0x1F, 0b11, 1_000, 18446744073709551615]", json!([[1, -1, 1, 420, 420, 31, 3, 1000, u64::MAX]]));
        check("[1.5, .5, 1e3, -0.1]", json!([[1.5, 0.5, 1000.0, -0.1]]));
        check("[yes, Off, true, ~, null, ]", json!([[true, false, true, null, null]]));
        check(
            "[\"1\", '1', !!str 1, 1.2.3, 0x, 08, 1Gi, 500m, 2001-01-01, .inf, -a, 1e, y]",
            json!([["1", "1", "1", "1.2.3", "0x", 8.0, "1Gi", "500m", "2001-01-01", ".inf", "-a", "1e", "y"]]),
        );
        check("80: a\ntrue: b\n", json!([{"80": "a", "true": "b"}]));
    }

    #[test]
    fn documents_anchors_and_merges_are_followed() {
        check("a: 1\n---\nb: 2\n", json!([{"a": 1}, {"b": 2}]));
        check("base: &base {a: 1, b: 2}\nuse: {<<: *base, b: 3}\n", json!([{"base": {"a": 1, "b": 2}, "use": {"b": 3, "a": 1}}]));
        check("{\"a\":\t[1, \"x\\n\"]}", json!([{"a": [1, "x\n"]}]));
        check("text: |\n  a\n  b\n", json!([{"text": "a\nb\n"}]));
    }

    #[test]
    fn each_mistake_of_the_text_has_its_place() {
        assert_eq!(mistakes("a: 1\nb: 2\na: 3\nb: 4\n"), ["3:1 `a` is written twice", "4:1 `b` is written twice"]);
        assert_eq!(mistakes("a: *nobody\n"), ["1:4 no anchor `&nobody` stands before this alias"]);
        assert_eq!(mistakes("a: &a [*a]\n"), ["1:8 this alias is inside of what it repeats"]);
        assert_eq!(mistakes("a: !Ref b\n"), ["1:9 the tag `!Ref` means nothing here"]);
        assert!(mistakes("a: [1, 2\nb: 3\n")[0].contains("this is not YAML"));
        assert!(mistakes("{{ .Values.name }}: 1\n")[0].contains("must be a text"));
    }

    #[test]
    fn bombs_end_in_one_problem() {
        let laughs = (1..20).fold("a0: &a0 [lol, lol, lol]\n".to_string(), |text, n| {
            let alias = format!("*a{}", n - 1);
            text + &format!("a{n}: &a{n} [{}]\n", [alias.as_str(); 9].join(", "))
        });
        assert!(mistakes(&laughs)[0].contains("holds too much"));
        let long = format!("a: &a \"{}\"\nb: [{}]\n", "x".repeat(500_000), vec!["*a"; 1000].join(", "));
        assert!(mistakes(&long)[0].contains("holds too much"));
        assert!(mistakes(&"[".repeat(1_000_000))[0].contains("1:101 "));
        assert!(mistakes(&(0..100_000).map(|n| format!("{}a:\n", " ".repeat(n.min(400)))).collect::<String>()).len() == 1);
        let chain = (1..300).fold("a0: &a0 [x]\n".to_string(), |text, n| text + &format!("a{n}: &a{n} [*a{}]\n", n - 1));
        assert!(mistakes(&chain)[0].contains("levels deep"));
    }

    #[test]
    fn fuzz_any_text_is_read_or_refused_with_a_place() {
        let bytes = proptest::collection::vec(any::<u8>(), 0..400).prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let yaml_like = "([a-c&*!|>'\"{}\\[\\],:?#%@`~<-] ?|\n *|\r|<<: |\\*a|&a |[0-9.e_x+-]{1,6}){0,120}";
        fuzz(&prop_oneof![1 => bytes, 4 => yaml_like, 4 => damage::texts()], 1500, |text| damage::is_read_or_refused(&text));
    }
}
