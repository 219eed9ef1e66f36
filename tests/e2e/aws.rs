//! The AWS provider itself, against an emulator that is as strict as AWS where kprov relies on it.

use crate::aws_cluster::{assert_single, begin, instance, instances, ours, serves};
use crate::harness::{Operated, json, text};
use crate::rig::aws::{Aws, REGION};
use crate::rig::operator::Operator;
use crate::rig::proxy::{Fault, Rule};
use kprov::blueprint::ProviderName;
use kprov::engine::Cluster;
use kprov::providers::{Provider, Settings, aws, conformance};
use std::process::Stdio;
use std::time::Duration;

fn settings() -> Settings {
    Settings { location: Some("eu-west".into()), ..Settings::plain(ProviderName::Aws) }
}

const LONGEST_NAME: &str = "same-name-as-long-as-names-of-clusters-1";

/// Uids that begin alike: names are near, owners are not.
fn clusters() -> [Cluster; 2] {
    ["3f2a9c11-d0e4-4b6f-9a51-0c1d2e3f4a5b", "3f2a9c11-d0e5-4b6f-9a51-0c1d2e3f4a5b"]
        .map(|uid| Cluster { name: LONGEST_NAME.into(), uid: uid.into() })
}

/// Runs another test of this program as the operator would run kprov: the SDK takes from the environment who asks and where the cloud
/// is, and only a new process can be given one.
fn tell_inside(operator: &Operator, story: &str) {
    let mut command = operator.program(&std::env::current_exe().expect("this program"));
    let output = command.args([story, "--exact", "--ignored", "--nocapture"]).output().expect("this program starts again");
    assert!(output.status.success() && text(&output).contains("1 passed"), "{story}: {}", text(&output));
}

#[test]
fn conformance() {
    let rig = Aws::without_machines();
    let [a, _] = clusters();
    rig.decoys(&a.uid, &a.name);
    let before = rig.dump();
    tell_inside(&rig.operator(), "aws::conformance_inside");
    assert_eq!(rig.dump(), before, "nothing is left, and what is not ours is untouched");
    assert_eq!(rig.machines.names(), Vec::<String>::new(), "no machine is left on this host");
}

#[test]
#[ignore = "told by `conformance`, inside its cloud"]
fn conformance_inside() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let provider = async |cluster: &Cluster| {
            let provider = aws::connect(&settings(), cluster).await.expect("a provider");
            provider.hold_key("a private key");
            provider
        };
        let [a, b] = clusters();
        conformance::run(provider, &a, &b, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA0PCsWlojNIo9H3TCmYTrg5lustujbX+Q6ueLcrghlt same").await;
        for cluster in [&a, &b] {
            assert_eq!(provider(cluster).await.leftovers().await, Vec::<String>::new());
        }
    });
}

/// `up` of this blueprint stops, says all of `parts`, and nothing was made.
pub fn check_stopped(rig: &Aws, operator: &Operator, file: &str, parts: &[&str]) {
    let before = rig.dump();
    let stopped = operator.kprov(&["up", file, "--yes"]);
    let said = text(&stopped);
    assert!(!stopped.status.success(), "{said}");
    for part in parts {
        assert!(said.contains(part), "{part} is missing in: {said}");
    }
    assert_eq!(rig.dump(), before, "nothing was made");
}

#[test]
fn what_can_be_known_is_said_before_the_first_create() {
    let (rig, operator, file) = begin();
    for key in ["AKIAWRONG", "ASIAEXPIRED"] {
        let nobody = rig.operator_as(key);
        check_stopped(&rig, &nobody, &nobody.example().display().to_string(), &["the credentials are wrong or expired"]);
    }
    rig.deny("ec2:RunInstances ec2:CreateVpc");
    check_stopped(&rig, &operator, &file, &["not authorized to perform: ec2:RunInstances", "ec2:CreateVpc", "kprov iam aws"]);
    rig.deny("elasticloadbalancing:DescribeLoadBalancers");
    check_stopped(&rig, &operator, &file, &["elasticloadbalancing:DescribeLoadBalancers", "kprov iam aws"]);
    rig.deny("");
    let example = std::fs::read_to_string(&file).expect("the blueprint");
    for (from, to, parts) in [
        ("    ssh:\n", "    aws: {instanceTypes: {worker: x9.tiny}}\n    ssh:\n", &["could not find x9.tiny", "instanceTypes"][..]),
        ("    ssh:\n", "    aws: {instanceTypes: {worker: m7g.large}}\n    ssh:\n", &["could not use m7g.large"]),
        (
            "    ssh:\n",
            "    aws: {zones: [eu-west-1a, eu-west-1z]}\n    ssh:\n",
            &["could not find zone eu-west-1z", "eu-west-1a, eu-west-1b"],
        ),
        ("from: [198.18.0.0/15]", "from: []", &["spec.access.from"]),
        ("location: eu-west ", "location: nowhere-1 ", &["nowhere-1"]),
    ] {
        let changed = example.replace(from, to);
        assert_ne!(changed, example, "{from} is in the example");
        std::fs::write(&file, changed).expect("the blueprint");
        check_stopped(&rig, &operator, &file, parts);
    }
}

#[test]
fn a_full_quota_missing_capacity_and_a_missing_permission_stop_at_once_with_what_is_there_and_down_works_from_there() {
    let (rig, operator, file) = begin();
    let before = rig.dump();
    for (action, status, code, parts) in [
        ("RunInstances", 400, "VcpuLimitExceeded", &["Service Quotas", "there: network/shop", "missing: ", "machine/worker-1"][..]),
        ("RunInstances", 500, "InsufficientInstanceCapacity", &["another type", "there: network/shop", "machine/control-1"]),
        ("RunInstances", 403, "UnauthorizedOperation", &["kprov iam aws", "there: network/shop", "missing: ", "machine/worker-1"]),
        ("CreateLoadBalancer", 400, "TooManyLoadBalancers", &["Service Quotas", "missing: ", "load-balancer/web\n", "costs about $0.0"]),
    ] {
        rig.stop(action, status, code, "There is no more of it.");
        rig.proxy.clear();
        let stopped = operator.kprov(&["up", &file, "--yes"]);
        let said = text(&stopped);
        assert_eq!(stopped.status.code(), Some(4), "{said}");
        for part in
            parts.iter().chain(&[code, "There is no more of it.", "continues where this one stopped; `kprov down` removes everything"])
        {
            assert!(said.contains(part), "{part} is missing in: {said}");
        }
        let asked = rig.proxy.ledger().iter().filter(|entry| entry.call.action == action).count();
        assert!((1..=12).contains(&asked), "{action} was asked for {asked} times");
        rig.stop(action, 0, "", "");
    }
    operator.ok(&["down", &file, "--yes"]);
    assert_eq!(rig.dump(), before, "nothing is left");
}

fn lose_state(operator: &Operator) {
    std::fs::remove_dir_all(operator.path("home")).expect("there was state");
}

/// Runs `up` and kills it with -9 when the first such call was made and its answer is on the way.
fn up_killed_at(rig: &Aws, operator: &Operator, file: &str, action: &str, fault: Fault) {
    rig.proxy.clear();
    rig.proxy.rule(Rule::on(action, fault).freezing());
    let mut child =
        operator.command().args(["up", file, "--yes"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("kprov starts");
    assert!(rig.proxy.held(Duration::from_secs(60)).is_some(), "{action} was not called");
    child.kill().expect("kill");
    child.wait().expect("it ends");
    rig.proxy.clear();
}

#[test]
fn a_lost_state_folder_costs_nothing_at_any_stage() {
    let (rig, operator, file) = begin();
    let before = rig.dump();
    // Only the writer's record is there: no network yet.
    up_killed_at(&rig, &operator, &file, "CreateVpc", Fault::HoldBefore);
    lose_state(&operator);
    let list = |operator: &Operator| operator.command().env("AWS_REGION", REGION).args(["list", "--provider", "aws"]).output();
    let listed = text(&list(&operator).expect("kprov starts"));
    assert!(listed.contains("shop") && listed.contains("exists"), "{listed}");
    // Machines are there: the workers, and the control plane's where its young profile was known soon enough.
    up_killed_at(&rig, &operator, &file, "CreateTargetGroup", Fault::HoldAfter);
    let machines = instances(&rig);
    assert!(machines.len() >= 2, "{machines:?}");
    lose_state(&operator);
    let plan = operator.ok(&["plan", &file]);
    assert!(!plan.contains("machine/control-1 ") || !plan.contains("create machine/"), "{plan}");
    let up = json(&operator.ok(&["up", &file, "--yes", "-o", "json"]));
    serves(&operator, &up);
    let all = instances(&rig);
    assert!(all.len() == 3 && machines.iter().all(|one| all.contains(one)), "the machines that are there are used: {machines:?} {all:?}");
    // Everything is there: nothing to do, and the keys come back.
    lose_state(&operator);
    let plan = operator.kprov(&["plan", &file, "--exit-code"]);
    assert_eq!(plan.status.code(), Some(0), "{}", text(&plan));
    operator.ok(&["up", &file, "--yes"]);
    operator.kubectl_ok(&["get", "nodes"]);
    lose_state(&operator);
    operator.ok(&["down", &file, "--yes"]);
    assert_eq!(rig.dump(), before, "nothing is left");
    let listed = text(&list(&operator).expect("kprov starts"));
    assert!(!listed.contains("shop "), "{listed}");
}

#[test]
fn two_writers_at_once_leave_one_cluster_or_none() {
    let (rig, operator, file) = begin();
    let before = rig.dump();
    // On one host, the second waits outside.
    rig.proxy.rule(Rule::on("CreateVpc", Fault::Slow(Duration::from_secs(6))));
    let mut first =
        operator.command().args(["up", &file, "--yes"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("kprov starts");
    assert!(rig.proxy.wait(Duration::from_secs(30), |ledger| ledger.iter().any(|entry| entry.call.action == "PutParameter")));
    let second = operator.kprov(&["up", &file, "--yes"]);
    assert_eq!(second.status.code(), Some(6), "{}", text(&second));
    // On two hosts, the later one goes on and the earlier one stops by itself; what both made is tidied up.
    let elsewhere = rig.operator();
    let elsewhere_file = elsewhere.example().display().to_string();
    let raced = elsewhere.kprov(&["up", &elsewhere_file, "--yes"]);
    // Both may have made the cluster's key; then the one that was kept first is the cluster's, and the other run says what to do.
    assert!(
        raced.status.success() || raced.status.code() == Some(6) && text(&raced).contains("run the same command again"),
        "{}",
        text(&raced)
    );
    let up = json(&elsewhere.ok(&["up", &elsewhere_file, "--yes", "-o", "json"]));
    serves(&elsewhere, &up);
    let first = first.wait().expect("it ends");
    assert_eq!(first.code(), Some(6), "another writer took over");
    assert_eq!(instances(&rig).len(), 3);
    assert_single(&ours(&rig, &before));
    // `up` while `down` runs: whatever comes of it, one more `down` leaves nothing.
    rig.terminate(&instance(&rig, "machine/worker-2"));
    let mut down = elsewhere.command().args(["down", &elsewhere_file, "--yes"]).stdout(Stdio::null()).spawn().expect("kprov starts");
    assert!(rig.proxy.wait(Duration::from_secs(60), |ledger| ledger.iter().any(|entry| entry.call.action == "TerminateInstances")));
    let raced = operator.kprov(&["up", &file, "--yes", "--timeout", "60"]);
    down.wait().expect("it ends");
    eprintln!("up beside down: {}", raced.status);
    assert_single(&ours(&rig, &before));
    operator.ok(&["down", &file, "--yes"]);
    assert_eq!(rig.dump(), before, "nothing is left");
    assert_eq!(rig.machines.names(), Vec::<String>::new(), "no machine is left on this host");
}
