//! Who may act: one writer per cluster, moved between the command line and the loop inside by compare-and-swap.

use crate::error::Result;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};

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

    /// Replaces `expected` by `next` in one step; `Ok(false)` when something else is there. The same swap twice answers true twice.
    async fn swap(&self, expected: Option<&Epoch>, next: &Epoch) -> Result<bool>;
}
