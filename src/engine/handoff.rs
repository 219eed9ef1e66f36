//! Who may act: one writer per cluster, moved between the command line and the loop inside by compare-and-swap.
//!
//! ```text
//! up:    none, or another command line's epoch n  -> n+1 ours; act; write the blueprint inside; n+2 cluster's: its loop starts
//! up:    the cluster's epoch                      -> write the blueprint inside and watch; the loop acts
//! down:  anybody's epoch n                        -> n+1 ours: the fence; act
//! ```
//! A process may be killed between any two steps: the record always names exactly one owner, and the next run goes on from it.

use crate::error::{Error, Kind, Result};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// The owner's name of the loop inside the cluster; command lines are `cli:<host>:<pid>`.
pub const CLUSTER: &str = "cluster";

/// The writer's record. Only its owner acts, and puts `epoch` on every request; receivers that keep epochs refuse lower ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    pub epoch: u64,
    pub owner: String,
}

/// Where the record lives: the provider, beside the resources it protects.
#[async_trait]
pub trait EpochStore: Send + Sync {
    /// `None` before the first writer, and again after everything of the cluster is gone.
    async fn read(&self) -> Result<Option<Epoch>>;

    /// Replaces `expected` by `next` in one step; `Ok(false)` when something else is there. Repeating a swap that succeeded, because
    /// its reply was lost, answers true as long as `next` is still there.
    async fn swap(&self, expected: Option<&Epoch>, next: &Epoch) -> Result<bool>;
}

/// What a command line wants of the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// `up`: act, unless the loop inside does.
    Act,
    /// `down`, and `up --outside`: act, whoever did before.
    Seize,
}

/// Who acts from here on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Writer {
    Us(Epoch),
    /// The loop inside: write the blueprint there and watch.
    Inside(Epoch),
}

/// The next move of a command line. Pure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Move {
    Done(Writer),
    Swap(Epoch),
}

/// What `me` does about `current` to get its wish.
pub fn next(wish: Wish, current: Option<&Epoch>, me: &str) -> Move {
    match current {
        Some(epoch) if epoch.owner == me => Move::Done(Writer::Us(epoch.clone())),
        Some(epoch) if epoch.owner == CLUSTER && wish == Wish::Act => Move::Done(Writer::Inside(epoch.clone())),
        // Another command line, dead or alive: its next request is refused, and it says so. Nobody can tell the two apart from here.
        _ => Move::Swap(Epoch { epoch: current.map_or(0, |epoch| epoch.epoch) + 1, owner: me.into() }),
    }
}

/// Contenders before giving up: each lost swap means that somebody else won one, so more than this is a fight, not a race.
const LOST_SWAPS: u32 = 8;

/// Longer than a throttling window, shorter than a person's patience: a call that was sent away or lost is made again for so long.
const PATIENCE: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Reads and swaps may be repeated by anybody at any time.
async fn patiently<T>(mut call: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let (give_up, mut pause) = (Instant::now() + PATIENCE, FIRST_PAUSE);
    loop {
        match call().await {
            Err(error) if error.kind == Kind::Transient && Instant::now() + pause < give_up => {}
            end => return end,
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Becomes the writer, or learns that the loop inside is.
pub async fn take(store: &dyn EpochStore, wish: Wish, me: &str) -> Result<Writer> {
    for _ in 0..LOST_SWAPS {
        let current = patiently(async || store.read().await).await?;
        match next(wish, current.as_ref(), me) {
            Move::Done(writer) => return Ok(writer),
            Move::Swap(epoch) => {
                if patiently(async || store.swap(current.as_ref(), &epoch).await).await? {
                    return Ok(Writer::Us(epoch));
                }
            }
        }
    }
    Err(Error::conflict("could not become the cluster's writer: others keep taking over")
        .hint("is another `kprov` at work on this cluster?"))
}

/// Gives the cluster to its own loop. The blueprint must be inside before: from this swap on, only the loop acts.
pub async fn give(store: &dyn EpochStore, ours: &Epoch) -> Result<Epoch> {
    let theirs = Epoch { epoch: ours.epoch + 1, owner: CLUSTER.into() };
    let given = patiently(async || store.swap(Some(ours), &theirs).await).await?;
    if given || patiently(async || store.read().await).await?.as_ref() == Some(&theirs) {
        return Ok(theirs);
    }
    Err(Error::conflict("could not hand the cluster over: another writer took it").hint("is another `kprov` at work on this cluster?"))
}

/// The loop's question before each round: the epoch to act with, or `None` while somebody else is the writer.
pub async fn inside(store: &dyn EpochStore) -> Result<Option<u64>> {
    Ok(store.read().await?.filter(|epoch| epoch.owner == CLUSTER).map(|epoch| epoch.epoch))
}

/// Right before an effect at a receiver that keeps no epochs itself: refuses it to a writer that was overtaken.
pub async fn fence(store: &dyn EpochStore, epoch: u64) -> Result<()> {
    let Some(current) = store.read().await?.filter(|current| epoch < current.epoch) else { return Ok(()) };
    Err(Error::conflict(format!("epoch {epoch} is over, {} writes now as {}", current.owner, current.epoch))
        .hint("is another `kprov` at work on this cluster?"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    /// Keeps the record; fails as told: calls before `budget` runs out succeed, then every call is the process's death.
    #[derive(Default)]
    struct Record {
        epoch: Mutex<Option<Epoch>>,
        budget: Mutex<Option<usize>>,
        /// The call at which the process dies has its effect first.
        effect_first: bool,
    }

    impl Record {
        fn spend(&self) -> bool {
            match &mut *self.budget.lock() {
                None => true,
                Some(0) => false,
                Some(left) => {
                    *left -= 1;
                    true
                }
            }
        }
    }

    #[async_trait]
    impl EpochStore for Record {
        async fn read(&self) -> Result<Option<Epoch>> {
            if !self.spend() {
                return Err(Error::transient("killed"));
            }
            Ok(self.epoch.lock().clone())
        }
        async fn swap(&self, expected: Option<&Epoch>, next: &Epoch) -> Result<bool> {
            let alive = self.spend();
            let mut epoch = self.epoch.lock();
            if (alive || self.effect_first) && epoch.as_ref() == expected {
                *epoch = Some(next.clone());
            }
            if alive { Ok(epoch.as_ref() == Some(next)) } else { Err(Error::transient("killed")) }
        }
    }

    fn epoch(epoch: u64, owner: &str) -> Epoch {
        Epoch { epoch, owner: owner.into() }
    }

    #[test]
    fn the_next_move_follows_from_who_owns_the_record() {
        let (mine, other, loops) = (epoch(3, "cli:a:1"), epoch(3, "cli:b:2"), epoch(4, CLUSTER));
        let check = |wish, current: Option<&Epoch>, expected| assert_eq!(next(wish, current, "cli:a:1"), expected);
        check(Wish::Act, None, Move::Swap(epoch(1, "cli:a:1")));
        check(Wish::Act, Some(&mine), Move::Done(Writer::Us(mine.clone())));
        check(Wish::Act, Some(&other), Move::Swap(epoch(4, "cli:a:1")));
        check(Wish::Act, Some(&loops), Move::Done(Writer::Inside(loops.clone())));
        check(Wish::Seize, Some(&loops), Move::Swap(epoch(5, "cli:a:1")));
    }

    /// `up` as process `me`: take, write the blueprint inside, give. Answers whether the loop owns the cluster at the end.
    async fn up(store: &Record, written: &Mutex<bool>, me: &str) -> Result<()> {
        if let Writer::Us(ours) = take(store, Wish::Act, me).await? {
            if !store.spend() {
                return Err(Error::transient("killed"));
            }
            *written.lock() = true;
            give(store, &ours).await?;
        }
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn killed_at_any_step_there_is_one_owner_and_the_next_run_goes_on() {
        for effect_first in [false, true] {
            for steps in 0..6 {
                let (store, written) = (Record { effect_first, ..Record::default() }, Mutex::new(false));
                *store.budget.lock() = Some(steps);
                let first = up(&store, &written, "cli:a:1").await;
                assert_eq!(first.is_err(), steps < 4, "died at step {steps}");
                *store.budget.lock() = None;
                let before = store.read().await.expect("a read");
                assert!(inside(&store).await.expect("a read").is_none() || *written.lock(), "the loop never starts without its blueprint");
                up(&store, &written, "cli:a:2").await.expect("the next run");
                let after = store.read().await.expect("a read").expect("a record");
                assert_eq!(after.owner, CLUSTER);
                assert!(before.is_none_or(|before| before == after || before.epoch < after.epoch), "epochs only rise");
                let Writer::Us(fence) = take(&store, Wish::Seize, "cli:a:3").await.expect("down") else { panic!("down acts itself") };
                assert!(fence.epoch > after.epoch && inside(&store).await.expect("a read").is_none());
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_command_line_that_lost_the_cluster_cannot_give_it_away() {
        let store = Record::default();
        let Writer::Us(first) = take(&store, Wish::Act, "cli:a:1").await.expect("a writer") else { panic!("nobody is inside") };
        let Writer::Us(second) = take(&store, Wish::Act, "cli:b:2").await.expect("a writer") else { panic!("nobody is inside") };
        assert_eq!(give(&store, &first).await.expect_err("fenced").kind, crate::error::Kind::Conflict);
        assert_eq!(fence(&store, first.epoch).await.expect_err("fenced").kind, crate::error::Kind::Conflict);
        fence(&store, second.epoch).await.expect("the owner");
        assert_eq!(give(&store, &second).await.expect("the owner"), epoch(3, CLUSTER));
        assert_eq!(give(&store, &second).await.expect("a lost reply, again"), epoch(3, CLUSTER));
    }
}
