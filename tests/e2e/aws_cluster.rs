//! The main job on AWS, emulated: the same blueprint with its provider line changed, real machines, kubectl as the judge, and what is
//! left in the account.

use crate::harness::{Operated, json, text};
use crate::rig::aws::{Aws, Row, python};
use crate::rig::kill::actions;
use crate::rig::operator::Operator;
use crate::rig::proxy::{Entry, Fault, Rule};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub const UID: &str = "kprov-cluster-uid";

/// A cloud, somebody with credentials, and the example blueprint for it.
pub fn begin() -> (Aws, Operator, String) {
    let aws = Aws::start();
    let operator = aws.operator();
    let file = operator.example().to_str().expect("a path").to_string();
    (aws, operator, file)
}

/// What carries the cluster's tag; `strangers` are decoys that only look so.
pub fn ours(aws: &Aws, strangers: &[Row]) -> Vec<Row> {
    aws.dump().into_iter().filter(|row| row.tags.contains_key(UID) && !strangers.contains(row)).collect()
}

/// No two live things for one logical thing.
pub fn assert_single(rows: &[Row]) {
    let mut seen: BTreeMap<(String, Option<String>), Vec<String>> = BTreeMap::new();
    for row in rows {
        seen.entry((row.kind.clone(), row.tags.get("kprov-id").cloned().flatten())).or_default().push(row.id.clone());
    }
    // What belongs to a thing (an instance's volume, a rule's group) carries its name, too: but never two of one kind.
    let twice: Vec<_> = seen.iter().filter(|((_, id), found)| id.is_some() && found.len() > 1).collect();
    assert!(twice.is_empty(), "made twice: {twice:?}");
}

pub fn serves(operator: &Operator, up: &Value) {
    let address = up["loadBalancers"][0]["address"].as_str().expect("the load balancer's address");
    assert!(address.ends_with(".amazonaws.com"), "{address} is a name that AWS gives");
    let mut client = operator.program(python());
    let script = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())";
    let answer = text(&client.args(["-c", script, &format!("http://{address}/")]).output().expect("python"));
    assert!(answer.contains("Hello from web-") && answer.contains("Sharing /media with: web-"), "{answer}");
}

pub fn instances(aws: &Aws) -> Vec<String> {
    aws.dump().into_iter().filter(|row| row.kind == "instance").map(|row| row.id).collect()
}

#[test]
fn the_example_serves_on_aws_repairs_itself_and_leaves_nothing() {
    let (aws, operator, file) = begin();
    aws.decoys("00000000-0000-4000-8000-000000000000", operator.name);
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

    operator.ok(&["down", operator.name, "--yes"]);
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
    assert!(launched, "the loop made no machine:\n{}", actions(&aws.proxy));
    let deadline = std::time::Instant::now() + Duration::from_secs(90);
    loop {
        let now = operator.kubectl(&node);
        let now = String::from_utf8_lossy(&now.stdout).into_owned();
        if !now.is_empty() && now != old {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "worker-2 did not come back:\n{}", actions(&aws.proxy));
        std::thread::sleep(Duration::from_millis(300));
    }
    operator.kubectl_ok(&["wait", "--for=condition=Ready", "node/worker-2", "--timeout=90s"]);
    operator.kubectl_ok(&["rollout", "status", "deployment/web", "-n", "shop", "--timeout=90s"]);
    assert!(!instances(aws).contains(&victim));
    assert_single(&ours(aws, before));
}

/// The operator may do what `kprov iam aws` prints, the loop what its role says, and neither needs more.
#[test]
fn the_printed_policies_are_enough_and_nothing_in_them_is_idle() {
    let (aws, operator, file) = begin();
    let before = aws.dump();
    let policy = operator.ok(&["iam", "aws"]);
    aws.policy("AKIAOPERATOR", &policy);
    operator.ok(&["up", &file, "--yes"]);
    // A worker that is lost is made again by the loop.
    aws.terminate(&instance(&aws, "machine/worker-1"));
    aws.proxy.wait(Duration::from_secs(60), |ledger| ledger.iter().any(|entry| entry.call.action == "RunInstances" && is_loop(entry)));
    operator.ok(&["up", &file, "--yes"]);
    operator.ok(&["down", operator.name, "--yes"]);
    assert_eq!(aws.refused(), Vec::<String>::new(), "what is done is allowed");
    assert_eq!(aws.dump(), before, "nothing is left");

    let used: BTreeSet<String> = aws.proxy.ledger().iter().map(|entry| entry.call.action.clone()).collect();
    let allowed = json(&policy)["Statement"].as_array().expect("statements").clone();
    let actions = allowed.iter().flat_map(|statement| statement["Action"].as_array().expect("actions").clone());
    let idle: BTreeSet<String> = actions
        .map(|action| action.as_str().expect("a name").to_string())
        .filter(|action| !used.contains(action.split_once(':').map_or("", |(_, name)| name)))
        .collect();
    // What AWS asks for beside a call's own name, and what only repairs and changes need.
    let rest = [
        "ec2:CreateNetworkInterface",
        "ec2:DeleteNetworkInterface",
        "ec2:DescribeAccountAttributes",
        "ec2:DescribeAddresses",
        "ec2:DescribeNetworkInterfaces",
        "ec2:GetSecurityGroupsForVpc",
        "ec2:ReplaceRoute",
        "ec2:RevokeSecurityGroupIngress",
        "ec2:StartInstances",
        "elasticfilesystem:TagResource",
        "elasticloadbalancing:AddTags",
        "elasticloadbalancing:DeleteListener",
        "elasticloadbalancing:DeregisterTargets",
        "iam:CreateServiceLinkedRole",
        "iam:PassRole",
        "iam:TagInstanceProfile",
        "iam:TagRole",
        "ssm:AddTagsToResource",
    ];
    assert_eq!(idle, rest.map(String::from).into(), "idle");
}

/// The id of a machine's instance.
pub fn instance(aws: &Aws, id: &str) -> String {
    let rows = aws.dump();
    let row = rows.iter().find(|row| row.kind == "instance" && row.tags.get("kprov-id") == Some(&Some(id.into())));
    row.unwrap_or_else(|| panic!("{id} is no instance: {rows:?}")).id.clone()
}

pub fn is_loop(entry: &Entry) -> bool {
    entry.client.ip().to_string().starts_with("10.")
}

#[test]
fn up_and_down_ride_out_every_fault_of_the_wire_in_one_run() {
    let (aws, operator, file) = begin();
    let before = aws.dump();
    let rules = [
        ("RunInstances", Fault::LostReply),
        ("RunInstances", Fault::Duplicate),
        ("CreateVpc", Fault::LostReply),
        ("CreateInternetGateway", Fault::LostReply),
        ("CreateRole", Fault::Throttle),
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
    aws.lag(Duration::from_millis(700));
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
    operator.ok(&["down", operator.name, "--yes"]);
    for ((action, fault), number) in rules.iter().zip(numbers) {
        assert_eq!(aws.proxy.fired(number), 1, "{fault:?} on {action} never happened");
    }
    assert_eq!(aws.dump(), before, "nothing is left");
}
