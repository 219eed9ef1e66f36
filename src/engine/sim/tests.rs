//! The simulation: every single fault, random mixtures, and proof that the suite notices when a guard is missing.

use super::case::{all_manners, clean, every_single_fault, late_beyond_all_retries, random};
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

#[test]
fn a_request_that_lands_after_everybody_gave_up_leaves_nothing() {
    holds(
        &all_manners()
            .into_iter()
            .filter(|manners| manners.tokens)
            .flat_map(|manners| late_beyond_all_retries(&manners, 3))
            .collect::<Vec<_>>(),
    );
}

/// The first promise that breaks when `spoil` takes a guard away, among the single faults that `which` keeps.
fn caught(manners: Manners, which: impl Fn(&Case) -> bool, spoil: impl Fn(&mut Case)) -> String {
    let calls = calls(&manners, 5);
    let mut cases = vec![clean(manners.clone(), 5)];
    cases.extend(every_single_fault(&manners, 5, calls).into_iter().filter(which));
    if manners.tokens {
        cases.extend(late_beyond_all_retries(&manners, 5));
    }
    cases.iter_mut().for_each(spoil);
    let (broken, _) = play_all(&cases);
    let (_, promise) = broken.unwrap_or_else(|| panic!("none of {} cases notices", cases.len()));
    promise
}

macro_rules! missing_guards {
    ($($name:ident: $bug:ident on $manners:ident at $fault:pat,)*) => {$(
        #[test]
        fn $name() {
            println!("{}", caught(Manners::$manners(), |case| matches!(case.faults[0].2, $fault), |case| case.bug = Some(Bug::$bug)));
        }
    )*};
}

mod a_guard_that_is_missing_is_noticed {
    use super::*;
    use Fault::*;

    missing_guards! {
        order: OrderIgnored on strict at Refused,
        journal_before_the_call: JournalAfterCall on eventual at CrashLate(_),
        a_durable_journal: JournalNotDurable on eventual at CrashLate(_),
        resolving_what_is_open: PendingForgotten on eventual at CrashLate(_),
        the_settle_window: SettleIgnored on eventual at CrashAfter,
        never_replacing_the_uncertain: ReplacedWhenUncertain on strict at CrashAfter,
        removing_duplicates: DuplicatesKept on tokenless at LateSuccess(_),
        the_same_bytes_on_retry: RetryRendersAnew on strict at LostReply,
        the_same_bytes_on_replay: ReplayRendersAnew on eventual at CrashAfter,
        keeping_the_unknown_open: TransientIsFinal on eventual at Refused,
        a_true_epoch: EpochForged on strict at Refused,
        stopping_when_fenced: ConflictRetried on strict at Usurped,
        a_look_that_shows_everything: FirstQuietLookTrusted on eventual at CrashLate(_),
        deleting_what_is_unwanted: NeverDeletes on strict at Refused,
        repairing_what_is_broken: BrokenIsReplaced on strict at Breaks,
        noticing_differences: UpdatesForgotten on strict at Refused,
        another_look_after_each_round: OneRoundIsEnough on strict at Breaks,
    }

    /// The same for guards on the other side of the wire.
    fn receiver(which: impl Fn(&Case) -> bool, spoil: impl Fn(&mut Manners)) {
        println!("{}", caught(Manners::strict(), which, |case| spoil(&mut case.manners)));
    }

    #[test]
    fn tokens() {
        receiver(|case| case.faults[0].2 == LostReply, |manners| manners.tokens = false);
    }

    #[test]
    fn epochs() {
        receiver(|case| matches!(case.faults[0].2, Paused(_)), |manners| manners.epochs_checked = false);
    }

    #[test]
    fn tags_read_again_before_a_delete() {
        receiver(|case| case.faults[0].2 == Refused, |manners| manners.tags_checked = false);
    }
}
