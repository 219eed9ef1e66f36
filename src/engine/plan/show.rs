//! The plan for people: one line per resource, at most 80 columns, readable without colour.

use super::super::{Action, Id, Verb};
use super::Plan;
use std::collections::BTreeSet;
use std::fmt;

/// Wide enough for a terminal nobody has resized.
const COLUMNS: usize = 80;

struct Line<'a> {
    mark: &'static str,
    action: &'a Action,
}

impl Plan {
    /// "Plan: 3 to create, 1 to change, 0 to delete."
    pub fn footer(&self) -> String {
        let replaced = self.replaced();
        let count =
            |verbs: &[Verb]| self.actions.iter().filter(|action| verbs.contains(&action.verb) && !replaced.contains(&action.id)).count();
        let (create, change, delete) = (count(&[Verb::Create]), count(&[Verb::Update, Verb::Repair]), count(&[Verb::Delete]));
        let mut text = format!("Plan: {create} to create, {change} to change, {delete} to delete");
        if !replaced.is_empty() {
            text.push_str(&format!(", {} to replace", replaced.len()));
        }
        if count(&[Verb::Await]) > 0 {
            text.push_str(&format!(", {} to wait for", count(&[Verb::Await])));
        }
        text + "."
    }

    /// Ids that are deleted and created in this plan.
    fn replaced(&self) -> BTreeSet<&Id> {
        let of =
            |verb: Verb| self.actions.iter().filter(move |action| action.verb == verb).map(|action| &action.id).collect::<BTreeSet<_>>();
        of(Verb::Delete).intersection(&of(Verb::Create)).copied().collect()
    }

    fn lines(&self) -> Vec<Line<'_>> {
        let replaced = self.replaced();
        let mark = |action: &Action| match action.verb {
            Verb::Delete if replaced.contains(&action.id) => None,
            Verb::Create if replaced.contains(&action.id) => Some("-/+"),
            Verb::Create => Some("+"),
            Verb::Update | Verb::Repair => Some("~"),
            Verb::Delete => Some("-"),
            Verb::Await => Some(">"),
        };
        self.actions.iter().filter_map(|action| Some(Line { mark: mark(action)?, action })).collect()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.lines();
        let widest = |width: &dyn Fn(&Line) -> usize| lines.iter().map(width).max().unwrap_or(0);
        let marks = widest(&|line| line.mark.len());
        let ids = widest(&|line| line.action.id.to_string().len());
        let summaries = widest(&|line| line.action.summary.chars().count()).min(COLUMNS / 3);
        for Line { mark, action } in &lines {
            let (id, summary) = (action.id.to_string(), shorten(&action.summary, COLUMNS / 3));
            let text = format!("{mark:marks$} {id:ids$}  {summary:summaries$}  ({})", action.reason);
            writeln!(out, "{}", shorten(&text, COLUMNS))?;
        }
        if !lines.is_empty() {
            writeln!(out)?;
        }
        write!(out, "{}", self.footer())
    }
}

fn shorten(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.trim_end().into();
    }
    text.chars().take(columns.saturating_sub(3)).collect::<String>() + "..."
}
