//! Cases: every single fault, and random ones from a seed.

use super::{Case, Folder, HANDED_OVER, LIFE, Stage};
use crate::providers::fake::{Fault, Manners, Shape};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use std::time::Duration;

pub(super) fn clean(manners: Manners, life: &'static [Stage], seed: u64) -> Case {
    Case { manners, seed, life, faults: vec![], folder: Folder::Kept, then_down: false, short: false, bug: None }
}

/// The neutral cloud at its strictest and at its worst.
pub(super) fn neutral_manners() -> [Manners; 3] {
    [Manners::strict(), Manners::eventual(), Manners::tokenless()]
}

/// Longer than any window and any run: what is late by this much comes as a surprise.
const LATE: Duration = Duration::from_secs(100);
/// A call without an answer for this long is given up by every SDK's own limit.
const SILENT: Duration = Duration::from_secs(30);

/// How late a request may land so that everything can still be foreseen: for ever where the receiver remembers the token and the journal
/// knows it; else inside the settle window.
fn late(manners: &Manners, journal_lost: bool) -> Duration {
    let remembered = manners.tokens && manners.shape != Shape::Aws && !journal_lost;
    if remembered { LATE } else { manners.settle * 4 / 10 }
}

pub(super) fn single_faults(manners: &Manners, journal_lost: bool) -> Vec<Fault> {
    let late = late(manners, journal_lost);
    let mut faults = vec![Fault::CrashBefore, Fault::CrashAfter, Fault::Refused];
    // What is ordered over SSH ends with its connection, or has had its effect.
    let lands_late = manners.shape != Shape::Ssh;
    if lands_late {
        faults.push(Fault::CrashLate(late));
    }
    if !manners.settle.is_zero() {
        faults.push(Fault::CrashStale);
    }
    if !journal_lost {
        faults.extend([Fault::LostRequest, Fault::LostReply, Fault::Hangs(SILENT), Fault::HangsAfter(SILENT)]);
        faults.extend([Fault::Throttle(5), Fault::ForeignDelete, Fault::Breaks]);
        if lands_late {
            faults.extend([Fault::LateSuccess(late), Fault::LateSuccess(late.min(Duration::from_millis(300)))]);
        }
        if !manners.settle.is_zero() {
            faults.push(Fault::StaleReads);
        }
    }
    if manners.epochs {
        faults.push(Fault::Usurped);
    }
    if manners.tokens {
        faults.push(Fault::Paused(Duration::from_secs(60)));
    }
    faults
}

/// Every fault at every call of the stages that `which` keeps; `calls` per stage come from a clean run of the same seed.
pub(super) fn every_single_fault(clean: &Case, calls: &[usize], which: impl Fn(usize) -> bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for (folder, then_down) in [(Folder::Kept, false), (Folder::Kept, true), (Folder::Lost, false), (Folder::Lost, true)] {
        for (stage, count) in calls.iter().enumerate().filter(|(stage, _)| which(*stage)) {
            for call in 0..*count {
                for fault in single_faults(&clean.manners, folder == Folder::Lost) {
                    let faults = vec![(stage, call, fault)];
                    cases.push(Case { folder, then_down, short: true, faults, ..clean.clone() });
                }
            }
        }
    }
    cases.retain(|case| {
        let (stage, _, fault) = case.faults[0];
        let going = case.life[stage] == Stage::Down;
        // A stage's last calls may all be deletions, which nobody can delete or break; giving up `down` is no choice.
        !(going && (case.then_down || matches!(fault, Fault::ForeignDelete | Fault::Breaks)))
    });
    cases
}

/// A create that lands long after its retries gave up, at each call of the first stage; then people give up, too.
pub(super) fn late_beyond_all_retries(manners: &Manners, seed: u64) -> Vec<Case> {
    let faults = |call| vec![(0, call, Fault::LateSuccess(LATE * 6)), (0, call + 1, Fault::Throttle(60))];
    (0..9).map(|call| Case { faults: faults(call), then_down: true, short: true, ..clean(manners.clone(), &LIFE, seed) }).collect()
}

/// Up to four faults anywhere in the life of a cluster of any shape.
pub(super) fn random(seed: u64) -> Case {
    let mut random = StdRng::seed_from_u64(seed);
    let shapes = Shape::PROVIDERS.map(Shape::manners);
    let neutral = neutral_manners();
    let manners = neutral.iter().chain(&shapes).collect::<Vec<_>>().choose(&mut random).map(|manners| Manners::clone(manners));
    let manners = manners.expect("seven to choose from");
    let folder = if random.random_bool(0.3) { Folder::Lost } else { Folder::Kept };
    let then_down = random.random_bool(0.2);
    // Lives as short as they can be with something in them: the whole of it is played by the matrix.
    let lives: [&'static [Stage]; 4] = [&MADE, &GROWN, &REPLACED, &HANDED_OVER];
    let life = *lives.choose(&mut random).expect("four");
    let mut kinds = single_faults(&manners, folder == Folder::Lost);
    // Without epochs nothing stops a writer that was overtaken, and two of them know different generations.
    kinds.retain(|fault| manners.epochs || !matches!(fault, Fault::Paused(_)));
    let faults = (0..random.random_range(1..=4)).map(|_| {
        let fault = *kinds.choose(&mut random).expect("several");
        (random.random_range(0..life.len()), random.random_range(0..20), fault)
    });
    let mut faults: Vec<(usize, usize, Fault)> = faults.collect();
    // When the repeat of a request is refused for good, the request itself counts as refused: only inside the window can it still show.
    if faults.iter().any(|(.., fault)| *fault == Fault::Refused) {
        let window = manners.settle * 4 / 10;
        faults.retain(|(.., fault)| !matches!(fault, Fault::CrashLate(late) | Fault::LateSuccess(late) if *late > window));
    }
    Case { faults, folder, then_down, ..clean(manners, life, seed) }
}

const SMALL: Stage = Stage::Up { workers: 1, memory_gibibytes: 1 };
const MADE: [Stage; 2] = [SMALL, Stage::Down];
const GROWN: [Stage; 3] = [SMALL, Stage::Up { workers: 2, memory_gibibytes: 1 }, Stage::Down];
const REPLACED: [Stage; 3] = [SMALL, Stage::Up { workers: 1, memory_gibibytes: 2 }, Stage::Down];
