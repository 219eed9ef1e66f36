//! A pod's next step, as tables.

use super::*;
use serde_json::{Value, json};

const NOW: Nanos = 1_000_000 * SECOND;

/// A pod with the given specification; containers are `a`, `b`, ...
fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "shop", "uid": "u"}, "spec": spec})).unwrap()
}

fn one() -> Value {
    json!({"containers": [{"name": "a", "image": "i"}]})
}

fn with_policy(policy: &str) -> Value {
    json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "i"}]})
}

/// A ready sandbox and these containers: (name, attempt, state, exit code, seconds since the exit).
fn seen(containers: &[(&str, u32, State, i32, i64)]) -> Observed {
    let sandbox = Sandbox { id: "s".into(), ready: true, ips: vec!["10.244.0.2".into()], ..Default::default() };
    let mut list: Vec<Container> = containers
        .iter()
        .map(|(name, attempt, state, exit_code, ago)| Container {
            id: format!("{name}{attempt}"),
            name: (*name).into(),
            attempt: *attempt,
            sandbox: "s".into(),
            state: *state,
            started: NOW - ago * SECOND - SECOND,
            finished: NOW - ago * SECOND,
            ended: NOW - ago * SECOND,
            exit_code: *exit_code,
            hash: hash(&serde_json::from_value(json!({"name": name, "image": "i"})).unwrap()),
            ..Default::default()
        })
        .collect();
    list.sort_by_key(|container| std::cmp::Reverse(container.attempt));
    Observed { sandboxes: vec![sandbox], containers: list }
}

/// Volumes are there, the images of these containers too.
fn ready(images: &[&str]) -> Memory {
    Memory { volumes: Step::Done, images: images.iter().map(|name| ((*name).to_owned(), Step::Done)).collect(), ..Default::default() }
}

fn words(plan: &Plan) -> Vec<String> {
    let word = |op: &Op| match op {
        Op::PrepareVolumes => "volumes".to_owned(),
        Op::CreateSandbox { attempt } => format!("sandbox {attempt}"),
        Op::StopSandbox { id } => format!("stop-sandbox {id}"),
        Op::RemoveSandbox { id } => format!("remove-sandbox {id}"),
        Op::EnsureImage { container } => format!("image {container}"),
        Op::Start { container, attempt, .. } => format!("start {container} {attempt}"),
        Op::Stop { id, until, .. } => format!("stop {id} in {}", (until - NOW) / SECOND),
        Op::RemoveContainer { id } => format!("remove {id}"),
        Op::CleanUp => "clean-up".to_owned(),
        Op::Finish => "finish".to_owned(),
    };
    plan.ops.iter().map(word).collect()
}

fn check(spec: Value, seen: &Observed, memory: &Memory, wanted: &[&str]) -> Plan {
    let plan = sync(&pod(spec), seen, memory, NOW);
    assert_eq!(words(&plan), wanted);
    plan
}

#[test]
fn a_new_pod_gets_a_sandbox_and_volumes_at_once_and_containers_then() {
    check(one(), &Observed::default(), &Memory::default(), &["volumes", "sandbox 0"]);
    check(one(), &seen(&[]), &Memory { volumes: Step::Busy, ..Default::default() }, &["image a"]);
    check(one(), &seen(&[]), &Memory { volumes: Step::Busy, ..ready(&["a"]) }, &[]);
    check(one(), &seen(&[]), &ready(&["a"]), &["start a 0"]);
    check(one(), &seen(&[("a", 0, State::Running, 0, 0)]), &ready(&[]), &[]);
}

#[test]
fn init_containers_run_one_after_the_other_before_the_rest() {
    let spec =
        json!({"initContainers": [{"name": "x", "image": "i"}, {"name": "y", "image": "i"}], "containers": [{"name": "a", "image": "i"}]});
    let all = ready(&["x", "y", "a"]);
    let plan = check(spec.clone(), &seen(&[]), &all, &["start x 0"]);
    assert_eq!(plan.waiting["a"].reason, "PodInitializing");
    check(spec.clone(), &seen(&[("x", 0, State::Running, 0, 0)]), &all, &[]);
    check(spec.clone(), &seen(&[("x", 0, State::Exited, 0, 0)]), &all, &["start y 0"]);
    check(spec.clone(), &seen(&[("x", 0, State::Exited, 1, 0)]), &all, &["start x 1"]);
    check(spec.clone(), &seen(&[("x", 0, State::Exited, 0, 0), ("y", 0, State::Exited, 0, 0)]), &all, &["start a 0"]);
    // Once the main containers began, the init containers' records do not matter.
    check(spec, &seen(&[("a", 0, State::Running, 0, 0)]), &all, &[]);
}

#[test]
fn a_sidecar_starts_first_and_is_restarted_but_does_not_hold_the_rest() {
    let spec =
        json!({"initContainers": [{"name": "x", "image": "i", "restartPolicy": "Always"}], "containers": [{"name": "a", "image": "i"}]});
    let mut memory = ready(&["x", "a"]);
    check(spec.clone(), &seen(&[("x", 0, State::Running, 0, 0)]), &memory, &[]);
    memory.started.insert("x0".into());
    check(spec.clone(), &seen(&[("x", 0, State::Running, 0, 0)]), &memory, &["start a 0"]);
    check(spec.clone(), &seen(&[("x", 0, State::Exited, 0, 0), ("a", 0, State::Running, 0, 0)]), &memory, &["start x 1"]);
    // On the way out it outlives the main containers.
    memory.ending = Some(Ending { since: NOW, grace_seconds: 5 });
    check(spec.clone(), &seen(&[("x", 0, State::Running, 0, 0), ("a", 0, State::Running, 0, 0)]), &memory, &["stop a0 in 5"]);
    check(spec, &seen(&[("x", 0, State::Running, 0, 0), ("a", 0, State::Exited, 0, 0)]), &memory, &["stop x0 in 5"]);
}

#[test]
fn the_restart_policy_decides_what_an_end_means() {
    let cases: [(&str, i32, &[&str]); 6] = [
        ("Always", 0, &["start a 1"]),
        ("Always", 1, &["start a 1"]),
        ("OnFailure", 1, &["start a 1"]),
        ("OnFailure", 0, &["stop-sandbox s"]),
        ("Never", 0, &["stop-sandbox s"]),
        ("Never", 1, &["stop-sandbox s"]),
    ];
    for (policy, code, wanted) in cases {
        check(with_policy(policy), &seen(&[("a", 0, State::Exited, code, 0)]), &ready(&["a"]), wanted);
    }
}

#[test]
fn crashes_wait_ever_longer_and_long_runs_forgive() {
    let pause = |attempt, ago, remembered: Option<i64>| {
        let mut memory = ready(&["a"]);
        memory.backoff.extend(remembered.map(|seconds| ("a".to_owned(), seconds * SECOND)));
        let plan = sync(&pod(one()), &seen(&[("a", attempt, State::Exited, 1, ago)]), &memory, NOW);
        let wait = plan.wake_at.map(|at| (at - NOW) / SECOND);
        assert_eq!(wait.is_some(), plan.waiting["a"].reason == "CrashLoopBackOff");
        (wait, plan.backoff.get("a").map(|pause| pause / SECOND))
    };
    assert_eq!(pause(0, 0, None), (None, Some(10)), "the first restart is immediate");
    assert_eq!(pause(1, 3, Some(10)), (Some(7), None));
    assert_eq!(pause(1, 10, Some(10)), (None, Some(20)));
    assert_eq!(pause(9, 299, Some(300)), (Some(1), None));
    assert_eq!(pause(9, 300, Some(300)), (None, Some(300)), "five minutes are the most");
    assert_eq!(pause(3, 0, None), (Some(40), None), "an agent restart forgets nothing");
    let mut long = seen(&[("a", 9, State::Exited, 1, 0)]);
    long.containers[0].started = NOW - 700 * SECOND;
    check(one(), &long, &Memory { backoff: [("a".to_owned(), 300 * SECOND)].into(), ..ready(&["a"]) }, &["start a 10"]);
}

#[test]
fn a_dead_sandbox_is_replaced_and_what_ran_in_it_restarts() {
    let mut ruins = seen(&[("a", 0, State::Running, 0, 0)]);
    ruins.sandboxes[0].ready = false;
    check(one(), &ruins, &ready(&["a"]), &["stop a0 in 30"]);
    ruins.containers[0].state = State::Exited;
    check(one(), &ruins, &ready(&["a"]), &["stop-sandbox s", "sandbox 1"]);
    let mut renewed = ruins.clone();
    renewed.sandboxes.insert(0, Sandbox { id: "t".into(), attempt: 1, ready: true, ips: vec!["10.244.0.3".into()], ..Default::default() });
    check(one(), &renewed, &ready(&["a"]), &["start a 1"]);
    ruins.containers[0].exit_code = 137;
    check(with_policy("Never"), &ruins, &ready(&["a"]), &["stop-sandbox s"]);
    let mut lost = seen(&[]);
    lost.sandboxes[0].ips.clear();
    check(one(), &lost, &ready(&["a"]), &["stop-sandbox s", "sandbox 1"]);
}

#[test]
fn an_ending_pod_goes_step_by_step_and_a_shorter_grace_hurries() {
    let mut memory = ready(&[]);
    memory.ending = Some(Ending { since: NOW, grace_seconds: 30 });
    let running = seen(&[("a", 0, State::Running, 0, 0)]);
    check(one(), &running, &memory, &["stop a0 in 30"]);
    memory.stopping.insert("a0".into(), NOW + 30 * SECOND);
    check(one(), &running, &memory, &[]);
    memory.ending = Some(Ending { since: NOW, grace_seconds: 0 });
    check(one(), &running, &memory, &["stop a0 in 0"]);
    let stopped = seen(&[("a", 0, State::Exited, 143, 0)]);
    check(one(), &stopped, &memory, &["stop-sandbox s"]);
    memory.stopped.insert("s".into());
    check(one(), &stopped, &memory, &["clean-up"]);
    memory.cleaned = true;
    check(one(), &Observed::default(), &memory, &["finish"]);
}

#[test]
fn an_unhealthy_or_changed_container_is_stopped_then_restarted() {
    let mut memory = ready(&["a"]);
    memory.unhealthy.insert("a0".into(), Unhealthy::Liveness);
    check(one(), &seen(&[("a", 0, State::Running, 0, 0)]), &memory, &["stop a0 in 30"]);
    memory.stopping.insert("a0".into(), NOW + 30 * SECOND);
    check(one(), &seen(&[("a", 0, State::Running, 0, 0)]), &memory, &[]);
    let other = json!({"containers": [{"name": "a", "image": "other"}]});
    check(other, &seen(&[("a", 0, State::Running, 0, 0)]), &ready(&["a"]), &["stop a0 in 30"]);
}

#[test]
fn a_failed_image_waits_with_its_reason() {
    let failure = Failure { reason: "ImagePullBackOff", message: "no".into(), retry_at: NOW + 4 * SECOND, pause: 10 * SECOND };
    let mut memory = ready(&[]);
    memory.images.insert("a".into(), Step::Failed(failure.clone()));
    let plan = check(one(), &seen(&[]), &memory, &[]);
    assert_eq!((plan.waiting["a"].reason.as_str(), plan.wake_at), ("ImagePullBackOff", Some(NOW + 4 * SECOND)));
    memory.images.insert("a".into(), Step::Failed(Failure { retry_at: NOW, ..failure }));
    check(one(), &seen(&[]), &memory, &["image a"]);
}

#[test]
fn one_dead_predecessor_is_kept_for_its_log() {
    let three = seen(&[("a", 2, State::Running, 0, 0), ("a", 1, State::Exited, 1, 0), ("a", 0, State::Exited, 1, 0)]);
    check(one(), &three, &ready(&[]), &["remove a0"]);
}
