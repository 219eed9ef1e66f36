//! How long `up` takes and what it asks of a provider's API, with the times and rates that the provider publishes (`fake::Shape`).

use super::*;
use crate::engine::plan::plan;
use crate::engine::{Action, Pace, Request};
use crate::providers::fake::Shape;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

/// Control planes and workers.
const SIZES: [(u32, u32); 3] = [(3, 3), (3, 50), (3, 500)];
const CLOUDS: [Shape; 2] = [Shape::Aws, Shape::Gcp];
/// What the engine may add to the longest chain of things that need each other.
const MAY_ADD: f64 = 0.05;
/// One call of the simulated wire, on average.
const CALL: Duration = Duration::from_millis(20);

struct Made {
    shape: Shape,
    machines: (u32, u32),
    took: Duration,
    chain: Duration,
    /// Calls with an effect, by name: how many, and the moments of those that are paced.
    calls: BTreeMap<&'static str, Vec<Duration>>,
}

fn made(shape: Shape, machines: (u32, u32)) -> Made {
    let manners = Manners { published: true, quota: usize::MAX, at_once: shape.at_once(), ..shape.manners() };
    runtime().block_on(async {
        let cloud = Cloud::new(manners, 1);
        let cluster = Cluster { name: "shop".into(), uid: "u-1".into() };
        let desired = expanded(&cloud, &cluster, machines.0, machines.1, 1);
        let started = Instant::now();
        let clock: Clock = Arc::new(move || 1_000_000 + started.elapsed().as_secs());
        let doors: [Arc<dyn Door>; 2] = [Arc::new(cloud.provider(&cluster)), Arc::new(cloud.hosts(&cluster))];
        let journal = MemoryJournal::new(clock);
        converge(&doors, &desired, &journal, &Options::new(1), &|_| ()).await.expect("a cluster");
        let mut calls: BTreeMap<&'static str, Vec<Duration>> = BTreeMap::new();
        for call in cloud.ledger().iter().filter(|call| call.id.kind != HOST) {
            calls.entry(call.call).or_default().push(call.at - started);
        }
        Made { shape, machines, took: started.elapsed(), chain: longest_chain(shape, &desired, &cluster), calls }
    })
}

/// Everything as soon as what it needs is there, and never faster than the provider's documented rates: what no engine can beat.
fn longest_chain(shape: Shape, desired: &[Resource], cluster: &Cluster) -> Duration {
    let (mut ends, mut buckets): (HashMap<&Id, Duration>, HashMap<&str, Duration>) = Default::default();
    let actions = plan(desired, &[], &BTreeMap::new()).actions;
    let action = |id: &Id| actions.iter().find(|action| action.id == *id).expect("everything is made");
    let mut order: Vec<&Resource> = desired.iter().collect();
    let mut last = Duration::ZERO;
    while !order.is_empty() {
        let (ready, blocked): (Vec<_>, Vec<_>) = order.into_iter().partition(|wish| wish.needs.iter().all(|need| ends.contains_key(need)));
        for wish in ready {
            let after = wish.needs.iter().map(|need| ends[need]).max().unwrap_or_default();
            let pace = if wish.id.kind == HOST { None } else { shape.pace(&request(cluster, action(&wish.id))) };
            let start = released(pace, after, &mut buckets);
            let calls = shape.calls(&wish.id.kind, super::super::Verb::Create).len() as u32;
            let end = start + shape.takes(&wish.id.kind, super::super::Verb::Create) + CALL * (calls + 1);
            ends.insert(&wish.id, end);
            last = last.max(end);
        }
        order = blocked;
    }
    last
}

fn request(cluster: &Cluster, action: &Action) -> Request {
    Request::of(cluster, action, json!({}))
}

/// When a token bucket lets the next one go that is ready at `after`.
fn released(pace: Option<Pace>, after: Duration, buckets: &mut HashMap<&str, Duration>) -> Duration {
    let Some(pace) = pace else { return after };
    let interval = Duration::from_secs_f64(1.0 / pace.per_second);
    let free = buckets.entry(pace.bucket).or_default();
    let due = (*free).max(after);
    *free = due + interval;
    due.saturating_sub(interval * (pace.burst - 1)).max(after)
}

/// Whether calls at these moments ever find a token bucket of this size and rate empty.
fn fits(moments: &[Duration], burst: f64, per_second: f64) -> bool {
    let mut moments = moments.to_vec();
    moments.sort_unstable();
    let (mut tokens, mut last) = (burst, Duration::ZERO);
    moments.into_iter().all(|moment| {
        tokens = (tokens + (moment - last).as_secs_f64() * per_second).min(burst) - 1.0;
        last = moment;
        tokens > -1e-6
    })
}

fn table(all: &[Made]) -> String {
    let mut text =
        String::from("| provider | machines | longest chain | `up` | calls with an effect | most of one |\n|---|---|---|---|---|---|\n");
    for made in all {
        let Made { shape, machines: (controls, workers), took, chain, calls } = made;
        let total: usize = calls.values().map(Vec::len).sum();
        let (most, count) = calls.iter().map(|(name, moments)| (name, moments.len())).max_by_key(|(_, count)| *count).expect("calls");
        let (chain, took) = (chain.as_secs(), took.as_secs());
        writeln!(text, "| {shape} | {controls} + {workers} | {chain} s | {took} s | {total} | {most}: {count} |").expect("a string grows");
    }
    text
}

#[test]
fn up_takes_no_longer_than_its_longest_chain_and_readme_says_how_long() {
    let sizes: Vec<(Shape, (u32, u32))> = CLOUDS.into_iter().flat_map(|shape| SIZES.map(|size| (shape, size))).collect();
    let all = on_all_cores(&sizes, |(shape, size)| made(*shape, *size));
    let table = table(&all);
    println!("{table}");
    for made in &all {
        let (took, chain) = (made.took.as_secs_f64(), made.chain.as_secs_f64());
        let (shape, (controls, workers)) = (made.shape, made.machines);
        assert!(took <= chain * (1.0 + MAY_ADD), "{shape} {controls} + {workers}: {took:.0} s for a chain of {chain:.0} s");
    }
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).expect("README.md");
    assert!(readme.contains(&table), "README's figures of a cluster on a cloud are others; this run's are above");
}

/// The documented buckets: EC2's launches, and Compute Engine's mutations per minute.
#[test]
fn no_call_leaves_faster_than_its_provider_allows() {
    let launches = &made(Shape::Aws, (3, 100)).calls["RunInstances"];
    assert!(launches.len() == 103 && fits(launches, 5.0, 2.0), "EC2 takes 5 launches at once and 2 a second: {launches:?}");
    let all: Vec<Duration> = made(Shape::Gcp, (3, 100)).calls.into_values().flatten().collect();
    assert!(fits(&all, 1500.0, 25.0), "Compute Engine takes 1,500 calls a minute");
    assert!(!fits(&[Duration::ZERO; 6], 5.0, 2.0), "a crowd is noticed");
}
