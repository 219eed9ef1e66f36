//! How long to wait before the next try: doubling, bounded, with jitter from a seeded generator.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::time::Duration;

pub struct Backoff {
    base: Duration,
    limit: Duration,
    failures: u32,
    random: StdRng,
}

impl Backoff {
    pub fn new(base: Duration, limit: Duration, seed: u64) -> Self {
        Backoff { base, limit, failures: 0, random: StdRng::seed_from_u64(seed) }
    }
    /// Half of the doubled delay is fixed, half is jitter, so that many clients of one server do not return together.
    pub fn next_delay(&mut self) -> Duration {
        let full = delay(self.base, self.limit, self.failures);
        self.failures = self.failures.saturating_add(1);
        full / 2 + full.mul_f64(self.random.random::<f64>() / 2.0)
    }
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// `base * 2^failures`, at most `limit`.
pub fn delay(base: Duration, limit: Duration, failures: u32) -> Duration {
    base.saturating_mul(1 << failures.min(20)).min(limit)
}
