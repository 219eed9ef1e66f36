//! The live lines under `up` and `down`: how much of the plan is done, what is in flight with its last word, what waits for what. Pure.

use crate::engine::event::Event;
use crate::engine::plan::Plan;
use crate::engine::{Key, Verb};
use std::time::{Duration, Instant};

pub struct Board {
    pub started: Instant,
    done: usize,
    /// Of the round that runs, in the plan's order.
    open: Vec<Item>,
    /// For what no action stands for: workloads, load balancers.
    waiting: String,
}

struct Item {
    key: Key,
    after: Vec<Key>,
    since: Option<Instant>,
    /// The last one that was said of it.
    word: String,
}

impl Board {
    pub fn new(started: Instant) -> Board {
        Board { started, done: 0, open: Vec::new(), waiting: String::new() }
    }

    pub fn hear(&mut self, event: &Event, now: Instant) {
        match event {
            Event::PlanMade { plan, .. } => self.open = items(plan),
            Event::Started { key, summary } => {
                if let Some(item) = self.item(key) {
                    (item.since, item.word) = (Some(now), first_line(summary));
                }
            }
            Event::Progress { key, text } | Event::Waiting { key, why: text } => self.say(key, text),
            Event::Retrying { key, error, .. } => self.say(key, &format!("again: {error}")),
            Event::Finished { key, .. } => {
                self.done += 1;
                self.close(key);
            }
            Event::Failed { key, .. } => self.close(key),
            Event::Resolved { .. } | Event::RoundEnded { .. } | Event::Quiet { .. } => {}
        }
    }

    pub fn wait(&mut self, text: &str) {
        self.waiting = first_line(text);
        self.open.clear();
    }

    /// At most so many lines, none longer than so many columns: what is in flight first, then what comes next.
    pub fn lines(&self, now: Instant, rows: usize, columns: usize) -> Vec<String> {
        let mut head = clock(now.duration_since(self.started));
        if self.done + self.open.len() > 0 {
            head = format!("{} of {} done, {head}", self.done, self.done + self.open.len());
        }
        if self.open.is_empty() && !self.waiting.is_empty() {
            head = format!("{head}: {}", self.waiting);
        }
        let (flying, resting): (Vec<&Item>, Vec<&Item>) = self.open.iter().partition(|item| item.since.is_some());
        let all = [flying, resting].concat();
        // One line that would only say "1 more" may say what.
        let room = rows.saturating_sub(1);
        let shown = if all.len() <= room { all.len() } else { room.saturating_sub(1) };
        let width = all.iter().take(shown).map(|item| item.key.to_string().len()).max().unwrap_or(0);
        let mut lines = vec![head];
        lines.extend(all.iter().take(shown).map(|item| format!("  {:width$}  {}", item.key.to_string(), self.says(item, now))));
        if shown < all.len() {
            lines.push(format!("  ... and {} more", all.len() - shown));
        }
        lines.truncate(rows);
        lines.iter().map(|line| cut(line.trim_end(), columns)).collect()
    }

    fn says(&self, item: &Item, now: Instant) -> String {
        if let Some(since) = item.since {
            return format!("{} {}", clock(now.duration_since(since)), item.word);
        }
        let needs: Vec<String> =
            self.open.iter().filter(|other| item.after.contains(&other.key)).map(|need| need.key.id.to_string()).collect();
        if item.word.is_empty() && !needs.is_empty() { format!("after {}", needs.join(", ")) } else { item.word.clone() }
    }

    fn item(&mut self, key: &Key) -> Option<&mut Item> {
        self.open.iter_mut().find(|item| item.key == *key)
    }

    fn say(&mut self, key: &Key, text: &str) {
        if let Some(item) = self.item(key) {
            item.word = first_line(text);
        }
    }

    fn close(&mut self, key: &Key) {
        self.open.retain(|item| item.key != *key);
    }
}

fn items(plan: &Plan) -> Vec<Item> {
    plan.actions.iter().map(|action| Item { key: action.key(), after: action.after.clone(), since: None, word: String::new() }).collect()
}

pub fn past(verb: Verb) -> &'static str {
    match verb {
        Verb::Create => "created",
        Verb::Update => "updated",
        Verb::Repair => "repaired",
        Verb::Delete => "deleted",
        Verb::Await => "ready",
    }
}

fn clock(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds => format!("{} min {:02} s", seconds / 60, seconds % 60),
    }
}

/// Live lines are one line: what comes from elsewhere may hold line breaks, and letters that move the cursor.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().filter(|letter| !letter.is_control()).collect()
}

fn cut(line: &str, columns: usize) -> String {
    if line.chars().count() <= columns {
        return line.into();
    }
    line.chars().take(columns.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Action, Id};
    use serde_json::json;

    fn key(kind: &str, name: &str) -> Key {
        Key { id: Id::new(kind, name), verb: Verb::Create, handle: None }
    }

    fn plan(actions: &[(Key, &[Key])]) -> Event {
        let actions = actions.iter().map(|(key, after)| Action {
            verb: key.verb,
            id: key.id.clone(),
            generation: 1,
            spec: json!({}),
            handle: None,
            after: after.to_vec(),
            reason: String::new(),
            summary: String::new(),
        });
        Event::PlanMade { round: 1, plan: Plan { actions: actions.collect(), waiting: Vec::new(), unchanged: 0 } }
    }

    fn check(board: &Board, now: Instant, expected: &[&str]) {
        assert_eq!(board.lines(now, 8, 78), expected);
    }

    #[test]
    fn the_plan_is_seen_shrinking() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let (machine, host, wish) = (key("machine", "control-1"), key("host", "control-1"), key("blueprint", "shop"));
        let mut board = Board::new(begin);
        check(&board, at(1), &["1 s"]);
        board.hear(
            &plan(&[(machine.clone(), &[]), (host.clone(), std::slice::from_ref(&machine)), (wish.clone(), std::slice::from_ref(&host))]),
            at(1),
        );
        board.hear(&Event::Started { key: machine.clone(), summary: "1 cpu".into() }, at(1));
        let rest = ["  create host/control-1     after machine/control-1", "  create blueprint/shop     after host/control-1"];
        check(&board, at(3), &["0 of 3 done, 3 s", "  create machine/control-1  2 s 1 cpu", rest[0], rest[1]]);
        board.hear(&Event::Retrying { key: machine.clone(), attempt: 1, pause_milliseconds: 9, error: "no\nroute\x1b[1A".into() }, at(3));
        assert_eq!(board.lines(at(3), 8, 78)[1], "  create machine/control-1  2 s again: no");
        board.hear(&Event::Finished { key: machine.clone(), milliseconds: 3000 }, at(4));
        board.hear(&Event::Started { key: host.clone(), summary: String::new() }, at(4));
        board.hear(&Event::Progress { key: host.clone(), text: "uploading".into() }, at(5));
        check(
            &board,
            at(65),
            &["1 of 3 done, 1 min 05 s", "  create host/control-1  1 min 01 s uploading", "  create blueprint/shop  after host/control-1"],
        );
        // The next round takes up what is left.
        board.hear(&Event::Failed { key: host.clone(), error: "lost".into() }, at(66));
        board.hear(&plan(&[(host.clone(), &[]), (wish.clone(), std::slice::from_ref(&host))]), at(66));
        assert_eq!(board.lines(at(66), 8, 78)[0], "1 of 3 done, 1 min 06 s");
        board.hear(&Event::Finished { key: host, milliseconds: 1 }, at(67));
        board.hear(&Event::Finished { key: wish, milliseconds: 1 }, at(67));
        board.wait("waiting for node/control-1: not ready");
        check(&board, at(68), &["3 of 3 done, 1 min 08 s: waiting for node/control-1: not ready"]);
    }

    #[test]
    fn a_long_plan_keeps_to_its_lines_and_columns() {
        let begin = Instant::now();
        let names: Vec<Key> = (0..100).map(|number| key("machine", &format!("worker-{number}"))).collect();
        let mut board = Board::new(begin);
        board.hear(&plan(&names.iter().map(|key| (key.clone(), &[][..])).collect::<Vec<_>>()), begin);
        board.hear(&Event::Started { key: names[70].clone(), summary: "wörds ".repeat(40) }, begin);
        let lines = board.lines(begin, 8, 78);
        assert_eq!((lines.len(), lines[7].as_str()), (8, "  ... and 94 more"));
        assert!(lines[1].starts_with("  create machine/worker-70  0 s wörds") && lines[1].ends_with('…'), "{lines:?}");
        assert!(lines.iter().all(|line| line.chars().count() <= 78), "{lines:?}");
        assert_eq!(board.lines(begin, 1, 78), ["0 of 100 done, 0 s"]);
    }
}
