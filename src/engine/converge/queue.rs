//! Which actions may start: each as soon as what it waits for is finished. Bookkeeping only, a step per finished action.

use crate::engine::{Action, Key};
use std::collections::{BTreeMap, BTreeSet};

pub(super) struct Queue<'p> {
    actions: &'p [Action],
    /// By place: how many others it still waits for.
    missing: Vec<usize>,
    /// By what is waited for: the places that do.
    waiting: BTreeMap<&'p Key, Vec<usize>>,
    ready: BTreeSet<usize>,
    started: BTreeSet<usize>,
}

impl<'p> Queue<'p> {
    pub fn new(actions: &'p [Action]) -> Self {
        let mut waiting: BTreeMap<&Key, Vec<usize>> = BTreeMap::new();
        let mut missing = Vec::with_capacity(actions.len());
        for (place, action) in actions.iter().enumerate() {
            let after: BTreeSet<&Key> = action.after.iter().collect();
            missing.push(after.len());
            after.into_iter().for_each(|key| waiting.entry(key).or_default().push(place));
        }
        let ready = missing.iter().enumerate().filter(|(_, count)| **count == 0).map(|(place, _)| place).collect();
        Queue { actions, missing, waiting, ready, started: BTreeSet::new() }
    }

    /// In the plan's order.
    pub fn ready(&self) -> Vec<usize> {
        self.ready.iter().copied().collect()
    }

    pub fn action(&self, place: usize) -> &'p Action {
        &self.actions[place]
    }

    pub fn start(&mut self, place: usize) {
        self.ready.remove(&place);
        self.started.insert(place);
    }

    pub fn finished(&mut self, key: &Key) {
        for place in self.waiting.remove(key).unwrap_or_default() {
            self.missing[place] -= 1;
            if self.missing[place] == 0 && !self.started.contains(&place) {
                self.ready.insert(place);
            }
        }
    }

    pub fn not_started(&self) -> impl Iterator<Item = &'p Action> {
        self.actions.iter().enumerate().filter(|(place, _)| !self.started.contains(place)).map(|(_, action)| action)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Id, Verb};
    use serde_json::json;

    fn action(name: &str, after: &[&str]) -> Action {
        let key = |name: &&str| Key { id: Id::new("thing", *name), verb: Verb::Create, handle: None };
        let (id, after) = (Id::new("thing", name), after.iter().map(key).collect());
        let (reason, summary) = (String::new(), String::new());
        Action { verb: Verb::Create, id, generation: 1, spec: json!({}), handle: None, after, reason, summary }
    }

    #[test]
    fn an_action_is_ready_when_the_last_that_it_waits_for_is_finished() {
        let actions = [action("a", &[]), action("b", &["a"]), action("c", &["a", "b", "a"]), action("d", &["never"])];
        let mut queue = Queue::new(&actions);
        for (place, expected) in [(0, vec![1]), (1, vec![2])] {
            assert_eq!(queue.ready(), [place]);
            queue.start(place);
            assert!(queue.ready().is_empty());
            queue.finished(&actions[place].key());
            assert_eq!(queue.ready(), expected);
        }
        let left: Vec<&str> = queue.not_started().map(|action| action.id.name.as_str()).collect();
        assert_eq!(left, ["c", "d"]);
    }
}
