//! The main job on AWS, emulated: the same blueprint with its provider line changed, real machines, kubectl as the judge, and what is
//! left in the account.

use crate::harness::{http_get, text};
use crate::rig::aws::{Aws, REGION, Row};
use crate::rig::operator::Operator;
use crate::rig::proxy::{Fault, Rule};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

const UID: &str = "kprov-cluster-uid";
/// From one call of kprov's to its next one that changes something; machines boot in between.
const CALL_LIMIT: Duration = Duration::from_secs(60);

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("not JSON ({error}): {text}"))
}

/// A cloud, somebody with credentials, and the example blueprint for it. `None`: this kprov was built without AWS and says so.
fn begin(name: &str) -> Option<(Aws, Operator, String)> {
    let aws = Aws::start();
    let operator = aws.operator(name);
    let file = operator.example(REGION, &format!("{{endpoint: \"{}\"}}", aws.endpoint()));
    let file = file.to_str().expect("a path").to_string();
    let asked = operator.kprov(&["plan", &file]);
    if text(&asked).contains("provider aws is not in this build") {
        eprintln!("not told: {}", text(&asked).trim());
        return None;
    }
    Some((aws, operator, file))
}

/// What carries the cluster's tag; `strangers` are decoys that only look so.
fn ours(aws: &Aws, strangers: &[Row]) -> Vec<Row> {
    aws.dump().into_iter().filter(|row| row.tags.contains_key(UID) && !strangers.contains(row)).collect()
}

/// No two live things for one logical thing.
fn assert_single(rows: &[Row]) {
    let mut seen: BTreeMap<(String, Option<String>), Vec<String>> = BTreeMap::new();
    for row in rows {
        seen.entry((row.kind.clone(), row.tags.get("kprov-id").cloned().flatten())).or_default().push(row.id.clone());
    }
    // What belongs to a thing (an instance's volume, a rule's group) carries its name, too: but never two of one kind.
    let twice: Vec<_> = seen.iter().filter(|((_, id), found)| id.is_some() && found.len() > 1).collect();
    assert!(twice.is_empty(), "made twice: {twice:?}");
}

fn serves(operator: &Operator, up: &Value) {
    let address = up["loadBalancers"][0]["address"].as_str().expect("the load balancer's address").to_string();
    assert!(address.parse::<IpAddr>().is_ok(), "{address} is an address");
    let answer = operator.namespace.run(|| http_get(&format!("{address}:80"), "/")).expect("the load balancer answers");
    assert!(answer.contains("Hello from web-") && answer.contains("Sharing /media with: web-"), "{answer}");
}

fn instances(aws: &Aws) -> Vec<String> {
    aws.dump().into_iter().filter(|row| row.kind == "instance").map(|row| row.id).collect()
}

#[test]
fn the_local_blueprint_serves_on_aws_repairs_itself_and_leaves_nothing() {
    let Some((aws, operator, file)) = begin("cloudy") else { return };
    aws.decoys("00000000-0000-4000-8000-000000000000", &operator.name);
    let before = aws.dump();

    let changes = operator.kprov(&["plan", &file, "--exit-code"]);
    assert_eq!(changes.status.code(), Some(2), "{}", text(&changes));
    assert_eq!(aws.dump(), before, "a plan changes nothing");
    let up = json(&operator.ok(&["up", &file, "--yes", "-o", "json"]));
    eprintln!("up on emulated AWS: {} s", up["seconds"]);
    serves(&operator, &up);
    let nodes = operator.kubectl_ok(&["get", "nodes", "--no-headers"]);
    assert_eq!(nodes.lines().filter(|line| line.contains(" Ready ")).count(), 3, "{nodes}");
    assert_single(&ours(&aws, &before));

    let made = ours(&aws, &before);
    let again = operator.kprov(&["plan", &file, "--exit-code"]);
    assert_eq!(again.status.code(), Some(0), "plan after up is empty: {}", text(&again));
    operator.ok(&["up", &file, "--yes"]);
    assert_eq!(ours(&aws, &before), made, "a second up makes, changes and removes nothing");

    repairs_itself(&aws, &operator, &before);
    assert_eq!(aws.refused(), Vec::<String>::new(), "the loop's role is enough for what the loop does");

    operator.ok(&["down", &operator.name, "--yes"]);
    assert_eq!(aws.dump(), before, "nothing is left, and what is not ours is untouched");
    assert_eq!((aws.machines.names(), aws.namespace.links()), (vec![], vec![]), "no machine is left on this host");
}

/// A worker is terminated in the console: the loop inside, with its machine's own identity, makes another one.
fn repairs_itself(aws: &Aws, operator: &Operator, before: &[Row]) {
    let victim = ours(aws, before).into_iter().find(|row| row.tags.get("kprov-id") == Some(&Some("machine/worker-2".into())));
    let victim = victim.expect("worker-2 is an instance").id;
    let node = ["get", "node", "worker-2", "-o", "jsonpath={.status.nodeInfo.machineID}"];
    let old = operator.kubectl_ok(&node);
    aws.proxy.clear();
    aws.terminate(&victim);
    let launched = aws.proxy.wait(Duration::from_secs(90), |ledger| {
        ledger
            .iter()
            .any(|entry| entry.call.action == "RunInstances" && entry.took_effect() && entry.client.ip().to_string().starts_with("10."))
    });
    assert!(launched, "the loop made no machine:\n{}", actions(aws));
    let deadline = std::time::Instant::now() + Duration::from_secs(90);
    loop {
        let now = operator.kubectl(&node);
        let now = String::from_utf8_lossy(&now.stdout).into_owned();
        if !now.is_empty() && now != old {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "worker-2 did not come back:\n{}", actions(aws));
        std::thread::sleep(Duration::from_millis(300));
    }
    operator.kubectl_ok(&["wait", "--for=condition=Ready", "node/worker-2", "--timeout=90s"]);
    operator.kubectl_ok(&["rollout", "status", "deployment/web", "-n", "shop", "--timeout=90s"]);
    assert!(!instances(aws).contains(&victim));
    assert_single(&ours(aws, before));
}

fn actions(aws: &Aws) -> String {
    let line = |entry: &crate::rig::proxy::Entry| format!("{} {} {:?} {:?}", entry.client, entry.call.action, entry.fault, entry.status);
    let ledger = aws.proxy.ledger();
    ledger.iter().rev().take(60).rev().map(line).collect::<Vec<_>>().join("\n")
}

/// Runs a command, and kills it with -9 at its next call that changes something after `skip` others. False: it ended well before that.
fn kill_at(aws: &Aws, operator: &Operator, arguments: &[&str], skip: usize, fault: Fault) -> bool {
    aws.proxy.clear();
    let rule = aws.proxy.rule(Rule::on_mutating(fault).skip(skip));
    let log = std::fs::File::create(operator.path("killed.log")).expect("a log");
    let mut command = operator.command();
    command.args(arguments).stdout(Stdio::null()).stderr(log);
    let mut child = command.spawn().expect("kprov starts");
    let deadline = std::time::Instant::now() + CALL_LIMIT;
    let ended = loop {
        if aws.proxy.fired(rule) > 0 {
            break None;
        }
        if let Some(status) = child.try_wait().expect("a child") {
            break Some(status);
        }
        assert!(std::time::Instant::now() < deadline, "neither call nor end:\n{}", actions(aws));
        aws.proxy.wait(Duration::from_millis(100), |_| false);
    };
    match ended {
        Some(status) => {
            let said = std::fs::read_to_string(operator.path("killed.log")).unwrap_or_default();
            assert!(status.success(), "kprov {arguments:?}: {status}\n{said}\n{}", actions(aws));
            false
        }
        None => {
            aws.proxy.wait_held(Duration::from_secs(5));
            child.kill().expect("kill");
            child.wait().expect("it ends");
            true
        }
    }
}

#[test]
fn a_permission_that_is_missing_stops_up_and_down_still_works() {
    let Some((aws, operator, file)) = begin("denied") else { return };
    let before = aws.dump();
    aws.deny("ec2:RunInstances");
    let refused = operator.kprov(&["up", &file, "--yes"]);
    assert!(!refused.status.success());
    assert!(text(&refused).contains("RunInstances") || text(&refused).contains("not authorized"), "{}", text(&refused));
    let asked = aws.proxy.ledger().iter().filter(|entry| entry.call.action == "RunInstances").count();
    assert!(asked <= 9, "a refusal was asked for {asked} times");
    aws.deny("");
    operator.ok(&["down", &file, "--yes"]);
    assert_eq!(aws.dump(), before, "nothing is left");
}

#[test]
fn up_and_down_killed_again_and_again_between_and_inside_calls_converge() {
    let Some((aws, operator, file)) = begin("killed") else { return };
    let account = aws.dump();
    let (mut kills, mut decoys) = (0, Vec::new());
    // Each run gets a little further; every other one dies with its call done and the answer lost, the others before the call.
    for (round, fault) in [Fault::HoldAfter, Fault::HoldBefore].into_iter().cycle().enumerate() {
        let killed = kill_at(&aws, &operator, &["up", &file, "--yes"], round.min(4), fault);
        let uid = aws.dump().iter().find_map(|row| row.tags.get(UID).cloned().flatten());
        if let (Some(uid), true) = (uid, decoys.is_empty()) {
            let real = aws.dump();
            aws.decoys(&uid, &operator.name);
            decoys = aws.dump().into_iter().filter(|row| !real.contains(row)).collect();
        }
        assert_single(&ours(&aws, &decoys));
        if !killed {
            break;
        }
        kills += 1;
        assert!(kills < 60, "it does not come to an end:\n{}", actions(&aws));
    }
    eprintln!("up was killed {kills} times");
    assert!(kills >= 5, "only {kills} kills");
    aws.proxy.clear();
    let up = json(&operator.ok(&["up", &file, "--yes", "-o", "json"]));
    serves(&operator, &up);
    assert_eq!(instances(&aws).len(), 3, "{:?}", ours(&aws, &decoys));

    let mut kills = 0;
    for (round, fault) in [Fault::HoldAfter, Fault::HoldBefore].into_iter().cycle().enumerate() {
        if !kill_at(&aws, &operator, &["down", &file, "--yes"], round.min(4), fault) {
            break;
        }
        kills += 1;
        assert!(kills < 60, "it does not come to an end:\n{}", actions(&aws));
    }
    eprintln!("down was killed {kills} times");
    let mut left = account;
    left.extend(decoys);
    left.sort();
    let mut found = aws.dump();
    found.sort();
    assert_eq!(found, left, "nothing is left, and what is not ours is untouched");
    assert_eq!((aws.machines.names(), aws.namespace.links()), (vec![], vec![]), "no machine is left on this host");
}

#[test]
fn up_and_down_ride_out_every_fault_of_the_wire_in_one_run() {
    let Some((aws, operator, file)) = begin("faulty") else { return };
    let before = aws.dump();
    let rules = [
        ("RunInstances", Fault::LostReply),
        ("RunInstances", Fault::Duplicate),
        ("CreateVpc", Fault::Throttle),
        ("CreateSubnet", Fault::Status(503)),
        ("CreateSecurityGroup", Fault::Reset),
        ("CreateLoadBalancer", Fault::Truncated),
        ("CreateTargetGroup", Fault::LostReply),
        ("CreateListener", Fault::BadGateway),
        ("CreateFileSystem", Fault::LostReply),
        ("DescribeInstances", Fault::Throttle),
        ("RegisterTargets", Fault::Slow(Duration::from_millis(500))),
    ];
    let numbers = rules.map(|(action, fault)| aws.proxy.rule(Rule::on(action, fault)));
    let up = json(&operator.ok(&["up", &file, "--yes", "-o", "json"]));
    serves(&operator, &up);
    for ((action, fault), number) in rules.iter().zip(numbers) {
        assert_eq!(aws.proxy.fired(number), 1, "{fault:?} on {action} never happened");
    }
    assert_single(&ours(&aws, &before));
    assert_eq!(instances(&aws).len(), 3);
    aws.proxy.clear();
    let rules = [
        ("TerminateInstances", Fault::LostReply),
        ("DeleteSubnet", Fault::Throttle),
        ("DeleteVpc", Fault::LostReply),
        ("DeleteLoadBalancer", Fault::Reset),
    ];
    let numbers = rules.map(|(action, fault)| aws.proxy.rule(Rule::on(action, fault)));
    operator.ok(&["down", &operator.name, "--yes"]);
    for ((action, fault), number) in rules.iter().zip(numbers) {
        assert_eq!(aws.proxy.fired(number), 1, "{fault:?} on {action} never happened");
    }
    assert_eq!(aws.dump(), before, "nothing is left");
}
