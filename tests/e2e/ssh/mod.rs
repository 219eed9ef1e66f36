//! Machines that exist already: claimed, served from, and left exactly as they were found.

mod faults;
mod networks;
mod shares;
mod ways;

use crate::harness::{Operated, json, text, until, within_a_minute};
use crate::rig::hosts::Hosts;
use kprov::engine::Cluster;
use kprov::providers::ssh::Machines;
use kprov::providers::{Provider, conformance};

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

/// For a host that the loop inside gives back: it looks at the free ones now and then, and a look is a process there.
fn assert_becomes_same(hosts: &Hosts, host: &str, before: String) {
    let mut after = String::new();
    let same = within_a_minute(|| {
        after = hosts.inventory(host);
        after == before
    });
    if !same {
        assert_same(&[before], &[after]);
        panic!("the same lines as before, in another order or number");
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
fn the_shop_is_served_from_own_machines_and_they_are_left_as_they_were() {
    let hosts = Hosts::of_the_shop();
    let before = hosts.inventories();
    let blueprint = hosts.shop();
    let file = blueprint.to_str().expect("path");
    let up = json(&hosts.ok(&["up", file, "--yes", "-o", "json"]));
    assert_eq!(up["cluster"], "shop");
    assert_eq!(up["loadBalancers"][0]["address"], "192.0.2.40", "the first of the free addresses");
    let answer = hosts.http_get("192.0.2.40:80", "/").expect("the load balancer answers as soon as up has ended");
    assert!(answer.contains("Hello from web-"), "{answer}");
    let (_, sharing) = answer.split_once("Sharing /media with: ").expect("the shared filesystem is mounted");
    assert_eq!(sharing.matches("web-").count(), 3, "{answer}");
    for host in ["host-11", "host-12", "host-13"] {
        // What a pod writes on one machine is read on all.
        let files = || String::from_utf8_lossy(&hosts.machines.inside(host, "ls /var/lib/kprov/filesystems/media/*").stdout).into_owned();
        until("what a pod writes on one machine is read on all", || files().matches(".replica").count() == 3);
    }
    let nodes = hosts.kubectl_ok(&["get", "nodes", "--no-headers"]);
    assert_eq!(nodes.lines().filter(|line| line.contains(" Ready ")).count(), 3, "{nodes}");
    let pods = hosts.kubectl_ok(&["get", "pods", "-n", "shop", "--no-headers"]);
    assert_eq!(pods.lines().filter(|line| line.contains("1/1") && line.contains("Running")).count(), 3, "{pods}");
    let again = hosts.kprov(&["plan", file, "--exit-code"]);
    assert_eq!(again.status.code(), Some(0), "plan after up is empty: {}", text(&again));
    hosts.ok(&["down", &hosts.name, "--yes"]);
    assert_same(&before, &hosts.inventories());
}

/// Another's container runtime with a network and data of its own, at work before kprov comes.
const NEIGHBOUR: &str = "mkdir -p /etc/containerd /etc/cni/net.d /var/lib/containerd/theirs
    echo 'version = 2' >/etc/containerd/config.toml
    echo '{\"cniVersion\": \"0.4.0\", \"name\": \"theirs\", \"type\": \"none\"}' >/etc/cni/net.d/05-theirs.conf
    setsid containerd </dev/null >/dev/null 2>&1 &
    until ctr version >/dev/null 2>&1; do sleep 0.1; done";

#[test]
fn the_loop_inside_claims_a_host_that_was_listed_later_and_gives_it_back() {
    let mut hosts = Hosts::new("grows");
    hosts.root(51);
    hosts.root(52);
    let file = hosts.example(1, "");
    hosts.ok(&["up", file.to_str().expect("path"), "--yes"]);
    hosts.host(53, "debian", NEIGHBOUR);
    let before = hosts.inventory("host-53");
    assert!(before.contains("/var/lib/containerd/theirs") && before.contains("\ncontainerd\n"), "{before}");
    let file = hosts.example(2, "");
    let file = file.to_str().expect("path");
    hosts.ok(&["up", file, "--yes"]);
    let nodes = hosts.kubectl_ok(&["get", "nodes", "--no-headers"]);
    assert_eq!(nodes.lines().filter(|line| line.contains(" Ready ")).count(), 3, "{nodes}");
    let file = hosts.example(1, "");
    hosts.ok(&["up", file.to_str().expect("path"), "--yes"]);
    until("worker-2 is no node", || !hosts.kubectl(&["get", "node/worker-2"]).status.success());
    assert_becomes_same(&hosts, "host-53", before);
    hosts.ok(&["down", file.to_str().expect("path"), "--yes"]);
}

#[test]
fn everything_that_is_wrong_with_any_host_is_told_at_once_and_nothing_is_changed() {
    let mut hosts = Hosts::new("wrong");
    hosts.host(
        21,
        "root",
        "mount -t tmpfs -o size=64m tmpfs /var/lib/kprov; mount -t tmpfs -o size=8m tmpfs /var/lib; nft add table inet theirs; \
        nft 'add chain inet theirs forward { type filter hook forward priority 0; policy drop; }'",
    );
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
        "its firewall (forward) drops what pods send",
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
    assert!(refused.contains("10.99.0.32: ") && refused.contains(&format!("worker-1 of cluster {}", hosts.name)), "{refused}");

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
fn a_load_balancers_address_moves_to_another_machine_when_its_own_dies() {
    let hosts = three_hosts("moves");
    let before = hosts.inventories();
    let file = hosts.example(2, "      addresses: [10.99.0.200-10.99.0.209]\n      direct: true\n");
    let file = file.to_str().expect("path");
    let up = json(&hosts.ok(&["up", file, "--yes", "-o", "json"]));
    assert_eq!(up["loadBalancers"][0]["address"], "10.99.0.200");
    let has = |host: &str| hosts.has_address(host, "10.99.0.200");
    let holders: Vec<&str> = ["host-11", "host-12", "host-13"].into_iter().filter(|host| has(host)).collect();
    assert_eq!(holders.len(), 1, "one machine has it: {holders:?}");
    assert_eq!(hosts.expose("public"), "10.99.0.201");
    hosts.kubectl_ok(&["delete", "service", "public", "-n", "shop", "--timeout=60s"]);

    // Its agent alone dies: the machine goes on serving what it knows, and the other takes the address.
    hosts.signal_agent(holders[0], "STOP");
    let begin = std::time::Instant::now();
    let other = ["host-12", "host-13"].into_iter().find(|host| *host != holders[0]).expect("another worker");
    while !has(other) {
        assert!(begin.elapsed().as_secs() < 20, "the address did not move");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    eprintln!("the address moved within {:?}", begin.elapsed());
    let answer = hosts.http_get("10.99.0.200:80", "/").expect("it answers from its new place");
    assert!(answer.contains("Hello from web-"), "{answer}");
    hosts.signal_agent(holders[0], "CONT");
    hosts.ok(&["down", file, "--yes"]);
    assert_same(&before, &hosts.inventories());
}

#[test]
fn own_machines_conform() {
    let mut hosts = Hosts::new("conform");
    hosts.root(61);
    hosts.sudo(62);
    let before = hosts.inventories();
    let cluster = |name: &str| Cluster { name: name.into(), uid: uuid::Uuid::new_v4().to_string() };
    let (a, b) = (cluster("a"), cluster("b"));
    let settings = |cluster: &Cluster| hosts.settings(usize::from(cluster.name == "b"));
    hosts.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let make = async |cluster: &Cluster| Machines::connect(&settings(cluster), cluster).expect("a provider");
            conformance::run(make, &a, &b, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKdQWpBvSWcYVcPxTlRBJpTWRCCHbcc7eGLdpd9YBbVo test").await;
            for cluster in [&a, &b] {
                assert_eq!(make(cluster).await.leftovers().await, Vec::<String>::new());
            }
        });
    });
    assert_same(&before, &hosts.inventories());
}

#[test]
fn machines_behind_a_jump_host_are_reached_through_it_and_nothing_else() {
    let mut hosts = Hosts::new("behind");
    let bastion = hosts.bastion();
    hosts.hidden(71);
    hosts.hidden(72);
    let direct = || std::net::TcpStream::connect_timeout(&"10.99.0.71:22".parse().expect("an address"), std::time::Duration::from_secs(2));
    assert!(hosts.run(direct).is_err(), "there is no direct way");
    let before = hosts.inventories();
    let file = hosts.example(1, "");
    let file = file.to_str().expect("path");
    let refused = text(&hosts.kprov(&["up", file, "--yes"]));
    assert!(
        refused.contains("10.99.0.71: its host key, or that of the host to go through, is not known"),
        "the host on the way is judged by the operator's known hosts: {refused}"
    );
    let key = bastion.split(' ').take(2).collect::<Vec<_>>().join(" ");
    let known = std::fs::read_to_string(file).expect("the blueprint").replace("jump: ", &format!("jumpHostKey: \"{key}\", jump: "));
    std::fs::write(file, known).expect("the blueprint");
    hosts.ok(&["up", file, "--yes"]);
    let status = json(&hosts.ok(&["status", &hosts.name, "-o", "json"]));
    assert_eq!(status["inside"]["nodes"].as_array().map(Vec::len), Some(2), "{status}");
    assert!(hosts.ok(&["ssh", &hosts.name, "worker-1", "--", "hostname"]).contains("host-72"));
    hosts.ok(&["down", file, "--yes"]);
    assert_same(&before, &hosts.inventories());
}

#[test]
fn a_host_that_died_keeps_its_machine_until_it_is_taken_out_of_the_list() {
    let mut hosts = three_hosts("dies");
    let file = hosts.example(1, "");
    let file = file.to_str().expect("path");
    hosts.ok(&["up", file, "--yes"]);
    hosts.machines.stop("host-12").expect("its power is cut");
    let plan = hosts.kprov(&["plan", file, "--exit-code"]);
    assert_eq!(plan.status.code(), Some(2), "{}", text(&plan));
    let plan = text(&plan);
    assert!(plan.contains("10.99.0.12") && !plan.contains("10.99.0.13"), "nothing moves on a guess: {plan}");

    // The loop inside tries in vain to mend what ran there, and leaves it when something else is wanted.
    let doing = ["get", "blueprint", &hosts.name, "-o", "jsonpath={.status.doing}"];
    until("the loop mends worker-1", || hosts.kubectl_ok(&doing).contains("host/worker-1"));
    hosts.unlist("host-12");
    let file = hosts.example(1, "");
    let file = file.to_str().expect("path");
    hosts.ok(&["up", file, "--yes", "--timeout", "60"]);
    until("the status names the host", || hosts.ok(&["status", &hosts.name, "-o", "json"]).contains("\"10.99.0.13\""));
    hosts.ok(&["down", file, "--yes"]);
}
