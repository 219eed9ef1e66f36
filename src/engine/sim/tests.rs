//! The simulation: every single fault, random mixtures, and proof that the suite notices when a guard is missing.

use super::case::{all_manners, clean, every_single_fault, random};
use super::*;

/// Plays all on all cores; the first broken promise in order, and how many faults happened.
fn play_all(cases: &[Case]) -> (Option<(Case, String)>, usize) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = cases.len().div_ceil(threads).max(1);
    let results: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = cases.chunks(share).map(|cases| scope.spawn(|| play_some(cases))).collect();
        workers.into_iter().map(|worker| worker.join().expect("a case panicked")).collect()
    });
    let fired = results.iter().map(|(_, fired)| fired).sum();
    (results.into_iter().find_map(|(broken, _)| broken), fired)
}

fn play_some(cases: &[Case]) -> (Option<(Case, String)>, usize) {
    let mut fired = 0;
    for case in cases {
        match play(case) {
            Ok(figures) => fired += figures.fired,
            Err(broken) => return (Some((case.clone(), broken)), fired),
        }
    }
    (None, fired)
}

fn holds(cases: &[Case]) -> usize {
    let (broken, fired) = play_all(cases);
    if let Some((case, promise)) = broken {
        panic!("{promise}\n  in {case:?}");
    }
    fired
}

fn seeds() -> u64 {
    std::env::var("KPROV_SIM_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(300)
}

fn calls(manners: &Manners, seed: u64) -> [usize; LIFE.len()] {
    play(&clean(manners.clone(), seed)).expect("a life without faults").calls
}

#[test]
fn a_life_without_faults_takes_one_run_and_a_look_per_stage() {
    for manners in all_manners() {
        let figures = play(&clean(manners, 1)).unwrap_or_else(|broken| panic!("{broken}"));
        assert_eq!(figures.runs, LIFE.len());
        assert!(figures.calls[0] >= 9, "network, filesystem, three machines, three hosts, one load balancer: {:?}", figures.calls);
    }
}

#[test]
fn every_single_fault_costs_at_most_a_run() {
    for manners in all_manners() {
        let cases = every_single_fault(&manners, 11, calls(&manners, 11));
        let fired = holds(&cases);
        assert!(fired * 100 >= cases.len() * 95, "only {fired} of {} faults happened", cases.len());
    }
}

#[test]
fn random_mixtures_of_faults_converge() {
    let cases: Vec<Case> = (0..seeds()).map(random).collect();
    let fired = holds(&cases);
    assert!(fired >= cases.len(), "only {fired} faults happened in {} cases", cases.len());
}

/// Plays one seed again: `KPROV_SIM_SEED=<seed>`.
#[test]
fn one_seed() {
    let seed = std::env::var("KPROV_SIM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    holds(&[random(seed)]);
}

#[test]
fn the_same_seed_plays_the_same() {
    let trace = |seed| format!("{:?}", play(&random(seed)));
    (0..20).for_each(|seed| assert_eq!(trace(seed), trace(seed)));
}

/// Whether some case notices.
fn caught(spoil: impl Fn(&mut Case)) -> Option<String> {
    let spoiled = |mut case: Case| {
        spoil(&mut case);
        case
    };
    for manners in all_manners() {
        let cases = every_single_fault(&manners, 5, calls(&manners, 5)).into_iter().map(spoiled);
        if let (Some((_, promise)), _) = play_all(&cases.collect::<Vec<_>>()) {
            return Some(promise);
        }
    }
    play_all(&(0..500).map(random).map(spoiled).collect::<Vec<_>>()).0.map(|(_, promise)| promise)
}

macro_rules! seeded_bugs {
    ($($name:ident: $bug:ident,)*) => {$(
        #[test]
        fn $name() {
            let promise = caught(|case| case.bug = Some(Bug::$bug)).expect("no case notices");
            println!("{promise}");
        }
    )*};
}

mod a_guard_that_is_missing_is_noticed {
    use super::*;

    seeded_bugs! {
        order: OrderIgnored,
        journal_before_the_call: JournalAfterCall,
        a_durable_journal: JournalNotDurable,
        resolving_what_is_open: PendingForgotten,
        the_settle_window: SettleIgnored,
        never_replacing_the_uncertain: ReplacedWhenUncertain,
        removing_duplicates: DuplicatesKept,
        the_same_bytes_on_retry: RetryRendersAnew,
        the_same_bytes_on_replay: ReplayRendersAnew,
        keeping_the_unknown_open: TransientIsFinal,
        a_true_epoch: EpochForged,
        stopping_when_fenced: ConflictRetried,
        a_look_that_shows_everything: FirstQuietLookTrusted,
        deleting_what_is_unwanted: NeverDeletes,
        repairing_what_is_broken: BrokenIsReplaced,
        noticing_differences: UpdatesForgotten,
        another_look_after_each_round: OneRoundIsEnough,
    }

    /// The same for guards on the other side of the wire.
    fn receiver(spoil: impl Fn(&mut Manners)) {
        let promise = caught(|case| spoil(&mut case.manners)).expect("no case notices");
        println!("{promise}");
    }

    #[test]
    fn tokens() {
        receiver(|manners| (manners.tokens, manners.looks_first) = (false, false));
    }

    #[test]
    fn epochs() {
        receiver(|manners| manners.epochs_checked = false);
    }

    #[test]
    fn tags_read_again_before_a_delete() {
        receiver(|manners| manners.tags_checked = false);
    }
}
