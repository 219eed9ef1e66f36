//! Telling: the pod's status for the API, and events for people.

use super::{Worker, wall};
use crate::orchestrator::client::events::Subject;
use crate::orchestrator::kubelet::decide::Plan;
use crate::orchestrator::kubelet::observed::*;
use crate::orchestrator::kubelet::sandbox::{name, namespace, uid};
use crate::orchestrator::kubelet::{images, status};
use k8s_openapi::api::core::v1::{Pod, PodStatus};

impl Worker {
    pub(super) fn publish(&mut self, seen: &Observed, plan: &Plan) {
        let Some(publisher) = &self.publisher else { return };
        let shown = self.pod.status.clone().unwrap_or_default();
        let told: Option<PodStatus> = publisher.last().and_then(|status| serde_json::from_value(status).ok());
        let before = match told {
            Some(told) => latest(shown, told),
            None => shown,
        };
        let address = self.context.config.address.to_string();
        publisher.status(status::compute(&self.pod, &before, seen, &self.memory, plan, &status::Node { address: &address }, wall()));
    }

    pub(super) fn tell_back_off(&mut self, plan: &Plan) {
        for (container, waiting) in &plan.waiting {
            if waiting.reason == "CrashLoopBackOff"
                && self.told.insert(container.clone(), waiting.message.clone()).as_ref() != Some(&waiting.message)
            {
                let pod = format!("{}_{}({})", name(&self.pod), namespace(&self.pod), uid(&self.pod));
                self.container_event(container, true, "BackOff", &format!("Back-off restarting failed container {container} in pod {pod}"));
            }
        }
    }

    pub(super) fn warning(&self, reason: &str, message: &str) {
        self.context.recorder.warning(Subject::of(&*self.pod), reason, message);
    }

    pub(super) fn container_event(&self, container: &str, warning: bool, reason: &str, message: &str) {
        let subject = subject(&self.pod, container);
        if warning {
            self.context.recorder.warning(subject, reason, message);
        } else {
            self.context.recorder.normal(subject, reason, message);
        }
    }

    pub(super) fn talk(&self, container: &str, talk: images::Talk) {
        for (reason, message, warning) in talk {
            self.container_event(container, warning, reason, &message);
        }
    }
}

/// Our own last words are newer than what the informer shows; conditions of others are newest there.
fn latest(shown: PodStatus, told: PodStatus) -> PodStatus {
    let mut conditions = told.conditions.unwrap_or_default();
    conditions.retain(|condition| status::is_own(&condition.type_));
    conditions.extend(shown.conditions.unwrap_or_default().into_iter().filter(|condition| !status::is_own(&condition.type_)));
    PodStatus { conditions: Some(conditions), start_time: told.start_time.or(shown.start_time), ..shown }
}

/// What an event about a container is about: its place in the pod's spec.
pub(super) fn subject(pod: &Pod, container: &str) -> Subject {
    let list = if init_containers(pod).iter().any(|spec| spec.name == container) { "initContainers" } else { "containers" };
    Subject::of(pod).field(format!("spec.{list}{{{container}}}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn own_conditions_are_as_told_and_those_of_others_as_shown() {
        let status = |ready: &str, gate: &str| -> PodStatus {
            let condition = |kind: &str, status: &str| json!({"type": kind, "status": status});
            serde_json::from_value(json!({"conditions": [condition("Ready", ready), condition("example.org/gate", gate)]})).unwrap()
        };
        let mixed: Value = json!(latest(status("False", "True"), status("True", "False")));
        assert_eq!(mixed, json!(status("True", "True")));
    }
}
