//! Guards taken away one at a time, in the planner, the journal, the hand-off and the providers: each must be missed by the suite.

use super::case::{clean, every_single_fault, late_beyond_all_retries};
use super::*;
use crate::providers::fake::Shape;

/// The first promise that breaks when `spoil` takes a guard away, among the single faults that `which` keeps.
fn caught(clean: &Case, which: impl Fn(&Case) -> bool, spoil: impl Fn(&mut Case)) -> String {
    let calls = play(clean).expect("a life without faults").calls;
    let mut cases = vec![clean.clone()];
    cases.extend(every_single_fault(clean, &calls, |_| true).into_iter().filter(which));
    if clean.manners.tokens && clean.manners.shape == Shape::Neutral {
        cases.extend(late_beyond_all_retries(&clean.manners, 5));
    }
    cases.iter_mut().for_each(spoil);
    let broken = cases.chunks(32).find_map(|some| play_all(some).0);
    let (_, promise) = broken.unwrap_or_else(|| panic!("none of {} cases notices", cases.len()));
    promise.to_string()
}

macro_rules! missing_guards {
    ($($name:ident: $bug:ident on $manners:expr, $life:ident at $fault:pat,)*) => {
        $(
            #[test]
            fn $name() {
                let clean = clean($manners, &$life, 5);
                println!("{}", caught(&clean, |case| matches!(case.faults[0].2, $fault), |case| case.bug = Some(Bug::$bug)));
            }
        )*
        const IN_THE_ENGINE: &[&str] = &[$(stringify!($name)),*];
    };
}

macro_rules! missing_receivers {
    ($($name:ident: |$manners_of:ident| $spoil:expr, on $manners:expr, $life:ident at $fault:pat,)*) => {
        $(
            #[test]
            fn $name() {
                let clean = clean($manners, &$life, 5);
                let spoil = |$manners_of: &mut Manners| $spoil;
                println!("{}", caught(&clean, |case| matches!(case.faults[0].2, $fault), |case| spoil(&mut case.manners)));
            }
        )*
        const IN_PROVIDERS: &[&str] = &[$(stringify!($name)),*];
    };
}

mod a_guard_that_is_missing_is_noticed {
    use super::*;
    use Fault::*;

    missing_guards! {
        order: OrderIgnored on Manners::strict(), LIFE at Refused,
        journal_before_the_call: JournalAfterCall on Manners::eventual(), LIFE at CrashLate(_),
        a_durable_journal: JournalNotDurable on Manners::eventual(), LIFE at CrashLate(_),
        resolving_what_is_open: PendingForgotten on Manners::eventual(), LIFE at CrashLate(_),
        the_settle_window: SettleIgnored on Manners::eventual(), LIFE at CrashAfter,
        never_replacing_the_uncertain: ReplacedWhenUncertain on Manners::strict(), LIFE at CrashAfter,
        removing_duplicates: DuplicatesKept on Manners::tokenless(), LIFE at LateSuccess(_),
        the_same_bytes_on_retry: RetryRendersAnew on Manners::strict(), LIFE at LostReply,
        the_same_bytes_on_replay: ReplayRendersAnew on Manners::eventual(), LIFE at CrashAfter,
        keeping_the_unknown_open: TransientIsFinal on Manners::eventual(), LIFE at Refused,
        a_true_epoch: EpochForged on Manners::strict(), LIFE at Refused,
        stopping_when_fenced: ConflictRetried on Manners::strict(), LIFE at Usurped,
        deleting_what_is_unwanted: NeverDeletes on Manners::strict(), LIFE at Refused,
        repairing_what_is_broken: BrokenIsReplaced on Manners::strict(), LIFE at Breaks,
        noticing_differences: UpdatesForgotten on Manners::strict(), LIFE at Refused,
        another_look_after_each_round: OneRoundIsEnough on Manners::strict(), LIFE at Breaks,
        writing_the_blueprint_before_giving: GivenBeforeWritten on Shape::Local.manners(), HANDED_OVER at Refused,
    }

    missing_receivers! {
        tokens: |manners| manners.tokens = false, on Manners::strict(), LIFE at LostReply,
        epochs: |manners| manners.epochs_checked = false, on Manners::strict(), LIFE at Paused(_),
        tags_read_again_before_a_delete: |manners| manners.tags_checked = false, on Manners::strict(), LIFE at Refused,
        whole_tags_in_a_look: |manners| manners.whole_tags = false, on Shape::Gcp.manners(), LIFE at Refused,
        looking_at_the_epoch_first: |manners| manners.epochs_checked = false, on Shape::Aws.manners(), LIFE at Usurped,
        finishing_what_is_half_made: |manners| manners.parts_finished = false, on Shape::Aws.manners(), LIFE at CrashAfter,
        waiting_for_the_end_of_a_delete: |manners| manners.waits_for_ends = false, on Shape::Gcp.manners(), LIFE at Refused,
        waiting_until_it_is_ready: |manners| manners.waits_for_starts = false, on Shape::Aws.manners(), LIFE at Refused,
    }

    /// A create that `down` repeats for a run that crashed, and that takes effect once more after everything seems gone.
    #[test]
    fn a_look_that_shows_everything() {
        let clean = clean(Shape::Aws.manners(), &HANDED_OVER, 5);
        let calls = play(&clean).expect("a life without faults").calls[0];
        let late = LateSuccess(clean.manners.settle * 4 / 10);
        let pairs = (1..calls).flat_map(|call| (1..4).map(move |again| vec![(0, call, CrashBefore), (3, again, late)]));
        let case = |faults| Case { faults, then_down: true, bug: Some(Bug::FirstQuietLookTrusted), ..clean.clone() };
        let cases: Vec<Case> = pairs.map(case).collect();
        println!("{}", play_all(&cases).0.expect("somebody notices").1);
        let sound: Vec<Case> = cases.into_iter().map(|case| Case { bug: None, ..case }).collect();
        holds(&sound);
    }

    #[test]
    fn at_least_twenty_are_tried() {
        let alone = ["a_look_that_shows_everything"];
        let all: Vec<&str> = IN_THE_ENGINE.iter().chain(IN_PROVIDERS).chain(&alone).copied().collect();
        println!("{}", all.join("\n"));
        assert!(all.len() >= 20, "{} guards", all.len());
    }
}
