//! Keyed work queue: one worker per key at a time, retries with back-off.

use super::backoff;
use crate::error::{Error, Kind};
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt::Display;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// 10 ms to 30 s: a conflict is gone by the next try, a lasting fault is not asked about more than twice a minute.
const RETRY_BASE: Duration = Duration::from_millis(10);
const RETRY_LIMIT: Duration = Duration::from_secs(30);

struct State<T> {
    ready: VecDeque<T>,
    /// In `ready`, or to be put there when its worker returns.
    dirty: HashSet<T>,
    working: HashSet<T>,
    timers: HashMap<T, Instant>,
    order: BTreeSet<(Instant, u64)>,
    timer_keys: HashMap<u64, T>,
    next_timer: u64,
    failures: HashMap<T, u32>,
}

/// Cheap to clone; clones share the work.
pub struct Queue<T> {
    state: Arc<Mutex<State<T>>>,
    wake: Arc<Notify>,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Queue { state: self.state.clone(), wake: self.wake.clone() }
    }
}

impl<T: Clone + Eq + Hash + Display + Send + Sync + 'static> Default for Queue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Clone + Eq + Hash + Display + Send + Sync + 'static> Queue<T> {
    pub fn new() -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            working: HashSet::new(),
            timers: HashMap::new(),
            order: BTreeSet::new(),
            timer_keys: HashMap::new(),
            next_timer: 0,
            failures: HashMap::new(),
        };
        Queue { state: Arc::new(Mutex::new(state)), wake: Arc::new(Notify::new()) }
    }

    /// Asks for a turn. A key asked for twice before its turn gets one; one asked for during its turn gets another after it.
    pub fn add(&self, key: T) {
        let mut state = self.state.lock();
        if !state.dirty.insert(key.clone()) {
            return;
        }
        if !state.working.contains(&key) {
            state.ready.push_back(key);
            self.wake.notify_one();
        }
    }

    /// Asks for a turn later. Of two waiting times the earlier holds.
    pub fn add_after(&self, key: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let due = Instant::now() + delay;
        let mut state = self.state.lock();
        if state.timers.get(&key).is_some_and(|held| *held <= due) {
            return;
        }
        state.timers.insert(key.clone(), due);
        let number = state.next_timer;
        state.next_timer += 1;
        state.order.insert((due, number));
        state.timer_keys.insert(number, key);
        self.wake.notify_one();
    }

    /// How many keys wait for a turn now.
    pub fn len(&self) -> usize {
        self.state.lock().ready.len()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Works for ever, at most `concurrency` keys at once. `Ok(Some(after))` asks for another turn later; `Err` for one with back-off.
    /// Dropping the future ends it and the turns under way.
    pub async fn run<W, F>(&self, concurrency: usize, work: W)
    where
        W: Fn(T) -> F,
        F: Future<Output = Result<Option<Duration>, Error>> + Send + 'static,
    {
        let mut turns: JoinSet<()> = JoinSet::new();
        loop {
            while turns.len() < concurrency
                && let Some(key) = self.take()
            {
                let future = work(key.clone());
                let queue = self.clone();
                turns.spawn(async move {
                    // Told of the end even when the work panics, or the key would never get a turn again.
                    let mut turn = Turn { queue, key: Some(key), outcome: None };
                    turn.outcome = Some(future.await);
                });
            }
            let due = self.state.lock().order.first().map(|(due, _)| *due);
            tokio::select! {
                _ = self.wake.notified() => {}
                Some(_) = turns.join_next() => {}
                _ = async { tokio::time::sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => self.expire(),
            }
        }
    }

    fn take(&self) -> Option<T> {
        let mut state = self.state.lock();
        let key = state.ready.pop_front()?;
        state.dirty.remove(&key);
        state.working.insert(key.clone());
        Some(key)
    }

    fn expire(&self) {
        let now = Instant::now();
        let mut due = Vec::new();
        {
            let mut state = self.state.lock();
            while let Some((at, number)) = state.order.first().copied()
                && at <= now
            {
                state.order.pop_first();
                let Some(key) = state.timer_keys.remove(&number) else { continue };
                // A timer replaced by an earlier one has fired already.
                if state.timers.get(&key) == Some(&at) {
                    state.timers.remove(&key);
                    due.push(key);
                }
            }
        }
        due.into_iter().for_each(|key| self.add(key));
    }

    fn finish(&self, key: T, outcome: Option<Result<Option<Duration>, Error>>) {
        let again = {
            let mut state = self.state.lock();
            state.working.remove(&key);
            if state.dirty.contains(&key) {
                state.ready.push_back(key.clone());
                self.wake.notify_one();
            }
            match outcome {
                Some(Ok(again)) => {
                    state.failures.remove(&key);
                    again
                }
                failed => {
                    let count = state.failures.entry(key.clone()).or_insert(0);
                    let delay = backoff::delay(RETRY_BASE, RETRY_LIMIT, *count);
                    *count += 1;
                    match failed {
                        // A conflict is the normal answer to a stale read.
                        Some(Err(error)) if error.kind == Kind::Conflict => tracing::debug!(%key, error = %error.chain(), "trying again"),
                        Some(Err(error)) => tracing::warn!(%key, error = %error.chain(), "trying again"),
                        _ if std::thread::panicking() => tracing::error!(%key, "work panicked; trying again"),
                        _ => {}
                    }
                    Some(delay / 2 + delay.mul_f64(rand::random::<f64>() / 2.0))
                }
            }
        };
        if let Some(delay) = again {
            self.add_after(key, delay);
        }
    }
}

struct Turn<T: Clone + Eq + Hash + Display + Send + Sync + 'static> {
    queue: Queue<T>,
    key: Option<T>,
    outcome: Option<Result<Option<Duration>, Error>>,
}

impl<T: Clone + Eq + Hash + Display + Send + Sync + 'static> Drop for Turn<T> {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.queue.finish(key, self.outcome.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::mpsc;

    #[tokio::test(start_paused = true)]
    async fn a_key_has_one_worker_and_one_turn_for_many_adds() {
        let queue: Queue<String> = Queue::new();
        let (running, most, turns) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        for _ in 0..5 {
            queue.add("a".into());
        }
        let (done, mut wait) = mpsc::unbounded_channel();
        let run = queue.run(4, |_| {
            let (queue, running, most, turns, done) = (queue.clone(), running.clone(), most.clone(), turns.clone(), done.clone());
            async move {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                if turns.fetch_add(1, Ordering::SeqCst) == 0 {
                    queue.add("a".into());
                    queue.add("a".into());
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
                running.fetch_sub(1, Ordering::SeqCst);
                done.send(()).ok();
                Ok(None)
            }
        });
        tokio::select! {
            _ = run => unreachable!("run never ends"),
            _ = async { for _ in 0..2 { wait.recv().await; } tokio::time::sleep(Duration::from_secs(60)).await; } => {}
        }
        assert_eq!((turns.load(Ordering::SeqCst), most.load(Ordering::SeqCst)), (2, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_and_the_earlier_timer_holds() {
        let queue: Queue<String> = Queue::new();
        let (sender, mut turns) = mpsc::unbounded_channel();
        let start = Instant::now();
        queue.add_after("later".into(), Duration::from_secs(50));
        queue.add_after("later".into(), Duration::from_secs(20));
        queue.add_after("later".into(), Duration::from_secs(90));
        queue.add("failing".into());
        let run = queue.run(2, |key| {
            let sender = sender.clone();
            async move {
                sender.send((key.clone(), start.elapsed())).ok();
                if key == "failing" { Err(Error::transient("no")) } else { Ok(None) }
            }
        });
        let mut seen = Vec::new();
        tokio::select! {
            _ = run => unreachable!("run never ends"),
            _ = async { while let Some(turn) = turns.recv().await { let late = turn.1 > Duration::from_secs(120); seen.push(turn); if late { break; } } } => {}
        }
        let later: Vec<u64> = seen.iter().filter(|(key, _)| key == "later").map(|(_, at)| at.as_secs()).collect();
        assert_eq!(later, [20]);
        let failing = seen.iter().filter(|(key, _)| key == "failing").count();
        assert!((12..25).contains(&failing), "{failing} tries in two minutes");
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_costs_one_turn_not_the_key() {
        let queue: Queue<String> = Queue::new();
        let (sender, mut turns) = mpsc::unbounded_channel();
        queue.add("a".into());
        let count = Arc::new(AtomicUsize::new(0));
        let run = queue.run(1, |_| {
            let (sender, count) = (sender.clone(), count.clone());
            async move {
                assert!(count.fetch_add(1, Ordering::SeqCst) > 0, "the first turn fails on purpose");
                sender.send(()).ok();
                Ok(None)
            }
        });
        tokio::select! { _ = run => unreachable!("run never ends"), _ = turns.recv() => {} }
    }
}
