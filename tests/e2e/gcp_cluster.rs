//! The main job on Google Cloud, emulated: the example blueprint with its provider line changed, real machines, kubectl as the judge, and
//! what is left in the project.

use crate::harness::{Operated, http_get, json, text};
use crate::rig::gcp::estate::Estate;
use crate::rig::kill::actions;
use crate::rig::operator::Operator;
use crate::rig::proxy::{Fault, Rule, tell_quiet_calls};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// For what the loop inside does by itself.
const PATIENCE: Duration = Duration::from_secs(90);
const STRANGER: &str = "00000000-0000-4000-8000-000000000000";

/// A project, somebody who may use it, and the example blueprint for it.
pub fn begin() -> (Estate, Operator, String) {
    let estate = Estate::start();
    let operator = estate.operator();
    let file = operator.example().to_str().expect("a path").to_string();
    (estate, operator, file)
}

/// Until something is so; what is waited for happens elsewhere and tells nobody here.
pub fn until<T>(what: &str, estate: &Estate, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not happen:\n{}", actions(&estate.proxy));
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The cluster's things; all others were there `before`.
pub fn ours(estate: &Estate, before: &BTreeMap<String, Value>) -> BTreeMap<String, Value> {
    estate.dump().into_iter().filter(|(path, _)| !before.contains_key(path)).collect()
}

/// No two things for one logical thing, and no more machines than wished.
pub fn assert_single(estate: &Estate, before: &BTreeMap<String, Value>) {
    let mut seen: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for (path, body) in ours(estate, before) {
        let mark = body["description"].as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
        let mark = mark.unwrap_or_else(|| panic!("{path} carries no mark"));
        let text = |field: &str| mark[field].as_str().unwrap_or_default().to_string();
        let place = if text("kprov-kind") == "load-balancer" { path.clone() } else { text("kprov-name") };
        seen.entry((text("kprov-kind"), place)).or_default().push(path);
    }
    let twice: Vec<_> = seen.iter().filter(|(_, found)| found.len() > 1).collect();
    assert!(twice.is_empty(), "made twice: {twice:?}");
}

pub fn balancer(up: &Value) -> Ipv4Addr {
    let address = up["loadBalancers"][0]["address"].as_str().expect("the load balancer's address");
    address.parse().unwrap_or_else(|_| panic!("{address} is no address"))
}

/// Packets for the forwarding rule's address reach pods that share the filesystem.
pub fn serves(operator: &Operator, address: Ipv4Addr) {
    let answer = operator.namespace.run(|| http_get(&format!("{address}:80"), "/")).expect("the load balancer answers");
    assert!(answer.contains("Hello from web-") && answer.contains("Sharing /media with: web-"), "{answer}");
}

/// Probes at the load balancer's own address find all of these machines well.
fn all_well(estate: &Estate, address: Ipv4Addr, count: usize) {
    until("every machine behind the load balancer is well", estate, || (estate.fabric.healthy(address).len() == count).then_some(()));
}

fn ready_nodes(operator: &Operator) -> usize {
    let nodes = operator.kubectl_ok(&["get", "nodes", "--no-headers"]);
    nodes.lines().filter(|line| line.contains(" Ready ")).count()
}

pub fn assert_gone(estate: &Estate, left: &BTreeMap<String, Value>) {
    let found = estate.dump();
    let other = |path: &&String| found.get(*path) != left.get(*path);
    let differing: Vec<&String> = found.keys().chain(left.keys()).filter(other).collect();
    assert_eq!(differing, Vec::<&String>::new(), "nothing is left, and what is not ours is untouched");
    assert_eq!((estate.machines.names(), estate.namespace.links()), (vec![], vec![]), "no machine is left on this host");
    estate.assert_fair();
}

#[test]
fn the_example_serves_on_google_repairs_itself_grows_and_leaves_nothing() {
    let (estate, operator, file) = begin();
    estate.decoys(STRANGER, operator.name);
    let mut before = estate.dump();

    let changes = operator.kprov(&["plan", &file, "--exit-code"]);
    assert_eq!(changes.status.code(), Some(2), "{}", text(&changes));
    assert_eq!(estate.changes(), Vec::<String>::new(), "a plan changes nothing");
    let up = json(&operator.ok(&["up", &file, "--yes", "-o", "json"]));
    eprintln!("up on emulated Google: {} s, {} changes", up["seconds"], estate.changes().len());
    let address = balancer(&up);
    serves(&operator, address);
    assert_eq!(ready_nodes(&operator), 3);
    all_well(&estate, address, 2);
    let mounted =
        estate.machines.inside(estate.instance("worker-1").expect("it").rsplit('/').next().expect("a name"), "cat /var/log/mount.nfs.log");
    assert!(text(&mounted).contains(":/share /var/lib/kprov/filesystems/media rw,hard,nfsvers=3"), "{}", text(&mounted));
    assert_single(&estate, &before);

    let (made, changes) = (estate.dump(), estate.changes());
    let again = operator.kprov(&["plan", &file, "--exit-code"]);
    assert_eq!(again.status.code(), Some(0), "plan after up is empty: {}", text(&again));
    operator.ok(&["up", &file, "--yes"]);
    assert_eq!((estate.dump(), estate.changes()), (made, changes), "a second up makes, changes and removes nothing");

    if std::env::var_os("KPROV_QUIET").is_some() {
        tell_quiet_calls(&estate.proxy);
    }
    let kept = ours(&estate, &before);
    estate.decoys(up["uid"].as_str().expect("a uid"), operator.name);
    before = estate.dump().into_iter().filter(|(path, _)| !kept.contains_key(path)).collect();
    repairs_itself(&estate, &operator);
    grows(&estate, &operator);
    all_well(&estate, address, 3);
    serves(&operator, address);
    assert_single(&estate, &before);

    operator.ok(&["down", operator.name, "--yes"]);
    assert_gone(&estate, &before);
}

/// A worker is deleted in the console: the loop inside makes another one, and its pods run elsewhere meanwhile.
fn repairs_itself(estate: &Estate, operator: &Operator) {
    let identity = ["get", "node", "worker-2", "-o", "jsonpath={.status.nodeInfo.machineID}"];
    let old = operator.kubectl_ok(&identity);
    let before = estate.changes().len();
    estate.proxy.clear();
    estate.lose(&estate.instance("worker-2").expect("worker-2 is an instance"));
    until("another worker-2", estate, || {
        let now = String::from_utf8_lossy(&operator.kubectl(&identity).stdout).into_owned();
        (!now.is_empty() && now != old).then_some(())
    });
    let by = |entry: &&crate::rig::proxy::Entry| entry.call.action == "instances.insert" && entry.took_effect();
    let clients: Vec<String> = estate.proxy.ledger().iter().filter(by).map(|entry| entry.client.ip().to_string()).collect();
    assert!(clients.iter().all(|client| client.starts_with("10.128.")), "made from inside the cluster: {clients:?}");
    let made = estate.changes()[before..].iter().filter(|change| change.starts_with("insert") && change.contains("/instances/")).count();
    assert_eq!(made, 1, "one new machine:\n{}", actions(&estate.proxy));
    operator.kubectl_ok(&["wait", "--for=condition=Ready", "node/worker-2", "--timeout=90s"]);
    operator.kubectl_ok(&["rollout", "status", "deployment/web", "-n", "shop", "--timeout=90s"]);
}

/// One more worker, wished for with kubectl alone: nothing else is touched but the group that it serves in.
fn grows(estate: &Estate, operator: &Operator) {
    let before = estate.changes().len();
    let machines = operator.kubectl_ok(&["get", "blueprint", "shop", "-o", "jsonpath={.spec.machines}"]);
    let mut machines = json(&machines);
    machines[1]["count"] = json!(3);
    let patch = json!({"spec": {"machines": machines}}).to_string();
    operator.kubectl_ok(&["patch", "blueprint", "shop", "--type", "merge", "-p", &patch]);
    until("worker-3", estate, || operator.kubectl(&["get", "node", "worker-3"]).status.success().then_some(()));
    operator.kubectl_ok(&["wait", "--for=condition=Ready", "node/worker-3", "--timeout=90s"]);
    operator.kubectl_ok(&["wait", "--for=condition=Ready", "blueprint/shop", "--timeout=90s"]);
    let changes = estate.changes()[before..].to_vec();
    let strangers: Vec<&String> = changes
        .iter()
        .filter(|change| !["machine-worker-3", "instance-group", "backend-service"].iter().any(|part| change.contains(part)))
        .collect();
    assert_eq!(strangers, Vec::<&String>::new(), "only the new machine and what leads to it: {changes:?}");
    assert_eq!(ready_nodes(operator), 4);
}

#[test]
fn up_and_down_on_google_ride_out_every_fault_of_the_wire_in_one_run() {
    let (estate, operator, file) = begin();
    estate.decoys(STRANGER, operator.name);
    let before = estate.dump();
    let fire = |rules: &[(&str, Fault)], arguments: &[&str]| {
        estate.proxy.clear();
        let numbers: Vec<usize> = rules.iter().map(|(action, fault)| estate.proxy.rule(Rule::on(action, *fault))).collect();
        let said = operator.ok(arguments);
        for ((action, fault), number) in rules.iter().zip(numbers) {
            assert_eq!(estate.proxy.fired(number), 1, "{fault:?} on {action} never happened");
        }
        said
    };
    let up = fire(
        &[
            ("networks.insert", Fault::Throttle),
            ("subnetworks.insert", Fault::Status(503)),
            ("firewalls.insert", Fault::Reset),
            ("firewalls.insert", Fault::LostReply),
            ("instances.insert", Fault::LostReply),
            ("instances.insert", Fault::Duplicate),
            ("instances.insert", Fault::Throttle),
            ("instanceGroups.insert", Fault::Truncated),
            ("instanceGroups.addInstances", Fault::LostReply),
            ("addresses.insert", Fault::Truncated),
            ("regionHealthChecks.insert", Fault::BadGateway),
            ("regionBackendServices.insert", Fault::Silent(Duration::from_secs(2))),
            ("forwardingRules.insert", Fault::LostReply),
            ("file.projects.locations.instances.create", Fault::LostReply),
            ("healthChecks.insert", Fault::LostReply),
            ("instances.aggregatedList", Fault::Status(500)),
            ("instances.getGuestAttributes", Fault::Reset),
            ("zoneOperations.wait", Fault::Slow(Duration::from_millis(500))),
            ("globalOperations.wait", Fault::Truncated),
            ("file.projects.locations.instances.get", Fault::Throttle),
        ],
        &["up", &file, "--yes", "-o", "json"],
    );
    let address = balancer(&json(&up));
    serves(&operator, address);
    assert_single(&estate, &before);
    assert_eq!(estate.machines.names().len(), 3);
    fire(
        &[
            ("instances.delete", Fault::LostReply),
            ("instances.delete", Fault::Duplicate),
            ("forwardingRules.delete", Fault::Throttle),
            ("regionBackendServices.delete", Fault::Reset),
            ("regionHealthChecks.delete", Fault::LostReply),
            ("addresses.delete", Fault::Truncated),
            ("file.projects.locations.instances.delete", Fault::LostReply),
            ("instanceGroups.delete", Fault::BadGateway),
            ("firewalls.delete", Fault::Silent(Duration::from_secs(2))),
            ("subnetworks.delete", Fault::Status(503)),
            ("networks.delete", Fault::LostReply),
            ("healthChecks.delete", Fault::LostReply),
        ],
        &["down", operator.name, "--yes"],
    );
    assert_gone(&estate, &before);
}
