//! The ways into hosts: agents, fingerprints, changed keys, many at once; and which host becomes which machine.

use super::assert_same;
use crate::harness::{Operated, text};
use crate::rig::hosts::Hosts;

#[test]
fn an_agent_lets_in_and_a_fingerprint_tells_the_host() {
    let mut hosts = Hosts::new("agent");
    hosts.root(51);
    hosts.sudo(52);
    hosts.use_agent();
    let before = hosts.inventories();
    let list = |second: &str| {
        let first = hosts.fingerprint(&hosts.hosts()[0]);
        format!(
            "        - {{address: 10.99.0.51, user: root, fingerprint: \"{first}\", role: control-plane}}\n\
             \x20       - {{address: 10.99.0.52, user: debian{second}, group: worker, labels: {{rack: r7}}}}\n"
        )
    };
    let wrong = hosts.fingerprint(&hosts.hosts()[0]);
    let file = hosts.example_of(1, &list(&format!(", fingerprint: \"{wrong}\"")));
    let file = file.to_str().expect("path");
    let refused = text(&hosts.kprov(&["up", file, "--yes"]));
    assert!(refused.contains("10.99.0.52: its host key is not the expected one"), "{refused}");
    assert!(!refused.contains("10.99.0.51: "), "the other one is sound: {refused}");

    // The second one is told by the operator's known hosts.
    hosts.example_of(1, &list(""));
    hosts.ok(&["up", file, "--yes"]);
    let labelled = hosts.kubectl_ok(&["get", "nodes", "-l", "rack=r7", "-o", "name"]);
    assert_eq!(labelled.trim(), "node/worker-1");
    hosts.ok(&["down", file, "--yes"]);
    assert_same(&before, &hosts.inventories());
}

#[test]
fn a_host_whose_key_has_changed_is_refused_in_one_clear_sentence() {
    let mut hosts = Hosts::new("changed");
    hosts.root(54);
    hosts.root(55);
    hosts.use_agent();
    hosts.swap_known_keys();
    let before = hosts.inventories();
    let list = "        - {address: 10.99.0.54, user: root}\n        - {address: 10.99.0.55, user: root}\n";
    let file = hosts.example_of(1, list);
    let refused = hosts.kprov(&["up", file.to_str().expect("path"), "--yes"]);
    let said = text(&refused);
    assert_eq!(refused.status.code(), Some(3), "{said}");
    assert_eq!(said.matches("its host key is not the expected one").count(), 2, "{said}");
    assert!(said.contains("ssh-keygen -R"), "{said}");
    assert_same(&before, &hosts.inventories());
}

#[test]
fn many_hosts_behind_one_sshd_are_all_asked_at_once() {
    let mut hosts = Hosts::new("many");
    let bastion = hosts.bastion();
    let lasts: Vec<u8> = (101..=124).collect();
    lasts.iter().for_each(|last| hosts.hidden(*last));
    let key = bastion.split(' ').take(2).collect::<Vec<_>>().join(" ");
    let list = hosts.list().replace("jump: ", &format!("jumpHostKey: \"{key}\", jump: "));
    let file = hosts.example_of(lasts.len() - 1, &list);
    let begin = std::time::Instant::now();
    let plan = hosts.kprov(&["plan", file.to_str().expect("path"), "--exit-code"]);
    let said = text(&plan);
    assert_eq!(plan.status.code(), Some(2), "{said}");
    assert!(lasts.iter().all(|last| said.contains(&format!("10.99.0.{last}"))), "every host is in the plan: {said}");
    eprintln!("{} hosts behind a default sshd were asked within {:?}", lasts.len(), begin.elapsed());
}
