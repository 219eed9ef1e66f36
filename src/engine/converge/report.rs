//! The last word of a run that did not reach its end: what is there, what is missing, and the next step. Pure.

use crate::engine::plan::Plan;
use crate::engine::{Action, Observed, Verb};
use crate::error::{Error, Kind};

const NEXT_STEP: &str = "run the same command again: it continues where this one stopped; `kprov down` removes everything";

/// Adds what a person needs to go on: what is there, what is missing, and the next step.
pub(super) fn report(error: Error, plan: &Plan, observed: &[Observed]) -> Error {
    let list = |items: Vec<String>| if items.is_empty() { "nothing".into() } else { items.join(", ") };
    let there = list(observed.iter().map(|thing| format!("{} ({})", thing.id, thing.handle)).collect());
    let of = |verbs: &[Verb]| {
        let gone = |action: &&Action| !observed.iter().any(|thing| thing.id == action.id && thing.generation == action.generation);
        let open = plan.actions.iter().filter(|action| verbs.contains(&action.verb));
        let open = open.filter(|action| if action.verb == Verb::Create { gone(action) } else { !gone(action) });
        open.map(|action| action.id.to_string()).collect::<Vec<_>>()
    };
    let mut error = error.hint(format!("there: {there}"));
    for (word, ids) in
        [("missing", of(&[Verb::Create])), ("not changed yet", of(&[Verb::Update, Verb::Repair])), ("still to delete", of(&[Verb::Delete]))]
    {
        if !ids.is_empty() {
            error = error.hint(format!("{word}: {}", ids.join(", ")));
        }
    }
    error.hint(NEXT_STEP)
}

/// A run that was stopped while it only looked has nothing to tell but how to go on.
pub(super) fn with_next_step(error: Error) -> Error {
    let bare = matches!(error.kind, Kind::Interrupted | Kind::Timeout) && error.hints().is_empty();
    if bare { error.hint(NEXT_STEP) } else { error }
}
