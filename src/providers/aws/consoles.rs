//! What consoles have said of machines' host keys, whose may be asked again and when a key may be written down. It is told the time and asks
//! nobody.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;
use tokio::time::Instant;

/// Between two questions about one machine: an eighth of the time for which it has been asked, so that waiting adds little to a boot, and
/// one that never says its keys costs next to nothing.
const SHARE: u32 = 8;
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// For all machines together: half of what EC2 allows of a question that changes nothing (twenty a second), since the loop inside asks, too.
const BETWEEN_QUESTIONS: Duration = Duration::from_millis(100);

/// Between two tags: "mutating" in `request::pace`, which knows requests only. The first so many are free.
const BETWEEN_TAGS: Duration = Duration::from_millis(200);
const TAGS_AT_ONCE: u32 = 20;

#[derive(Debug, Default)]
pub struct Consoles {
    /// By instance.
    keys: HashMap<String, Vec<String>>,
    asked: HashMap<String, Asked>,
    tagged: BTreeSet<String>,
    /// Where the row of those that want to write a tag ends.
    last_tag: Option<Instant>,
}

#[derive(Debug)]
struct Asked {
    first: Instant,
    last: Instant,
}

impl Consoles {
    pub fn keys(&self, instance: &str) -> Option<&Vec<String>> {
        self.keys.get(instance)
    }

    /// Whether this machine's console may be asked now; whoever hears yes asks.
    pub fn may_ask(&mut self, instance: &str, now: Instant) -> bool {
        // Machines that went away are nobody's turn.
        self.asked.retain(|_, asked| now - asked.last <= LONGEST_PAUSE * 2);
        let row = BETWEEN_QUESTIONS * u32::try_from(self.asked.len()).unwrap_or(u32::MAX);
        let Some(asked) = self.asked.get_mut(instance) else {
            self.asked.insert(instance.into(), Asked { first: now, last: now });
            return true;
        };
        let pause = ((now - asked.first) / SHARE).max(row).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        let may = now - asked.last >= pause;
        if may {
            asked.last = now;
        }
        may
    }

    /// What a console said; without keys it is asked again.
    pub fn said(&mut self, instance: &str, keys: &[String]) {
        if !keys.is_empty() {
            self.asked.remove(instance);
            self.keys.insert(instance.into(), keys.to_vec());
        }
    }

    pub fn is_tagged(&self, instance: &str) -> bool {
        self.tagged.contains(instance)
    }

    pub fn tagged(&mut self, instance: &str) {
        self.tagged.insert(instance.into());
    }

    /// When the next tag may be written: at once while few are, and in a row that grows with those that wait.
    pub fn tag_turn(&mut self, now: Instant) -> Instant {
        let burst = BETWEEN_TAGS * (TAGS_AT_ONCE - 1);
        // Counted from `burst` ahead, since no clock goes back to before it began.
        let free = self.last_tag.map_or(now, |last| now.max(last + BETWEEN_TAGS));
        self.last_tag = Some(free);
        now.max(free - burst.min(free - now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Questions about each of so many machines, by the seconds after the first, when all are looked at four times a second.
    fn questions(machines: usize, seconds: u64) -> Vec<Vec<Duration>> {
        let (start, mut consoles) = (Instant::now(), Consoles::default());
        let mut asked = vec![Vec::new(); machines];
        for look in 0..seconds * 4 {
            let now = start + Duration::from_millis(250) * u32::try_from(look).expect("few looks");
            for (number, times) in asked.iter_mut().enumerate() {
                if consoles.may_ask(&format!("i-{number}"), now) {
                    times.push(now - start);
                }
            }
        }
        asked
    }

    #[test]
    fn a_console_is_asked_every_second_at_first_and_hardly_ever_at_last() {
        let asked = &questions(1, 1800)[0];
        let between = |from: u64, to: u64| asked.iter().filter(|when| (from..to).contains(&when.as_secs())).count();
        assert_eq!(between(0, 8), 8, "a boot that is quick is seen at once");
        let pauses = || asked.windows(2).map(|two| (two[0], two[1] - two[0]));
        assert!(pauses().all(|(when, pause)| pause <= (when / 6).max(SECOND)), "no boot is seen much later: {asked:?}");
        assert_eq!(between(900, 1800), 30, "who never says its keys is asked twice a minute");
    }

    #[test]
    fn many_machines_stay_below_the_rate_limit_and_each_has_its_turn() {
        let asked = questions(128, 60);
        let later = |times: &[Duration]| times.iter().filter(|when| when.as_secs() >= 1).count();
        let all: usize = asked.iter().map(|times| later(times)).sum();
        assert!(all <= 60 * 10, "{all} questions in a minute");
        assert!(asked.iter().all(|times| later(times) >= 3), "nobody is forgotten");
    }

    #[test]
    fn what_a_console_said_is_kept_and_frees_the_row() {
        let (start, mut consoles) = (Instant::now(), Consoles::default());
        let key = ["ssh-ed25519 AAAA".to_string()];
        for number in 0..100 {
            assert!(consoles.may_ask(&format!("i-{number}"), start));
            consoles.said(&format!("i-{number}"), if number == 7 { &[] } else { &key });
        }
        assert_eq!((consoles.keys("i-3"), consoles.keys("i-7")), (Some(&key.to_vec()), None));
        assert!(!consoles.may_ask("i-7", start + SECOND / 2) && consoles.may_ask("i-7", start + SECOND), "only its own pause is left");
    }

    #[test]
    fn few_tags_are_written_at_once_and_many_in_a_row() {
        let (start, mut consoles) = (Instant::now(), Consoles::default());
        let turns: Vec<Duration> = (0..128).map(|_| consoles.tag_turn(start) - start).collect();
        assert_eq!(turns[TAGS_AT_ONCE as usize - 1], Duration::ZERO, "a small cluster never waits");
        assert_eq!(turns[127], BETWEEN_TAGS * (128 - TAGS_AT_ONCE));
        // After a quiet while the first are free again.
        let later = start + SECOND * 60;
        assert_eq!((0..TAGS_AT_ONCE).map(|_| consoles.tag_turn(later)).max(), Some(later));
    }
}
