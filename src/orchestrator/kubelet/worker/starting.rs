//! Starting a container: its image, what its environment is made of, its creation, its postStart hook.

use super::telling::subject;
use super::{Signal, Worker, failure, now};
use crate::orchestrator::kubelet::decide::Plan;
use crate::orchestrator::kubelet::environment::{self, Sources};
use crate::orchestrator::kubelet::observed::*;
use crate::orchestrator::kubelet::sandbox::{namespace, uid};
use crate::orchestrator::kubelet::{container, handlers, images};
use k8s_openapi::api::core::v1::{Container as ContainerSpec, LifecycleHandler};
use std::time::Duration;

impl Worker {
    pub(super) fn ensure_image(&mut self, container: String) {
        let Some(spec) = find_container(&self.pod, &container).cloned() else { return };
        let before = match self.memory.images.get(&container) {
            Some(Step::Failed(failure)) => Some(failure.clone()),
            _ => None,
        };
        let image = spec.image.clone().unwrap_or_default();
        if let Some((failure, talk)) = images::back_off(before.as_ref(), &image, now()) {
            self.talk(&container, talk);
            self.memory.images.insert(container, Step::Failed(failure));
            self.own.send(Signal::Wake).ok();
            return;
        }
        self.memory.images.insert(container.clone(), Step::Busy);
        let (context, own, pod) = (self.context.clone(), self.own.clone(), self.pod.clone());
        tokio::spawn(async move {
            let mut secrets = Vec::new();
            for reference in pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten()) {
                let found = context.volumes.objects.secret(uid(&pod), namespace(&pod), &reference.name).await;
                secrets.extend(found.ok().flatten());
            }
            let auth = images::credentials(&secrets, &image);
            let (result, talk) = images::ensure(&context.runtime, &spec, auth, before.map(|failure| failure.pause), now()).await;
            let subject = subject(&pod, &container);
            for (reason, message, warning) in talk {
                match warning {
                    true => context.recorder.warning(subject.clone(), reason, message),
                    false => context.recorder.normal(subject.clone(), reason, message),
                }
            }
            own.send(Signal::Image(container, result)).ok();
        });
    }

    pub(super) async fn start(&mut self, container: &str, attempt: u32, sandbox: &str, seen: &Observed, plan: &Plan) {
        let Some(spec) = find_container(&self.pod, container).cloned() else { return };
        match self.create_and_start(&spec, attempt, sandbox, seen).await {
            Ok(id) => {
                self.memory.failures.remove(container);
                self.told.remove(container);
                if let Some(pause) = plan.backoff.get(container) {
                    self.memory.backoff.insert(container.to_owned(), *pause);
                }
                if let Some(hook) = spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.clone()) {
                    self.post_start(id, spec.clone(), hook, seen);
                }
            }
            Err((reason, message)) => {
                self.container_event(container, true, "Failed", &format!("Error: {message}"));
                let before = self.memory.failures.get(container).map(|failure| failure.pause);
                self.memory.failures.insert(container.to_owned(), failure(reason, message, before, now()));
            }
        }
        // The next start looks at the pull policy again.
        self.memory.images.remove(container);
    }

    async fn create_and_start(
        &mut self,
        spec: &ContainerSpec,
        attempt: u32,
        sandbox: &str,
        seen: &Observed,
    ) -> Result<String, (&'static str, String)> {
        let misconfigured = |message: String| ("CreateContainerConfigError", message);
        let facts = self.facts(seen);
        let sources = self.sources(spec).await.map_err(misconfigured)?;
        let variables = environment::build(&self.pod, spec, &facts, &sources).map_err(misconfigured)?;
        let mounts = self.mounts(spec, attempt, &facts, &variables).map_err(misconfigured)?;
        let image = self.images.get(&spec.name).cloned().unwrap_or_default();
        let inputs =
            container::Inputs { attempt, variables, mounts, image: &image, memory_capacity_bytes: self.context.size().memory_bytes };
        let config = container::config(&self.pod, spec, inputs).map_err(misconfigured)?;
        let sandbox_attempt = seen.sandbox(&self.pod).map_or(0, |sandbox| sandbox.attempt);
        let created = self.context.runtime.create_container(sandbox, config, self.sandbox_config(sandbox_attempt)).await;
        let id = created.map_err(|refusal| ("CreateContainerError", refusal.message))?;
        self.context.owners.lock().insert(id.clone(), uid(&self.pod).to_owned());
        self.container_event(&spec.name, false, "Created", &format!("Created container: {}", spec.name));
        match self.context.runtime.start_container(&id).await {
            Ok(()) => {
                self.container_event(&spec.name, false, "Started", &format!("Started container {}", spec.name));
                Ok(id)
            }
            // The container has ended with the reason StartError; restart policy and back-off apply as to any end.
            Err(refusal) => {
                self.container_event(&spec.name, true, "Failed", &format!("Error: {}", refusal.message));
                self.exited.insert(id.clone());
                Ok(id)
            }
        }
    }

    async fn sources(&self, spec: &ContainerSpec) -> Result<Sources, String> {
        let (config_maps, secrets) = environment::references(spec);
        let objects = &self.context.volumes.objects;
        let mut sources = Sources::default();
        for name in config_maps {
            let map = objects.config_map(uid(&self.pod), namespace(&self.pod), &name).await.map_err(|error| error.to_string())?;
            sources.config_maps.insert(name, map);
        }
        for name in secrets {
            let secret = objects.secret(uid(&self.pod), namespace(&self.pod), &name).await.map_err(|error| error.to_string())?;
            sources.secrets.insert(name, secret);
        }
        let services = &self.context.services;
        // Only right after the agent's start; a node that is cut off goes on with what it has.
        let _ = tokio::time::timeout(Duration::from_secs(5), services.synced()).await;
        sources.services = services.list_in(namespace(&self.pod));
        sources.services.extend(services.get("default", "kubernetes").filter(|_| namespace(&self.pod) != "default"));
        Ok(sources)
    }

    fn post_start(&mut self, id: String, spec: ContainerSpec, hook: LifecycleHandler, seen: &Observed) {
        self.memory.hooks.insert(id.clone());
        let (context, pod, target, own) = (self.context.clone(), self.pod.clone(), self.target(&id, seen), self.own.clone());
        tokio::spawn(async move {
            let failure = handlers::hook(&context.runtime, &pod, &spec, &target, &hook, Duration::from_secs(3600)).await.err();
            own.send(Signal::Hook { id, container: spec.name, failure }).ok();
        });
    }
}
