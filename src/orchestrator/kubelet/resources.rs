//! Requests and limits in the kernel's terms: quality of service, CPU shares and quota, memory limit, OOM score.

use super::cri::messages::LinuxContainerResources;
use super::observed::{containers, init_containers};
use crate::blueprint::quantity;
use crate::orchestrator::scheduler::pod::{PodInfo, Resources};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quality {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Quality {
    pub fn name(self) -> &'static str {
        match self {
            Quality::Guaranteed => "Guaranteed",
            Quality::Burstable => "Burstable",
            Quality::BestEffort => "BestEffort",
        }
    }
}

/// Limits and requests of one container in plain numbers; `None` is "not named". A limit without a request is the request too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amounts {
    pub cpu_request_millis: Option<i64>,
    pub cpu_limit_millis: Option<i64>,
    pub memory_request_bytes: Option<i64>,
    pub memory_limit_bytes: Option<i64>,
}

pub fn amounts(container: &Container) -> Amounts {
    let Some(resources) = &container.resources else { return Amounts::default() };
    let cpu = |list: Option<&std::collections::BTreeMap<_, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>| {
        list.and_then(|list| list.get("cpu")).and_then(|amount| quantity::cpu_millis(&amount.0).ok())
    };
    let memory = |list: Option<&std::collections::BTreeMap<_, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>| {
        list.and_then(|list| list.get("memory")).and_then(|amount| quantity::bytes(&amount.0).ok())
    };
    let (requests, limits) = (resources.requests.as_ref(), resources.limits.as_ref());
    Amounts {
        cpu_request_millis: cpu(requests).or(cpu(limits)),
        cpu_limit_millis: cpu(limits).filter(|millis| *millis > 0),
        memory_request_bytes: memory(requests).or(memory(limits)),
        memory_limit_bytes: memory(limits).filter(|bytes| *bytes > 0),
    }
}

/// Upstream's rule: nothing named is BestEffort; everything limited, with requests equal to limits, is Guaranteed.
pub fn quality_of_service(pod: &Pod) -> Quality {
    let all: Vec<Amounts> = containers(pod).iter().chain(init_containers(pod)).map(amounts).collect();
    let named = |amounts: &Amounts| {
        [amounts.cpu_request_millis, amounts.cpu_limit_millis, amounts.memory_request_bytes, amounts.memory_limit_bytes]
            .iter()
            .any(|amount| amount.is_some_and(|amount| amount > 0))
    };
    let full = |amounts: &Amounts| {
        amounts.cpu_limit_millis.is_some()
            && amounts.memory_limit_bytes.is_some()
            && amounts.cpu_request_millis == amounts.cpu_limit_millis
            && amounts.memory_request_bytes == amounts.memory_limit_bytes
    };
    match () {
        () if !all.iter().any(named) => Quality::BestEffort,
        () if all.iter().all(full) => Quality::Guaranteed,
        () => Quality::Burstable,
    }
}

/// The kernel's smallest weight, also what no request means.
const LEAST_SHARES: i64 = 2;
/// CFS period: 100 ms, the kernel's own default.
pub const PERIOD_MICROS: i64 = 100_000;
/// The kernel refuses quotas under 1 ms.
const LEAST_QUOTA_MICROS: i64 = 1_000;

pub fn shares(millis: i64) -> i64 {
    (millis * 1024 / 1000).clamp(LEAST_SHARES, 262_144)
}

pub fn quota(millis: i64) -> i64 {
    (millis * PERIOD_MICROS / 1000).max(LEAST_QUOTA_MICROS)
}

/// What a pod's own cgroup gets: the most that runs of it at one time, and what it costs beside its containers. By the scheduler's rule,
/// which made room for just that. A limit only when every container has one.
pub fn pod_amounts(pod: &Pod) -> Amounts {
    let all: Vec<Amounts> = containers(pod).iter().chain(init_containers(pod)).map(amounts).collect();
    let (requests, limits) = (PodInfo::read(pod).requests, PodInfo::read(&asking_for_its_limits(pod)).requests);
    let of = |peak: &Resources, name: &str| i64::try_from(peak.get(name).copied().unwrap_or(0)).unwrap_or(i64::MAX);
    let limit = |name, get: fn(&Amounts) -> Option<i64>| all.iter().all(|amounts| get(amounts).is_some()).then(|| of(&limits, name));
    Amounts {
        cpu_request_millis: Some(of(&requests, "cpu")),
        cpu_limit_millis: limit("cpu", |amounts| amounts.cpu_limit_millis),
        memory_request_bytes: Some(of(&requests, "memory")),
        memory_limit_bytes: limit("memory", |amounts| amounts.memory_limit_bytes),
    }
}

/// The pod's amounts with the limits in the requests' place.
fn asking_for_its_limits(pod: &Pod) -> Pod {
    let asking = |container: &Container| {
        let limits = container.resources.as_ref().and_then(|resources| resources.limits.clone());
        let resources = Some(ResourceRequirements { requests: limits, ..Default::default() });
        Container { restart_policy: container.restart_policy.clone(), resources, ..Default::default() }
    };
    let spec = PodSpec {
        containers: containers(pod).iter().map(asking).collect(),
        init_containers: Some(init_containers(pod).iter().map(asking).collect()),
        overhead: pod.spec.as_ref().and_then(|spec| spec.overhead.clone()),
        ..Default::default()
    };
    Pod { spec: Some(spec), ..Default::default() }
}

/// What the burstable pods among these ask for together.
pub fn burstable_millis<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> i64 {
    let is_over = |pod: &Pod| pod.status.as_ref().is_some_and(|status| matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")));
    let counted = pods.into_iter().filter(|pod| quality_of_service(pod) == Quality::Burstable && !is_over(pod));
    counted.filter_map(|pod| pod_amounts(pod).cpu_request_millis).sum()
}

/// What the runtime is told; `capacity_bytes` is the node's memory (for the OOM score of burstable pods).
pub fn linux(pod: &Pod, container: &Container, capacity_bytes: i64) -> LinuxContainerResources {
    let amounts = amounts(container);
    let oom = match quality_of_service(pod) {
        Quality::Guaranteed => -997,
        Quality::BestEffort => 1000,
        // The more a container asked for, the later it dies; never before the guaranteed, never after the best-effort ones.
        Quality::Burstable => (1000 - 1000 * amounts.memory_request_bytes.unwrap_or(0) / capacity_bytes.max(1)).clamp(3, 999),
    };
    LinuxContainerResources {
        cpu_period: if amounts.cpu_limit_millis.is_some() { PERIOD_MICROS } else { 0 },
        cpu_quota: amounts.cpu_limit_millis.map_or(0, quota),
        cpu_shares: shares(amounts.cpu_request_millis.unwrap_or(0)),
        memory_limit_in_bytes: amounts.memory_limit_bytes.unwrap_or(0),
        oom_score_adj: oom,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(resources: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": [{"name": "a", "resources": resources}]}})).unwrap()
    }

    #[test]
    fn quality_follows_requests_and_limits() {
        let check = |resources, wanted: Quality| assert_eq!(quality_of_service(&pod(resources)), wanted);
        check(json!({}), Quality::BestEffort);
        check(json!({"requests": {"cpu": "0"}}), Quality::BestEffort);
        check(json!({"requests": {"cpu": "10m"}}), Quality::Burstable);
        check(json!({"limits": {"cpu": "1"}}), Quality::Burstable);
        check(json!({"limits": {"cpu": "1", "memory": "1Gi"}}), Quality::Guaranteed);
        check(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "0.5"}}), Quality::Burstable);
    }

    #[test]
    fn only_burstable_pods_that_run_weigh_in_their_class() {
        let asking = pod(json!({"requests": {"cpu": "300m"}}));
        let guaranteed = pod(json!({"limits": {"cpu": "1", "memory": "1Gi"}}));
        let mut over = asking.clone();
        over.status = serde_json::from_value(json!({"phase": "Succeeded"})).unwrap();
        assert_eq!(burstable_millis([&asking, &guaranteed, &asking, &over, &pod(json!({}))]), 600);
    }

    #[test]
    fn a_pods_cgroup_holds_what_may_run_of_it_at_one_time() {
        // Each container: CPU in thousandths and memory in MiB, as request and limit alike.
        let amounts = |cpu: i64, memory: i64| {
            let list = json!({"cpu": format!("{cpu}m"), "memory": format!("{memory}Mi")});
            json!({"requests": list.clone(), "limits": list})
        };
        let main = |cpu, memory| json!({"name": "main", "resources": amounts(cpu, memory)});
        let once = |cpu, memory| json!({"name": "once", "resources": amounts(cpu, memory)});
        let side = |cpu, memory| json!({"name": "side", "restartPolicy": "Always", "resources": amounts(cpu, memory)});
        let check = |init: &[serde_json::Value], main: &[serde_json::Value], overhead, cpu: i64, memory: i64| {
            let spec = json!({"initContainers": init, "containers": main, "overhead": overhead});
            let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
            let (cpu, memory) = (Some(cpu), Some(memory << 20));
            let expected =
                Amounts { cpu_request_millis: cpu, cpu_limit_millis: cpu, memory_request_bytes: memory, memory_limit_bytes: memory };
            assert_eq!(pod_amounts(&pod), expected, "{init:?} {main:?}");
        };
        let none = json!({});
        check(&[], &[main(200, 50), main(100, 10)], none.clone(), 300, 60);
        check(&[once(500, 20)], &[main(200, 50)], none.clone(), 500, 50);
        check(&[side(100, 100)], &[main(200, 50)], none.clone(), 300, 150);
        // A sidecar runs on beside the init containers after it, not beside those before it.
        check(&[side(100, 100), once(300, 300)], &[main(50, 50)], none.clone(), 400, 400);
        check(&[once(300, 300), side(100, 100)], &[main(50, 50)], none.clone(), 300, 300);
        check(&[once(500, 1), side(100, 1), once(300, 1)], &[main(200, 1)], none, 500, 2);
        check(&[once(500, 20)], &[main(200, 50)], json!({"cpu": "10m", "memory": "7Mi"}), 510, 57);
    }

    #[test]
    fn a_container_without_a_limit_leaves_the_pod_without_one() {
        let spec = json!({
            "initContainers": [{"name": "once", "resources": {"limits": {"memory": "9Mi"}}}],
            "containers": [{"name": "main", "resources": {"limits": {"cpu": "1", "memory": "4Mi"}, "requests": {"memory": "1Mi"}}}],
        });
        let got = pod_amounts(&serde_json::from_value(json!({"spec": spec})).unwrap());
        assert_eq!((got.cpu_request_millis, got.cpu_limit_millis), (Some(1000), None));
        assert_eq!((got.memory_request_bytes, got.memory_limit_bytes), (Some(9 << 20), Some(9 << 20)));
    }

    #[test]
    fn limits_become_quota_and_bytes() {
        let pod = pod(json!({"limits": {"cpu": "200m", "memory": "32Mi"}, "requests": {"cpu": "100m"}}));
        let linux = linux(&pod, &containers(&pod)[0], 1 << 30);
        assert_eq!((linux.cpu_period, linux.cpu_quota, linux.cpu_shares), (100_000, 20_000, 102));
        assert_eq!((linux.memory_limit_in_bytes, linux.oom_score_adj), (32 << 20, 969));
    }
}
