//! What the runtime says of one pod, and what the pod's worker remembers of it: the two inputs of every decision besides the pod itself.

use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod};
use std::collections::{BTreeMap, BTreeSet};

/// Labels and annotations that carry a pod's state through an agent restart.
pub const LABEL_POD_NAME: &str = "io.kubernetes.pod.name";
pub const LABEL_POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub const LABEL_POD_UID: &str = "io.kubernetes.pod.uid";
pub const LABEL_CONTAINER_NAME: &str = "io.kubernetes.container.name";
pub const ANNOTATION_HASH: &str = "io.kubernetes.container.hash";
pub const ANNOTATION_TERMINATION_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";

/// Nanoseconds since 1970: as CRI counts, by a clock that may be set; or by the worker's own (`worker::now`), which only goes on.
pub type Nanos = i64;
pub const SECOND: Nanos = 1_000_000_000;

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sandbox {
    pub id: String,
    pub attempt: u32,
    pub ready: bool,
    pub created: Nanos,
    pub ips: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    #[default]
    Created,
    Running,
    Exited,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Container {
    pub id: String,
    pub name: String,
    pub attempt: u32,
    pub sandbox: String,
    pub state: State,
    pub created: Nanos,
    pub started: Nanos,
    pub finished: Nanos,
    /// The same by the worker's own clock, which waits count from.
    pub ended: Nanos,
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    pub image: String,
    pub image_ref: String,
    pub hash: String,
}

/// Both lists newest first.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Observed {
    pub sandboxes: Vec<Sandbox>,
    pub containers: Vec<Container>,
}

impl Observed {
    /// The sandbox in which containers may run now.
    pub fn sandbox(&self, pod: &Pod) -> Option<&Sandbox> {
        let newest = self.sandboxes.first()?;
        // A sandbox without an address has lost its network: it is dead for everybody but pods of the host's network.
        (newest.ready && (host_network(pod) || !newest.ips.is_empty())).then_some(newest)
    }

    /// The newest container of this name in any sandbox.
    pub fn newest(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|container| container.name == name)
    }

    pub fn newest_in(&self, sandbox: &str, name: &str) -> Option<&Container> {
        self.containers.iter().find(|container| container.name == name && container.sandbox == sandbox)
    }

    /// The newest ended container of this name before `than`.
    pub fn previous(&self, than: &Container) -> Option<&Container> {
        let mut ended = self.containers.iter().filter(|container| container.name == than.name && container.state == State::Exited);
        ended.find(|container| container.id != than.id)
    }

    pub fn running(&self) -> impl Iterator<Item = &Container> {
        self.containers.iter().filter(|container| container.state == State::Running)
    }
}

/// A step that failed and will be tried again.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// As `kubectl get pods` shows it, e.g. `ErrImagePull`.
    pub reason: &'static str,
    pub message: String,
    pub retry_at: Nanos,
    /// How long the wait before `retry_at` is; doubles.
    pub pause: Nanos,
}

/// A step that takes long and runs beside the worker.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Step {
    #[default]
    Undone,
    Busy,
    Done,
    Failed(Failure),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unhealthy {
    Liveness,
    Startup,
    PostStart,
}

/// Why and since when a pod is being ended on this node.
#[derive(Debug, Clone, PartialEq)]
pub struct Ending {
    pub since: Nanos,
    pub grace_seconds: i64,
}

/// Everything here may be lost (agent restart): it is rebuilt by doing the step again, and each step is an "ensure".
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Memory {
    pub volumes: Step,
    /// By container name; forgotten when the container was started, so that each start looks at the pull policy again.
    pub images: BTreeMap<String, Step>,
    /// By container name: creating it failed.
    pub failures: BTreeMap<String, Failure>,
    pub sandbox_failure: Option<Failure>,
    /// By container name: how long to wait after the next exit.
    pub backoff: BTreeMap<String, Nanos>,
    /// By container id: until when a stop that is under way gives the process.
    pub stopping: BTreeMap<String, Nanos>,
    /// Containers (ids) whose postStart hook has not ended.
    pub hooks: BTreeSet<String>,
    pub unhealthy: BTreeMap<String, Unhealthy>,
    /// Containers (ids) whose startup probe has passed, or that have none.
    pub started: BTreeSet<String>,
    /// Containers (ids) whose readiness probe says yes, or that have none.
    pub ready: BTreeSet<String>,
    pub ending: Option<Ending>,
    /// Sandboxes (ids) already stopped: their addresses are free.
    pub stopped: BTreeSet<String>,
    /// Volumes, sandboxes and cgroups of an ending pod are gone.
    pub cleaned: bool,
    /// The pod may not run here (admission by the node, deadline): phase Failed with this reason and message.
    pub rejected: Option<(String, String)>,
}

pub fn host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
}

pub fn containers(pod: &Pod) -> &[ContainerSpec] {
    pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default()
}

pub fn init_containers(pod: &Pod) -> &[ContainerSpec] {
    pod.spec.as_ref().and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default()
}

/// An init container that keeps running beside the main ones.
pub fn is_sidecar(container: &ContainerSpec) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

pub fn restart_policy(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always")
}

pub fn find_container<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerSpec> {
    containers(pod).iter().chain(init_containers(pod)).find(|container| container.name == name)
}

/// What makes a running container obsolete: name and image, the only parts of a container that may change in a pod.
pub fn hash(container: &ContainerSpec) -> String {
    use sha2::Digest;
    let text = format!("{}\n{}", container.name, container.image.as_deref().unwrap_or_default());
    hex::encode(&sha2::Sha256::digest(text)[..8])
}
