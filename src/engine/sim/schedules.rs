//! Random schedules: mixtures of faults over the lives of clusters of all shapes. 20,000 by default, the README's million by
//! `KPROV_SIM_SEEDS=1000000 cargo test --release --lib engine::sim::schedules`.

use super::case::random;
use super::*;

/// What a debug build plays in half a minute on two cores.
const SEEDS: u64 = 20_000;
/// Seeds are played in portions, so that memory stays small and a failure is told at once.
const PORTION: u64 = 2_000;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

#[test]
fn random_mixtures_of_faults_converge() {
    let (seeds, first) = (number("KPROV_SIM_SEEDS").unwrap_or(SEEDS), number("KPROV_SIM_FIRST").unwrap_or(0));
    let mut fired = 0;
    for start in (first..first + seeds).step_by(PORTION as usize) {
        let cases: Vec<Case> = (start..(start + PORTION).min(first + seeds)).map(random).collect();
        let (broken, happened) = play_all(&cases);
        if let Some((case, broken)) = broken {
            panic!("{broken}\n  in seed {}: KPROV_SIM_SEED={} plays it again\n  {case:?}", case.seed, case.seed);
        }
        fired += happened as u64;
    }
    println!("{seeds} schedules, {fired} faults");
    assert!(fired * 2 > seeds, "only {fired} faults happened in {seeds} schedules");
}

/// Plays one seed again: `KPROV_SIM_SEED=<seed>`.
#[test]
fn one_seed() {
    holds(&[random(number("KPROV_SIM_SEED").unwrap_or(0))]);
}
