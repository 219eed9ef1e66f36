//! Cases: every single fault, and random ones from a seed.

use super::{Case, LIFE, Stage};
use crate::providers::fake::{Fault, Manners};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use std::time::Duration;

pub(super) fn clean(manners: Manners, seed: u64) -> Case {
    Case { manners, seed, faults: vec![], journal_lost: false, then_down: false, short: false, bug: None }
}

pub(super) fn all_manners() -> [Manners; 3] {
    [Manners::strict(), Manners::eventual(), Manners::tokenless()]
}

/// Longer than any window and any run: what is late by this much comes as a surprise.
const LATE: Duration = Duration::from_secs(100);

fn single_faults(manners: &Manners, journal_lost: bool) -> Vec<Fault> {
    // Without a token, or without the journal that knows it, only what lands and shows inside the settle window can be foreseen.
    let late = if manners.tokens && !journal_lost { LATE } else { manners.settle * 4 / 10 };
    let mut faults = vec![Fault::CrashBefore, Fault::CrashAfter, Fault::CrashLate(late), Fault::Refused];
    if !journal_lost {
        faults.extend([Fault::LostRequest, Fault::LostReply, Fault::LateSuccess(late), Fault::LateSuccess(Duration::from_millis(300))]);
        faults.extend([Fault::Throttle(5), Fault::ForeignDelete, Fault::Breaks]);
    }
    if manners.epochs {
        faults.push(Fault::Usurped);
    }
    if manners.tokens {
        faults.push(Fault::Paused(Duration::from_secs(60)));
    }
    faults
}

/// Every fault at every call of every stage; `calls` per stage come from a clean run of the same seed.
pub(super) fn every_single_fault(manners: &Manners, seed: u64, calls: [usize; LIFE.len()]) -> Vec<Case> {
    let mut cases = Vec::new();
    for (journal_lost, then_down) in [(false, false), (false, true), (true, false), (true, true)] {
        for (stage, count) in calls.into_iter().enumerate() {
            for call in 0..count {
                for fault in single_faults(manners, journal_lost) {
                    let faults = vec![(stage, call, fault)];
                    cases.push(Case { journal_lost, then_down, short: true, faults, ..clean(manners.clone(), seed) });
                }
            }
        }
    }
    // A stage's last calls may all be deletions, which nobody can delete or break; giving up `down` is no choice.
    cases.retain(|case| {
        let (stage, _, fault) = case.faults[0];
        let going = LIFE[stage] == Stage::Down;
        !(going && (case.then_down || matches!(fault, Fault::ForeignDelete | Fault::Breaks)))
    });
    cases
}

/// A create that lands long after its retries gave up, at each call of the first stage; then people give up, too.
pub(super) fn late_beyond_all_retries(manners: &Manners, seed: u64) -> Vec<Case> {
    let faults = |call| vec![(0, call, Fault::LateSuccess(LATE * 6)), (0, call + 1, Fault::Throttle(60))];
    (0..9).map(|call| Case { faults: faults(call), then_down: true, short: true, ..clean(manners.clone(), seed) }).collect()
}

/// Up to four faults anywhere.
pub(super) fn random(seed: u64) -> Case {
    let mut random = StdRng::seed_from_u64(seed);
    let manners = all_manners().choose(&mut random).expect("three").clone();
    let (journal_lost, then_down) = (random.random_bool(0.3), random.random_bool(0.2));
    let faults = (0..random.random_range(1..=4)).map(|_| {
        let fault = *single_faults(&manners, journal_lost).choose(&mut random).expect("several");
        (random.random_range(0..LIFE.len()), random.random_range(0..9), fault)
    });
    Case { faults: faults.collect(), journal_lost, then_down, ..clean(manners, seed) }
}
