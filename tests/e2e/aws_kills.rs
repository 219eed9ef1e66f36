//! kill -9 of the real binary at every call to emulated AWS that changes something: `up`, a change of the count, hand-off, `down`.
//!
//! Each call is done and its answer lost, then the process dies; `KPROV_KILLS=all` lets every call also die before the cloud hears of
//! it (twice as long). From the killed call on, the cloud hears nothing more of that process, so what ran beside it is met by a next run.

use crate::aws_cluster::{UID, actions, assert_single, begin, instance, instances, json, ours, serves};
use crate::rig::aws::Aws;
use crate::rig::operator::Operator;
use crate::rig::proxy::{Call, Fault, Rule};
use std::collections::BTreeSet;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// From one call of kprov's to its next one that changes something; machines boot in between.
const CALL_LIMIT: Duration = Duration::from_secs(60);
/// Far above what a run has calls: a run that never ends is a failure, too.
const MOST: usize = 300;

/// The calls at which somebody has died, by fault.
#[derive(Default)]
struct Deaths {
    known: BTreeSet<(&'static str, String)>,
    actions: BTreeSet<String>,
}

impl Deaths {
    fn faults() -> Vec<(&'static str, Fault)> {
        let all = std::env::var("KPROV_KILLS").is_ok_and(|value| value == "all");
        let faults = [("after", Fault::HoldAfter), ("before", Fault::HoldBefore)];
        faults[..if all { 2 } else { 1 }].to_vec()
    }

    /// The next call of the operator's, or of the loop's, at which nobody died yet is held.
    fn lie_in_wait(&self, aws: &Aws, (name, fault): (&'static str, Fault), of_loop: bool) -> usize {
        let known: BTreeSet<String> = self.known.iter().filter(|(fault, _)| *fault == name).map(|(_, identity)| identity.clone()).collect();
        let is_new = move |call: &Call, client: std::net::IpAddr| {
            call.mutating && client.to_string().starts_with("10.") == of_loop && !known.contains(&call.identity)
        };
        aws.proxy.clear();
        aws.proxy.rule(Rule::new(is_new, fault).freezing())
    }

    fn remember(&mut self, name: &'static str, call: Call) {
        self.actions.insert(call.action);
        self.known.insert((name, call.identity));
    }
}

fn start(operator: &Operator, arguments: &[&str]) -> Child {
    let log = std::fs::File::create(operator.path("killed.log")).expect("a log");
    let mut command = operator.command();
    command.args(arguments).stdout(Stdio::null()).stderr(log).spawn().expect("kprov starts")
}

/// The held call, or `None` when the process ended well before any.
fn held(aws: &Aws, operator: &Operator, child: &mut Child, rule: usize) -> Option<Call> {
    let deadline = Instant::now() + CALL_LIMIT;
    loop {
        if aws.proxy.fired(rule) > 0 {
            return Some(aws.proxy.held(Duration::from_secs(5)).expect("the held call is written down"));
        }
        if let Some(status) = child.try_wait().expect("a child") {
            let said = std::fs::read_to_string(operator.path("killed.log")).unwrap_or_default();
            assert!(status.success(), "{status}\n{said}\n{}", actions(aws));
            return None;
        }
        assert!(Instant::now() < deadline, "neither call nor end:\n{}", actions(aws));
        aws.proxy.wait(Duration::from_millis(20), |_| false);
    }
}

/// Starts the command again and again, and kills it at each of its calls once; returns when it has ended well. `between` looks at the
/// cloud after every death.
fn kill_at_every_call(aws: &Aws, operator: &Operator, arguments: &[&str], mut between: impl FnMut()) -> Deaths {
    let mut deaths = Deaths::default();
    for (name, fault) in Deaths::faults() {
        loop {
            let rule = deaths.lie_in_wait(aws, (name, fault), false);
            let mut child = start(operator, arguments);
            let Some(call) = held(aws, operator, &mut child, rule) else { break };
            child.kill().expect("kill");
            child.wait().expect("it ends");
            deaths.remember(name, call);
            between();
            assert!(deaths.known.len() < MOST, "it does not come to an end:\n{}", actions(aws));
        }
    }
    aws.proxy.clear();
    deaths
}

/// The same for the loop inside: its server on the control plane is killed, and its supervisor starts it again.
fn kill_the_loop_at_every_call(aws: &Aws, operator: &Operator, arguments: &[&str]) -> Deaths {
    let mut deaths = Deaths::default();
    let control = instance(aws, "machine/control-1");
    let (name, fault) = Deaths::faults()[0];
    let mut rule = deaths.lie_in_wait(aws, (name, fault), true);
    let mut child = start(operator, arguments);
    while let Some(call) = held(aws, operator, &mut child, rule) {
        let script = "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -q '^[^ ]*kprov server' && kill -9 ${p#/proc/} && echo killed; done";
        let output = aws.machines.inside(&control, script);
        assert!(crate::harness::text(&output).contains("killed"), "{}", crate::harness::text(&output));
        deaths.remember(name, call);
        rule = deaths.lie_in_wait(aws, (name, fault), true);
    }
    aws.proxy.clear();
    deaths
}

#[test]
fn up_change_and_down_killed_at_every_call_converge() {
    let (aws, operator, file) = begin();
    let account = aws.dump();
    let mut decoys = Vec::new();
    let deaths = kill_at_every_call(&aws, &operator, &["up", &file, "--yes"], || {
        let uid = aws.dump().iter().find_map(|row| row.tags.get(UID).cloned().flatten());
        if let (Some(uid), true) = (uid, decoys.is_empty()) {
            let real = aws.dump();
            aws.decoys(&uid, operator.name);
            decoys = aws.dump().into_iter().filter(|row| !real.contains(row)).collect();
        }
        assert_single(&ours(&aws, &decoys));
    });
    eprintln!("up was killed {} times: {:?}", deaths.known.len(), deaths.actions);
    assert!(decoys.len() >= 100, "{} near-identical strangers", decoys.len());
    for action in ["CreateVpc", "CreateRole", "PutParameter", "RunInstances", "CreateFileSystem", "CreateMountTarget", "CreateListener"] {
        assert!(deaths.actions.contains(action), "nobody died at {action}: {:?}", deaths.actions);
    }
    let handed = deaths.known.iter().any(|(_, identity)| identity.ends_with("of an epoch cluster"));
    assert!(handed, "nobody died at the hand-off");
    let up = json(&operator.ok(&["up", &file, "--yes", "-o", "json"]));
    serves(&operator, &up);
    assert_eq!(instances(&aws).len(), 3, "{:?}", ours(&aws, &decoys));

    let text = std::fs::read_to_string(&file).expect("the blueprint");
    let more = text.replace("role: worker, count: 2", "role: worker, count: 3");
    assert_ne!(more, text);
    std::fs::write(&file, more).expect("the blueprint");
    let deaths = kill_the_loop_at_every_call(&aws, &operator, &["up", &file, "--yes"]);
    eprintln!("the loop was killed {} times: {:?}", deaths.known.len(), deaths.actions);
    assert!(deaths.actions.contains("RunInstances") && deaths.actions.contains("RegisterTargets"), "{:?}", deaths.actions);
    assert_eq!(instances(&aws).len(), 4, "{:?}", ours(&aws, &decoys));
    assert_single(&ours(&aws, &decoys));

    let deaths = kill_at_every_call(&aws, &operator, &["down", &file, "--yes"], || ());
    eprintln!("down was killed {} times: {:?}", deaths.known.len(), deaths.actions);
    for action in ["TerminateInstances", "DeleteLoadBalancer", "DeleteVpc", "DeleteRole", "DeleteFileSystem", "DeleteParameter"] {
        assert!(deaths.actions.contains(action), "nobody died at {action}: {:?}", deaths.actions);
    }
    let mut left = account;
    left.extend(decoys);
    left.sort();
    let mut found = aws.dump();
    found.sort();
    assert_eq!(found, left, "nothing is left, and what is not ours is untouched");
    assert_eq!((aws.machines.names(), aws.namespace.links()), (vec![], vec![]), "no machine is left on this host");
}
