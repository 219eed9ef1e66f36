//! The plan for people: a line per resource, wrapped at 80 columns, readable without colour.

use super::super::{Action, Id, Verb};
use super::Plan;
use std::collections::BTreeSet;
use std::fmt;

/// Wide enough for a terminal nobody has resized.
const COLUMNS: usize = 80;
/// For words beside names that leave less.
const LEAST: usize = 30;

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
        let margin = marks + ids + 3;
        for line in &lines {
            let text = format!("{:marks$} {:ids$}  {}", line.mark, line.action.id.to_string(), beside(margin, &line.words()));
            writeln!(out, "{}", text.trim_end())?;
        }
        if !lines.is_empty() {
            writeln!(out)?;
        }
        write!(out, "{}", self.footer())
    }
}

impl Line<'_> {
    /// What it will be, and why where the mark does not say that already.
    fn words(&self) -> String {
        let Action { verb, summary, reason, .. } = self.action;
        match (*verb == Verb::Create && self.mark == "+", summary.is_empty()) {
            (true, _) => summary.clone(),
            (false, true) => format!("({reason})"),
            (false, false) => format!("{summary} ({reason})"),
        }
    }
}

/// Words that begin after a margin, and go on below themselves.
pub fn beside(margin: usize, text: &str) -> String {
    wrap(text, COLUMNS.saturating_sub(margin).max(LEAST)).join(&format!("\n{:margin$}", ""))
}

/// Nothing is left out: a rule or a price that was cut off is the one that somebody wanted to read.
fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is a first line");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= columns {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_string());
        }
    }
    lines
}
