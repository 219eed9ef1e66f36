//! Which pending pod is next: by priority, then the new before the tried; pods that did not fit wait until something changes. Pure.

use super::pod::PodInfo;
use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

pub type Key = (String, String);

/// (highest priority first, never tried before longest not tried, oldest arrival first, key)
type Rank = (Reverse<i32>, Option<Instant>, u64, Key);

/// Upstream's pod back-off: between two tries of one pod 1 s, doubling to 10 s.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

#[derive(Default)]
pub struct Queue {
    ready: BTreeSet<Rank>,
    parked: BTreeSet<Key>,
    pausing: BTreeSet<(Instant, Key)>,
    pods: HashMap<Key, Entry>,
    arrivals: u64,
}

struct Entry {
    pod: Arc<PodInfo>,
    arrival: u64,
    /// When it was last decided on.
    tried: Option<Instant>,
    state: State,
    failures: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    /// Did not fit; woken by an event that could change the answer.
    Parked,
    /// Decided, the write is on its way.
    InFlight,
    /// To be tried again at that time: the write failed, or something changed soon after it did not fit.
    Pausing(Instant),
}

impl Queue {
    /// A pending pod was seen (again). What is in flight or pausing stays so; a parked pod whose spec changed is tried again.
    pub fn add(&mut self, pod: PodInfo) {
        let key = pod.key();
        let pod = Arc::new(pod);
        match self.pods.get_mut(&key) {
            Some(entry) if entry.pod.uid == pod.uid => {
                entry.pod = pod;
                if entry.state == State::Parked {
                    self.set(&key, State::Ready);
                }
            }
            _ => {
                self.remove(&key);
                self.arrivals += 1;
                let entry = Entry { pod, arrival: self.arrivals, tried: None, state: State::InFlight, failures: 0 };
                self.pods.insert(key.clone(), entry);
                self.set(&key, State::Ready);
            }
        }
    }

    /// The status that parking wrote comes back as a change of the pod: it must not wake it, or it would spin.
    pub fn is_parked_unchanged(&self, pod: &PodInfo) -> bool {
        self.pods.get(&pod.key()).is_some_and(|entry| entry.state == State::Parked && entry.pod.uid == pod.uid)
    }

    pub fn remove(&mut self, key: &Key) {
        self.set(key, State::InFlight);
        self.pods.remove(key);
    }

    /// The next pod to decide on; it counts as in flight until `park`, `back_off` or `remove`.
    pub fn pop(&mut self, now: Instant) -> Option<Arc<PodInfo>> {
        let (.., key) = self.ready.pop_first()?;
        let entry = self.pods.get_mut(&key)?;
        entry.state = State::InFlight;
        entry.tried = Some(now);
        Some(entry.pod.clone())
    }

    /// It does not fit as things are.
    pub fn park(&mut self, key: &Key) {
        self.failed(key);
        self.set(key, State::Parked);
    }

    /// The write failed: another try after the pause.
    pub fn back_off(&mut self, key: &Key) {
        self.failed(key);
        self.pause(key);
    }

    /// Room became free somewhere: parked pods are tried again, each once its pause since its last try is over. In a full cluster pods end
    /// all the time, and the many that wait must not be decided on for every one of them.
    pub fn wake_parked(&mut self) {
        let parked = std::mem::take(&mut self.parked);
        parked.iter().for_each(|key| self.pause(key));
    }

    /// A node came or changed that these pods could use: what earlier tries have shown is void, and a cluster that starts waits for just
    /// this. Nodes change seldom: no pause.
    pub fn wake_afresh(&mut self, could_use: impl Fn(&PodInfo) -> bool) {
        let pausing = self.pausing.iter().map(|(_, key)| key);
        let waiting = self.parked.iter().chain(pausing).filter(|key| self.pods.get(*key).is_some_and(|entry| could_use(&entry.pod)));
        let concerned: Vec<Key> = waiting.cloned().collect();
        for key in &concerned {
            if let Some(entry) = self.pods.get_mut(key) {
                entry.failures = 0;
            }
            self.set(key, State::Ready);
        }
    }

    /// One of these pods' own claims has changed; `at_once` passes over the pause.
    pub fn wake_users_of(&mut self, namespace: &str, claim: &str, at_once: bool) {
        let uses = |pod: &PodInfo| pod.namespace == namespace && pod.claims.iter().any(|name| name == claim);
        let waits = |state: State| matches!(state, State::Parked | State::Pausing(_));
        let concerned = self.pods.iter().filter(|(_, entry)| waits(entry.state) && uses(&entry.pod));
        let concerned: Vec<Key> = concerned.map(|(key, _)| key.clone()).collect();
        for key in &concerned {
            if at_once { self.set(key, State::Ready) } else { self.pause(key) }
        }
    }

    /// When the next pause ends.
    pub fn next_due(&self) -> Option<Instant> {
        self.pausing.first().map(|(due, _)| *due)
    }

    /// Pods whose pause is over become ready.
    pub fn expire(&mut self, now: Instant) {
        while let Some((_, key)) = self.pausing.first().filter(|(due, _)| *due <= now).cloned() {
            self.set(&key, State::Ready);
        }
    }

    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub fn is_in_flight(&self, key: &Key) -> bool {
        self.pods.get(key).is_some_and(|entry| entry.state == State::InFlight)
    }

    fn failed(&mut self, key: &Key) {
        if let Some(entry) = self.pods.get_mut(key) {
            entry.failures = entry.failures.saturating_add(1);
        }
    }

    fn pause(&mut self, key: &Key) {
        let Some(entry) = self.pods.get(key) else { return };
        let state = entry.tried.map_or(State::Ready, |tried| State::Pausing(tried + pause_after(entry.failures)));
        self.set(key, state);
    }

    /// Moves the pod from the set of its old state into that of the new one.
    fn set(&mut self, key: &Key, state: State) {
        let Some(entry) = self.pods.get_mut(key) else { return };
        match std::mem::replace(&mut entry.state, state) {
            State::Ready => {
                self.ready.remove(&rank(key, entry));
            }
            State::Parked => {
                self.parked.remove(key);
            }
            State::Pausing(due) => {
                self.pausing.remove(&(due, key.clone()));
            }
            State::InFlight => {}
        }
        match state {
            State::Ready => {
                self.ready.insert(rank(key, entry));
            }
            State::Parked => {
                self.parked.insert(key.clone());
            }
            State::Pausing(due) => {
                self.pausing.insert((due, key.clone()));
            }
            State::InFlight => {}
        }
    }
}

fn pause_after(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(LONGEST_PAUSE)
}

/// New pods go before those that are tried again, which would most likely not fit again; among these it goes in turn.
fn rank(key: &Key, entry: &Entry) -> Rank {
    (Reverse(entry.pod.priority), entry.tried, entry.arrival, key.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, priority: i32) -> PodInfo {
        PodInfo { namespace: "n".into(), name: name.into(), uid: name.into(), priority, ..PodInfo::default() }
    }

    fn key(name: &str) -> Key {
        ("n".into(), name.into())
    }

    /// A queue and its first instant.
    fn queue(names: &[&str]) -> (Queue, Instant) {
        let mut queue = Queue::default();
        names.iter().for_each(|name| queue.add(pod(name, 0)));
        (queue, Instant::now())
    }

    fn drain(queue: &mut Queue, now: Instant) -> Vec<String> {
        queue.expire(now);
        std::iter::from_fn(|| queue.pop(now)).map(|pod| pod.name.clone()).collect()
    }

    /// Decides on whatever is ready, and nothing fits.
    fn try_in_vain(queue: &mut Queue, now: Instant) -> Vec<String> {
        let tried = drain(queue, now);
        tried.iter().for_each(|name| queue.park(&key(name)));
        tried
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn priority_goes_before_age() {
        let (mut queue, start) = queue(&["old", "young"]);
        queue.add(pod("urgent", 9));
        assert_eq!(drain(&mut queue, start), ["urgent", "old", "young"]);
    }

    #[test]
    fn a_parked_pod_sleeps_until_woken_and_its_pause_is_over() {
        let (mut queue, start) = queue(&["p"]);
        assert_eq!(try_in_vain(&mut queue, start), ["p"]);
        assert!(queue.is_parked_unchanged(&pod("p", 0)));
        assert!(drain(&mut queue, start + seconds(60)).is_empty(), "nothing has changed");
        queue.wake_parked();
        assert_eq!(drain(&mut queue, start + seconds(60)), ["p"], "its pause is long over");
    }

    #[test]
    fn ever_ending_pods_wake_a_parked_one_after_1_s_doubling_to_10() {
        let (mut queue, start) = queue(&["p"]);
        let mut tries = Vec::new();
        for tenths in 0..400 {
            if !try_in_vain(&mut queue, start + Duration::from_millis(100 * tenths)).is_empty() {
                tries.push(tenths);
            }
            queue.wake_parked();
        }
        assert_eq!(tries, [0, 10, 30, 70, 150, 250, 350]);
    }

    #[test]
    fn a_changed_node_ends_long_pauses() {
        let (mut queue, start) = queue(&["p", "q"]);
        for at in [0, 10, 20, 30] {
            assert_eq!(try_in_vain(&mut queue, start + seconds(at)), ["p", "q"]);
            queue.wake_parked();
        }
        assert_eq!(queue.next_due(), Some(start + seconds(38)));
        queue.wake_afresh(|pod| pod.name == "q");
        assert_eq!(drain(&mut queue, start + seconds(30)), ["q"], "the node is nothing to the other");
    }

    #[test]
    fn new_pods_do_not_wait_behind_those_tried_again() {
        let (mut queue, start) = queue(&["first", "second"]);
        assert_eq!(try_in_vain(&mut queue, start), ["first", "second"]);
        queue.wake_parked();
        queue.expire(start + seconds(5));
        // The first of them gets its turn, does not fit, and is woken again: now it is behind the second.
        assert_eq!(queue.pop(start + seconds(5)).expect("ready").name, "first");
        queue.park(&key("first"));
        queue.wake_parked();
        queue.add(pod("new", 0));
        queue.add(pod("urgent", 1));
        assert_eq!(drain(&mut queue, start + seconds(60)), ["urgent", "new", "second", "first"]);
    }

    #[test]
    fn a_bound_claim_wakes_its_pods_at_once_and_nobody_else() {
        let (mut queue, start) = queue(&["other"]);
        queue.add(PodInfo { claims: vec!["data".into()], ..pod("user", 0) });
        try_in_vain(&mut queue, start);
        queue.wake_users_of("elsewhere", "data", true);
        assert!(drain(&mut queue, start).is_empty());
        queue.wake_users_of("n", "data", false);
        assert!(drain(&mut queue, start).is_empty());
        queue.wake_users_of("n", "data", true);
        assert_eq!(drain(&mut queue, start), ["user"]);
    }

    #[test]
    fn an_update_does_not_start_a_second_bind_while_one_is_in_flight() {
        let (mut queue, start) = queue(&["p"]);
        queue.pop(start).expect("ready");
        queue.add(pod("p", 0));
        queue.wake_parked();
        queue.wake_afresh(|_| true);
        assert!(queue.pop(start).is_none());
        queue.back_off(&key("p"));
        queue.wake_parked();
        assert!(drain(&mut queue, start).is_empty(), "only time ends a back-off");
        assert_eq!(drain(&mut queue, start + seconds(1)), ["p"]);
        queue.back_off(&key("p"));
        assert_eq!(queue.next_due(), Some(start + seconds(3)), "the second pause is 2 s");
    }

    #[test]
    fn a_new_pod_of_the_same_name_starts_afresh() {
        let (mut queue, start) = queue(&["p"]);
        queue.pop(start).expect("ready");
        queue.add(PodInfo { uid: "other".into(), ..pod("p", 0) });
        assert_eq!(drain(&mut queue, start), ["p"]);
        queue.remove(&key("p"));
        assert!(queue.pods.is_empty() && queue.ready.is_empty() && queue.parked.is_empty() && queue.pausing.is_empty());
    }
}
