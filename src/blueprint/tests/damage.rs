//! The example blueprints, damaged in every way that a disk, an editor or somebody hostile might.

use super::*;
use crate::blueprint::tree;
use crate::sys::fuzz::fuzz;
use proptest::collection::vec;
use proptest::sample::select;
use proptest::test_runner::TestCaseResult;
use serde_json::Value;
use std::fmt;

const WEB: &str = include_str!("../../../blueprints/web.yaml");
/// What the examples do not show of YAML and of the schema.
const RICH: &str = "apiVersion: kprov.dev/v1
kind: Blueprint
metadata: {name: rich, labels: {team: &team \"über\"}, annotations: {note: *team}}
spec:
  provider: local
  machines:
    - &control {name: control, role: control-plane, count: 1, size: &size {cpu: 500m, memory: 512Mi, disk: 1Gi}}
    - {<<: *control, name: worker, role: worker, count: 0x10}
    - {<<: [{count: 3}, *control], name: more, role: worker, size: {<<: *size, cpu: 1.5}}
  loadBalancers: [{name: web, listeners: [{port: 80, service: shop/web, targetPort: 80}]}]
  images: [demo.tar]
  workloads:
    - web.yaml
    - apiVersion: v1
      kind: ConfigMap
      metadata: {name: text, namespace: shop}
      data:
        script: |
          #!/bin/sh
            exit 0
        folded: >-
          a
          b
        mode: \"0644\\u00e9\\n\"
        odd: 'it''s'
      numbers: [0644, 0x1F, 1_000, 1.5e3, .5, -0.0, 18446744073709551615, -9223372036854775808, ~, yes, !!str 1]
    - {apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Secret, metadata: {name: s}}]}
  providers:
    ssh: {hosts: [{address: 192.0.2.11, user: root, role: worker, privateAddress: \"::1\", labels: {rack: r7}}], addresses: [192.0.2.40-192.0.2.49]}
    aws: {instanceTypes: {worker: m6i.large}}
";

fn examples() -> Vec<String> {
    let files = [include_str!("../../../blueprints/shop.yaml"), include_str!("../../../blueprints/ssh.yaml"), WEB, RICH];
    files.map(String::from).into_iter().chain([starter::text("shop")]).collect()
}

/// What means something to a reader of YAML, and what no reader expects; apart by `¦`.
const PIECES: [&str; 6] = [
    " ¦\n¦\r¦\r\n¦\t¦  - ¦- ¦? ¦: ¦:¦,¦[¦]¦{¦}¦{}¦[]¦'¦\"¦\\¦#¦ #¦¦---\n¦...\n¦%YAML 1.2\n---\n¦|\n¦>-\n¦|9\n",
    "&a ¦*a ¦&control ¦*control¦<<: *control\n¦<<: ¦!!str ¦!!map ¦!!binary ¦!Ref ¦! ¦? [a]\n: ",
    "null¦~¦yes¦-0¦-1¦0.05¦1e999¦-1e-999¦.inf¦0x7fffffffffffffff¦0b2¦1_0__0¦07777777777777777777777¦1001",
    "99999999999999999999999¦18446744073709551616¦1Ei¦9999999999999Ei¦0.000000001n¦1.2.3.4/33¦::/0¦local¦shop/web¦web.yaml¦/dev/zero",
    "\u{0}¦\u{7f}¦\u{85}¦\u{feff}¦\u{2028}¦\u{202e}¦\u{fffd}¦e\u{301}\u{200d}¦\u{1d54a}\u{10ffff}¦\u{1b}[31m",
    "\"\\ud800\"¦\"\\x00\\U0010ffff\"¦\"\\u2028\\N\\_\"¦'\u{feff}'",
];

fn pieces() -> impl Strategy<Value = &'static str> {
    select(PIECES.iter().flat_map(|group| group.split('¦')).collect::<Vec<_>>())
}

/// Places are taken modulo the length of what there is.
#[derive(Debug, Clone)]
enum Damage {
    Flip {
        at: usize,
        bit: u8,
    },
    Cut {
        at: usize,
    },
    Remove {
        at: usize,
        length: usize,
    },
    /// A part of this text again, somewhere else.
    Repeat {
        from: usize,
        length: usize,
        to: usize,
        times: usize,
    },
    /// A part of another example.
    Splice {
        example: usize,
        from: usize,
        length: usize,
        to: usize,
    },
    Insert {
        at: usize,
        piece: &'static str,
    },
    /// One word, whole.
    Word {
        at: usize,
        piece: &'static str,
    },
    /// One line, before another one.
    Line {
        from: usize,
        to: usize,
    },
    Nest {
        at: usize,
        piece: &'static str,
        depth: usize,
    },
    /// Anchors that each repeat the one before several times.
    Bomb {
        at: usize,
        levels: usize,
        width: usize,
    },
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = || 0..100_000_usize;
    let nests = select(vec!["[", "{a: ", "- ", "? ", "{? ", "[[],", "!!seq [", "&a [", "  "]);
    prop_oneof![
        2 => (at(), 0..8_u8).prop_map(|(at, bit)| Damage::Flip { at, bit }),
        1 => at().prop_map(|at| Damage::Cut { at }),
        2 => (at(), 1..40_usize).prop_map(|(at, length)| Damage::Remove { at, length }),
        2 => (at(), 1..200_usize, at(), 1..4_usize).prop_map(|(from, length, to, times)| Damage::Repeat { from, length, to, times }),
        2 => (0..5_usize, at(), 1..200_usize, at()).prop_map(|(example, from, length, to)| Damage::Splice { example, from, length, to }),
        4 => (at(), pieces()).prop_map(|(at, piece)| Damage::Insert { at, piece }),
        8 => (at(), pieces()).prop_map(|(at, piece)| Damage::Word { at, piece }),
        4 => (at(), at()).prop_map(|(from, to)| Damage::Line { from, to }),
        1 => (at(), nests, 1..300_usize).prop_map(|(at, piece, depth)| Damage::Nest { at, piece, depth }),
        1 => (at(), 1..8_usize, 1..12_usize).prop_map(|(at, levels, width)| Damage::Bomb { at, levels, width }),
    ]
}

impl Damage {
    fn strike(&self, text: &mut Vec<u8>, examples: &[String]) {
        let place = |at: usize, text: &[u8]| at % (text.len() + 1);
        let part = |from: usize, length: usize, text: &[u8]| {
            let from = place(from, text);
            text[from..(from + length).min(text.len())].to_vec()
        };
        let mut insert = |at: usize, bytes: &[u8]| {
            let at = place(at, text);
            text.splice(at..at, bytes.iter().copied());
        };
        match *self {
            Damage::Flip { at, bit } => {
                let at = place(at, text);
                text.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << bit);
            }
            Damage::Cut { at } => text.truncate(place(at, text)),
            Damage::Remove { at, length } => {
                let at = place(at, text);
                text.drain(at..(at + length).min(text.len()));
            }
            Damage::Repeat { from, length, to, times } => {
                let part = part(from, length, text).repeat(times);
                let to = place(to, text);
                text.splice(to..to, part);
            }
            Damage::Splice { example, from, length, to } => insert(to, &part(from, length, examples[example].as_bytes())),
            Damage::Insert { at, piece } => insert(at, piece.as_bytes()),
            Damage::Word { at, piece } => {
                let at = place(at, text);
                let in_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"-./_".contains(byte);
                let start = text[..at].iter().rposition(|byte| !in_word(byte)).map_or(0, |before| before + 1);
                let end = text[at..].iter().position(|byte| !in_word(byte)).map_or(text.len(), |length| at + length);
                text.splice(start..end, piece.bytes());
            }
            Damage::Line { from, to } => {
                let mut lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
                let (from, to) = (lines.get(from % lines.len().max(1)).copied(), to % (lines.len() + 1));
                lines.splice(to..to, from);
                *text = lines.concat();
            }
            Damage::Nest { at, piece, depth } => insert(at, piece.repeat(depth).as_bytes()),
            Damage::Bomb { at, levels, width } => {
                let level = |level: usize| format!("b{level}: &b{level} [{}]\n", vec![format!("*b{}", level - 1); width].join(", "));
                let bomb: String = (1..=levels).map(level).collect();
                insert(at, format!("\nb0: &b0 [x]\n{bomb}").as_bytes());
            }
        }
    }
}

fn damaged(first: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    let examples = examples();
    (first, vec(damage(), 0..8)).prop_map(move |(first, damages)| {
        let mut text = examples[first].clone().into_bytes();
        damages.iter().for_each(|damage| damage.strike(&mut text, &examples));
        text
    })
}

/// Any of the examples, with up to seven damages.
pub fn texts() -> impl Strategy<Value = String> {
    damaged(0..5).prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Lines end as YAML says, at a line feed, a carriage return or both; or, for bytes that are no text at all, at line feeds alone.
pub fn is_inside(text: &str, line: usize, column: usize) -> bool {
    let of_yaml = text.replace("\r\n", "\n").replace('\r', "\n");
    [of_yaml.as_str(), text].iter().any(|text| {
        let length = text.split('\n').nth(line.wrapping_sub(1)).map(|line| line.chars().count());
        // The end of the last line is a place, too: where something is missing.
        length.is_some_and(|length| (1..=length + 1).contains(&column))
    })
}

/// As JSON that is YAML, too: control characters are escaped. Nothing if a key is longer than what YAML takes for one without a `?`.
fn saved(value: &Value) -> Option<String> {
    fn fits(value: &Value) -> bool {
        match value {
            Value::Object(fields) => fields.iter().all(|(name, inner)| json!(name).to_string().len() < 500 && fits(inner)),
            Value::Array(items) => items.iter().all(fits),
            _ => true,
        }
    }
    let letter = |letter: char| if letter.is_control() { format!("\\u{:04x}", u32::from(letter)) } else { letter.into() };
    fits(value).then(|| value.to_string().chars().map(letter).collect())
}

/// What can be said of a whole file only.
const OF_A_FILE: [&str; 2] = ["the file is empty", "the file holds no object"];

fn read_or_refused(text: &str, web: &[u8]) -> TestCaseResult {
    let manifest = String::from_utf8_lossy(web).into_owned();
    let files = Memory(BTreeMap::from([("web.yaml", web.to_vec()), ("demo.tar", Vec::new())]));
    let loaded = match from_text(text, Path::new("shop.yaml"), &files) {
        Ok(loaded) => loaded,
        Err(problems) => return are_placed(&problems, text, &manifest),
    };
    // As it comes back from the cluster.
    let object = serde_json::to_value(&loaded.blueprint).expect("a blueprint is plain data");
    let again = from_object(&object);
    prop_assert_eq!(again.as_ref().map(|again| &again.blueprint), Ok(&loaded.blueprint), "from {}", object);
    // As somebody would save it.
    if let Some(text) = saved(&object) {
        let again = from_text(&text, Path::new("shop.yaml"), &files);
        prop_assert_eq!(again.as_ref().map(|again| &again.blueprint), Ok(&loaded.blueprint), "from {}", text);
    }
    Ok(())
}

fn are_placed(problems: &Problems, text: &str, manifest: &str) -> TestCaseResult {
    prop_assert!(!problems.0.is_empty());
    prop_assert!(problems.0.len() <= 200, "a hundred of the blueprint and as many of its manifest are enough");
    for problem in &problems.0 {
        let content = if problem.file == "web.yaml" { manifest } else { text };
        let of_a_file = problem.line == 0 && OF_A_FILE.contains(&problem.message.as_str());
        prop_assert!(of_a_file || is_inside(content, problem.line, problem.column), "{problem:?}");
        // Lines that end in a carriage return alone are shown as the line feed has them.
        let lone = content.replace("\r\n", "\n").contains('\r');
        let line = content.split('\n').nth(problem.line.wrapping_sub(1)).unwrap_or_default();
        prop_assert!(lone || problem.source.is_empty() || problem.source == line.trim_end_matches('\r'), "{problem:?}");
    }
    let shown = problems.to_string();
    prop_assert!(!shown.chars().any(|letter| letter.is_control() && letter != '\n'), "{shown:?}");
    Ok(())
}

#[test]
fn the_examples_are_good_before_they_are_damaged() {
    for text in examples().iter().filter(|text| *text != WEB) {
        read_or_refused(text, WEB.as_bytes()).expect("it is kept");
        let files = Memory(BTreeMap::from([("web.yaml", WEB.into()), ("demo.tar", Vec::new())]));
        from_text(text, Path::new("shop.yaml"), &files).unwrap_or_else(|problems| panic!("{problems}"));
    }
}

#[test]
fn fuzz_damaged_blueprints_are_kept_or_refused_with_a_place() {
    let manifests = prop_oneof![3 => Just(Manifest(WEB.into())), 1 => damaged(2..3).prop_map(Manifest)];
    fuzz(&(texts(), manifests), 1000, |(text, Manifest(web))| read_or_refused(&text, &web));
}

/// Bytes that are mostly text, and are shown so.
#[derive(Clone)]
struct Manifest(Vec<u8>);

impl fmt::Debug for Manifest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "b\"{}\"", self.0.escape_ascii())
    }
}

/// What is read is the same when it is read again from JSON, and every mistake has its place.
pub fn is_read_or_refused(text: &str) -> TestCaseResult {
    let (documents, mistakes) = tree::read(text);
    prop_assert!(mistakes.len() <= 100);
    for mistake in mistakes {
        prop_assert!(is_inside(text, mistake.place.line, mistake.place.column), "{mistake:?}");
    }
    for value in documents.iter().map(tree::Node::to_value) {
        let Some(text) = saved(&value) else { continue };
        let (again, mistakes) = tree::read(&text);
        prop_assert_eq!(mistakes, vec![], "{}", text);
        prop_assert_eq!(again.iter().map(tree::Node::to_value).collect::<Vec<_>>(), vec![value]);
    }
    Ok(())
}
