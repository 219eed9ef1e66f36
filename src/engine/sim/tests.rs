//! The plain truths: a life without faults, the neutral cloud's single faults, and that a seed decides everything.

use super::case::{clean, every_single_fault, late_beyond_all_retries, neutral_manners, random};
use super::*;
use crate::providers::fake::Shape;

fn all_manners() -> Vec<Manners> {
    neutral_manners().into_iter().chain(Shape::PROVIDERS.map(Shape::manners)).collect()
}

#[test]
fn a_life_without_faults_takes_one_run_and_a_look_per_stage() {
    for manners in all_manners() {
        for life in [&LIFE[..], &HANDED_OVER] {
            let shape = manners.shape;
            let figures = play(&clean(manners.clone(), life, 1)).unwrap_or_else(|broken| panic!("{shape}: {broken}"));
            assert_eq!((figures.runs, figures.most_runs), (life.len(), 1), "{shape}");
            assert!(figures.calls[0] >= 8, "network, filesystem, machines, hosts, one load balancer: {:?}", figures.calls);
        }
    }
}

#[test]
fn every_single_fault_costs_at_most_a_run() {
    // The local shape is as strict as the first one.
    for manners in neutral_manners().into_iter().skip(1) {
        let clean = clean(manners, &LIFE, 11);
        let calls = play(&clean).expect("a life without faults").calls;
        // The stages of the shapes are in the matrix; here, on the neutral cloud, what tokens and lagging reads make of the first ones.
        let cases = every_single_fault(&clean, &calls, |stage| stage < 2);
        let fired = holds(&cases);
        assert!(fired * 100 >= cases.len() * 95, "only {fired} of {} faults happened", cases.len());
    }
}

#[test]
fn the_same_seed_plays_the_same() {
    let trace = |seed| format!("{:?}", play(&random(seed)));
    (0..20).for_each(|seed| assert_eq!(trace(seed), trace(seed)));
}

#[test]
fn a_request_that_lands_after_everybody_gave_up_leaves_nothing() {
    let manners = neutral_manners().into_iter().filter(|manners| manners.tokens);
    holds(&manners.flat_map(|manners| late_beyond_all_retries(&manners, 3)).collect::<Vec<_>>());
}
