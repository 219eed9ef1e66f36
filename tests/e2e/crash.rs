//! Killed anywhere, run it again: the real binary, kill -9 right after a step was reported, and what the next run makes of it.

use crate::harness::{Operated, Story, assert_gone, http_get, text};
use std::io::{BufRead, BufReader};
use std::process::Stdio;

/// Runs a command and kills it with -9 as soon as its `count`-th line with `word` appears.
fn kill_after(story: &Story, arguments: &[&str], word: &str, count: usize) {
    let mut child = story.command().args(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("kprov starts");
    let lines = BufReader::new(child.stderr.take().expect("stderr")).lines();
    let seen = lines.map_while(Result::ok).filter(|line| line.contains(word)).take(count).count();
    child.kill().expect("kill");
    child.wait().expect("the process ends");
    assert_eq!(seen, count, "the moment to kill at never came");
}

#[test]
fn up_killed_after_any_step_is_continued_by_the_next_up() {
    for step in [1, 3, 6, 8, 10] {
        let story = Story::new(&format!("up{step}"));
        let blueprint = story.example();
        let file = blueprint.to_str().expect("path");
        kill_after(&story, &["up", file, "--yes"], "] created ", step);
        story.ok(&["up", file, "--yes"]);
        let plan = story.kprov(&["plan", file, "--exit-code"]);
        assert_eq!(plan.status.code(), Some(0), "after a kill at step {step}: {}", text(&plan));
        let cluster = story.cluster();
        story.ok(&["down", &story.name, "--yes"]);
        assert_gone(&cluster);
    }
}

#[test]
fn a_half_done_up_and_a_half_done_down_leave_nothing_after_the_next_down() {
    let story = Story::new("half");
    let blueprint = story.example();
    let file = blueprint.to_str().expect("path");
    kill_after(&story, &["up", file, "--yes"], "] created ", 5);
    let cluster = story.cluster();
    kill_after(&story, &["down", file, "--yes"], "] deleted ", 2);
    story.ok(&["down", file, "--yes"]);
    assert_gone(&cluster);
}

#[test]
fn the_cluster_survives_its_control_planes_and_its_clouds_death() {
    let story = Story::new("deaths");
    let blueprint = story.example();
    let up: serde_json::Value =
        serde_json::from_str(&story.ok(&["up", blueprint.to_str().expect("path"), "--yes", "-o", "json"])).expect("JSON");
    let address = format!("{}:80", up["loadBalancers"][0]["address"].as_str().expect("address"));

    story.kill_process(&["local", "daemon"]);
    story.ok(&["up", blueprint.to_str().expect("path"), "--yes"]);
    assert!(http_get(&address, "/").expect("the load balancer is back").contains("Hello from web-"));

    let uid = story.kubectl_ok(&["get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}"]);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(story.machine_pid("control-1")), nix::sys::signal::Signal::SIGKILL).expect("kill");
    assert!(http_get(&address, "/").expect("nodes serve on without the control plane").contains("Hello from web-"));
    story.ok(&["up", blueprint.to_str().expect("path"), "--yes"]);
    assert_eq!(story.kubectl_ok(&["get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}"]), uid, "no object was lost");
}
