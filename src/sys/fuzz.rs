//! Tests with random, hostile inputs: short beside all others, as long as wanted by `KPROV_FUZZ_SECONDS=600 cargo test --lib fuzz` (each
//! of them so long), and one failure again by `KPROV_FUZZ_SEED=<seed>`.

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseResult, TestRng, TestRunner};
use std::cell::Cell;
use std::io::Write;
use std::time::{Duration, Instant};

/// Of this thread's processor time for one input, whatever else the machine does: a hundred times what the slowest takes in a debug build,
/// so that this finds what grows without bound and nothing else.
const MOST_TIME: Duration = Duration::from_secs(20);

/// The seed of the short run: a test that others wait for plays the same every time.
const EVERYDAY: u64 = 2;

/// Checks so many inputs of one seed; with `KPROV_FUZZ_SECONDS`, of one seed after the other until that time is over. A failure names its
/// seed and the smallest input that fails.
pub fn fuzz<S: Strategy>(inputs: &S, cases: u32, check: impl Fn(S::Value) -> TestCaseResult) {
    let (begin, seconds, fixed) = (Instant::now(), number("KPROV_FUZZ_SECONDS"), number("KPROV_FUZZ_SEED"));
    let (slowest, mut played) = (Cell::new(Duration::ZERO), 0);
    let timed = |input| {
        let before = spent();
        let result = check(input);
        let took = spent().saturating_sub(before);
        slowest.set(slowest.get().max(took));
        prop_assert!(took < MOST_TIME, "one input took {took:?}");
        result
    };
    loop {
        let seed = fixed.or(seconds.is_none().then_some(EVERYDAY)).unwrap_or_else(rand::random);
        let config = Config { cases, failure_persistence: None, ..Config::default() };
        let random = TestRng::from_seed(RngAlgorithm::ChaCha, &seed.to_le_bytes().repeat(4));
        if let Err(failure) = TestRunner::new_with_rng(config, random).run(inputs, timed) {
            panic!("{failure}\nafter {played} inputs of other seeds; KPROV_FUZZ_SEED={seed} plays it again");
        }
        played += u64::from(cases);
        if fixed.is_some() || begin.elapsed() >= Duration::from_secs(seconds.unwrap_or(0)) {
            break;
        }
    }
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    let said = format!("{name}: {played} inputs, the slowest took {:?}", slowest.get());
    match seconds {
        // Past the test harness, which keeps what succeeds to itself.
        Some(_) => writeln!(std::io::stderr(), "{said}").expect("stderr"),
        None => println!("{said}"),
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// The processor time of this thread so far.
fn spent() -> Duration {
    let duration = |time: TimeVal| Duration::new(time.tv_sec().unsigned_abs(), time.tv_usec().unsigned_abs() as u32 * 1000);
    let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("Linux counts threads");
    duration(usage.user_time()) + duration(usage.system_time())
}
