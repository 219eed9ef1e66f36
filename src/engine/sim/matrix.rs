//! Every single fault of every provider and verb: the README's table; pairs of crashes; and journals cut off anywhere.

use super::case::{clean, every_single_fault};
use super::*;
use crate::providers::fake::Shape;
use std::fmt::Write;

/// One seed of all: orders differ by seed, and `schedules` plays thousands of them.
const SEED: u64 = 11;
/// Of all pairs of crashes, every so many-th in CI; `KPROV_SIM_PAIRS=all` plays all of them.
const PAIRS_SAMPLED: usize = 40;

/// A verb, the life in which it is seen, and the stages of that life that are its own.
struct Row {
    verb: &'static str,
    life: &'static [Stage],
    stages: &'static [usize],
}

const ROWS: [Row; 4] = [
    Row { verb: "up", life: &LIFE, stages: &[0] },
    Row { verb: "change", life: &LIFE, stages: &[1, 2, 3] },
    Row { verb: "down", life: &SHORT_LIFE, stages: &[1] },
    Row { verb: "hand-off", life: &HANDED_OVER, stages: &[1, 2] },
];
const SHORT_LIFE: [Stage; 2] = [Stage::Up { workers: 2, memory_gibibytes: 1 }, Stage::Down];

/// What all faults of one row came to.
#[derive(Debug, Default, PartialEq)]
struct Tally {
    faults: usize,
    converged: usize,
    leaked: usize,
    duplicated: usize,
    foreign: usize,
    first: Option<String>,
}

impl Row {
    fn clean(&self, shape: Shape) -> (Case, Vec<usize>) {
        let clean = clean(shape.manners(), self.life, SEED);
        let calls = play(&clean).unwrap_or_else(|broken| panic!("{shape} {}: {broken}", self.verb)).calls;
        (clean, calls)
    }

    fn cases(&self, shape: Shape) -> Vec<Case> {
        let (clean, calls) = self.clean(shape);
        every_single_fault(&clean, &calls, |stage| self.stages.contains(&stage))
    }
}

fn tally(cases: &[Case]) -> Tally {
    let mut tally = Tally::default();
    for (case, result) in cases.iter().zip(on_all_cores(cases, play)) {
        let broken = match result {
            // A fault that had nothing left to happen to is none: after the last thing was made, nothing can break it.
            Ok(figures) if figures.fired == 0 && matches!(case.faults[0].2, Fault::ForeignDelete | Fault::Breaks) => continue,
            Ok(figures) if figures.fired < case.faults.len() => {
                Some(Promise::Converges.broken(format!("the fault did not happen: {case:?}")))
            }
            Ok(figures) if figures.most_runs > 1 + case.faults.len() => {
                Some(Promise::Converges.broken(format!("it took {} runs", figures.most_runs)))
            }
            Ok(_) => None,
            Err(broken) => Some(broken),
        };
        tally.faults += 1;
        match broken.as_ref().map(|broken| broken.promise) {
            None => tally.converged += 1,
            Some(Promise::NothingLeaks) => tally.leaked += 1,
            Some(Promise::NothingTwice) => tally.duplicated += 1,
            Some(Promise::ForeignUntouched) => tally.foreign += 1,
            Some(Promise::Converges | Promise::OneWriter) => {}
        }
        if let Some(broken) = broken {
            tally.first.get_or_insert_with(|| format!("{broken}\n  in {case:?}"));
        }
    }
    tally
}

/// The table as README has it.
fn table(rows: &[(Shape, &str, Tally)]) -> String {
    let mut text =
        String::from("| provider | verb | faults | converged | leaked | duplicated | foreign touched |\n|---|---|---|---|---|---|---|\n");
    for (shape, verb, tally) in rows {
        let Tally { faults, converged, leaked, duplicated, foreign, .. } = tally;
        writeln!(text, "| {shape} | {verb} | {faults} | {converged} | {leaked} | {duplicated} | {foreign} |").expect("a string grows");
    }
    text
}

#[test]
fn every_fault_of_every_provider_and_verb_costs_one_more_run_and_readme_says_so() {
    let mut rows = Vec::new();
    for shape in Shape::PROVIDERS {
        for row in &ROWS {
            rows.push((shape, row.verb, tally(&row.cases(shape))));
        }
    }
    let table = table(&rows);
    println!("{table}");
    if let Some((shape, verb, tally)) = rows.iter().find(|(.., tally)| tally.converged < tally.faults) {
        panic!(
            "{shape} {verb}: {} of {} converged; the first other: {}",
            tally.converged,
            tally.faults,
            tally.first.as_deref().unwrap_or_default()
        );
    }
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).expect("README.md");
    assert!(readme.contains(&table), "README's table of crash safety is another one; this run's is above");
}

/// A crash, and another one in the run that was to mend it.
#[test]
fn two_crashes_cost_two_more_runs() {
    let all = std::env::var("KPROV_SIM_PAIRS").is_ok_and(|which| which == "all");
    let mut pairs = Vec::new();
    for shape in Shape::PROVIDERS {
        for row in &ROWS {
            let (clean, calls) = row.clean(shape);
            for stage in row.stages {
                let count = calls[*stage];
                let places = (0..count).flat_map(|first| (1..=count).map(move |gap| (first, first + gap)));
                for (first, second) in places {
                    for crash in [Fault::CrashBefore, Fault::CrashAfter] {
                        let faults = vec![(*stage, first, crash), (*stage, second, Fault::CrashAfter)];
                        pairs.push(Case { faults, short: true, ..clean.clone() });
                    }
                }
            }
        }
    }
    let chosen: Vec<Case> =
        pairs.into_iter().enumerate().filter(|(place, _)| all || place % PAIRS_SAMPLED == 0).map(|(_, case)| case).collect();
    let results = on_all_cores(&chosen, play);
    let fired = results.iter().filter(|result| result.as_ref().is_ok_and(|figures| figures.fired == 2)).count();
    for (case, result) in chosen.iter().zip(results) {
        let figures = result.unwrap_or_else(|broken| panic!("{broken}\n  in {case:?}"));
        assert!(figures.most_runs <= 3, "{} runs in {case:?}", figures.most_runs);
    }
    println!("{} pairs of crashes, {fired} with both", chosen.len());
    assert!(fired * 2 > chosen.len(), "both crashes happened in {fired} of {} pairs only", chosen.len());
}

/// For every provider a crash after every call of `up`, and each time the journal cut off before every line and at one place inside of it;
/// over the calls each line is cut at all of [`INSIDE`]. `KPROV_SIM_CUTS=all` cuts at every byte instead: half an hour and more. That a
/// line cut anywhere is dropped, and no other, is the journal's own test.
#[test]
fn a_journal_that_was_cut_off_anywhere_costs_nothing() {
    let every_byte = std::env::var("KPROV_SIM_CUTS").is_ok_and(|which| which == "all");
    let (mut crashes, mut cuts) = (0, 0);
    for shape in Shape::PROVIDERS {
        let clean = clean(shape.manners(), &SHORT_LIFE, SEED);
        let calls = play(&clean).expect("a life without faults").calls[0];
        for call in 0..calls {
            let case =
                |length| Case { folder: Folder::Cut(length), faults: vec![(0, call, Fault::CrashAfter)], short: true, ..clean.clone() };
            let journal = journal_after(&case(usize::MAX));
            let bytes = play(&case(usize::MAX)).unwrap_or_else(|broken| panic!("{shape}: {broken}")).journal_bytes;
            assert_eq!(bytes, journal.len(), "this is the journal that is cut");
            let lengths: Vec<usize> = if every_byte { (0..bytes).collect() } else { places_to_cut(&journal, call) };
            let cases: Vec<Case> = lengths.into_iter().map(case).collect();
            assert_eq!(holds(&cases), cases.len(), "each crash happened");
            (crashes, cuts) = (crashes + 1, cuts + cases.len());
        }
    }
    println!("{crashes} crashes, {cuts} cuts of their journals");
}

/// In its checksum, in its middle, and before its line end: as shares of a line's length.
const INSIDE: [(usize, usize); 3] = [(1, 100), (1, 2), (1, 1)];

/// Before each line, and inside of it where it is this call's turn; never the whole journal.
fn places_to_cut(journal: &[u8], call: usize) -> Vec<usize> {
    let mut start = 0;
    let mut places = Vec::new();
    for (number, line) in journal.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let last = line.len() - 1;
        let (share, of) = INSIDE[(call + number) % INSIDE.len()];
        places.extend([start, start + (last * share / of).clamp(1, last)]);
        start += line.len();
    }
    places
}

/// What the first command of the case has written down when it dies.
fn journal_after(case: &Case) -> Vec<u8> {
    runtime().block_on(async {
        let play = Play::new(case);
        let desired = play.desired(case.life[0]);
        judge::place_decoys(&play.cloud, &desired);
        case.faults.iter().for_each(|(_, call, fault)| play.cloud.inject(*call, *fault));
        play.cloud.want(&play.cluster, &desired);
        let end = play.run(case.life[0], &desired).await;
        assert!(matches!(end, Ok(End::Crashed)), "it dies in its first run");
        let Book::File(folder, _) = &play.operator else { panic!("a journal that is cut is a file") };
        std::fs::read(folder.path().join("journal")).expect("a journal")
    })
}
