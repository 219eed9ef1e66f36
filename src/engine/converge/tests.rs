//! How a run ends that does not reach its end: the deadline, Ctrl-C, a refusal; and what it then says.

use super::*;
use crate::engine::journal::MemoryJournal;
use crate::engine::{Action, Cluster, Inputs, Phase, Progress, Request};
use async_trait::async_trait;
use serde_json::json;

/// Makes each thing in `takes`; `refused` is never made.
struct Slow {
    takes: Duration,
    refused: Option<&'static str>,
    made: Mutex<Vec<Observed>>,
    started: tokio::sync::Semaphore,
}

impl Slow {
    fn door(takes: u64, refused: Option<&'static str>) -> Arc<Slow> {
        Arc::new(Slow { takes: Duration::from_secs(takes), refused, made: Mutex::default(), started: tokio::sync::Semaphore::new(0) })
    }
}

#[async_trait]
impl Door for Slow {
    fn kinds(&self) -> &'static [&'static str] {
        &["thing"]
    }
    async fn observe(&self, _: &[Observed]) -> Result<Vec<Observed>> {
        Ok(self.made.lock().clone())
    }
    fn render(&self, action: &Action, _: &Inputs) -> Result<Request> {
        Ok(Request::of(&Cluster { name: "shop".into(), uid: "u1".into() }, action, json!({})))
    }
    async fn execute(&self, request: &Request, progress: Progress<'_>) -> Result<Option<Observed>> {
        progress("pouring");
        self.started.add_permits(1);
        if self.refused == Some(&request.id.name) {
            return Err(Error::provider("could not make it: over quota"));
        }
        tokio::time::sleep(self.takes).await;
        let thing = Observed {
            id: request.id.clone(),
            handle: format!("h-{}", request.id.name),
            generation: request.generation,
            phase: Phase::Ready,
            spec: json!({}),
            outputs: json!({}),
            needs: Vec::new(),
        };
        self.made.lock().push(thing.clone());
        Ok(Some(thing))
    }
}

/// Each needs the one before it.
fn chain(names: &[&str]) -> Vec<Resource> {
    let thing = |(place, name): (usize, &&str)| Resource {
        id: Id::new("thing", *name),
        spec: json!({}),
        needs: place.checked_sub(1).map(|before| Id::new("thing", names[before])).into_iter().collect(),
        replace_on: Vec::new(),
        summary: String::new(),
    };
    names.iter().enumerate().map(thing).collect()
}

async fn run(door: &Arc<Slow>, desired: &[Resource], options: &Options) -> Result<Outcome> {
    let clock: crate::engine::journal::Clock = Arc::new(|| 1_000_000);
    converge(&[door.clone() as Arc<dyn Door>], desired, &MemoryJournal::new(clock), options, &|_| ()).await
}

fn check(error: &Error, kind: Kind, message: &str, hints: &[&str]) {
    assert_eq!((error.kind, error.to_string().as_str()), (kind, message));
    for hint in hints {
        assert!(error.hints().iter().any(|said| said.contains(hint)), "no {hint:?} in {:?}", error.hints());
    }
    let ends = error.hints().last().is_some_and(|hint| hint.starts_with("run the same command again"));
    assert!(ends, "the last hint is the next step: {:?}", error.hints());
}

#[tokio::test(start_paused = true)]
async fn the_deadline_ends_a_run_with_what_is_there_and_what_is_in_flight() {
    let door = Slow::door(10, None);
    let options = Options { deadline: Some(Duration::from_secs(15)), ..Options::new(1) };
    let error = run(&door, &chain(&["a", "b", "c"]), &options).await.expect_err("it takes 30 s");
    check(
        &error,
        Kind::Timeout,
        "could not finish within 15 s",
        &["there: thing/a (h-a)", "missing: thing/b, thing/c", "in flight: create thing/b: pouring"],
    );
    let again = run(&door, &chain(&["a", "b", "c"]), &Options::new(2)).await.expect("the next run goes on");
    assert_eq!((again.effects, again.observed.len()), (2, 3));
}

#[tokio::test(start_paused = true)]
async fn ctrl_c_finishes_what_is_in_flight_and_starts_nothing_new() {
    let door = Slow::door(10, None);
    let options = Options::new(1);
    let desired = chain(&["a", "b"]);
    let press = async {
        door.started.acquire().await.expect("it is never closed").forget();
        options.cancel.cancel();
    };
    let (ended, ()) = tokio::join!(run(&door, &desired, &options), press);
    check(
        &ended.expect_err("it was stopped"),
        Kind::Interrupted,
        "stopped on request; nothing is in flight any more",
        &["there: thing/a (h-a)", "missing: thing/b"],
    );
    assert_eq!(door.started.available_permits(), 0, "b was never started");
}

#[tokio::test(start_paused = true)]
async fn ctrl_c_before_the_first_effect_says_how_to_go_on() {
    let (door, options) = (Slow::door(10, None), Options::new(1));
    options.cancel.cancel();
    let error = run(&door, &chain(&["a"]), &options).await.expect_err("it was stopped");
    check(&error, Kind::Interrupted, "stopped on request; nothing is in flight any more", &[]);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_with_what_this_very_run_has_made() {
    let door = Slow::door(1, Some("b"));
    let error = run(&door, &chain(&["a", "b", "c"]), &Options::new(1)).await.expect_err("b is refused");
    check(&error, Kind::Provider, "could not create thing/b", &["there: thing/a (h-a)", "missing: thing/b, thing/c"]);
    let nothing = Slow::door(1, Some("a"));
    let error = run(&nothing, &chain(&["a"]), &Options::new(1)).await.expect_err("a is refused");
    check(&error, Kind::Provider, "could not create thing/a", &["there: nothing", "missing: thing/a"]);
}
