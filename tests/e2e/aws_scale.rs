//! A cluster of many machines on emulated AWS: how long `up` takes, what of that is kprov's own after the last machine runs, and how
//! often the cloud is asked. 12 machines by default; the README's figure by
//! `KPROV_MACHINES=100 cargo test --profile checked --test e2e -- --nocapture aws_scale`.
//!
//! Figures are printed, never judged: this host plays all the machines at once.

use crate::aws_cluster::{assert_single, begin, is_loop, ours};
use crate::harness::{Operated, json, text};
use crate::rig::aws::Aws;
use crate::rig::operator::{Operator, SHOP};
use crate::rig::proxy::{Entry, tell_quiet_calls, told};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// So many fit into a small CI machine.
const MACHINES: usize = 12;
/// Hours: a slow host makes slow machines, and that is not what this story is about.
const PATIENCE_SECONDS: &str = "7200";
const LOOK: Duration = Duration::from_millis(50);

fn machines() -> usize {
    let number = |text: String| text.parse().unwrap_or_else(|_| panic!("KPROV_MACHINES={text} is no number"));
    std::env::var("KPROV_MACHINES").map_or(MACHINES, number)
}

/// One control plane, and workers that are as small as they come.
fn blueprint(workers: usize) -> String {
    format!(
        "apiVersion: kprov.dev/v1
kind: Blueprint
metadata: {{name: {SHOP}}}
spec:
  provider: aws
  location: eu-west
  access: {{from: [198.18.0.0/15]}}
  machines:
    - {{name: control, role: control-plane, count: 1, size: {{cpu: 1, memory: 2Gi, disk: 8Gi}}}}
    - {{name: worker, role: worker, count: {workers}, size: {{cpu: 500m, memory: 512Mi, disk: 8Gi}}}}
"
    )
}

#[test]
fn many_machines_become_one_cluster_and_leave_nothing() {
    let count = machines();
    assert!(count >= 2, "a control plane and a worker at least");
    require_watches(count);
    let (aws, operator, file) = begin();
    std::fs::write(&file, blueprint(count - 1)).expect("the blueprint");
    let before = aws.dump();

    let begun = Instant::now();
    let all_running = up(&aws, &operator, &file, count);
    let took = begun.elapsed();
    let nodes = json(&operator.kubectl_ok(&["get", "nodes", "-o", "json"]));
    let ready = ready_since(&nodes);
    assert_eq!(ready.len(), count, "every machine is a node, and ready: {nodes}");
    assert_single(&ours(&aws, &before));
    let last = ready.iter().max().expect("at least one node");
    // Nodes say it in whole seconds.
    let joined = last.duration_since(all_running).as_secs_f64();
    eprintln!(
        "{count} machines: up {:.1} s, of that {:.0} s after the last machine ran until the last node was ready",
        took.as_secs_f64(),
        joined.max(0.0)
    );
    tell_calls("up", &aws.proxy.ledger());
    let plan = operator.kprov(&["plan", &file, "--exit-code"]);
    assert_eq!(plan.status.code(), Some(0), "plan after up is empty: {}", text(&plan));

    aws.proxy.clear();
    if std::env::var_os("KPROV_MACHINES").is_some() {
        tell_quiet_calls(&aws.proxy);
        aws.proxy.clear();
    }
    let begun = Instant::now();
    operator.ok(&["down", operator.name, "--yes", "--timeout", PATIENCE_SECONDS]);
    eprintln!("{count} machines: down {:.1} s", begun.elapsed().as_secs_f64());
    tell_calls("down", &aws.proxy.ledger());
    assert_eq!(aws.dump(), before, "nothing is left");
    assert_eq!((aws.machines.names(), aws.namespace.links()), (vec![], vec![]), "no machine is left on this host");
}

/// On every machine the runtime watches its network's configuration and the agent its files, all as this host's root.
fn require_watches(machines: usize) {
    let text = std::fs::read_to_string("/proc/sys/fs/inotify/max_user_instances").expect("Linux counts watchers");
    let (most, wanted) = (text.trim().parse::<usize>().expect("a number"), 2 * machines + 32);
    assert!(most >= wanted, "{machines} machines need `sysctl fs.inotify.max_user_instances={wanted}` on this host; it is {most}");
}

/// Runs `up`; when the last machine ran.
fn up(aws: &Aws, operator: &Operator, file: &str, count: usize) -> Timestamp {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            while aws.machines.names().len() < count && !over.load(Ordering::Relaxed) {
                std::thread::sleep(LOOK);
            }
            Timestamp::now()
        });
        let output = operator.kprov(&["up", file, "--yes", "--timeout", PATIENCE_SECONDS]);
        over.store(true, Ordering::Relaxed);
        assert!(output.status.success(), "up failed ({}):\n{}", output.status, text(&output));
        watch.join().expect("the watch ends")
    })
}

/// Since when each ready node is so.
fn ready_since(nodes: &Value) -> Vec<Timestamp> {
    let conditions = nodes["items"].as_array().expect("nodes").iter().flat_map(|node| node["status"]["conditions"].as_array()).flatten();
    let ready = conditions.filter(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    ready.map(|condition| condition["lastTransitionTime"].as_str().expect("a time").parse().expect("RFC 3339")).collect()
}

/// Of the command and of the loop inside.
fn tell_calls(command: &str, ledger: &[Entry]) {
    for (who, of_loop) in [(command, false), ("the loop meanwhile", true)] {
        eprintln!("{who}: {}", told(ledger.iter().filter(|entry| is_loop(entry) == of_loop)));
    }
}
