//! Killed at any step, or two at once: one more run and it is right, and nothing is left behind.

use super::assert_same;
use crate::harness::{Operated, text};
use crate::rig::hosts::Hosts;

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
fn an_up_that_was_killed_is_continued_or_taken_away_by_the_next_command() {
    // After the network, the filesystem, the machines, the first host.
    for (step, then) in [(1, "up"), (2, "down"), (3, "down"), (4, "up"), (5, "down")] {
        let hosts = two_hosts(&format!("killed{step}"));
        let before = hosts.inventories();
        let file = hosts.example(1, "");
        let file = file.to_str().expect("path");
        hosts.kill_after(&["up", file, "--yes"], "] created ", step);
        if then == "up" {
            hosts.ok(&["up", file, "--yes"]);
            assert_nothing_to_do(&hosts, file, &format!("after a kill at step {step}"));
        }
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
