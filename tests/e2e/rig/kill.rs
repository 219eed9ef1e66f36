//! kill -9 of the real binary in the middle of its conversation with a cloud: at every call that changes something, once.
//!
//! Each call is done and its answer lost, then the process dies; `KPROV_KILLS=all` lets every call also die before the cloud hears of
//! it (twice as long). From the killed call on, the cloud hears nothing more of that process, so what ran beside it is met by a next run.

use super::machines::Machines;
use super::operator::Operator;
use super::proxy::{Call, Entry, Fault, Proxy, Rule};
use crate::harness::{Operated, text};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// From one call of kprov's to its next one that changes something; machines boot in between.
const CALL_LIMIT: Duration = Duration::from_secs(60);
/// Far above what a run has calls: a run that never ends is a failure, too.
const MOST: usize = 300;

/// The calls at which somebody has died, by fault.
#[derive(Default)]
pub struct Deaths {
    pub known: BTreeSet<(&'static str, String)>,
    pub actions: BTreeSet<String>,
}

impl Deaths {
    fn faults() -> Vec<(&'static str, Fault)> {
        let all = std::env::var("KPROV_KILLS").is_ok_and(|value| value == "all");
        let faults = [("after", Fault::HoldAfter), ("before", Fault::HoldBefore)];
        faults[..if all { 2 } else { 1 }].to_vec()
    }

    /// The next call of the operator's, or of the loop's, at which nobody died yet is held.
    fn lie_in_wait(&self, proxy: &Proxy, (name, fault): (&'static str, Fault), of_loop: bool) -> usize {
        let known: BTreeSet<String> = self.known.iter().filter(|(fault, _)| *fault == name).map(|(_, identity)| identity.clone()).collect();
        let is_new = move |call: &Call, client: IpAddr| call.mutating && is_machine(client) == of_loop && !known.contains(&call.identity);
        proxy.clear();
        proxy.rule(Rule::new(is_new, fault).freezing())
    }

    fn remember(&mut self, name: &'static str, call: Call) {
        self.actions.insert(call.action);
        self.known.insert((name, call.identity));
    }

    /// What a story needs to be about.
    pub fn assert_at(&self, actions: &[&str]) {
        for action in actions {
            assert!(self.actions.contains(*action), "nobody died at {action}: {:?}", self.actions);
        }
    }
}

/// All machines of the rig's clouds have such addresses, and nobody else.
fn is_machine(client: IpAddr) -> bool {
    client.to_string().starts_with("10.")
}

fn start(operator: &Operator, arguments: &[&str]) -> Child {
    let log = std::fs::File::create(operator.path("killed.log")).expect("a log");
    let mut command = operator.command();
    command.args(arguments).stdout(Stdio::null()).stderr(log).spawn().expect("kprov starts")
}

/// The held call, or `None` when the process ended well before any.
fn held(proxy: &Proxy, operator: &Operator, child: &mut Child, rule: usize) -> Option<Call> {
    let deadline = Instant::now() + CALL_LIMIT;
    loop {
        if proxy.fired(rule) > 0 {
            return Some(proxy.held(Duration::from_secs(5)).expect("the held call is written down"));
        }
        if let Some(status) = child.try_wait().expect("a child") {
            let said = std::fs::read_to_string(operator.path("killed.log")).unwrap_or_default();
            assert!(status.success(), "{status}\n{said}\n{}", actions(proxy));
            return None;
        }
        assert!(Instant::now() < deadline, "neither call nor end:\n{}", actions(proxy));
        proxy.wait(Duration::from_millis(20), |_| false);
    }
}

/// Runs a command that dies at its first call of this name, with the answer lost.
pub fn kill_at(proxy: &Proxy, operator: &Operator, arguments: &[&str], action: &str) {
    proxy.clear();
    let rule = proxy.rule(Rule::on(action, Fault::HoldAfter).freezing());
    let mut child = start(operator, arguments);
    held(proxy, operator, &mut child, rule).unwrap_or_else(|| panic!("kprov {arguments:?} ended without {action}"));
    child.kill().expect("kill");
    child.wait().expect("it ends");
    proxy.clear();
}

/// Starts the command again and again, and kills it at each of its calls once; returns when it has ended well. `between` looks at the
/// cloud after every death.
pub fn kill_at_every_call(proxy: &Proxy, operator: &Operator, arguments: &[&str], mut between: impl FnMut()) -> Deaths {
    let mut deaths = Deaths::default();
    for (name, fault) in Deaths::faults() {
        loop {
            let rule = deaths.lie_in_wait(proxy, (name, fault), false);
            let mut child = start(operator, arguments);
            let Some(call) = held(proxy, operator, &mut child, rule) else { break };
            child.kill().expect("kill");
            child.wait().expect("it ends");
            deaths.remember(name, call);
            between();
            assert!(deaths.known.len() < MOST, "it does not come to an end:\n{}", actions(proxy));
        }
    }
    proxy.clear();
    eprintln!("{} was killed {} times: {:?}", arguments[0], deaths.known.len(), deaths.actions);
    deaths
}

/// The same for the loop inside while a command waits for it: the server on the control plane is killed, and its supervisor starts it
/// again. `control` is the control plane's machine.
pub fn kill_the_loop_at_every_call(proxy: &Proxy, operator: &Operator, arguments: &[&str], machines: &Machines, control: &str) -> Deaths {
    let mut deaths = Deaths::default();
    let (name, fault) = Deaths::faults()[0];
    let mut rule = deaths.lie_in_wait(proxy, (name, fault), true);
    let mut child = start(operator, arguments);
    while let Some(call) = held(proxy, operator, &mut child, rule) {
        let script = "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -q '^[^ ]*kprov server' && kill -9 ${p#/proc/} && echo killed; done";
        let said = text(&machines.inside(control, script));
        assert!(said.contains("killed"), "{said}");
        deaths.remember(name, call);
        rule = deaths.lie_in_wait(proxy, (name, fault), true);
    }
    proxy.clear();
    eprintln!("the loop was killed {} times: {:?}", deaths.known.len(), deaths.actions);
    deaths
}

/// The last calls, for people.
pub fn actions(proxy: &Proxy) -> String {
    let line = |entry: &Entry| format!("{} {} {:?} {:?}", entry.client, entry.call.action, entry.fault, entry.status);
    proxy.ledger().iter().rev().take(60).rev().map(line).collect::<Vec<_>>().join("\n")
}
