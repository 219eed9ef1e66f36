//! All controllers over the real API in one process, with a pretended scheduler and pretended kubelets.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Service};
use kprov::orchestrator::api::{InProcess, Server, User};
use kprov::orchestrator::client::blueprint::BlueprintObject;
use kprov::orchestrator::client::{Client, Delete, Object, Patch, Propagation, path, time};
use kprov::orchestrator::controllers::{self, Context, Informers};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A cluster whose nodes are pretended.
struct World {
    client: Client,
    informers: Informers,
    /// Nodes whose kubelets answer and renew their leases.
    alive: Arc<Mutex<BTreeSet<String>>>,
    _stop: DropGuard,
}

/// Longer than the slowest machine needs; a passing test never waits for it.
const PATIENCE: Duration = Duration::from_secs(90);
/// The tests' grace period, and how often a live node speaks.
const GRACE_SECONDS: u64 = 3;
const BEAT: Duration = Duration::from_millis(300);

impl World {
    async fn new(nodes: &[&str]) -> World {
        let server = Server::ephemeral().await;
        let client = Client::new(Arc::new(InProcess { server: server.clone(), user: User::server() }));
        let cancel = CancellationToken::new();
        let mut config = json!({"clusterName": "test", "clusterUid": "u", "bind": "127.0.0.1", "port": 6443, "advertise": "127.0.0.1",
            "data": "/nonexistent", "pki": "/nonexistent", "serviceCidr": "10.96.0.0/16", "podCidr": "10.244.0.0/16", "dnsAddress": "10.96.0.10",
            "clusterDomain": "cluster.local"});
        config["nodeGraceSeconds"] = json!(GRACE_SECONDS);
        let context = Context {
            client: client.clone(),
            config: Arc::new(serde_json::from_value(config).unwrap()),
            cancel: cancel.clone(),
            ca_pem: "PEM".into(),
            clock: controllers::system_clock(),
        };
        let informers = controllers::start(&context);
        let alive = Arc::new(Mutex::new(nodes.iter().map(|name| name.to_string()).collect()));
        for name in nodes {
            let ready = json!([{"type": "Ready", "status": "True", "lastTransitionTime": time::now_text()}]);
            let node = json!({"metadata": {"name": name}, "status": {"conditions": ready, "allocatable": {"pods": "110"}}});
            client.create::<Node>("", &node).await.unwrap();
            tokio::spawn(beat(client.clone(), name.to_string(), alive.clone(), cancel.clone()));
        }
        tokio::spawn(pretend(client.clone(), informers.clone(), alive.clone(), cancel.clone()));
        World { client, informers, alive, _stop: cancel.drop_guard() }
    }

    /// Returns when `holds` does; looked at again whenever any object changes.
    async fn until(&self, what: &str, holds: impl Fn(&Informers) -> bool) {
        let all = &self.informers;
        let (mut pods, mut sets, mut deployments) = (all.pods.changed(), all.replica_sets.changed(), all.deployments.changed());
        let (mut nodes, mut slices, mut namespaces) = (all.nodes.changed(), all.endpoint_slices.changed(), all.namespaces.changed());
        let (mut claims, mut volumes, mut services) = (all.claims.changed(), all.volumes.changed(), all.services.changed());
        let (mut daemons, mut blueprints, mut maps) = (all.daemon_sets.changed(), all.blueprints.changed(), all.root_ca_maps.changed());
        let mut accounts = all.service_accounts.changed();
        let watching = async {
            while !holds(all) {
                tokio::select! {
                    () = pods.wait() => {} () = sets.wait() => {} () = deployments.wait() => {} () = nodes.wait() => {}
                    () = slices.wait() => {} () = namespaces.wait() => {} () = claims.wait() => {} () = volumes.wait() => {}
                    () = services.wait() => {} () = daemons.wait() => {} () = blueprints.wait() => {} () = maps.wait() => {} () = accounts.wait() => {}
                }
            }
        };
        if tokio::time::timeout(PATIENCE, watching).await.is_err() {
            panic!("not reached: {what}; pods: {:?}", shown(all));
        }
    }

    async fn patch<K: kprov::orchestrator::client::Kind>(&self, name: &str, body: Value) {
        self.client.patch::<K>("shop", name, "", Patch::Merge, &body).await.unwrap();
    }
    async fn namespace(&self) {
        self.client.create::<Namespace>("", &json!({"metadata": {"name": "shop"}})).await.unwrap();
    }
    fn silence(&self, node: &str) {
        self.alive.lock().unwrap().remove(node);
    }
    fn wake(&self, node: &str) {
        self.alive.lock().unwrap().insert(node.into());
    }
}

fn shown(all: &Informers) -> Vec<String> {
    let one = |pod: &Arc<Pod>| format!("{} on {} image {} leaving {}", pod.name(), node_of(pod), image(pod), pod.deleting());
    all.pods.list().iter().map(one).collect()
}

fn node_of(pod: &Pod) -> String {
    pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default()
}

fn image(pod: &Pod) -> String {
    pod.spec.as_ref().and_then(|spec| spec.containers[0].image.clone()).unwrap_or_default()
}

fn running(all: &Informers, of: &str) -> usize {
    all.pods.list_in("shop").iter().filter(|pod| !pod.deleting() && image(pod) == of).count()
}

/// Renews a node's lease while it is alive.
async fn beat(client: Client, node: String, alive: Arc<Mutex<BTreeSet<String>>>, cancel: CancellationToken) {
    let lease = json!({"metadata": {"name": node}, "spec": {"holderIdentity": node, "renewTime": time::micro_text(time::now())}});
    client.create::<Lease>("kube-node-lease", &lease).await.unwrap();
    let mut timer = tokio::time::interval(BEAT);
    while cancel.run_until_cancelled(timer.tick()).await.is_some() {
        if alive.lock().unwrap().contains(&node) {
            let renewed = json!({"spec": {"renewTime": time::micro_text(time::now())}});
            let _ = client.patch::<Lease>("kube-node-lease", &node, "", Patch::Merge, &renewed).await;
        }
    }
}

/// Binds pods to living untainted nodes, runs them, and ends them when they are deleted.
async fn pretend(client: Client, informers: Informers, alive: Arc<Mutex<BTreeSet<String>>>, cancel: CancellationToken) {
    let mut changed = informers.pods.changed();
    let mut nodes = informers.nodes.changed();
    let mut address = 1;
    loop {
        tokio::select! { () = cancel.cancelled() => return, () = changed.wait() => {}, () = nodes.wait() => {} }
        for pod in informers.pods.list() {
            let here = node_of(&pod);
            let path = path::<Pod>(pod.namespace(), pod.name(), "");
            if here.is_empty() && !pod.deleting() {
                let Some(node) = choose(&informers, &alive, &pod, address) else { continue };
                let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod.name()}, "target": {"kind": "Node", "name": node}});
                let _ = client.create_sub(&format!("{path}/binding"), &binding).await;
                address += 1;
                continue;
            }
            if !alive.lock().unwrap().contains(&here) {
                continue;
            }
            if pod.deleting() {
                let now = Delete { uid: Some(pod.uid().into()), grace_seconds: Some(0), propagation: None };
                let _ = client.delete_value(&path, &now).await;
            } else if pod.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Running") && image(&pod) != "broken" {
                address += 1;
                let ip = format!("10.244.0.{address}");
                let ready = json!([{"type": "Ready", "status": "True", "lastTransitionTime": time::now_text()}]);
                let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": ready}});
                let _ = client.patch_value(&format!("{path}/status"), Patch::Merge, &status).await;
            }
        }
    }
}

fn choose(informers: &Informers, alive: &Mutex<BTreeSet<String>>, pod: &Pod, turn: usize) -> Option<String> {
    let wanted = serde_json::to_value(&pod.spec).unwrap();
    let fixed =
        wanted.pointer("/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0/matchFields/0/values/0");
    if let Some(fixed) = fixed.and_then(Value::as_str) {
        return Some(fixed.into());
    }
    let untainted = |node: &Arc<Node>| node.spec.as_ref().and_then(|spec| spec.taints.as_ref()).is_none_or(Vec::is_empty);
    let nodes: Vec<String> = informers.nodes.list().iter().filter(|node| untainted(node)).map(|node| node.name().to_string()).collect();
    let living: Vec<&String> = nodes.iter().filter(|name| alive.lock().unwrap().contains(*name)).collect();
    living.get(turn % living.len().max(1)).map(|name| name.to_string())
}

fn deployment(name: &str, replicas: i32, image: &str) -> Value {
    let tolerations =
        json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}]);
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"tolerations": tolerations, "containers": [{"name": "c", "image": image}]}},
        },
    })
}

fn condition(all: &Informers, name: &str, kind: &str) -> String {
    let deployment = all.deployments.get("shop", name);
    let conditions = deployment.and_then(|deployment| deployment.status.clone()?.conditions).unwrap_or_default();
    let found = conditions.into_iter().find(|condition| condition.type_ == kind);
    found.map(|condition| format!("{}:{}", condition.status, condition.reason.unwrap_or_default())).unwrap_or_default()
}

fn complete(all: &Informers, name: &str, replicas: i32) -> bool {
    let Some(deployment) = all.deployments.get("shop", name) else { return false };
    let status = deployment.status.clone().unwrap_or_default();
    status.observed_generation == deployment.metadata.generation
        && [status.replicas, status.updated_replicas, status.available_replicas] == [Some(replicas); 3]
        && condition(all, name, "Progressing") == "True:NewReplicaSetAvailable"
        && condition(all, name, "Available") == "True:MinimumReplicasAvailable"
}

fn revision(all: &Informers) -> String {
    all.deployments
        .get("shop", "web")
        .and_then(|web| web.annotation("deployment.kubernetes.io/revision").map(str::to_string))
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_is_made_scaled_rolled_and_rolled_back() {
    let world = World::new(&["n1", "n2"]).await;
    world.namespace().await;
    world.client.create::<Deployment>("shop", &deployment("web", 3, "v1")).await.unwrap();
    world.until("three pods of v1", |all| complete(all, "web", 3) && running(all, "v1") == 3 && revision(all) == "1").await;
    world.patch::<Deployment>("web", json!({"spec": {"replicas": 5}})).await;
    world.until("five pods", |all| complete(all, "web", 5) && running(all, "v1") == 5).await;

    let image = |image: &str| json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}});
    world.client.patch::<Deployment>("shop", "web", "", Patch::Strategic, &image("v2")).await.unwrap();
    world
        .until("only v2", |all| complete(all, "web", 5) && running(all, "v2") == 5 && running(all, "v1") == 0 && revision(all) == "2")
        .await;
    assert_eq!(world.informers.replica_sets.list_in("shop").len(), 2);

    // A template that never gets ready stops the roll-out, and most of the old pods keep serving.
    world.client.patch::<Deployment>("shop", "web", "", Patch::Strategic, &image("broken")).await.unwrap();
    world.until("the roll-out stands", |all| running(all, "broken") == 3 && running(all, "v2") == 4).await;

    // kubectl rollout undo puts the old template back.
    world.client.patch::<Deployment>("shop", "web", "", Patch::Strategic, &image("v1")).await.unwrap();
    world
        .until("v1 again", |all| complete(all, "web", 5) && running(all, "v1") == 5 && running(all, "v2") + running(all, "broken") == 0)
        .await;
    world.until("its set has the newest revision", |all| revision(all) == "4").await;
    assert_eq!(world.informers.replica_sets.list_in("shop").len(), 3, "the old set of v1 is used again");
}

#[tokio::test(flavor = "multi_thread")]
async fn services_follow_ready_pods() {
    let world = World::new(&["n1"]).await;
    world.namespace().await;
    let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    world.client.create::<Service>("shop", &service).await.unwrap();
    world.client.create::<Deployment>("shop", &deployment("web", 2, "v1")).await.unwrap();
    let ready = |all: &Informers| -> usize {
        let slices = all.endpoint_slices.list_in("shop");
        let endpoints = slices.iter().flat_map(|slice| slice.endpoints.clone());
        endpoints.filter(|endpoint| endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true)).count()
    };
    world.until("two endpoints", |all| ready(all) == 2).await;
    let first = world.informers.pods.list_in("shop")[0].clone();
    let unready = json!({"status": {"conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": time::now_text()}]}});
    world.client.patch::<Pod>("shop", first.name(), "status", Patch::Merge, &unready).await.unwrap();
    world.until("one endpoint", |all| ready(all) == 1).await;
    world.client.delete::<Service>("shop", "web", &Delete::default()).await.unwrap();
    world.until("no slice without its service", |all| all.endpoint_slices.list_in("shop").is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dependents_go_with_their_owner_or_are_orphaned() {
    let world = World::new(&["n1"]).await;
    world.namespace().await;
    for name in ["a", "b", "c"] {
        world.client.create::<Deployment>("shop", &deployment(name, 1, name)).await.unwrap();
    }
    world.until("three run", |all| ["a", "b", "c"].iter().all(|name| complete(all, name, 1))).await;
    world.client.delete::<Deployment>("shop", "a", &Delete::default()).await.unwrap();
    world.until("a is gone whole", |all| running(all, "a") == 0 && all.replica_sets.list_in("shop").len() == 2).await;
    let foreground = Delete { propagation: Some(Propagation::Foreground), ..Delete::default() };
    world.client.delete::<Deployment>("shop", "b", &foreground).await.unwrap();
    world.until("b is gone after its pods", |all| all.deployments.get("shop", "b").is_none()).await;
    assert_eq!(running(&world.informers, "b"), 0);
    let orphan = Delete { propagation: Some(Propagation::Orphan), ..Delete::default() };
    world.client.delete::<Deployment>("shop", "c", &orphan).await.unwrap();
    world.until("c is gone alone", |all| all.deployments.get("shop", "c").is_none()).await;
    let sets: Vec<Arc<_>> = world.informers.replica_sets.list_in("shop");
    assert_eq!((sets.len(), running(&world.informers, "c")), (1, 1));
    // Made again, it takes its old set back instead of making another.
    world.client.create::<Deployment>("shop", &deployment("c", 1, "c")).await.unwrap();
    world.until("adopted", |all| complete(all, "c", 1)).await;
    assert_eq!(world.informers.replica_sets.list_in("shop")[0].uid(), sets[0].uid());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_starts_furnished_and_ends_empty() {
    let world = World::new(&["n1"]).await;
    world.namespace().await;
    world
        .until("furnished", |all| {
            all.service_accounts.get("shop", "default").is_some() && all.root_ca_maps.get("shop", "kube-root-ca.crt").is_some()
        })
        .await;
    world.client.create::<Deployment>("shop", &deployment("web", 2, "v1")).await.unwrap();
    world.client.create::<ConfigMap>("shop", &json!({"metadata": {"name": "settings"}, "data": {"a": "b"}})).await.unwrap();
    world.until("running", |all| complete(all, "web", 2)).await;
    world.client.delete::<Namespace>("", "shop", &Delete::default()).await.unwrap();
    world.until("gone", |all| all.namespaces.get("", "shop").is_none()).await;
    assert!(world.client.get::<ConfigMap>("shop", "settings").await.unwrap().is_none());
    assert!(world.client.get::<ReplicaSet>("shop", "web").await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_gets_a_range_and_a_daemon() {
    let world = World::new(&["n1", "n2"]).await;
    world.namespace().await;
    let set = json!({"metadata": {"name": "log"}, "spec": {"selector": {"matchLabels": {"app": "log"}},
        "template": {"metadata": {"labels": {"app": "log"}}, "spec": {"containers": [{"name": "c", "image": "log"}]}}}});
    world.client.create::<DaemonSet>("shop", &set).await.unwrap();
    let everywhere = |count: i32| {
        move |all: &Informers| {
            let status = all.daemon_sets.get("shop", "log").and_then(|set| set.status.clone()).unwrap_or_default();
            (status.desired_number_scheduled, status.number_available) == (count, Some(count))
        }
    };
    world.until("two daemons", everywhere(2)).await;
    world
        .until("two ranges", |all| {
            let ranges: BTreeSet<String> = all.nodes.list().iter().filter_map(|node| node.spec.as_ref()?.pod_cidr.clone()).collect();
            ranges == ["10.244.0.0/24".to_string(), "10.244.1.0/24".to_string()].into()
        })
        .await;
    world.silence("n2");
    world.client.delete::<Node>("", "n2", &Delete::default()).await.unwrap();
    world.until("the pods of a deleted node go", |all| all.pods.list_in("shop").len() == 1 && everywhere(1)(all)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_bound_to_a_new_volume_that_goes_with_it() {
    let world = World::new(&[]).await;
    world.namespace().await;
    let claim = json!({"metadata": {"name": "data"}, "spec": {"storageClassName": "media", "accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}});
    world.client.create::<PersistentVolumeClaim>("shop", &claim).await.unwrap();
    let class = json!({"metadata": {"name": "media"}, "provisioner": "kprov.dev/filesystem"});
    world.client.create_value("/apis/storage.k8s.io/v1/storageclasses", &class).await.unwrap();
    let phase = |all: &Informers| all.claims.get("shop", "data").and_then(|claim| claim.status.clone()?.phase);
    world.until("bound", |all| phase(all).as_deref() == Some("Bound")).await;
    let volumes: Vec<Arc<PersistentVolume>> = world.informers.volumes.list();
    let path = volumes[0].spec.as_ref().unwrap().host_path.as_ref().unwrap().path.clone();
    assert_eq!(path, format!("/var/lib/kprov/filesystems/media/{}", volumes[0].name()));
    world.client.delete::<PersistentVolumeClaim>("shop", "data", &Delete::default()).await.unwrap();
    world.until("the volume goes with its claim", |all| all.volumes.is_empty()).await;
}

fn taints(all: &Informers, node: &str) -> BTreeSet<String> {
    let node = all.nodes.get("", node);
    let taints = node.and_then(|node| node.spec.clone()?.taints).unwrap_or_default();
    taints.into_iter().map(|taint| format!("{}:{}", taint.key.rsplit('/').next().unwrap(), taint.effect)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_a_silent_node_are_replaced_elsewhere() {
    let world = World::new(&["n1", "n2", "n3"]).await;
    world.namespace().await;
    world.client.create::<Deployment>("shop", &deployment("web", 6, "v1")).await.unwrap();
    world.until("running on all", |all| complete(all, "web", 6)).await;
    world.silence("n2");
    world
        .until("n2 is unreachable", |all| {
            taints(all, "n2") == ["unreachable:NoExecute".to_string(), "unreachable:NoSchedule".to_string()].into()
        })
        .await;
    world
        .until("six run elsewhere", |all| {
            let elsewhere = |pod: &&Arc<Pod>| !pod.deleting() && node_of(pod) != "n2" && !node_of(pod).is_empty();
            all.pods.list_in("shop").iter().filter(elsewhere).count() == 6 && complete(all, "web", 6)
        })
        .await;
    assert!(taints(&world.informers, "n1").is_empty());
    world.wake("n2");
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": time::now_text()}]}});
    world.client.patch::<Node>("", "n2", "status", Patch::Strategic, &ready).await.unwrap();
    world
        .until("n2 is welcome again, its old pods are gone", |all| taints(all, "n2").is_empty() && all.pods.list_in("shop").len() == 6)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_evicted_when_most_nodes_are_silent() {
    let world = World::new(&["n1", "n2", "n3"]).await;
    world.namespace().await;
    world.client.create::<Deployment>("shop", &deployment("web", 3, "v1")).await.unwrap();
    world.until("running", |all| complete(all, "web", 3)).await;
    let before: BTreeSet<String> = world.informers.pods.list_in("shop").iter().map(|pod| pod.uid().to_string()).collect();
    world.silence("n2");
    world.silence("n3");
    let quiet: BTreeSet<String> = ["unreachable:NoSchedule".to_string()].into();
    world.until("both are known to be silent", |all| taints(all, "n2") == quiet && taints(all, "n3") == quiet).await;
    // The one that comes back proves that everything above had its turn.
    world.wake("n3");
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": time::now_text()}]}});
    world.client.patch::<Node>("", "n3", "status", Patch::Strategic, &ready).await.unwrap();
    world.until("n3 is back and n2 alone is evicted", |all| taints(all, "n3").is_empty() && taints(all, "n2").len() == 2).await;
    let still = world
        .informers
        .pods
        .list_in("shop")
        .iter()
        .filter(|pod| before.contains(pod.uid()) && node_of(pod) != "n2" && !pod.deleting())
        .count();
    let of_others =
        before.len() - world.informers.pods.list_in("shop").iter().filter(|pod| before.contains(pod.uid()) && node_of(pod) == "n2").count();
    assert_eq!(still, of_others, "pods of nodes that were not alone in their silence stay");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blueprints_workloads_are_applied_kept_and_pruned() {
    let world = World::new(&["n1"]).await;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    let settings =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings", "namespace": "shop"}, "data": {"a": "1"}});
    let spec = |workloads: &[&Value]| {
        json!({
            "provider": "local", "machines": [{"name": "control", "role": "control-plane", "count": 1}],
            "loadBalancers": [{"name": "front", "listeners": [{"port": 80, "service": "shop/web"}]}],
            "filesystems": [{"name": "media", "size": "1Gi"}], "workloads": workloads,
        })
    };
    let web = deployment("web", 2, "v1");
    // The namespace comes last in the text and first in the cluster.
    let blueprint = json!({"apiVersion": "kprov.dev/v1", "kind": "Blueprint", "metadata": {"name": "shop"}, "spec": spec(&[&web, &service, &settings, &namespace])});
    let first = world.client.create::<BlueprintObject>("", &blueprint).await.unwrap().metadata.generation;
    let applied = |all: &Informers, generation: Option<i64>| {
        let status = all.blueprints.get("", "shop").and_then(|blueprint| blueprint.status.clone()).unwrap_or_default();
        status["workloads"]["applied"] == json!(true) && status["workloads"]["observedGeneration"] == json!(generation)
    };
    world.until("applied and running", |all| applied(all, first) && complete(all, "web", 2)).await;
    world
        .until("a node port for the listener", |all| {
            all.services
                .get("shop", "kprov-front-80")
                .is_some_and(|service| service.spec.as_ref().unwrap().ports.as_ref().unwrap()[0].node_port == Some(32000))
        })
        .await;
    assert!(world.client.get_value("/apis/storage.k8s.io/v1/storageclasses/media").await.unwrap().is_some());

    world.patch::<Deployment>("web", json!({"spec": {"replicas": 4}})).await;
    world.until("scaled by hand", |all| complete(all, "web", 4)).await;
    let old = world.client.get::<Service>("shop", "web").await.unwrap().unwrap();
    world.client.delete::<Service>("shop", "web", &Delete::default()).await.unwrap();
    world.until("made again", |all| all.services.get("shop", "web").is_some_and(|service| service.uid() != old.uid())).await;
    let settings2 =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings", "namespace": "shop"}, "data": {"b": "2"}});
    let changed = json!({"spec": spec(&[&namespace, &settings2, &service, &web])});
    let second = world.client.patch::<BlueprintObject>("", "shop", "", Patch::Merge, &changed).await.unwrap().metadata.generation;
    world.until("applied again", |all| applied(all, second)).await;
    let held = world.client.get::<ConfigMap>("shop", "settings").await.unwrap().unwrap();
    assert_eq!(json!(held.data), json!({"b": "2"}));
    assert!(complete(&world.informers, "web", 4), "scaling by hand is not undone");
    let without = json!({"spec": spec(&[&namespace, &service, &web])});
    let third = world.client.patch::<BlueprintObject>("", "shop", "", Patch::Merge, &without).await.unwrap().metadata.generation;
    world.until("applied without the settings", |all| applied(all, third)).await;
    assert!(world.client.get::<ConfigMap>("shop", "settings").await.unwrap().is_none());
    assert!(world.client.get::<ConfigMap>("shop", "kube-root-ca.crt").await.unwrap().is_some());

    // What will never be taken is told apart from what may be taken later.
    let portless =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "bad", "namespace": "shop"}, "spec": {"ports": [{"port": 0}]}});
    let early = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "early", "namespace": "nowhere"}});
    let mixed = json!({"spec": spec(&[&namespace, &service, &web, &portless, &early])});
    world.client.patch::<BlueprintObject>("", "shop", "", Patch::Merge, &mixed).await.unwrap();
    world
        .until("refused and waiting", |all| {
            let status = all.blueprints.get("", "shop").and_then(|blueprint| blueprint.status.clone()).unwrap_or_default();
            let refused = status["workloads"]["refused"].as_array().cloned().unwrap_or_default();
            let message = status["workloads"]["message"].as_str().unwrap_or_default();
            refused.len() == 1
                && refused[0].as_str().is_some_and(|text| text.starts_with("service/shop/bad: "))
                && message.contains("configmap/nowhere/early: ")
        })
        .await;
}
