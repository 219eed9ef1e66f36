//! Pods bound to this node, kept running through the container runtime interface.

pub mod cgroups;
pub mod container;
pub mod cri;
pub mod decide;
pub mod disk;
pub mod environment;
pub mod fields;
pub mod filesystems;
pub mod handlers;
pub mod images;
pub mod inotify;
pub mod kernel_log;
pub mod logs;
pub mod machine;
pub mod node;
pub mod objects;
pub mod observed;
pub mod pods;
pub mod probes;
pub mod publish;
pub mod resources;
pub mod sandbox;
pub mod server;
pub mod slices;
pub mod status;
pub mod streams;
pub mod termination;
pub mod volumes;
pub mod worker;

use crate::error::{Context as _, Kind, Result};
use crate::orchestrator::client::events::Recorder;
use crate::orchestrator::client::{Client, Informer, Selector};
use crate::orchestrator::config::AgentConfig;
use cri::events::Happening;
use k8s_openapi::api::core::v1::{Pod, Service};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;

/// What all workers share.
pub struct Context {
    pub config: Arc<AgentConfig>,
    pub client: Client,
    pub runtime: cri::Runtime,
    pub volumes: volumes::Volumes,
    pub services: Informer<Service>,
    pub recorder: Recorder,
    size: Mutex<machine::Size>,
    pub driver: cgroups::Driver,
    /// One folder per pod below it, where log collectors expect them.
    pub logs: PathBuf,
    /// Which pod (uid) a sandbox or container id belongs to.
    pub owners: Mutex<HashMap<String, String>>,
    pub kernel_log: Mutex<kernel_log::KernelLog>,
    pub happenings: broadcast::Sender<Happening>,
    /// A disk is nearly full.
    pub disk_pressure: watch::Sender<bool>,
    /// When this process began to speak for the node.
    pub started: observed::Nanos,
}

impl Context {
    /// As last measured.
    pub fn size(&self) -> machine::Size {
        *self.size.lock()
    }

    /// A machine may grow while it runs.
    pub fn measure(&self) -> machine::Size {
        let size = machine::measure(&self.config.data);
        *self.size.lock() = size;
        size
    }
}

const LOGS: &str = "/var/log/pods";
/// A reader of logs that is this far behind looks at the containers itself.
const HAPPENINGS: usize = 256;

/// Runs this node's kubelet until cancelled. Needs neither the API nor the runtime to be there at its start; fails only for what a
/// person must mend (certificates, a taken port). Containers keep running when it ends.
pub async fn run(config: Arc<AgentConfig>, client: Client, cancel: CancellationToken) -> Result<()> {
    let services = Informer::<Service>::start(client.clone(), Selector::all(), &cancel);
    run_with(config, client, services, cancel).await
}

/// The same with an informer that the agent has already.
pub async fn run_with(config: Arc<AgentConfig>, client: Client, services: Informer<Service>, cancel: CancellationToken) -> Result<()> {
    let root = config.data.join("pods");
    std::fs::create_dir_all(&root).or_fail(Kind::Host, || format!("could not make {}", root.display()))?;
    std::fs::create_dir_all(LOGS).or_fail(Kind::Host, || format!("could not make {LOGS}"))?;
    let runtime = cri::Runtime::connect(&config.containerd_socket)?;
    let (wake, objects_changed) = mpsc::unbounded_channel();
    let objects = objects::Objects::new(client.clone(), wake, cancel.clone());
    let context = Arc::new(Context {
        volumes: volumes::Volumes::new(client.clone(), objects, root),
        services,
        recorder: Recorder::start(client.clone(), "kubelet", &config.node_name, &cancel),
        size: Mutex::new(machine::measure(&config.data)),
        driver: cgroups::driver(),
        logs: PathBuf::from(LOGS),
        owners: Mutex::default(),
        kernel_log: Mutex::new(kernel_log::KernelLog::open()),
        happenings: broadcast::Sender::new(HAPPENINGS),
        disk_pressure: watch::Sender::default(),
        started: worker::wall(),
        runtime: runtime.clone(),
        client: client.clone(),
        config: config.clone(),
    });
    let informer = Informer::<Pod>::start(client, Selector::fields(format!("spec.nodeName={}", config.node_name)), &cancel);
    server::start(context.clone(), informer.clone(), cancel.clone()).await?;
    let (happened, happenings) = mpsc::unbounded_channel();
    let node = async {
        node::register(&context, &cancel).await;
        tokio::join!(node::report(context.clone(), cancel.clone()), node::keep_lease(context.clone(), cancel.clone()));
    };
    tokio::join!(
        cri::events::follow(runtime, happened, cancel.clone()),
        pods::Pods::new(context.clone(), informer).run(happenings, objects_changed, cancel.clone()),
        node,
        filesystems::keep(context.clone(), cancel.clone()),
        disk::keep(context.clone(), cancel.clone()),
    );
    Ok(())
}
