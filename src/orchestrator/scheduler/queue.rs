//! Which pending pod is next: by priority, then by age; pods that did not fit wait until something changes. Pure.

use super::pod::PodInfo;
use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

pub type Key = (String, String);

/// (highest priority first, oldest arrival first, key)
type Rank = (Reverse<i32>, u64, Key);

#[derive(Default)]
pub struct Queue {
    ready: BTreeSet<Rank>,
    pods: HashMap<Key, Entry>,
    arrivals: u64,
}

struct Entry {
    pod: Arc<PodInfo>,
    arrival: u64,
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
    /// The write failed; woken by its timer.
    BackingOff,
}

impl Queue {
    /// A pending pod was seen (again). What is in flight or backing off stays so; a parked pod whose spec changed is tried again.
    pub fn add(&mut self, pod: PodInfo) {
        let key = pod.key();
        let pod = Arc::new(pod);
        match self.pods.get_mut(&key) {
            Some(entry) if entry.pod.uid == pod.uid => {
                entry.pod = pod;
                if entry.state == State::Parked {
                    self.ready(&key);
                }
            }
            _ => {
                self.remove(&key);
                self.arrivals += 1;
                self.pods.insert(key.clone(), Entry { pod, arrival: self.arrivals, state: State::Parked, failures: 0 });
                self.ready(&key);
            }
        }
    }

    /// The status that parking wrote comes back as a change of the pod: it must not wake it, or it would spin.
    pub fn is_parked_unchanged(&self, pod: &PodInfo) -> bool {
        self.pods.get(&pod.key()).is_some_and(|entry| entry.state == State::Parked && entry.pod.uid == pod.uid)
    }

    pub fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.pods.remove(key) {
            self.ready.remove(&rank(key, &entry));
        }
    }

    /// The next pod to decide on; it counts as in flight until one of the three answers below.
    pub fn pop(&mut self) -> Option<Arc<PodInfo>> {
        let (_, _, key) = self.ready.pop_first()?;
        let entry = self.pods.get_mut(&key)?;
        entry.state = State::InFlight;
        Some(entry.pod.clone())
    }

    pub fn park(&mut self, key: &Key) {
        if let Some(entry) = self.pods.get_mut(key) {
            entry.state = State::Parked;
        }
    }

    /// How long to wait before `retry`: 1 s doubling to 10 s, as upstream's pod back-off.
    pub fn back_off(&mut self, key: &Key) -> Option<Duration> {
        let entry = self.pods.get_mut(key)?;
        entry.state = State::BackingOff;
        entry.failures += 1;
        Some(Duration::from_secs(1 << (entry.failures - 1).min(3)).min(Duration::from_secs(10)))
    }

    pub fn retry(&mut self, key: &Key) {
        if self.pods.get(key).is_some_and(|entry| entry.state == State::BackingOff) {
            self.ready(key);
        }
    }

    /// Something in the cluster changed that could let parked pods fit.
    pub fn wake_parked(&mut self) {
        let parked: Vec<Key> = self.pods.iter().filter(|(_, entry)| entry.state == State::Parked).map(|(key, _)| key.clone()).collect();
        parked.iter().for_each(|key| self.ready(key));
    }

    pub fn is_in_flight(&self, key: &Key) -> bool {
        self.pods.get(key).is_some_and(|entry| entry.state == State::InFlight)
    }

    fn ready(&mut self, key: &Key) {
        if let Some(entry) = self.pods.get_mut(key) {
            entry.state = State::Ready;
            self.ready.insert(rank(key, entry));
        }
    }
}

fn rank(key: &Key, entry: &Entry) -> Rank {
    (Reverse(entry.pod.priority), entry.arrival, key.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, priority: i32) -> PodInfo {
        PodInfo { namespace: "n".into(), name: name.into(), uid: name.into(), priority, ..PodInfo::default() }
    }

    fn drain(queue: &mut Queue) -> Vec<String> {
        std::iter::from_fn(|| queue.pop()).map(|pod| pod.name.clone()).collect()
    }

    #[test]
    fn priority_goes_before_age() {
        let mut queue = Queue::default();
        for (name, priority) in [("old", 0), ("young", 0), ("urgent", 9)] {
            queue.add(pod(name, priority));
        }
        assert_eq!(drain(&mut queue), ["urgent", "old", "young"]);
    }

    #[test]
    fn a_parked_pod_sleeps_until_woken() {
        let mut queue = Queue::default();
        queue.add(pod("p", 0));
        let key = queue.pop().expect("ready").key();
        queue.park(&key);
        assert!(queue.is_parked_unchanged(&pod("p", 0)));
        assert!(queue.pop().is_none());
        queue.wake_parked();
        assert_eq!(drain(&mut queue), ["p"]);
    }

    #[test]
    fn an_update_does_not_start_a_second_bind_while_one_is_in_flight() {
        let mut queue = Queue::default();
        queue.add(pod("p", 0));
        let key = queue.pop().expect("ready").key();
        queue.add(pod("p", 0));
        queue.wake_parked();
        assert!(queue.pop().is_none());
        assert_eq!(queue.back_off(&key), Some(Duration::from_secs(1)));
        queue.wake_parked();
        assert!(queue.pop().is_none(), "only its timer ends a back-off");
        queue.retry(&key);
        assert_eq!(drain(&mut queue), ["p"]);
        assert_eq!(queue.back_off(&key), Some(Duration::from_secs(2)));
    }

    #[test]
    fn a_new_pod_of_the_same_name_starts_afresh() {
        let mut queue = Queue::default();
        queue.add(pod("p", 0));
        queue.pop().expect("ready");
        queue.add(PodInfo { uid: "other".into(), ..pod("p", 0) });
        assert_eq!(drain(&mut queue), ["p"]);
        queue.remove(&("n".into(), "p".into()));
        assert!(queue.pods.is_empty() && queue.ready.is_empty());
    }
}
