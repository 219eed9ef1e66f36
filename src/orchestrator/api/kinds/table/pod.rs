//! The row of a pod: its status word is derived from its containers.

use super::since;
use crate::orchestrator::api::kinds::json::{integer, list, text, truth};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

pub fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = Summary::of(pod);
    let or_none = |text: &str| if text.is_empty() { json!("<none>") } else { json!(text) };
    vec![
        text(pod, "/metadata/name").into(),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.clone().into(),
        restarts(&summary, now).into(),
        since(pod, "/metadata/creationTimestamp", now).into(),
        or_none(text(pod, "/status/podIPs/0/ip")),
        or_none(text(pod, "/spec/nodeName")),
        or_none(text(pod, "/status/nominatedNodeName")),
        readiness_gates(pod).into(),
    ]
}

fn restarts(summary: &Summary, now: Timestamp) -> String {
    match summary.last_restart {
        Some(then) if summary.restarts != 0 => {
            format!("{} ({} ago)", summary.restarts, super::human_duration(now.as_second() - then.as_second()))
        }
        _ => summary.restarts.to_string(),
    }
}

fn readiness_gates(pod: &Value) -> String {
    let gates = list(pod, "/spec/readinessGates");
    if gates.is_empty() {
        return "<none>".into();
    }
    let met = gates.iter().filter(|gate| condition(pod, text(gate, "/conditionType")) == "True").count();
    format!("{met}/{}", gates.len())
}

fn condition<'a>(pod: &'a Value, kind: &str) -> &'a str {
    let condition = list(pod, "/status/conditions").iter().find(|condition| text(condition, "/type") == kind);
    condition.map_or("", |condition| text(condition, "/status"))
}

struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

impl Summary {
    fn of(pod: &Value) -> Summary {
        let init = list(pod, "/spec/initContainers");
        let sidecars = init.iter().filter(|container| text(container, "/restartPolicy") == "Always").count();
        let mut summary = Summary {
            reason: first_reason(pod),
            ready: 0,
            total: list(pod, "/spec/containers").len() + sidecars,
            restarts: 0,
            last_restart: None,
        };
        let initializing = summary.initialize(pod, init);
        if !initializing || condition(pod, "Initialized") == "True" {
            summary.run(pod, init);
        }
        if pod.pointer("/metadata/deletionTimestamp").is_some() {
            if text(pod, "/status/reason") == "NodeLost" {
                summary.reason = "Unknown".into();
            } else if !matches!(text(pod, "/status/phase"), "Succeeded" | "Failed") {
                summary.reason = "Terminating".into();
            }
        }
        summary
    }

    /// Looks at init containers in order, up to the first that is not done. True if there is one.
    fn initialize(&mut self, pod: &Value, init: &[Value]) -> bool {
        for (at, status) in list(pod, "/status/initContainerStatuses").iter().enumerate() {
            self.count_restarts(status);
            let sidecar = is_sidecar(init, status);
            let terminated = status.pointer("/state/terminated");
            let waiting = text(status, "/state/waiting/reason");
            if terminated.is_some() && integer(status, "/state/terminated/exitCode") == Some(0) {
                continue;
            }
            if sidecar && truth(status, "/started") {
                self.ready += usize::from(truth(status, "/ready"));
                continue;
            }
            self.reason = if terminated.is_some() {
                format!("Init:{}", ended(status))
            } else if !waiting.is_empty() && waiting != "PodInitializing" {
                format!("Init:{waiting}")
            } else {
                format!("Init:{at}/{}", init.len())
            };
            return true;
        }
        false
    }

    fn run(&mut self, pod: &Value, init: &[Value]) {
        (self.restarts, self.last_restart) = (0, None);
        for status in list(pod, "/status/initContainerStatuses").iter().filter(|status| is_sidecar(init, status)) {
            self.count_restarts(status);
        }
        let mut running = false;
        for status in list(pod, "/status/containerStatuses").iter().rev() {
            self.count_restarts(status);
            let waiting = text(status, "/state/waiting/reason");
            if !waiting.is_empty() {
                self.reason = waiting.into();
            } else if status.pointer("/state/terminated").is_some() {
                self.reason = ended(status);
            } else if truth(status, "/ready") && status.pointer("/state/running").is_some() {
                running = true;
                self.ready += 1;
            }
        }
        // One container is done, another still serves.
        if self.reason == "Completed" && running {
            self.reason = if condition(pod, "Ready") == "True" { "Running" } else { "NotReady" }.into();
        }
    }

    fn count_restarts(&mut self, status: &Value) {
        self.restarts += integer(status, "/restartCount").unwrap_or_default();
        let finished = text(status, "/lastState/terminated/finishedAt").parse().ok();
        self.last_restart = self.last_restart.max(finished);
    }
}

fn first_reason(pod: &Value) -> String {
    let gated = list(pod, "/status/conditions")
        .iter()
        .any(|condition| text(condition, "/type") == "PodScheduled" && text(condition, "/reason") == "SchedulingGated");
    match (gated, text(pod, "/status/reason")) {
        (true, _) => "SchedulingGated".into(),
        (false, "") => text(pod, "/status/phase").into(),
        (false, reason) => reason.into(),
    }
}

fn is_sidecar(init: &[Value], status: &Value) -> bool {
    let name = text(status, "/name");
    init.iter().any(|container| text(container, "/name") == name && text(container, "/restartPolicy") == "Always")
}

/// Why a container ended, in a word.
fn ended(status: &Value) -> String {
    let (reason, signal) = (text(status, "/state/terminated/reason"), integer(status, "/state/terminated/signal").unwrap_or_default());
    match (reason, signal) {
        ("", 0) => format!("ExitCode:{}", integer(status, "/state/terminated/exitCode").unwrap_or_default()),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{check, now};
    use super::*;

    fn pod(status: Value) -> Value {
        json!({"metadata": {"name": "web"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}, "status": status})
    }

    fn check_status(status: Value, ready: &str, word: &str) {
        let pod = pod(status);
        let cells = cells(&pod, now());
        assert_eq!((cells[1].as_str(), cells[2].as_str()), (Some(ready), Some(word)), "{pod}");
    }

    #[test]
    fn a_running_pod_shows_its_restarts_and_where_it_is() {
        check(
            "",
            "Pod",
            "Name | Ready | Status | Restarts | Age | IP | Node | Nominated Node | Readiness Gates",
            json!({
                "metadata": {"name": "web", "creationTimestamp": "2026-11-23T11:00:00Z"},
                "spec": {"nodeName": "worker-1", "containers": [{"name": "a"}], "readinessGates": [{"conditionType": "x"}]},
                "status": {"phase": "Running", "podIPs": [{"ip": "10.244.0.5"}], "containerStatuses": [
                    {"name": "a", "ready": true, "restartCount": 2, "state": {"running": {}}, "lastState": {"terminated": {"finishedAt": "2026-11-23T11:59:55Z"}}}
                ]}
            }),
            "web | 1/1 | Running | 2 (5s ago) | 60m | 10.244.0.5 | worker-1 | <none> | 0/1",
        );
    }

    #[test]
    fn the_status_word_follows_the_containers() {
        let waiting =
            |reason: &str| json!({"phase": "Pending", "containerStatuses": [{"name": "a", "state": {"waiting": {"reason": reason}}}]});
        check_status(json!({"phase": "Pending"}), "0/2", "Pending");
        check_status(waiting("ContainerCreating"), "0/2", "ContainerCreating");
        check_status(waiting("CrashLoopBackOff"), "0/2", "CrashLoopBackOff");
        check_status(waiting("ImagePullBackOff"), "0/2", "ImagePullBackOff");
        check_status(json!({"phase": "Failed", "reason": "Evicted"}), "0/2", "Evicted");
        check_status(
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "reason": "SchedulingGated"}]}),
            "0/2",
            "SchedulingGated",
        );
        let ended = |state: Value| json!({"phase": "Failed", "containerStatuses": [{"name": "a", "state": {"terminated": state}}]});
        check_status(ended(json!({"exitCode": 0, "reason": "Completed"})), "0/2", "Completed");
        check_status(ended(json!({"exitCode": 1, "reason": "Error"})), "0/2", "Error");
        check_status(ended(json!({"exitCode": 3})), "0/2", "ExitCode:3");
        check_status(ended(json!({"exitCode": 137, "signal": 9})), "0/2", "Signal:9");
    }

    #[test]
    fn a_served_pod_with_one_container_done_is_running() {
        let status = |ready: &str| {
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": ready}], "containerStatuses": [
                {"name": "a", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}},
                {"name": "b", "ready": true, "state": {"running": {}}},
            ]})
        };
        check_status(status("True"), "1/2", "Running");
        check_status(status("False"), "1/2", "NotReady");
    }

    #[test]
    fn init_containers_come_first() {
        let init = |state: Value| json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": state}], "containerStatuses": [{"name": "a", "state": {"waiting": {"reason": "PodInitializing"}}}]});
        check_status(init(json!({"running": {}})), "0/2", "Init:0/1");
        check_status(init(json!({"waiting": {"reason": "PodInitializing"}})), "0/2", "Init:0/1");
        check_status(init(json!({"waiting": {"reason": "CrashLoopBackOff"}})), "0/2", "Init:CrashLoopBackOff");
        check_status(init(json!({"terminated": {"exitCode": 1, "reason": "Error"}})), "0/2", "Init:Error");
        check_status(init(json!({"terminated": {"exitCode": 2}})), "0/2", "Init:ExitCode:2");
        check_status(init(json!({"terminated": {"exitCode": 0}})), "0/2", "PodInitializing");
    }

    #[test]
    fn a_sidecar_counts_among_the_containers() {
        let mut pod = pod(
            json!({"phase": "Running", "initContainerStatuses": [{"name": "i", "started": true, "ready": true, "restartCount": 3, "state": {"running": {}}}],
            "containerStatuses": [{"name": "a", "ready": true, "state": {"running": {}}}, {"name": "b", "ready": true, "state": {"running": {}}}]}),
        );
        pod["spec"]["initContainers"][0]["restartPolicy"] = "Always".into();
        let cells = cells(&pod, now());
        assert_eq!((&cells[1], &cells[2], &cells[3]), (&json!("3/3"), &json!("Running"), &json!("3")));
    }

    #[test]
    fn a_deleted_pod_is_terminating_until_it_has_ended() {
        let mut pod = pod(json!({"phase": "Running"}));
        pod["metadata"]["deletionTimestamp"] = "2026-11-23T11:59:00Z".into();
        assert_eq!(cells(&pod, now())[2], "Terminating");
        pod["status"]["phase"] = "Succeeded".into();
        assert_eq!(cells(&pod, now())[2], "Succeeded");
        pod["status"]["reason"] = "NodeLost".into();
        assert_eq!(cells(&pod, now())[2], "Unknown");
    }
}
