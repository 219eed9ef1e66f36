//! The list of controllers; one file each.
//!
//! Each is a pure decision per object (`decide`, `plan`) and a thin loop: informers -> keyed queue -> decision -> writes. All share one set
//! of informers. One control plane runs them, so there is no leader election; a second one would take a Lease before calling `run`.

mod blueprint_workloads;
mod daemonset;
mod deployment;
mod discovery;
mod endpointslice;
mod expectations;
mod garbage_collector;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod owners;
mod pod_control;
mod pod_gc;
mod pods;
mod replicaset;
mod root_ca;
mod service_account;
pub mod service_load_balancer;
mod taint_eviction;
pub mod volume;
mod write;

pub use super::client::events;

use super::client::blueprint::BlueprintObject;
use super::client::events::Recorder;
use super::client::{Change, Client, Informer, Key, Object, Queue, Selector, WithRaw};
use super::config::ServerConfig;
use crate::error::{Error, Result};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Where controllers get the time that they compare with times in objects.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

pub fn system_clock() -> Clock {
    Arc::new(super::client::time::now)
}

/// What every controller is given.
#[derive(Clone)]
pub struct Context {
    pub client: Client,
    pub config: Arc<ServerConfig>,
    pub cancel: CancellationToken,
    /// The cluster's CA certificate, for pods to check the API with.
    pub ca_pem: String,
    pub clock: Clock,
}

/// One list and one watch per kind, shared by all.
#[derive(Clone)]
pub struct Informers {
    pub pods: Informer<Pod>,
    pub nodes: Informer<Node>,
    pub leases: Informer<Lease>,
    pub namespaces: Informer<Namespace>,
    pub services: Informer<Service>,
    pub service_accounts: Informer<ServiceAccount>,
    /// `kube-root-ca.crt` of every namespace, nothing else.
    pub root_ca_maps: Informer<ConfigMap>,
    pub endpoint_slices: Informer<EndpointSlice>,
    pub claims: Informer<PersistentVolumeClaim>,
    pub volumes: Informer<PersistentVolume>,
    pub storage_classes: Informer<StorageClass>,
    pub deployments: Informer<WithRaw<Deployment>>,
    pub replica_sets: Informer<WithRaw<ReplicaSet>>,
    pub daemon_sets: Informer<WithRaw<DaemonSet>>,
    pub blueprints: Informer<BlueprintObject>,
}

pub const ROOT_CA: &str = "kube-root-ca.crt";

impl Informers {
    pub fn start(client: &Client, cancel: &CancellationToken) -> Self {
        fn all<K: super::client::Kind>(client: &Client, cancel: &CancellationToken) -> Informer<K> {
            Informer::start(client.clone(), Selector::all(), cancel)
        }
        fn raw<K: super::client::Kind>(client: &Client, cancel: &CancellationToken) -> Informer<WithRaw<K>> {
            Informer::start_raw(client.clone(), Selector::all(), cancel)
        }
        let informers = Informers {
            pods: all(client, cancel),
            nodes: all(client, cancel),
            leases: Informer::start_in(client.clone(), "kube-node-lease", Selector::all(), cancel),
            namespaces: all(client, cancel),
            services: all(client, cancel),
            service_accounts: all(client, cancel),
            root_ca_maps: Informer::start(client.clone(), Selector::fields(format!("metadata.name={ROOT_CA}")), cancel),
            endpoint_slices: all(client, cancel),
            claims: all(client, cancel),
            volumes: all(client, cancel),
            storage_classes: all(client, cancel),
            deployments: raw(client, cancel),
            replica_sets: raw(client, cancel),
            daemon_sets: raw(client, cancel),
            blueprints: all(client, cancel),
        };
        informers.index();
        informers
    }

    /// Nothing is fetched: for tests that feed the informers by hand.
    pub fn detached() -> Self {
        let informers = Informers {
            pods: Informer::detached(),
            nodes: Informer::detached(),
            leases: Informer::detached(),
            namespaces: Informer::detached(),
            services: Informer::detached(),
            service_accounts: Informer::detached(),
            root_ca_maps: Informer::detached(),
            endpoint_slices: Informer::detached(),
            claims: Informer::detached(),
            volumes: Informer::detached(),
            storage_classes: Informer::detached(),
            deployments: Informer::detached(),
            replica_sets: Informer::detached(),
            daemon_sets: Informer::detached(),
            blueprints: Informer::detached(),
        };
        informers.index();
        informers
    }

    fn index(&self) {
        self.pods.add_index("controller", owners::controller_index);
        self.pods.add_index("node", |pod: &Pod| vec![pods::node(pod).to_string()]);
        self.replica_sets.add_index("controller", owners::controller_index);
    }

    /// Returns once every kind's first list has arrived: before that, absence means nothing.
    pub async fn synced(&self) {
        tokio::join!(
            self.pods.synced(),
            self.nodes.synced(),
            self.leases.synced(),
            self.namespaces.synced(),
            self.services.synced(),
            self.service_accounts.synced(),
            self.root_ca_maps.synced(),
            self.endpoint_slices.synced(),
            self.claims.synced(),
            self.volumes.synced(),
            self.storage_classes.synced(),
            self.deployments.synced(),
            self.replica_sets.synced(),
            self.daemon_sets.synced(),
            self.blueprints.synced(),
        );
    }
}

/// Starts all controllers and returns the informers they share; everything ends with `context.cancel`.
pub fn start(context: &Context) -> Informers {
    let informers = Informers::start(&context.client, &context.cancel);
    let recorder = |component: &str| Recorder::start(context.client.clone(), component, "", &context.cancel);
    replicaset::start(context, &informers, recorder("replicaset-controller"));
    deployment::start(context, &informers, recorder("deployment-controller"));
    endpointslice::start(context, &informers);
    node_ipam::start(context, &informers);
    service_account::start(context, &informers);
    root_ca::start(context, &informers);
    node_lifecycle::start(context, &informers, recorder("node-controller"));
    taint_eviction::start(context, &informers, recorder("taint-eviction-controller"));
    pod_gc::start(context, &informers);
    namespace::start(context, &informers);
    garbage_collector::start(context);
    daemonset::start(context, &informers, recorder("daemonset-controller"));
    volume::start(context, &informers, recorder("persistentvolume-controller"));
    service_load_balancer::start(context, &informers);
    blueprint_workloads::start(context, &informers, recorder("blueprint-controller"));
    informers
}

/// Hands every change to `react`, which only decides whose turn it is.
fn each<K: Object>(
    cancel: &CancellationToken,
    mut changes: mpsc::UnboundedReceiver<Change<K>>,
    react: impl Fn(Change<K>) + Send + 'static,
) {
    super::client::spawn(cancel, async move {
        while let Some(change) = changes.recv().await {
            react(change);
        }
    });
}

/// Works on the queue once all informers are in sync.
fn work<T, W, F>(context: &Context, informers: &Informers, queue: Queue<T>, concurrency: usize, work: W)
where
    T: Clone + Eq + std::hash::Hash + std::fmt::Display + Send + Sync + 'static,
    W: Fn(T) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Option<Duration>, Error>> + Send + 'static,
{
    let informers = informers.clone();
    super::client::spawn(&context.cancel, async move {
        informers.synced().await;
        queue.run(concurrency, work).await;
    });
}

/// One key for controllers that decide about everything at once.
fn whole() -> Key {
    Key::new("", "all")
}
