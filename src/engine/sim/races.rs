//! Two writers at once: two `up`, `up` and `down`, and a command line that stands still over the hand-off.

use super::case::clean;
use super::*;
use crate::providers::fake::Shape;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const SEEDS: u64 = 60;
const UP: Stage = Stage::Up { workers: 1, memory_gibibytes: 1 };

/// Both begin within the time that the slower needs; afterwards `last` is run alone, and decides.
async fn race(shape: Shape, seed: u64, stages: [Stage; 2], last: Stage) -> Result<(), Broken> {
    let case = clean(shape.manners(), &LIFE, seed);
    let mut play = Play::new(&case);
    let decoys = judge::place_decoys(&play.cloud, &play.desired(UP));
    let mut random = StdRng::seed_from_u64(seed);
    if random.random_bool(0.5) {
        let desired = play.desired(UP);
        play.cloud.want(&play.cluster, &desired);
        play.process(UP, &desired, play.journal(UP)).await.map_err(|error| Promise::Converges.broken(error.chain()))?;
    }
    let wishes = stages.map(|stage| play.desired(stage));
    // Either may be right while both are at work, so nobody's wish is held against a deletion.
    play.cloud.want(&play.cluster, &[]);
    let other = MemoryJournal::new(play.clock.clone());
    let head_start = Duration::from_millis(random.random_range(0..8000));
    let late = async {
        tokio::time::sleep(head_start).await;
        play.process(stages[1], &wishes[1], &other).await
    };
    let (first, second) = tokio::join!(play.process(stages[0], &wishes[0], play.journal(stages[0])), late);
    for end in [&first, &second] {
        let fair = end.as_ref().err().is_none_or(|error| !matches!(error.kind, Kind::Internal | Kind::Input));
        if !fair {
            return Err(Promise::OneWriter.broken(format!("{end:?}")));
        }
    }
    tokio::time::sleep(LATEST).await;
    let desired = play.desired(last);
    play.reach(last, 0).await?;
    judge::is_as_desired(&play.cloud, &play.cluster, &desired)?;
    judge::decoys_untouched(&play.cloud, &decoys)?;
    judge::no_violations(&play.cloud)
}

fn races_end_well(stages: [Stage; 2], last: Stage) {
    let seeds: Vec<(Shape, u64)> = Shape::PROVIDERS.into_iter().flat_map(|shape| (0..SEEDS).map(move |seed| (shape, seed))).collect();
    let results = on_all_cores(&seeds, |(shape, seed)| runtime().block_on(race(*shape, *seed, stages, last)));
    for ((shape, seed), result) in seeds.iter().zip(results) {
        result.unwrap_or_else(|broken| panic!("{broken}\n  in seed {seed} of {shape}"));
    }
}

#[test]
fn two_ups_at_once_make_one_cluster() {
    races_end_well([UP, Stage::Up { workers: 2, memory_gibibytes: 1 }], UP);
}

#[test]
fn up_and_down_at_once_leave_what_the_next_run_wants() {
    races_end_well([UP, Stage::Down], Stage::Down);
    races_end_well([Stage::Down, UP], UP);
}

#[test]
fn a_command_line_that_stood_still_over_the_hand_off_takes_nothing_back() {
    for shape in Shape::PROVIDERS {
        let clean = clean(shape.manners(), &HANDED_OVER, 7);
        let calls = play(&clean).expect("a life without faults").calls;
        let at = |stage: usize| (0..calls[stage]).map(move |call| (stage, call, Fault::Paused(Duration::from_secs(600))));
        let cases: Vec<Case> = at(0).chain(at(1)).map(|fault| Case { faults: vec![fault], ..clean.clone() }).collect();
        assert_eq!(holds(&cases), cases.len(), "each pause happened");
    }
}
