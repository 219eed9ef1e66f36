//! This machine as the API sees it: the Node object, its status when something changes, its lease.

use super::cri::messages::RuntimeCondition;
use super::inotify::Watch;
use super::status::time as text_time;
use super::worker::wall;
use super::{Context, server};
use crate::blueprint::quantity::{format_bytes, format_cpu};
use crate::error::{Error, Result};
use crate::orchestrator::client::backoff::Backoff;
use crate::orchestrator::client::events::Subject;
use crate::orchestrator::client::{Failure, Patch};
use crate::orchestrator::config::AgentConfig;
use crate::sys::paths::CNI as CNI_FOLDER;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const VERSION: &str = "v1.33.0+kprov";
/// Upstream's figures: a lease of 40 s renewed every 10 s, the whole status every 5 min.
const LEASE_SECONDS: i64 = 40;
const RENEW: Duration = Duration::from_secs(10);
const REPORT: Duration = Duration::from_secs(300);
/// A machine that is taken away loses its Node first; a cloud's machine is down this long after it was told to go.
const FAREWELL: Duration = Duration::from_secs(15);
/// Upstream's limit of image names in a Node.
const IMAGES: usize = 50;

/// Makes sure that the Node exists and carries what the configuration says; tries until the API answers.
pub async fn register(context: &Context, cancel: &CancellationToken) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(7), rand::random());
    while let Err(failure) = try_register(context).await {
        tracing::warn!(error = %Error::from(failure).chain(), "could not register this node; trying again");
        if cancel.run_until_cancelled(tokio::time::sleep(backoff.next_delay())).await.is_none() {
            return;
        }
    }
}

async fn try_register(context: &Context) -> Result<(), Failure> {
    let config = &context.config;
    let name = &config.node_name;
    let mut labels: BTreeMap<String, String> =
        [("kubernetes.io/hostname", name.as_str()), ("kubernetes.io/os", "linux"), ("kubernetes.io/arch", architecture())]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
    labels.extend(config.labels.clone());
    let mut spec = json!({});
    if !config.provider_id.is_empty() {
        spec["providerID"] = config.provider_id.clone().into();
    }
    match context.client.get::<Node>("", name).await? {
        // Taints are given at birth; what people changed since is theirs.
        None => {
            let taints: Vec<Value> = config.taints.iter().filter_map(|taint| parse_taint(taint)).collect();
            if !taints.is_empty() {
                spec["taints"] = taints.into();
            }
            let metadata = json!({"name": name, "labels": labels, "annotations": config.annotations});
            let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec});
            match context.client.create::<Node>("", &node).await {
                Err(failure) if failure.is_already_exists() => Ok(()),
                other => other.map(drop),
            }
        }
        Some(node) => {
            let has = |map: &Option<BTreeMap<String, String>>, wanted: &BTreeMap<String, String>| {
                wanted.iter().all(|(key, value)| map.as_ref().and_then(|map| map.get(key)) == Some(value))
            };
            let same_id =
                config.provider_id.is_empty() || node.spec.as_ref().and_then(|spec| spec.provider_id.as_ref()) == Some(&config.provider_id);
            if has(&node.metadata.labels, &labels) && has(&node.metadata.annotations, &config.annotations) && same_id {
                return Ok(());
            }
            let patch = json!({"metadata": {"labels": labels, "annotations": config.annotations}, "spec": spec});
            context.client.patch::<Node>("", name, "", Patch::Merge, &patch).await.map(drop)
        }
    }
}

/// `key=value:Effect` or `key:Effect`.
fn parse_taint(text: &str) -> Option<Value> {
    let (head, effect) = text.rsplit_once(':')?;
    let (key, value) = head.split_once('=').unwrap_or((head, ""));
    Some(json!({"key": key, "value": value, "effect": effect}))
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Reports the status at once when it changes, else every five minutes; what images there are is told with either.
pub async fn report(context: Arc<Context>, cancel: CancellationToken) {
    if let Err(error) = fs::create_dir_all(CNI_FOLDER) {
        tracing::warn!(%error, "could not make {CNI_FOLDER}");
    }
    let watch = Watch::folder(Path::new(CNI_FOLDER)).inspect_err(|error| tracing::warn!(%error, "could not watch {CNI_FOLDER}")).ok();
    let mut happenings = context.happenings.subscribe();
    let mut disk_pressure = context.disk_pressure.subscribe();
    let mut reporter = Reporter {
        context: context.clone(),
        told: None,
        told_at: None,
        ready_since: text_time(wall()),
        ready: None,
        full: false,
        full_since: text_time(context.started),
        missing_since: None,
    };
    reporter.event("Starting", "Starting kprov's kubelet.");
    let mut check = tokio::time::interval(RENEW);
    check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut eager: Option<Duration> = None;
    while !cancel.is_cancelled() {
        let ready = reporter.look().await;
        if ready {
            eager = None;
        }
        let cni = async {
            match &watch {
                Some(watch) => watch.changed().await.is_ok(),
                None => std::future::pending().await,
            }
        };
        let soon = eager.unwrap_or(RENEW);
        tokio::select! {
            _ = cancel.cancelled() => return,
            // containerd watches the same folder: it knows the network a few milliseconds after us, so we look again shortly.
            true = cni => eager = (!ready).then_some(Duration::from_millis(5)),
            _ = tokio::time::sleep(soon), if eager.is_some() => eager = eager.map(|pause| pause * 2).filter(|pause| *pause < Duration::from_secs(4)),
            Ok(super::cri::events::Happening::Reconnected) = happenings.recv() => eager = Some(Duration::from_millis(5)),
            Ok(()) = disk_pressure.changed() => {}
            _ = check.tick() => {}
        }
    }
}

struct Reporter {
    context: Arc<Context>,
    /// The status last accepted by the API, without what is no news: heartbeats and images.
    told: Option<Value>,
    told_at: Option<tokio::time::Instant>,
    ready_since: String,
    ready: Option<bool>,
    full: bool,
    /// Or no longer.
    full_since: String,
    missing_since: Option<tokio::time::Instant>,
}

impl Reporter {
    /// Whether there is something to say although nothing has changed here.
    async fn must_repeat(&mut self) -> bool {
        match self.context.client.get::<Node>("", &self.context.config.node_name).await {
            // An API that cannot be asked cannot be told either.
            Err(_) => false,
            Ok(Some(node)) => {
                self.missing_since = None;
                given_up(&node)
            }
            Ok(None) => self.come_back().await,
        }
    }

    /// Somebody deleted our Node. When the machine is to go, it ends within seconds; a machine that still runs later is a node.
    async fn come_back(&mut self) -> bool {
        let since = *self.missing_since.get_or_insert_with(tokio::time::Instant::now);
        if since.elapsed() < FAREWELL {
            return false;
        }
        let registered = try_register(&self.context).await;
        registered.inspect_err(|failure| tracing::warn!(error = %failure, "could not register this node again")).is_ok()
    }

    /// Looks at the runtime and reports if there is something to report; true when the node is ready.
    async fn look(&mut self) -> bool {
        let why_not = self.why_not_ready().await;
        let ready = why_not.is_none();
        if self.ready != Some(ready) {
            self.ready_since = text_time(wall());
            self.ready = Some(ready);
            let (reason, verb) = if ready { ("NodeReady", "NodeReady") } else { ("NodeNotReady", "NodeNotReady") };
            self.event(reason, &format!("Node {} status is now: {verb}", self.context.config.node_name));
        }
        let full = *self.context.disk_pressure.borrow();
        if std::mem::replace(&mut self.full, full) != full {
            self.full_since = text_time(wall());
        }
        let status = self.status(why_not).await;
        let due = self.told_at.is_none_or(|at| at.elapsed() >= REPORT);
        let name = self.context.config.node_name.clone();
        if self.told.as_ref() == Some(&status) && !due && !self.must_repeat().await {
            return ready;
        }
        let told = json!({"status": whole(&status, self.images().await)});
        match self.context.client.patch::<Node>("", &name, "status", Patch::Strategic, &told).await {
            Ok(_) => (self.told, self.told_at) = (Some(status), Some(tokio::time::Instant::now())),
            // Told anew at the next look, which also sees a Node that was deleted.
            Err(failure) if failure.is_not_found() => {
                self.come_back().await;
            }
            Err(failure) => tracing::debug!(error = %Error::from(failure).chain(), "could not report this node's status"),
        }
        ready
    }

    async fn why_not_ready(&self) -> Option<String> {
        let status = match self.context.runtime.status().await {
            Ok(status) => status,
            Err(refusal) => return Some(format!("container runtime is down: {refusal}")),
        };
        let unmet = |kind: &str| match status.conditions.iter().find(|condition| condition.kind == kind) {
            Some(RuntimeCondition { status: true, .. }) => None,
            Some(condition) => Some(format!("container runtime {kind}=false reason:{} message:{}", condition.reason, condition.message)),
            None => Some(format!("container runtime does not report {kind}")),
        };
        let configured = fs::read_dir(CNI_FOLDER).is_ok_and(|entries| {
            entries.flatten().any(|entry| {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                name.ends_with(".conf") || name.ends_with(".conflist") || name.ends_with(".json")
            })
        });
        let missing = || format!("cni config uninitialized: no configuration in {CNI_FOLDER}");
        unmet("RuntimeReady").or_else(|| (!configured).then(missing)).or_else(|| unmet("NetworkReady"))
    }

    /// What is told at once when it changes.
    async fn status(&self, why_not: Option<String>) -> Value {
        let context = &self.context;
        let size = context.measure();
        let amounts = |size: super::machine::Size| {
            json!({
                "cpu": format_cpu(size.cpu_millis), "memory": format!("{}Ki", size.memory_bytes >> 10),
                "ephemeral-storage": format_bytes(size.disk_bytes), "pods": context.config.max_pods.to_string(),
            })
        };
        let since = text_time(context.started);
        let pressure = |kind: &str, reason: &str, message: &str| json!({"type": kind, "status": "False", "reason": reason, "message": message, "lastTransitionTime": since});
        let mut disk = match self.full {
            true => {
                json!({"type": "DiskPressure", "status": "True", "reason": "KubeletHasDiskPressure", "message": "kubelet has disk pressure"})
            }
            false => pressure("DiskPressure", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        };
        disk["lastTransitionTime"] = self.full_since.clone().into();
        let ready = match why_not {
            None => json!({"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status"}),
            Some(message) => json!({"type": "Ready", "status": "False", "reason": "KubeletNotReady", "message": message}),
        };
        let mut ready = ready;
        ready["lastTransitionTime"] = self.ready_since.clone().into();
        json!({
            "capacity": amounts(size), "allocatable": amounts(size.allocatable()),
            "conditions": [
                pressure("MemoryPressure", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
                disk,
                pressure("PIDPressure", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
                ready,
            ],
            "addresses": addresses(&context.config),
            "daemonEndpoints": {"kubeletEndpoint": {"Port": server::PORT}},
            "nodeInfo": self.info().await,
        })
    }

    async fn info(&self) -> Value {
        let read = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
        let runtime = self.context.runtime.version().await.map(|version| format!("{}://{}", version.runtime_name, version.runtime_version));
        let release = read("/etc/os-release");
        let system = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux").trim_matches('"').to_owned();
        json!({
            "machineID": read("/etc/machine-id"), "systemUUID": read("/sys/class/dmi/id/product_uuid"), "bootID": read("/proc/sys/kernel/random/boot_id"),
            "kernelVersion": read("/proc/sys/kernel/osrelease"), "osImage": system, "operatingSystem": "linux", "architecture": architecture(),
            "containerRuntimeVersion": runtime.unwrap_or_default(), "kubeletVersion": VERSION, "kubeProxyVersion": VERSION,
        })
    }

    /// The largest images, as upstream lists them.
    async fn images(&self) -> Vec<Value> {
        let mut images = self.context.runtime.list_images().await.unwrap_or_default();
        images.sort_by_key(|image| (std::cmp::Reverse(image.size), image.id.clone()));
        let names = |image: &super::cri::messages::Image| -> Vec<String> {
            image.repo_digests.iter().chain(&image.repo_tags).take(5).cloned().collect()
        };
        images
            .iter()
            .filter(|image| !names(image).is_empty())
            .take(IMAGES)
            .map(|image| json!({"names": names(image), "sizeBytes": image.size}))
            .collect()
    }

    fn event(&self, reason: &str, message: &str) {
        self.context.recorder.normal(subject(&self.context.config.node_name), reason, message);
    }
}

fn addresses(config: &AgentConfig) -> Vec<Value> {
    let internal = json!({"type": "InternalIP", "address": config.address.to_string()});
    let external = config.external_address.map(|address| json!({"type": "ExternalIP", "address": address.to_string()}));
    let hostname = json!({"type": "Hostname", "address": config.node_name});
    std::iter::once(internal).chain(external).chain([hostname]).collect()
}

/// The API took our silence for our end (a network that was cut, a machine that slept) and nobody but us can take that back.
fn given_up(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "Unknown")
}

/// Of events. Upstream too uses the node's name as the uid here, so that `kubectl describe node` finds these.
pub fn subject(node: &str) -> Subject {
    Subject {
        api_version: "v1".into(),
        kind: "Node".into(),
        namespace: String::new(),
        name: node.into(),
        uid: node.into(),
        field_path: String::new(),
    }
}

/// The status as it is sent: with the time, and with the images. These change with every pull, every node hears of every Node, and
/// nobody waits for them: they go along with the next report.
fn whole(status: &Value, images: Vec<Value>) -> Value {
    let mut status = status.clone();
    status["images"] = images.into();
    let now = text_time(wall());
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        condition["lastHeartbeatTime"] = now.clone().into();
    }
    status
}

/// Renews the lease that tells the control plane that this node is alive.
pub async fn keep_lease(context: Arc<Context>, cancel: CancellationToken) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(7), rand::random());
    while !cancel.is_cancelled() {
        let pause = match renew(&context).await {
            Ok(()) => {
                backoff.reset();
                RENEW
            }
            Err(failure) => {
                tracing::debug!(error = %Error::from(failure).chain(), "could not renew this node's lease");
                backoff.next_delay()
            }
        };
        cancel.run_until_cancelled(tokio::time::sleep(pause)).await;
    }
}

async fn renew(context: &Context) -> Result<(), Failure> {
    const NAMESPACE: &str = "kube-node-lease";
    let name = &context.config.node_name;
    let at = crate::orchestrator::client::time::micro_text(crate::orchestrator::client::time::now());
    let spec = json!({"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": at});
    match context.client.patch::<Lease>(NAMESPACE, name, "", Patch::Merge, &json!({ "spec": spec })).await {
        Err(failure) if failure.is_not_found() => {}
        other => return other.map(drop),
    }
    let mut metadata = json!({"name": name, "namespace": NAMESPACE});
    // The lease goes when its Node goes, and there is none without one.
    let Some(uid) = context.client.get::<Node>("", name).await?.and_then(|node| node.metadata.uid) else { return Ok(()) };
    metadata["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}]);
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec});
    context.client.create::<Lease>(NAMESPACE, &lease).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_are_read_from_their_short_form() {
        let check = |text: &str, wanted: Option<Value>| assert_eq!(parse_taint(text), wanted, "{text}");
        check("a=b:NoSchedule", Some(json!({"key": "a", "value": "b", "effect": "NoSchedule"})));
        check(
            "node-role.kubernetes.io/control-plane:NoSchedule",
            Some(json!({"key": "node-role.kubernetes.io/control-plane", "value": "", "effect": "NoSchedule"})),
        );
        check("nonsense", None);
    }

    #[test]
    fn images_and_heartbeats_are_told_and_are_no_news() {
        let status = json!({"conditions": [{"type": "Ready", "status": "True"}]});
        let told = whole(&status, vec![json!({"names": ["demo"], "sizeBytes": 7})]);
        assert_eq!(told["images"][0]["names"][0], "demo");
        assert!(told["conditions"][0]["lastHeartbeatTime"].is_string());
        assert_eq!(status, json!({"conditions": [{"type": "Ready", "status": "True"}]}), "what is compared holds neither");
    }
}
