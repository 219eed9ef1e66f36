//! Killed at any step, or two at once: one more run and it is right, and nothing is left behind.

use super::assert_same;
use crate::harness::{Operated, text};
use crate::rig::hosts::Hosts;
use crate::steps::{assert_at, kill_at_every_step};

fn two_hosts(name: &str) -> Hosts {
    let mut hosts = Hosts::new(name);
    hosts.root(41);
    hosts.sudo(42);
    hosts
}

fn assert_nothing_to_do(hosts: &Hosts, file: &str, when: &str) {
    let plan = hosts.kprov(&["plan", file, "--exit-code"]);
    assert_eq!(plan.status.code(), Some(0), "{when}: {}", text(&plan));
}

#[test]
fn up_and_down_killed_at_every_step_converge() {
    let hosts = two_hosts("steps");
    let before = hosts.inventories();
    let file = hosts.example(1, "");
    let file = file.to_str().expect("path");
    let log = |command: &str| hosts.home().join(format!("log/{command}-{}.log", hosts.name));
    let died = kill_at_every_step(&hosts, &log("up"), &["up", file, "--yes"], || ());
    assert_at(&died, &["create filesystem/media", "create machine/", "create host/", "create load-balancer/web", "create blueprint/"]);
    hosts.ok(&["up", file, "--yes"]);
    assert_nothing_to_do(&hosts, file, "after a death at every step");
    let died = kill_at_every_step(&hosts, &log("down"), &["down", file, "--yes"], || ());
    assert_at(&died, &["delete machine/control-1", "delete machine/worker-1", "delete filesystem/media"]);
    assert_same(&before, &hosts.inventories());
}

#[test]
fn an_up_that_was_killed_after_any_step_is_taken_away_by_the_next_down() {
    // All steps end to end cost a cluster each; where a half-made thing can stay behind is after the filesystem, the machines, the first host.
    let all = std::env::var("KPROV_KILLS").is_ok_and(|value| value == "all");
    for step in if all { 1..=8 } else { 2..=5 } {
        let hosts = two_hosts(&format!("killed{step}"));
        let before = hosts.inventories();
        let file = hosts.example(1, "");
        let file = file.to_str().expect("path");
        hosts.kill_after(&["up", file, "--yes"], "] created ", step);
        hosts.ok(&["down", file, "--yes"]);
        assert_same(&before, &hosts.inventories());
    }
}

#[test]
fn a_change_or_a_down_that_was_killed_is_continued_with_the_state_folder_or_without() {
    let mut hosts = two_hosts("change");
    hosts.root(43);
    let before = hosts.inventories();
    let file = hosts.example(1, "");
    let file = file.to_str().expect("path").to_string();
    hosts.ok(&["up", &file, "--yes"]);
    hosts.example(2, "");
    // The loop inside works on: whoever asked for it is not needed any more.
    hosts.kill_after(&["up", &file, "--yes"], "worker-2", 1);
    hosts.ok(&["up", &file, "--yes"]);
    assert_nothing_to_do(&hosts, &file, "after a change whose command was killed");

    // Its hosts are off, but nothing else: a new up makes it whole again.
    hosts.kill_after(&["down", &file, "--yes"], "] deleted ", 1);
    hosts.ok(&["up", &file, "--yes"]);
    assert_nothing_to_do(&hosts, &file, "after a down that was killed");
    for step in [2, 1, 1] {
        hosts.kill_after(&["down", &file, "--yes"], "] deleted ", step);
        std::fs::remove_dir_all(hosts.home()).expect("the state is lost");
    }
    hosts.ok(&["down", &file, "--yes"]);
    assert_same(&before, &hosts.inventories());
}

#[test]
fn two_commands_at_once_end_in_what_one_of_them_wanted() {
    let hosts = two_hosts("twice");
    let before = hosts.inventories();
    let file = hosts.example(1, "");
    let file = file.to_str().expect("path");
    let up = ["up", file, "--yes"];
    std::thread::scope(|scope| {
        let both = [scope.spawn(|| hosts.kprov(&up)), scope.spawn(|| hosts.kprov(&up))];
        for output in both.map(|one| one.join().expect("it ends")) {
            // The one that came second gives way, or finds everything done.
            assert!(matches!(output.status.code(), Some(0 | 6)), "{}", text(&output));
        }
    });
    hosts.ok(&up);
    assert_nothing_to_do(&hosts, file, "after two at once");
    hosts.ok(&["down", file, "--yes"]);
    assert_same(&before, &hosts.inventories());

    let (mut first, seen) = hosts.begun(&up, "] created ", 2);
    assert_eq!(seen, 2);
    let down = hosts.kprov(&["down", file, "--yes"]);
    let code = first.wait().expect("it ends").code();
    assert!(matches!(code, Some(0 | 4 | 6 | 7)), "the command that was overtaken says so: {code:?}");
    assert!(matches!(down.status.code(), Some(0 | 6)), "{}", text(&down));
    hosts.ok(&["down", file, "--yes"]);
    assert_same(&before, &hosts.inventories());
}
