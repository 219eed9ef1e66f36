//! Killed anywhere, run it again: the real binary, kill -9 at any step, and what the next run makes of it.

use crate::harness::{Operated, Story, assert_gone, http_get, text};
use crate::steps::{assert_at, kill_at_every_step};
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
fn up_and_down_killed_at_every_step_converge() {
    let story = Story::new("steps");
    let blueprint = story.example();
    let file = blueprint.to_str().expect("path");
    let log = |command: &str| story.home().join(format!("log/{command}-{}.log", story.name));
    let mut deaths = 0;
    // Every other time the cloud itself dies with its operator.
    let between = || {
        deaths += 1;
        if deaths % 2 == 0 {
            story.kill_daemon();
        }
    };
    let died = kill_at_every_step(&story, &log("up"), &["up", file, "--yes"], between);
    let network = |verb: &str| format!("{verb} network/{}", story.name);
    assert_at(&died, &["round Plan", &network("create"), "create filesystem/media", "create machine/control-1", "create machine/worker-"]);
    assert_at(&died, &["create host/control-1", "create host/worker-", "create load-balancer/web", "create blueprint/", "waiting: "]);
    let up: serde_json::Value = serde_json::from_str(&story.ok(&["up", file, "--yes", "-o", "json"])).expect("JSON");
    let address = format!("{}:80", up["loadBalancers"][0]["address"].as_str().expect("address"));
    assert!(http_get(&address, "/").expect("it serves").contains("Hello from web-"));
    let plan = story.kprov(&["plan", file, "--exit-code"]);
    assert_eq!(plan.status.code(), Some(0), "{}", text(&plan));

    let cluster = story.cluster();
    let died = kill_at_every_step(&story, &log("down"), &["down", file, "--yes"], || ());
    assert_at(&died, &["delete machine/control-1", "delete machine/worker-", "delete filesystem/media", &network("delete")]);
    assert_gone(&cluster);
}

#[test]
fn an_up_that_was_killed_after_any_step_is_taken_away_by_the_next_down() {
    // The network, the filesystem, three machines, the load balancer, three hosts; the tenth is the blueprint itself.
    for step in 1..=10 {
        let story = Story::new(&format!("half{step}"));
        let blueprint = story.example();
        let file = blueprint.to_str().expect("path");
        kill_after(&story, &["up", file, "--yes"], "] created ", step);
        let cluster = story.cluster();
        story.ok(&["down", file, "--yes"]);
        assert_gone(&cluster);
    }
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
