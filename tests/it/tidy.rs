//! Which room may use which, and a few habits, held by machine: without separate crates this is the wall.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Longer files hide more than one thing.
const LINES: usize = 700;

/// What each room may use beside itself, `error` and `lib.rs`'s own names. Rooms on the right of an edge never know those on the left.
fn allowed() -> BTreeMap<&'static str, Vec<&'static str>> {
    BTreeMap::from([
        ("error", vec![]),
        ("sys", vec![]),
        ("blueprint", vec!["sys"]),
        ("engine", vec!["sys"]),
        ("lb", vec!["sys"]),
        ("supervisor", vec!["sys"]),
        ("remote", vec!["sys", "engine"]),
        ("providers", vec!["sys", "blueprint", "engine", "lb", "supervisor", "remote"]),
        ("bootstrap", vec!["sys", "engine", "supervisor", "remote"]),
        ("orchestrator", vec!["sys", "blueprint"]),
        ("cli", vec!["sys", "blueprint", "engine", "lb", "supervisor", "remote", "providers", "bootstrap", "orchestrator"]),
        ("main", vec!["cli"]),
    ])
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below `src`, its path from there, and its text.
fn sources() -> Vec<(String, String)> {
    let (mut found, mut open) = (Vec::new(), vec![root().join("src")]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root().join("src")).expect("below src").to_string_lossy().into_owned();
                found.push((name, fs::read_to_string(&path).expect("a source")));
            }
        }
    }
    found.sort();
    found
}

/// The room of a file: its first folder, or its own name.
fn room(file: &str) -> &str {
    let first = Path::new(file).iter().next().expect("a name").to_str().expect("UTF-8");
    first.trim_end_matches(".rs")
}

/// Whether a file holds tests alone: those may use any room.
fn is_test(file: &str, text: &str) -> bool {
    file.ends_with("tests.rs") || file.ends_with("_tests.rs") || file.starts_with("engine/sim/") || text.contains("#![cfg(test)]")
}

/// The text before its unit tests.
fn without_tests(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or(text)
}

/// Rooms named as `crate::room` (or `kprov::room` in main.rs), also inside `use crate::{a, b::c}`.
fn used(text: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    for path in code.split("crate::").skip(1).chain(code.split("kprov::").skip(1)) {
        if let Some(list) = path.strip_prefix('{') {
            let mut depth = 0;
            let top: String = list
                .chars()
                .take_while(|letter| {
                    depth += i32::from(*letter == '{') - i32::from(*letter == '}');
                    depth >= 0
                })
                .collect();
            let mut depth = 0;
            let names = top.split(|letter: char| {
                depth += i32::from(letter == '{') - i32::from(letter == '}');
                letter == ',' && depth == 0
            });
            rooms.extend(names.map(first_word));
        } else {
            rooms.push(first_word(path));
        }
    }
    rooms
}

fn first_word(path: &str) -> String {
    path.trim().chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

fn none(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn rooms_use_only_the_rooms_they_may() {
    let allowed = allowed();
    let mut problems = Vec::new();
    for (file, text) in sources() {
        let here = room(&file).to_owned();
        let Some(may) = allowed.get(here.as_str()) else {
            if here != "lib" {
                problems.push(format!("src/{file}: a room without a row in this table"));
            }
            continue;
        };
        if is_test(&file, &text) {
            continue;
        }
        for other in used(without_tests(&text)) {
            let known = allowed.contains_key(other.as_str());
            if known && other != here && other != "error" && !may.contains(&other.as_str()) {
                problems.push(format!("src/{file}: {here} uses {other}"));
            }
        }
    }
    none(problems);
}

#[test]
fn a_use_is_found_in_every_spelling() {
    let text =
        "use crate::engine::plan;\nuse crate::{error::{Error, Kind}, sys::files, cli};\n// crate::lb\nlet x = crate::providers::make();";
    assert_eq!(used(text), ["engine", "error", "sys", "cli", "providers"]);
}

#[test]
fn every_file_opens_with_what_it_is() {
    let without = sources().into_iter().filter(|(_, text)| !text.starts_with("//! "));
    none(without.map(|(file, _)| format!("src/{file}: does not open with `//! `")).collect());
}

/// Same values, same answer: what a file that calls itself pure may not name.
const IMPURE: [&str; 10] = [
    "fs::",
    "env::var",
    "SystemTime::now",
    "Instant::now",
    "Timestamp::now",
    "Command::new",
    "rand::",
    "tokio::spawn",
    "tokio::select",
    "async fn",
];

#[test]
fn files_that_say_pure_ask_nobody() {
    let says = |text: &str| {
        let head: String =
            text.lines().take_while(|line| line.starts_with("//!")).flat_map(|line| [line.trim_start_matches("//!"), "\n"]).collect();
        head.contains(" Pure.") || head.contains(" Pure;") || head.contains("; pure.") || head.contains(": pure.")
    };
    let all = sources();
    let pure: Vec<_> = all.iter().filter(|(_, text)| says(text)).collect();
    assert!(pure.len() > 40, "the pure files were found: {}", pure.len());
    let mut problems = Vec::new();
    for (file, text) in pure {
        let code = without_tests(text).lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
        for (number, line) in code {
            if let Some(word) = IMPURE.into_iter().find(|word| line.contains(word)) {
                problems.push(format!("src/{file}:{}: says that it is pure, and names {word}", number + 1));
            }
        }
    }
    none(problems);
}

#[test]
fn no_file_is_longer_than_a_thing() {
    let long = sources().into_iter().filter(|(_, text)| text.lines().count() > LINES);
    none(long.map(|(file, text)| format!("src/{file}: {} lines, {LINES} is the limit", text.lines().count())).collect());
}

#[test]
fn nothing_is_left_for_later() {
    // In two halves, so that this file does not find itself.
    let words = [["to", "do!("], ["unimpl", "emented!("], ["FIX", "ME"], ["TO", "DO"], ["X", "XX"]].map(|halves| halves.concat());
    let mut problems = Vec::new();
    for (file, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            let found = words.iter().find(|word| {
                line.split(|letter: char| letter.is_whitespace() || letter == ':').any(|part| part.starts_with(word.as_str()))
            });
            if let Some(word) = found {
                problems.push(format!("src/{file}:{}: {word}", number + 1));
            }
        }
    }
    none(problems);
}

/// Changing one line of a blueprint changes the cloud because nothing but the providers, and the root that names them, knows one.
#[test]
fn rooms_that_serve_every_provider_name_no_cloud() {
    let common = ["engine", "remote", "bootstrap", "supervisor", "lb", "orchestrator"];
    let clouds = ["providers::aws", "providers::gcp", "providers::ssh", "providers::local", "ProviderName::", "aws_sdk", "google_cloud"];
    let all = sources();
    let neutral: Vec<_> = all.iter().filter(|(file, text)| common.contains(&room(file)) && !is_test(file, text)).collect();
    assert!(neutral.len() > 100, "the rooms were found");
    let named = |text: &str| clouds.into_iter().find(|cloud| without_tests(text).contains(cloud));
    let wrong: Vec<_> = neutral.iter().filter_map(|(file, text)| Some(format!("{file}: {}", named(text)?))).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
