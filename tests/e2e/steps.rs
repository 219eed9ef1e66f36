//! kill -9 of the real binary at every step that it writes into its log: at each plan, when a step begins, at each word it says meanwhile,
//! when it has ended, at each thing that is waited for. Every run goes on where the one before it died, so the way is gone once only.

use crate::harness::Operated;
use std::collections::BTreeSet;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// From one new step to the next; machines boot in between.
const STEP_LIMIT: Duration = Duration::from_secs(60);
/// Far above what a run has steps: one that never ends is a failure, too.
const MOST: usize = 200;

/// Starts the command again and again, kills it at its first step at which none has died yet, and returns where runs died when it has
/// ended well. What a run says between the step and its death counts as a place of that death: that it never comes again may be its doing.
/// `log` is what the command writes; `between` follows every death.
pub fn kill_at_every_step(operator: &impl Operated, log: &Path, arguments: &[&str], mut between: impl FnMut()) -> BTreeSet<String> {
    let begun = Instant::now();
    let (mut aimed, mut deaths) = (BTreeSet::new(), BTreeSet::new());
    loop {
        let from = std::fs::metadata(log).map_or(0, |log| log.len());
        let mut child = operator.command().args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("kprov starts");
        let Some(target) = new_step(&mut child, log, from, &aimed) else { break };
        child.kill().expect("kill");
        child.wait().expect("it ends");
        deaths.extend(since(log, from).lines().filter_map(step).skip_while(|step| *step != target));
        aimed.insert(target);
        assert!(aimed.len() < MOST, "it does not come to an end: {aimed:#?}");
        between();
    }
    eprintln!("{} was killed {} times in {:?}: {deaths:#?}", arguments[0], aimed.len(), begun.elapsed());
    deaths
}

/// `None` when the process has ended well without any.
fn new_step(child: &mut Child, log: &Path, from: u64, known: &BTreeSet<String>) -> Option<String> {
    let deadline = Instant::now() + STEP_LIMIT;
    loop {
        let ended = child.try_wait().expect("a child");
        let said = since(log, from);
        match (said.lines().filter_map(step).find(|step| !known.contains(step)), ended) {
            (Some(step), None) => return Some(step),
            (_, Some(status)) => {
                assert!(status.success(), "{status}\n{said}");
                return None;
            }
            (None, None) => assert!(Instant::now() < deadline, "neither step nor end:\n{said}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whole lines only.
fn since(log: &Path, from: u64) -> String {
    let mut text = Vec::new();
    if let Ok(mut file) = std::fs::File::open(log) {
        file.seek(SeekFrom::Start(from)).and_then(|_| file.read_to_end(&mut text)).expect("the log is readable");
    }
    let end = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    String::from_utf8_lossy(&text[..end]).into_owned()
}

/// Without numbers that differ from run to run, and without causes.
fn step(line: &str) -> Option<String> {
    let (_, said) = line.split_once(" kprov::cli::progress: ")?;
    let parts: Vec<&str> = said.splitn(3, ": ").take(2).collect();
    let is_number =
        |word: &&str| word.trim_matches(|sign: char| !sign.is_alphanumeric()).chars().all(|sign| sign.is_ascii_digit() || sign == '.');
    (!said.contains(" failed")).then(|| parts.join(": ").split(' ').filter(|word| !is_number(word)).collect::<Vec<_>>().join(" "))
}

/// What a story needs to be about.
pub fn assert_at(deaths: &BTreeSet<String>, steps: &[&str]) {
    for step in steps {
        assert!(deaths.iter().any(|death| death.starts_with(step)), "nobody died at {step}: {deaths:#?}");
    }
}
