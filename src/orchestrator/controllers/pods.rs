//! What the controllers ask of a pod.

use crate::orchestrator::client::Object;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::jiff::Timestamp;
use std::time::Duration;

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// Neither finished nor on its way out: counts as a replica.
pub fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !pod.deleting()
}

pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    condition(pod, "Ready").filter(|condition| condition.status == "True")?.last_transition_time.as_ref().map(|time| time.0)
}

#[derive(Debug, PartialEq, Eq)]
pub enum Available {
    Yes,
    No,
    /// Ready, but not yet for `minReadySeconds`.
    In(Duration),
}

pub fn available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Available {
    if !is_ready(pod) {
        return Available::No;
    }
    if min_ready_seconds <= 0 {
        return Available::Yes;
    }
    let Some(since) = ready_since(pod) else { return Available::No };
    let left = since.as_millisecond() + i64::from(min_ready_seconds) * 1000 - now.as_millisecond();
    if left <= 0 { Available::Yes } else { Available::In(Duration::from_millis(left as u64)) }
}

pub fn restarts(pod: &Pod) -> i32 {
    pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten()).map(|status| status.restart_count).sum()
}

pub fn node(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}
