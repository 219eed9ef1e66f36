//! Crashes and races on emulated Google Cloud: the real binary killed with -9 at every call that changes something (`up`, a change of the
//! count, hand-off, `down`), its state lost, two of it at once.

use crate::gcp_cluster::*;
use crate::harness::{Operated, json, text};
use crate::rig::gcp::estate::Estate;
use crate::rig::kill::{kill_at, kill_at_every_call, kill_the_loop_at_every_call};
use crate::rig::operator::Operator;
use serde_json::Value;
use std::collections::BTreeMap;

type Things = BTreeMap<String, Value>;

/// As soon as the cluster's uid is known, strangers have things that look almost like its own.
fn surround(estate: &Estate, operator: &Operator, before: &mut Things) {
    let of =
        |body: &Value| serde_json::from_str::<Value>(body["description"].as_str()?).ok()?["kprov-cluster-uid"].as_str().map(str::to_string);
    let real = ours(estate, before);
    if let (Some(uid), true) = (real.values().find_map(of), before.is_empty()) {
        estate.decoys(&uid, operator.name);
        *before = estate.dump().into_iter().filter(|(path, _)| !real.contains_key(path)).collect();
        assert_eq!(before.len(), 100);
    }
}

fn is_whole(estate: &Estate, operator: &Operator, file: &str, before: &Things) {
    estate.proxy.clear();
    let up = json(&operator.ok(&["up", file, "--yes", "-o", "json"]));
    serves(operator, balancer(&up));
    assert_single(estate, before);
    assert_eq!(estate.machines.names().len(), 3);
}

#[test]
fn up_change_and_down_on_google_killed_at_every_call_converge() {
    let (estate, operator, file) = begin();
    let mut before = Things::new();
    let deaths = kill_at_every_call(&estate.proxy, &operator, &["up", &file, "--yes"], || {
        surround(&estate, &operator, &mut before);
        assert_single(&estate, &before);
    });
    deaths.assert_at(&["healthChecks.insert", "networks.insert", "instances.insert", "file.projects.locations.instances.create"]);
    deaths.assert_at(&["instanceGroups.addInstances", "regionBackendServices.insert", "forwardingRules.insert"]);
    let handed = deaths.known.iter().any(|(_, identity)| identity.ends_with("-epoch of the cluster"));
    assert!(handed, "nobody died at the hand-off");
    is_whole(&estate, &operator, &file, &before);

    let text = std::fs::read_to_string(&file).expect("the blueprint");
    std::fs::write(&file, text.replace("role: worker, count: 2", "role: worker, count: 3")).expect("the blueprint");
    let control = estate.instance("control-1").expect("a control plane").rsplit('/').next().expect("a name").to_string();
    let deaths = kill_the_loop_at_every_call(&estate.proxy, &operator, &["up", &file, "--yes"], &estate.machines, &control);
    deaths.assert_at(&["instances.insert", "instanceGroups.addInstances"]);
    assert_eq!(estate.machines.names().len(), 4);
    assert_single(&estate, &before);

    let deaths = kill_at_every_call(&estate.proxy, &operator, &["down", &file, "--yes"], || assert_single(&estate, &before));
    deaths.assert_at(&["instances.delete", "forwardingRules.delete", "networks.delete", "file.projects.locations.instances.delete"]);
    deaths.assert_at(&["healthChecks.insert", "healthChecks.delete"]);
    assert_gone(&estate, &before);
}

#[test]
fn lost_state_on_google_is_found_again_from_any_point() {
    let (estate, operator, file) = begin();
    let mut before = Things::new();
    let forget = || std::fs::remove_dir_all(operator.path("home")).expect("the operator's state");
    // The first call claims the epoch, before anything else exists.
    kill_at(&estate.proxy, &operator, &["up", &file, "--yes"], "healthChecks.insert");
    forget();
    estate.proxy.clear();
    operator.ok(&["down", &file, "--yes"]);
    assert_gone(&estate, &before);

    kill_at(&estate.proxy, &operator, &["up", &file, "--yes"], "instances.insert");
    surround(&estate, &operator, &mut before);
    forget();
    is_whole(&estate, &operator, &file, &before);
    let (made, changes) = (estate.dump(), estate.changes().len());
    forget();
    let again = operator.kprov(&["plan", &file, "--exit-code"]);
    assert_eq!(again.status.code(), Some(0), "{}", text(&again));
    forget();
    operator.ok(&["up", &file, "--yes"]);
    let beside = |change: &&String| !change.contains("setMetadata");
    assert_eq!(estate.changes()[changes..].iter().filter(beside).collect::<Vec<_>>(), Vec::<&String>::new(), "a way in, and nothing else");
    assert_eq!(estate.dump().keys().collect::<Vec<_>>(), made.keys().collect::<Vec<_>>());
    forget();
    operator.ok(&["down", &file, "--yes"]);
    assert_gone(&estate, &before);
}

#[test]
fn of_two_at_once_on_google_one_writes_and_the_other_says_so() {
    let (estate, operator, file) = begin();
    let other = estate.operator();
    let others = other.example().to_str().expect("a path").to_string();
    let mut before = Things::new();
    let network = || until("a network", &estate, || estate.dump().keys().any(|path| path.contains("/networks/")).then_some(()));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| operator.kprov(&["up", &file, "--yes"]));
        network();
        surround(&estate, &operator, &mut before);
        let same = operator.kprov(&["up", &file, "--yes"]);
        assert_eq!(same.status.code(), Some(6), "one folder, one writer: {}", text(&same));
        let second = other.kprov(&["up", &others, "--yes"]);
        let first = first.join().expect("the first");
        for output in [&first, &second] {
            assert!(matches!(output.status.code(), Some(0 | 6)), "{}\n{}", text(&first), text(&second));
        }
    });
    assert_single(&estate, &before);
    is_whole(&estate, &other, &others, &before);
    is_whole(&estate, &operator, &file, &before);
    std::thread::scope(|scope| {
        let down = scope.spawn(|| operator.kprov(&["down", &file, "--yes"]));
        let up = other.kprov(&["up", &others, "--yes", "--timeout", "60"]);
        let down = down.join().expect("down");
        eprintln!("up and down at once: {:?} and {:?}", up.status.code(), down.status.code());
    });
    operator.ok(&["down", &file, "--yes"]);
    other.ok(&["down", &others, "--yes"]);
    assert_gone(&estate, &before);
}
