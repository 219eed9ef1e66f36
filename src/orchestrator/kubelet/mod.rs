//! Pods bound to this node, kept running through the container runtime interface.

pub mod cgroups;
pub mod container;
pub mod cri;
pub mod decide;
pub mod environment;
pub mod fields;
pub mod handlers;
pub mod images;
pub mod machine;
pub mod objects;
pub mod observed;
pub mod probes;
pub mod publish;
pub mod resources;
pub mod sandbox;
pub mod status;
pub mod termination;
pub mod volumes;
pub mod worker;

use crate::orchestrator::client::events::Recorder;
use crate::orchestrator::client::{Client, Informer};
use crate::orchestrator::config::AgentConfig;
use k8s_openapi::api::core::v1::Service;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

/// What all workers share.
pub struct Context {
    pub config: Arc<AgentConfig>,
    pub client: Client,
    pub runtime: cri::Runtime,
    pub volumes: volumes::Volumes,
    pub services: Informer<Service>,
    pub recorder: Recorder,
    pub size: machine::Size,
    pub driver: cgroups::Driver,
    /// One folder per pod below it, as log collectors expect.
    pub logs: PathBuf,
    /// Which pod (uid) a sandbox or container id belongs to.
    pub owners: Mutex<HashMap<String, String>>,
}
