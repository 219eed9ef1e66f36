//! The engine's own figures: `cargo bench --bench engine`. Planning over a thousand resources, from nothing, without a change, and to
//! the last; no cluster, no network.

use kprov::engine::plan::plan;
use kprov::engine::{HOST, Id, MACHINE, Observed, Phase, Resource, lint};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const RUNS: usize = 5;
/// With their hosts, a network, filesystems and load balancers: a thousand resources.
const MACHINES: usize = 494;

fn main() {
    // `cargo bench -- --list` and test runners ask every bench for its tests: this one has none.
    if std::env::args().any(|argument| argument == "--list") {
        return;
    }
    let desired = desired();
    let observed: Vec<Observed> = desired.iter().map(as_observed).collect();
    println!("{} resources", desired.len());
    measure("plan from nothing", &desired, &[]);
    measure("plan without a change", &desired, &observed);
    measure("plan to the last", &[], &observed);
}

fn measure(what: &str, desired: &[Resource], observed: &[Observed]) {
    let mut times: Vec<Duration> = (0..RUNS)
        .map(|_| {
            let started = Instant::now();
            let plan = plan(desired, observed, &BTreeMap::new());
            let refusals = lint::lint(&plan, desired, observed);
            assert!(refusals.is_empty(), "{refusals:?}");
            started.elapsed()
        })
        .collect();
    times.sort_unstable();
    println!("{what}: median {:.3} s, max {:.3} s ({RUNS} runs)", times[RUNS / 2].as_secs_f64(), times[RUNS - 1].as_secs_f64());
}

fn desired() -> Vec<Resource> {
    let network = Id::new("network", "shop");
    let ground: Vec<Id> = (0..8).map(|number| Id::new("filesystem", format!("files-{number}"))).collect();
    let machines: Vec<Id> = (1..=MACHINES).map(|number| Id::new(MACHINE, format!("worker-{number}"))).collect();
    let mut all = vec![resource(network.clone(), vec![])];
    all.extend(ground.iter().map(|id| resource(id.clone(), vec![network.clone()])));
    let under: Vec<Id> = std::iter::once(network.clone()).chain(ground).collect();
    all.extend(machines.iter().map(|id| resource(id.clone(), under.clone())));
    all.extend(machines.iter().map(|id| resource(Id::new(HOST, &id.name), vec![id.clone()])));
    let behind: Vec<Id> = std::iter::once(network).chain(machines).collect();
    all.extend((0..3).map(|number| resource(Id::new("load-balancer", format!("web-{number}")), behind.clone())));
    all
}

fn resource(id: Id, needs: Vec<Id>) -> Resource {
    let role = if id.name == "worker-1" { "control-plane" } else { "worker" };
    let spec = json!({"role": role, "group": "worker", "cpuMillis": 2000, "memoryBytes": 4u64 << 30, "diskBytes": 20u64 << 30});
    Resource { id, spec, needs, replace_on: vec!["role".into()], summary: "2 cpu, 4Gi memory".into() }
}

fn as_observed(wish: &Resource) -> Observed {
    let (id, needs, spec) = (wish.id.clone(), wish.needs.clone(), wish.spec.clone());
    Observed { handle: format!("i-{id}"), id, generation: 1, phase: Phase::Ready, spec, outputs: json!({}), needs }
}
