//! The pod's status as the API shows it: a pure function of the same inputs as the decision, and of the decision's waiting reasons.

use super::decide::{Plan, is_finished};
use super::observed::*;
use super::resources::quality_of_service;
use k8s_openapi::api::core::v1::{Container as ContainerSpec, ContainerStatus, Pod, PodStatus};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

/// What the status says about the node.
#[derive(Debug, Clone)]
pub struct Node<'a> {
    pub address: &'a str,
}

/// RFC 3339 with whole seconds, as upstream writes times of objects.
pub fn time(at: Nanos) -> String {
    let seconds = Timestamp::from_second(at.div_euclid(SECOND)).unwrap_or(Timestamp::UNIX_EPOCH);
    seconds.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The whole `status` as a value for a merge patch: lists are complete, fields to be removed are null.
/// `before` is the status told last: times of conditions that did not change are kept from it.
pub fn compute(pod: &Pod, before: &PodStatus, seen: &Observed, memory: &Memory, plan: &Plan, node: &Node, now: Nanos) -> Value {
    let scene = Scene { pod, seen, memory, plan, before };
    let main: Vec<Value> = containers(pod).iter().map(|spec| scene.container(spec, &before.container_statuses, false)).collect();
    let init: Vec<Value> = init_containers(pod).iter().map(|spec| scene.container(spec, &before.init_container_statuses, true)).collect();
    let phase = scene.phase(&main, &init);
    let ips = scene.ips(node, phase);
    let mut status = json!({
        "phase": phase,
        "conditions": scene.conditions(phase, &main, &init, now),
        "containerStatuses": main,
        "hostIP": node.address,
        "hostIPs": [{"ip": node.address}],
        "startTime": before.start_time.as_ref().map_or_else(|| time(now), |time| self::time(time.0.as_nanosecond() as i64)),
        "qosClass": quality_of_service(pod).name(),
        "podIP": ips.first(),
        "podIPs": (!ips.is_empty()).then(|| ips.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>()),
        "reason": memory.rejected.as_ref().map(|(reason, _)| reason.as_str()).or(before.reason.as_deref()),
        "message": memory.rejected.as_ref().map(|(_, message)| message.as_str()).or(before.message.as_deref()),
    });
    if let Some(generation) = pod.metadata.generation {
        status["observedGeneration"] = generation.into();
    }
    if !init.is_empty() {
        status["initContainerStatuses"] = init.into();
    }
    status
}

const OWN: [&str; 5] = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

/// True for conditions that the kubelet writes.
pub fn is_own(condition: &str) -> bool {
    OWN.contains(&condition)
}

struct Scene<'a> {
    pod: &'a Pod,
    seen: &'a Observed,
    memory: &'a Memory,
    plan: &'a Plan,
    before: &'a PodStatus,
}

impl Scene<'_> {
    fn container(&self, spec: &ContainerSpec, before: &Option<Vec<ContainerStatus>>, init: bool) -> Value {
        let before = before.as_ref().and_then(|list| list.iter().find(|status| status.name == spec.name));
        let image = spec.image.as_deref().unwrap_or_default();
        let Some(container) = self.seen.newest(&spec.name) else {
            return self.absent(spec, before);
        };
        let running = container.state == State::Running;
        let started = running && self.memory.started.contains(&container.id);
        let ready = match init && !is_sidecar(spec) {
            true => container.state == State::Exited && container.exit_code == 0,
            false => running && self.memory.ready.contains(&container.id),
        };
        let waits = self.plan.waiting.get(&spec.name).filter(|waiting| match container.state {
            State::Exited => !matches!(waiting.reason.as_str(), "ContainerCreating" | "PodInitializing"),
            State::Created => true,
            State::Running => false,
        });
        let previous = self.seen.previous(container);
        let (state, last) = match (waits, container.state) {
            (Some(waiting), State::Exited) => (waiting_state(&waiting.reason, &waiting.message), Some(terminated(container))),
            (Some(waiting), _) => (waiting_state(&waiting.reason, &waiting.message), previous.map(terminated)),
            (None, State::Running) => (json!({"running": {"startedAt": time(container.started)}}), previous.map(terminated)),
            (None, State::Exited) => (terminated(container), previous.map(terminated)),
            (None, State::Created) => (waiting_state("ContainerCreating", ""), previous.map(terminated)),
        };
        let mut status = json!({
            "name": spec.name,
            "image": if container.image.is_empty() { image } else { &container.image },
            "imageID": container.image_ref,
            "containerID": format!("containerd://{}", container.id),
            "restartCount": container.attempt,
            "ready": ready,
            "started": started,
            "state": state,
            "lastState": last.unwrap_or_else(|| json!({})),
        });
        if let Some(resources) = &spec.resources {
            status["resources"] = serde_json::to_value(resources).unwrap_or_default();
        }
        status
    }

    /// The runtime has no such container (yet, or any more).
    fn absent(&self, spec: &ContainerSpec, before: Option<&ContainerStatus>) -> Value {
        // A finished pod whose containers were removed keeps what was said of them.
        if let Some(before) = before.filter(|before| before.container_id.is_some() && is_finished(self.pod, self.seen)) {
            return serde_json::to_value(before).unwrap_or_default();
        }
        let (reason, message) = match self.plan.waiting.get(&spec.name) {
            Some(waiting) => (waiting.reason.as_str(), waiting.message.as_str()),
            None => ("ContainerCreating", ""),
        };
        json!({
            "name": spec.name, "image": spec.image, "imageID": "", "ready": false, "started": false,
            "restartCount": before.map_or(0, |before| before.restart_count),
            "state": waiting_state(reason, message), "lastState": {},
        })
    }

    fn phase(&self, main: &[Value], init: &[Value]) -> &'static str {
        let ended = self.before.phase.as_deref();
        if ended == Some("Failed") || self.memory.rejected.is_some() {
            return "Failed";
        }
        if ended == Some("Succeeded") {
            return "Succeeded";
        }
        let policy = restart_policy(self.pod);
        let exit_code = |status: &Value| ["state", "lastState"].iter().find_map(|at| status[at]["terminated"]["exitCode"].as_i64());
        let any_began = main.iter().any(|status| status.get("containerID").is_some());
        for (spec, status) in init_containers(self.pod).iter().zip(init) {
            if is_sidecar(spec) || any_began {
                continue;
            }
            match status["state"]["terminated"]["exitCode"].as_i64() {
                Some(0) => {}
                Some(_) if policy == "Never" => return "Failed",
                _ => return "Pending",
            }
        }
        let running = main.iter().filter(|status| status["state"].get("running").is_some()).count();
        let stopped: Vec<i64> = main.iter().filter(|status| status["state"].get("running").is_none()).filter_map(exit_code).collect();
        if running + stopped.len() < main.len() {
            return "Pending";
        }
        let ending = self.memory.ending.is_some();
        match () {
            () if running > 0 => "Running",
            () if policy == "Always" && !ending => "Running",
            () if stopped.iter().all(|code| *code == 0) => "Succeeded",
            () if policy == "OnFailure" && !ending => "Running",
            () => "Failed",
        }
    }

    fn ips(&self, node: &Node, phase: &str) -> Vec<String> {
        if host_network(self.pod) {
            return vec![node.address.to_owned()];
        }
        let now = self.seen.sandbox(self.pod).map(|sandbox| sandbox.ips.clone()).unwrap_or_default();
        // A finished or ending pod keeps showing the address it had.
        if now.is_empty() && (matches!(phase, "Succeeded" | "Failed") || self.memory.ending.is_some()) {
            return self.before.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect();
        }
        now
    }

    fn conditions(&self, phase: &str, main: &[Value], init: &[Value], now: Nanos) -> Vec<Value> {
        let unready = |list: &[Value]| -> Vec<String> {
            list.iter().filter(|status| status["ready"] != true).filter_map(|status| status["name"].as_str().map(str::to_owned)).collect()
        };
        let sidecars: Vec<Value> =
            init_containers(self.pod).iter().zip(init).filter(|(spec, _)| is_sidecar(spec)).map(|(_, status)| status.clone()).collect();
        let waiting_init: Vec<String> = init_containers(self.pod)
            .iter()
            .zip(init)
            .filter(|(spec, status)| if is_sidecar(spec) { status["started"] != true } else { status["ready"] != true })
            .map(|(spec, _)| spec.name.clone())
            .collect();
        let began = main.iter().any(|status| status.get("containerID").is_some());
        let unready: Vec<String> = [unready(&sidecars), unready(main)].concat();
        let ready = match phase {
            "Succeeded" => Condition::no("PodCompleted", String::new()),
            "Failed" => Condition::no("PodFailed", String::new()),
            _ if unready.is_empty() => Condition::yes(),
            _ => Condition::no("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" "))),
        };
        let initialized = match waiting_init.is_empty() || began {
            true if phase == "Succeeded" => Condition { reason: Some("PodCompleted"), ..Condition::yes() },
            true => Condition::yes(),
            false => Condition::no("ContainersNotInitialized", format!("containers with incomplete status: [{}]", waiting_init.join(" "))),
        };
        let network = if self.seen.sandbox(self.pod).is_some() { Condition::yes() } else { Condition::bare(false) };
        let gates = self.gates();
        let pod_ready = if ready.status { gates.unwrap_or_else(Condition::yes) } else { ready.clone() };
        let own = OWN.into_iter().zip([network, initialized, pod_ready, ready, Condition::yes()]);
        let before = self.before.conditions.as_deref().unwrap_or_default();
        let mut conditions: Vec<Value> = own
            .map(|(kind, condition)| {
                let old = before.iter().find(|old| old.type_ == kind);
                let status = if condition.status { "True" } else { "False" };
                let same = old.filter(|old| old.status == status).and_then(|old| old.last_transition_time.as_ref());
                let since = same.map_or_else(|| time(now), |since| time(since.0.as_nanosecond() as i64));
                let mut value = json!({"type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": since});
                if let Some(reason) = condition.reason {
                    value["reason"] = reason.into();
                }
                if !condition.message.is_empty() {
                    value["message"] = condition.message.into();
                }
                value
            })
            .collect();
        // Conditions of others (readiness gates, disruption) are theirs.
        let foreign = before.iter().filter(|old| conditions.iter().all(|own| own["type"] != *old.type_));
        let foreign: Vec<Value> = foreign.filter_map(|old| serde_json::to_value(old).ok()).collect();
        conditions.extend(foreign);
        conditions
    }

    /// Why the pod is not ready although its containers are: readiness gates that nobody has opened.
    fn gates(&self) -> Option<Condition> {
        let gates = self.pod.spec.as_ref()?.readiness_gates.as_deref()?;
        let conditions = self.before.conditions.as_deref().unwrap_or_default();
        let open = |kind: &str| conditions.iter().any(|condition| condition.type_ == kind && condition.status == "True");
        let closed: Vec<&str> = gates.iter().map(|gate| gate.condition_type.as_str()).filter(|kind| !open(kind)).collect();
        let message = || format!("corresponding condition of pod readiness gate \"{}\" does not exist.", closed.join("\", \""));
        (!closed.is_empty()).then(|| Condition::no("ReadinessGatesNotReady", message()))
    }
}

#[derive(Clone)]
struct Condition {
    status: bool,
    reason: Option<&'static str>,
    message: String,
}

impl Condition {
    fn bare(status: bool) -> Condition {
        Condition { status, reason: None, message: String::new() }
    }
    fn yes() -> Condition {
        Condition::bare(true)
    }
    fn no(reason: &'static str, message: String) -> Condition {
        Condition { status: false, reason: Some(reason), message }
    }
}

fn waiting_state(reason: &str, message: &str) -> Value {
    let mut waiting = json!({"reason": reason});
    if !message.is_empty() {
        waiting["message"] = message.into();
    }
    json!({ "waiting": waiting })
}

fn terminated(container: &Container) -> Value {
    let reason = match container.reason.as_str() {
        "" if container.exit_code == 0 => "Completed",
        "" => "Error",
        reason => reason,
    };
    let mut state = json!({
        "exitCode": container.exit_code,
        "reason": reason,
        "startedAt": time(container.started),
        "finishedAt": time(container.finished),
        "containerID": format!("containerd://{}", container.id),
    });
    if !container.message.is_empty() {
        state["message"] = container.message.clone().into();
    }
    json!({ "terminated": state })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::kubelet::decide;

    const NOW: Nanos = 1_000_000 * SECOND;

    /// What `kubectl get pods` would make of it: phase, the first container's state and reason, restarts, readiness.
    fn told(policy: &str, state: Option<(State, i32, u32)>, change: impl Fn(&mut Memory)) -> Value {
        let spec = json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "i"}]});
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "web", "uid": "u"}, "spec": spec})).unwrap();
        let sandbox = Sandbox { id: "s".into(), ready: true, ips: vec!["10.244.0.2".into()], ..Default::default() };
        let container = state.map(|(state, exit_code, attempt)| Container {
            id: "c".into(),
            name: "a".into(),
            sandbox: "s".into(),
            hash: hash(&containers(&pod)[0]),
            started: NOW - SECOND,
            finished: NOW,
            ended: NOW,
            state,
            exit_code,
            attempt,
            ..Default::default()
        });
        let seen = Observed { sandboxes: vec![sandbox], containers: container.into_iter().collect() };
        let mut memory =
            Memory { volumes: Step::Done, started: ["c".to_owned()].into(), ready: ["c".to_owned()].into(), ..Default::default() };
        change(&mut memory);
        let plan = decide::sync(&pod, &seen, &memory, NOW);
        compute(&pod, &PodStatus::default(), &seen, &memory, &plan, &Node { address: "10.0.0.1" }, NOW)
    }

    fn line(status: &Value) -> String {
        let container = &status["containerStatuses"][0];
        let (state, detail) =
            container["state"].as_object().and_then(|state| state.iter().next()).map(|(a, b)| (a.clone(), b.clone())).unwrap();
        let ready = status["conditions"].as_array().unwrap().iter().find(|condition| condition["type"] == "Ready").unwrap();
        let reason = detail["reason"].as_str().unwrap_or("-");
        format!(
            "{} {state} {reason} {} {}",
            status["phase"].as_str().unwrap(),
            container["restartCount"],
            ready["status"].as_str().unwrap()
        )
    }

    #[test]
    fn a_pod_reads_as_kubectl_users_know_it() {
        let check = |policy, state, wanted: &str| assert_eq!(line(&told(policy, state, |_| ())), wanted);
        check("Always", None, "Pending waiting ContainerCreating 0 False");
        check("Always", Some((State::Running, 0, 0)), "Running running - 0 True");
        check("Always", Some((State::Exited, 1, 3)), "Running waiting CrashLoopBackOff 3 False");
        check("Always", Some((State::Exited, 1, 0)), "Running terminated Error 0 False");
        check("Never", Some((State::Exited, 0, 0)), "Succeeded terminated Completed 0 False");
        check("Never", Some((State::Exited, 2, 0)), "Failed terminated Error 0 False");
        check("OnFailure", Some((State::Exited, 0, 1)), "Succeeded terminated Completed 1 False");
    }

    #[test]
    fn waiting_reasons_and_readiness_come_from_memory() {
        let failed = |memory: &mut Memory| {
            let failure = Failure { reason: "ErrImagePull", message: "no".into(), retry_at: NOW + SECOND, pause: SECOND };
            memory.images.insert("a".into(), Step::Failed(failure));
        };
        assert_eq!(line(&told("Always", None, failed)), "Pending waiting ErrImagePull 0 False");
        let unready = told("Always", Some((State::Running, 0, 0)), |memory| memory.ready.clear());
        assert_eq!(line(&unready), "Running running - 0 False");
        let condition =
            unready["conditions"].as_array().unwrap().iter().find(|condition| condition["type"] == "ContainersReady").unwrap().clone();
        assert_eq!(condition["message"], "containers with unready status: [a]");
        let rejected = told("Always", None, |memory| memory.rejected = Some(("DeadlineExceeded".into(), "late".into())));
        assert_eq!((&rejected["phase"], &rejected["reason"]), (&json!("Failed"), &json!("DeadlineExceeded")));
    }
}
