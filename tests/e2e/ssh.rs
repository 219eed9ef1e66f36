//! Machines that exist already: claimed, served from, and left exactly as they were found.

use crate::harness::text;
use crate::rig::hosts::Hosts;
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("not JSON ({error}): {text}"))
}

/// Line by line, so that a failure names what is too much or missing.
fn assert_same(before: &[String], after: &[String]) {
    for (before, after) in before.iter().zip(after) {
        let lines = |text: &str| text.lines().map(str::to_string).collect::<Vec<_>>();
        let (before, after) = (lines(before), lines(after));
        let more: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
        let less: Vec<_> = before.iter().filter(|line| !after.contains(line)).collect();
        assert!(more.is_empty() && less.is_empty(), "left behind: {more:#?}\ntaken along: {less:#?}");
    }
}

fn three_hosts(name: &str) -> Hosts {
    let mut hosts = Hosts::new(name);
    for last in [11, 12, 13] {
        hosts.root(last);
    }
    hosts
}

#[test]
fn hosts_become_a_serving_cluster_and_are_left_as_they_were() {
    let hosts = three_hosts("own");
    let before = hosts.inventories();
    let blueprint = hosts.example(2, "");
    let file = blueprint.to_str().expect("path");
    let up = json(&hosts.ok(&["up", file, "--yes", "-o", "json"]));
    assert_eq!(up["cluster"], hosts.name.as_str());
    let nodes = hosts.kubectl_ok(&["get", "nodes", "--no-headers"]);
    assert_eq!(nodes.lines().filter(|line| line.contains(" Ready ")).count(), 3, "{nodes}");
    let pods = hosts.kubectl_ok(&["get", "pods", "-n", "shop", "--no-headers"]);
    assert_eq!(pods.lines().filter(|line| line.contains("1/1") && line.contains("Running")).count(), 3, "{pods}");
    let again = hosts.kprov(&["plan", file, "--exit-code"]);
    assert_eq!(again.status.code(), Some(0), "plan after up is empty: {}", text(&again));
    hosts.ok(&["down", &hosts.name, "--yes"]);
    assert_same(&before, &hosts.inventories());
}

#[test]
fn everything_that_is_wrong_with_any_host_is_told_at_once_and_nothing_is_changed() {
    let mut hosts = Hosts::new("wrong");
    hosts.host(21, "root", "mount -t tmpfs -o size=64m tmpfs /var/lib/kprov; mount -t tmpfs -o size=8m tmpfs /var/lib");
    hosts.host(22, "debian", "rm -f /etc/sudoers.d/*; sed -i '/debian/d' /etc/sudoers");
    hosts.root(23);
    hosts.root(24);
    let before = hosts.inventories();
    let other = hosts.hosts()[0].key.split(' ').nth(1).expect("a key").to_string();
    let right = hosts.hosts()[2].key.split(' ').nth(1).expect("a key").to_string();
    let file = hosts.example(3, "        - {address: 10.99.0.99, user: root}\n");
    let text_of = std::fs::read_to_string(&file).expect("the blueprint");
    // The third host shows another key than the one that is expected of it; the fourth is sound; the fifth is not there.
    let damaged = text_of.replace(&right, &other).replace("count: 3", "count: 4");
    std::fs::write(&file, damaged).expect("the blueprint");
    let refused = hosts.kprov(&["up", file.to_str().expect("path"), "--yes"]);
    let said = text(&refused);
    assert_eq!(refused.status.code(), Some(3), "{said}");
    for part in [
        "could not use 4 of 5 hosts",
        "10.99.0.21: /var/lib is on a disk of 8 MiB, 2048 are wanted; /var/lib has",
        "10.99.0.22: debian cannot become root without a password",
        "10.99.0.23: its host key is not the expected one",
        "10.99.0.99: it cannot be reached",
        "NOPASSWD",
        "ssh-keygen -lf",
    ] {
        assert!(said.contains(part), "{part:?} in:\n{said}");
    }
    let (_, problems) = said.split_once("error:").expect("an error");
    assert!(!problems.contains("10.99.0.24"), "a sound host is not mentioned:\n{said}");
    assert_same(&before, &hosts.inventories());
}

#[test]
fn a_host_of_another_cluster_is_refused_by_name_and_a_lost_state_folder_is_found_again() {
    let mut hosts = Hosts::new("lost");
    hosts.root(31);
    hosts.sudo(32);
    let before = hosts.inventories();
    let file = hosts.example(1, "");
    let file = file.to_str().expect("path");
    hosts.ok(&["up", file, "--yes"]);
    let uid = hosts.kubectl_ok(&["get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}"]);

    let others = std::fs::read_to_string(file).expect("the blueprint").replace(&format!("name: {}", hosts.name), "name: other");
    let stranger = hosts.path("other.yaml");
    std::fs::write(&stranger, others).expect("another blueprint");
    let refused = text(&hosts.kprov(&["up", stranger.to_str().expect("path"), "--yes"]));
    assert!(refused.contains(&format!("it is control-1 of cluster {}", hosts.name)), "{refused}");
    assert!(refused.contains(&format!("10.99.0.32: ")) && refused.contains(&format!("worker-1 of cluster {}", hosts.name)), "{refused}");

    std::fs::remove_dir_all(hosts.home()).expect("the state is lost");
    let plan = hosts.kprov(&["plan", file, "--exit-code"]);
    assert_eq!(plan.status.code(), Some(0), "what exists is found by its claims: {}", text(&plan));
    hosts.ok(&["up", file, "--yes"]);
    assert_eq!(hosts.kubectl_ok(&["get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}"]), uid, "the same cluster");
    std::fs::remove_dir_all(hosts.home()).expect("the state is lost again");
    hosts.ok(&["down", file, "--yes"]);
    assert_same(&before, &hosts.inventories());
}

#[test]
fn an_up_that_was_killed_is_continued_or_taken_away_by_the_next_command() {
    for (step, then) in [(1, "up"), (2, "down"), (4, "up"), (5, "down")] {
        let mut hosts = Hosts::new(&format!("killed{step}"));
        hosts.root(41);
        hosts.sudo(42);
        let before = hosts.inventories();
        let file = hosts.example(1, "");
        let file = file.to_str().expect("path");
        hosts.kill_after(&["up", file, "--yes"], "] created ", step);
        if then == "up" {
            hosts.ok(&["up", file, "--yes"]);
            let plan = hosts.kprov(&["plan", file, "--exit-code"]);
            assert_eq!(plan.status.code(), Some(0), "after a kill at step {step}: {}", text(&plan));
        }
        hosts.ok(&["down", file, "--yes"]);
        assert_same(&before, &hosts.inventories());
    }
}
