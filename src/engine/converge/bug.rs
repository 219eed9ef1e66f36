//! Bugs put in on purpose, in tests alone, to show that the simulation catches them.

use super::Options;
use crate::engine::plan::Plan;
use crate::engine::{Observed, Phase, Resource};

/// One guard taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(test), expect(dead_code, reason = "only tests make bugs"))]
pub(crate) enum Bug {
    /// Actions start without waiting for what they need.
    OrderIgnored,
    /// The request goes out before it is in the journal.
    JournalAfterCall,
    /// What was written is gone after a crash (the simulation loses it).
    JournalNotDurable,
    /// What an earlier run left open is forgotten.
    PendingForgotten,
    /// A read inside the settle window is taken at its word.
    SettleIgnored,
    /// A pending thing whose spec differs is replaced.
    ReplacedWhenUncertain,
    /// Of two things with one name both stay.
    DuplicatesKept,
    /// A retry renders the request anew, as the next generation.
    RetryRendersAnew,
    /// A transient error counts as a refusal: the journal forgets that there may have been an effect.
    TransientIsFinal,
    /// Requests carry an epoch that nobody was given.
    EpochForged,
    /// A refusal by a newer writer is retried like a throttle.
    ConflictRetried,
    /// The first look that shows nothing to do ends the run.
    FirstQuietLookTrusted,
    /// Things that are no longer wanted stay.
    NeverDeletes,
    /// Differences between wish and thing go unseen.
    UpdatesForgotten,
    /// A request found open is sent as a new one instead of the same bytes.
    ReplayRendersAnew,
    /// The run ends after its first round, without another look.
    OneRoundIsEnough,
    /// What is broken is deleted and made again.
    BrokenIsReplaced,
    /// The epoch goes to the cluster before its blueprint is inside (the simulation does that).
    GivenBeforeWritten,
}

impl Bug {
    pub(super) fn is_in(self, options: &Options) -> bool {
        #[cfg(test)]
        return options.bug == Some(self);
        #[cfg(not(test))]
        return {
            let _ = options;
            false
        };
    }
}

/// The bugs that show in the plan itself.
pub(super) fn spoil(plan: &mut Plan, desired: &[Resource], observed: &[Observed], options: &Options) {
    use crate::engine::Verb;
    if Bug::OrderIgnored.is_in(options) {
        plan.actions.iter_mut().for_each(|action| action.after.clear());
    }
    if Bug::NeverDeletes.is_in(options) && !desired.is_empty() {
        plan.actions.retain(|action| action.verb != Verb::Delete);
    }
    if Bug::DuplicatesKept.is_in(options) {
        plan.actions.retain(|action| action.verb != Verb::Delete || !desired.iter().any(|wish| wish.id == action.id));
    }
    if Bug::UpdatesForgotten.is_in(options) {
        plan.actions.retain(|action| action.verb != Verb::Update);
    }
    let replaced = |phase: &Phase| match phase {
        Phase::Pending => Bug::ReplacedWhenUncertain.is_in(options),
        Phase::Broken(_) => Bug::BrokenIsReplaced.is_in(options),
        _ => false,
    };
    for thing in observed.iter().filter(|thing| replaced(&thing.phase)) {
        for action in plan.actions.iter_mut().filter(|action| action.id == thing.id && action.verb != Verb::Create) {
            action.verb = Verb::Delete;
        }
    }
}
