//! EndpointSlices of Services with a selector: which pods stand behind which ports.

use super::deployment::hash;
use super::write::{Write, apply_all};
use super::{Context, Informers, each, owners, pods, work};
use crate::orchestrator::client::selector::map_matches;
use crate::orchestrator::client::{Key, Object, Queue};
use k8s_openapi::api::core::v1::{ContainerPort, Node, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const SERVICE: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Upstream's own limit per slice: one change rewrites at most this many endpoints.
const MAX_ENDPOINTS: usize = 100;

/// A Service whose slices were written this recently is in the middle of something: a rollout, a node that comes or goes.
const BUSY: Duration = Duration::from_secs(1);
/// How long its next changes are gathered. Every write of a slice goes to every node, so one for each pod of many is the most costly way.
const GATHER: Duration = Duration::from_millis(250);

/// How long to gather changes before a Service is looked at: a quiet one is looked at at once. `written` is when its slices were last written.
fn pause(written: Option<Instant>, now: Instant) -> Duration {
    let busy = written.is_some_and(|written| now.saturating_duration_since(written) < BUSY);
    if busy { GATHER } else { Duration::ZERO }
}

/// When each Service's slices were last written. Cheap to clone.
#[derive(Clone, Default)]
struct Written {
    at: Arc<Mutex<HashMap<Key, Instant>>>,
}

impl Written {
    /// Asks for a turn for a Service whose pods or slices have changed; of several waiting times the queue keeps the earliest.
    fn ask(&self, queue: &Queue<Key>, key: Key) {
        let written = self.at.lock().get(&key).copied();
        queue.add_after(key, pause(written, Instant::now()));
    }
    fn note(&self, key: &Key) {
        self.at.lock().insert(key.clone(), Instant::now());
    }
    fn forget(&self, key: &Key) {
        self.at.lock().remove(key);
    }
}

/// `slices` are those managed for this service; `zones` maps a node to its zone.
pub fn decide(service: &Service, pods: &[Arc<Pod>], slices: &[Arc<EndpointSlice>], zones: &HashMap<String, String>) -> Vec<Write> {
    let spec = service.spec.clone().unwrap_or_default();
    if service.deleting() || spec.type_.as_deref() == Some("ExternalName") || spec.selector.as_ref().is_none_or(BTreeMap::is_empty) {
        return Vec::new();
    }
    let families = spec.ip_families.clone().unwrap_or_else(|| vec!["IPv4".into()]);
    let mut writes = Vec::new();
    for family in &families {
        // Pods that resolve a named port differently cannot share a slice.
        let mut groups: BTreeMap<String, (Vec<EndpointPort>, Vec<Endpoint>)> = BTreeMap::new();
        for pod in pods.iter().filter(|pod| !pods::is_finished(pod)) {
            let Some(address) = address(pod, family) else { continue };
            let ports = ports(&spec.ports.clone().unwrap_or_default(), pod);
            let group = groups.entry(json!(ports).to_string()).or_insert_with(|| (ports, Vec::new()));
            group.1.push(endpoint(service, pod, address, zones));
        }
        let existing: Vec<&Arc<EndpointSlice>> = slices.iter().filter(|slice| &slice.address_type == family).collect();
        if groups.is_empty() {
            // One empty slice says that the service was looked at, and that nothing is behind it; its ports say nothing then.
            let ports = existing.first().map(|slice| slice.ports.clone().unwrap_or_default()).unwrap_or_default();
            groups.insert(json!(ports).to_string(), (ports, Vec::new()));
        }
        writes.extend(reconcile(service, family, groups.into_values(), &existing));
    }
    let obsolete = slices.iter().filter(|slice| !families.contains(&slice.address_type));
    writes.extend(obsolete.map(|slice| Write::delete::<EndpointSlice>(&**slice)));
    writes
}

/// Keeps every endpoint in the slice where it is, so that a change of one pod rewrites one slice.
fn reconcile(
    service: &Service,
    family: &str,
    groups: impl Iterator<Item = (Vec<EndpointPort>, Vec<Endpoint>)>,
    existing: &[&Arc<EndpointSlice>],
) -> Vec<Write> {
    let labels = labels(service);
    let mut writes = Vec::new();
    let mut kept: HashSet<&str> = HashSet::new();
    let mut taken: BTreeSet<String> = existing.iter().map(|slice| slice.name().to_string()).collect();
    for (ports, endpoints) in groups {
        let mut wanted: BTreeMap<String, Endpoint> = endpoints.into_iter().map(|endpoint| (identity(&endpoint), endpoint)).collect();
        let mut filled: Vec<(&Arc<EndpointSlice>, Vec<Endpoint>)> = Vec::new();
        for slice in existing.iter().filter(|slice| slice.ports.clone().unwrap_or_default() == ports) {
            let stay = slice.endpoints.iter().filter_map(|held| wanted.remove(&identity(held))).collect();
            filled.push((slice, stay));
        }
        let mut new = wanted.into_values().peekable();
        // The fullest first: few slices, and the others can empty.
        filled.sort_by_key(|(_, stay)| std::cmp::Reverse(stay.len()));
        for (_, stay) in filled.iter_mut() {
            while stay.len() < MAX_ENDPOINTS
                && let Some(endpoint) = new.next()
            {
                stay.push(endpoint);
            }
        }
        let mut any = false;
        for (slice, stay) in &filled {
            if stay.is_empty() && (any || filled.iter().any(|(_, stay)| !stay.is_empty()) || new.peek().is_some()) {
                continue;
            }
            any = true;
            kept.insert(slice.name());
            let mut body = json!({});
            if slice.endpoints != *stay {
                body["endpoints"] = json!(stay);
            }
            if slice.metadata.labels.clone().unwrap_or_default() != labels {
                let gone = slice.metadata.labels.iter().flatten().filter(|(key, _)| !labels.contains_key(*key));
                body["metadata"]["labels"] = json!(labels);
                for (key, _) in gone {
                    body["metadata"]["labels"][key] = Value::Null;
                }
            }
            if body != json!({}) {
                writes.push(Write::merge_at::<EndpointSlice>(&***slice, "", body));
            }
        }
        while new.peek().is_some() || !any {
            any = true;
            let endpoints: Vec<Endpoint> = new.by_ref().take(MAX_ENDPOINTS).collect();
            let name = free_name(service, family, &ports, &mut taken);
            let body = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": name, "namespace": service.namespace(), "labels": labels,
                    "ownerReferences": [owners::reference::<Service>(service)],
                },
                "addressType": family, "ports": ports, "endpoints": endpoints,
            });
            writes.push(Write::create::<EndpointSlice>(service.namespace(), body));
        }
    }
    let obsolete = existing.iter().filter(|slice| !kept.contains(slice.name()));
    writes.extend(obsolete.map(|slice| Write::delete::<EndpointSlice>(&***slice)));
    writes
}

/// The same for the same service and ports, so that a lost answer cannot make a second slice.
fn free_name(service: &Service, family: &str, ports: &[EndpointPort], taken: &mut BTreeSet<String>) -> String {
    let mut number = 0;
    loop {
        let digest = hash(&json!([service.uid(), family, ports, number]), 0);
        let name = format!("{}-{}", service.name(), &digest[..digest.len().min(8)]);
        if taken.insert(name.clone()) {
            return name;
        }
        number += 1;
    }
}

fn identity(endpoint: &Endpoint) -> String {
    let target = endpoint.target_ref.as_ref();
    format!("{}|{}", target.and_then(|target| target.uid.as_deref()).unwrap_or_default(), endpoint.addresses.join(","))
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let reserved = |key: &str| [SERVICE, MANAGED_BY, HEADLESS].contains(&key);
    let copied = service.metadata.labels.iter().flatten().filter(|(key, _)| !reserved(key));
    let mut labels: BTreeMap<String, String> = copied.map(|(key, value)| (key.clone(), value.clone())).collect();
    labels.insert(SERVICE.into(), service.name().into());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels
}

fn address(pod: &Pod, family: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let all = status.pod_ips.iter().flatten().map(|entry| &entry.ip).chain(&status.pod_ip);
    all.filter(|ip| !ip.is_empty()).find(|ip| ip.contains(':') == (family == "IPv6")).cloned()
}

fn endpoint(service: &Service, pod: &Pod, address: String, zones: &HashMap<String, String>) -> Endpoint {
    let serving = pods::is_ready(pod);
    let terminating = pod.deleting();
    let spec = pod.spec.as_ref();
    let publish = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false);
    let named = spec.and_then(|spec| spec.subdomain.as_deref()) == Some(service.name());
    let node = Some(pods::node(pod).to_string()).filter(|node| !node.is_empty());
    Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(publish || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: spec.and_then(|spec| spec.hostname.clone()).filter(|hostname| named && !hostname.is_empty()),
        zone: node.as_ref().and_then(|node| zones.get(node).cloned()),
        node_name: node,
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    }
}

/// The service's ports as this pod has them; a named port the pod does not have is left out.
fn ports(ports: &[ServicePort], pod: &Pod) -> Vec<EndpointPort> {
    let resolved = ports.iter().filter_map(|port| {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
        let number = match &port.target_port {
            None => port.port,
            Some(IntOrString::Int(0)) => port.port,
            Some(IntOrString::Int(number)) => *number,
            Some(IntOrString::String(name)) => container_port(pod, name, &protocol)?,
        };
        Some(EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(number),
            protocol: Some(protocol),
            app_protocol: port.app_protocol.clone(),
        })
    });
    resolved.collect()
}

fn container_port(pod: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    // Sidecars are init containers that stay: their ports count too.
    let sidecars = spec.init_containers.iter().flatten().filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let matches = |port: &&ContainerPort| port.name.as_deref() == Some(name) && port.protocol.as_deref().unwrap_or("TCP") == protocol;
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .find(matches)
        .map(|port| port.container_port)
}

pub fn start(context: &Context, informers: &Informers) {
    let queue: Queue<Key> = Queue::new();
    let written = Written::default();
    {
        let queue = queue.clone();
        each(&context.cancel, informers.services.changes(), move |change| queue.add(change.key));
    }
    {
        let (queue, services, written) = (queue.clone(), informers.services.clone(), written.clone());
        each(&context.cancel, informers.pods.changes(), move |change| {
            for service in services.list_in(&change.key.namespace) {
                let Some(selector) = service.spec.as_ref().and_then(|spec| spec.selector.as_ref()) else { continue };
                let concerned = |pod: &Arc<Pod>| map_matches(selector, pod.metadata.labels.as_ref());
                if change.old.as_ref().is_some_and(concerned) || change.new.as_ref().is_some_and(concerned) {
                    written.ask(&queue, Key::of(&*service));
                }
            }
        });
    }
    {
        // What was written a moment ago comes back as a change: were it looked at at once, nothing would ever be gathered.
        let (queue, written) = (queue.clone(), written.clone());
        each(&context.cancel, informers.endpoint_slices.changes(), move |change| {
            for slice in change.old.iter().chain(&change.new).filter(|slice| slice.label(MANAGED_BY) == Some(MANAGER)) {
                if let Some(name) = slice.label(SERVICE) {
                    written.ask(&queue, Key::new(slice.namespace(), name));
                }
            }
        });
    }
    let (client, all) = (context.client.clone(), informers.clone());
    all.endpoint_slices.add_index("service", |slice: &EndpointSlice| match (slice.label(MANAGED_BY), slice.label(SERVICE)) {
        (Some(MANAGER), Some(name)) => vec![format!("{}/{name}", slice.namespace())],
        _ => Vec::new(),
    });
    work(context, informers, queue, 4, move |key| {
        let (client, all, written) = (client.clone(), all.clone(), written.clone());
        async move {
            let Some(service) = all.services.get_key(&key) else {
                written.forget(&key);
                return Ok(None);
            };
            let selector = service.spec.as_ref().and_then(|spec| spec.selector.clone()).unwrap_or_default();
            let mut pods = all.pods.list_in(&key.namespace);
            pods.retain(|pod| map_matches(&selector, pod.metadata.labels.as_ref()));
            let slices = all.endpoint_slices.by_index("service", &key.to_string());
            let writes = decide(&service, &pods, &slices, &zones(&all.nodes.list()));
            if !writes.is_empty() {
                written.note(&key);
            }
            match apply_all(&client, &writes).await {
                Err(failure) if failure.is_terminating() => Ok(None),
                outcome => Ok(outcome.map(|()| None)?),
            }
        }
    });
}

fn zones(nodes: &[Arc<Node>]) -> HashMap<String, String> {
    nodes.iter().filter_map(|node| Some((node.name().to_string(), node.label("topology.kubernetes.io/zone")?.to_string()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(more: Value) -> Service {
        let mut object = json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "s", "labels": {"team": "a"}},
            "spec": {"selector": {"app": "web"}, "clusterIP": "10.96.0.9", "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}]},
        });
        json_patch::merge(&mut object, &more);
        serde_json::from_value(object).unwrap()
    }

    fn pod(number: usize, more: Value) -> Arc<Pod> {
        let mut object = json!({
            "metadata": {"name": format!("web-{number}"), "namespace": "shop", "uid": format!("u{number}"), "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIP": format!("10.244.{}.{}", number / 250, number % 250), "conditions": [{"type": "Ready", "status": "True"}]},
        });
        json_patch::merge(&mut object, &more);
        Arc::new(serde_json::from_value(object).unwrap())
    }

    /// Applies the writes as the API would.
    fn play(slices: &mut Vec<Arc<EndpointSlice>>, writes: &[Write]) {
        for write in writes {
            match write {
                Write::Create { body, .. } => slices.push(Arc::new(serde_json::from_value(body.clone()).unwrap())),
                Write::Patch { path, body, .. } => {
                    let slice = slices.iter_mut().find(|slice| path.ends_with(slice.name())).unwrap();
                    let mut value = json!(**slice);
                    json_patch::merge(&mut value, body);
                    *slice = Arc::new(serde_json::from_value(value).unwrap());
                }
                Write::Delete { path, .. } => slices.retain(|slice| !path.ends_with(slice.name())),
            }
        }
    }

    fn settle(service: &Service, pods: &[Arc<Pod>], slices: &mut Vec<Arc<EndpointSlice>>) -> usize {
        let writes = decide(service, pods, slices, &HashMap::new());
        play(slices, &writes);
        assert_eq!(decide(service, pods, slices, &HashMap::new()), [], "a second look changes nothing");
        writes.len()
    }

    #[test]
    fn readiness_and_termination_show_in_the_conditions() {
        let check = |service_more: Value, pod_more: Value, expected: (bool, bool, bool)| {
            let mut slices = Vec::new();
            settle(&service(service_more), &[pod(1, pod_more)], &mut slices);
            let conditions = slices[0].endpoints[0].conditions.clone().unwrap();
            assert_eq!((conditions.ready.unwrap(), conditions.serving.unwrap(), conditions.terminating.unwrap()), expected);
        };
        let unready = json!({"status": {"conditions": []}});
        let leaving = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        check(json!({}), json!({}), (true, true, false));
        check(json!({}), unready.clone(), (false, false, false));
        check(json!({}), leaving, (false, true, true));
        check(json!({"spec": {"publishNotReadyAddresses": true}}), unready, (true, false, false));
    }

    #[test]
    fn a_named_port_resolves_per_pod_and_differing_pods_get_their_own_slice() {
        let mut slices = Vec::new();
        let other = pod(2, json!({"spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 9090}]}]}}));
        settle(&service(json!({})), &[pod(1, json!({})), other], &mut slices);
        let mut ports: Vec<i32> = slices.iter().map(|slice| slice.ports.as_ref().unwrap()[0].port.unwrap()).collect();
        ports.sort();
        assert_eq!(ports, [8080, 9090]);
    }

    #[test]
    fn finished_pods_and_pods_without_an_address_are_left_out_and_an_empty_slice_remains() {
        let mut slices = Vec::new();
        settle(
            &service(json!({})),
            &[pod(1, json!({"status": {"phase": "Failed"}})), pod(2, json!({"status": {"podIP": null}}))],
            &mut slices,
        );
        assert_eq!((slices.len(), slices[0].endpoints.len()), (1, 0));
        settle(&service(json!({})), &[pod(3, json!({}))], &mut slices);
        assert_eq!((slices.len(), slices[0].endpoints.len()), (1, 1));
        settle(&service(json!({})), &[], &mut slices);
        assert_eq!((slices.len(), slices[0].endpoints.len()), (1, 0));
    }

    #[test]
    fn one_changed_pod_of_many_rewrites_one_slice() {
        let mut all: Vec<_> = (0..250).map(|number| pod(number, json!({}))).collect();
        let mut slices = Vec::new();
        assert_eq!(settle(&service(json!({})), &all, &mut slices), 3);
        let mut sizes: Vec<usize> = slices.iter().map(|slice| slice.endpoints.len()).collect();
        sizes.sort();
        assert_eq!(sizes, [50, 100, 100]);
        all[7] = pod(7, json!({"status": {"conditions": []}}));
        assert_eq!(settle(&service(json!({})), &all, &mut slices), 1);
        all.truncate(10);
        settle(&service(json!({})), &all, &mut slices);
        assert_eq!(slices.iter().map(|slice| slice.endpoints.len()).sum::<usize>(), 10);
    }

    #[test]
    fn labels_follow_the_service_and_foreign_services_are_left_alone() {
        let mut slices = Vec::new();
        settle(&service(json!({})), &[pod(1, json!({}))], &mut slices);
        assert_eq!(slices[0].label("team"), Some("a"));
        assert_eq!(slices[0].label(MANAGED_BY), Some(MANAGER));
        settle(
            &service(json!({"metadata": {"labels": {"team": null, "tier": "b"}}, "spec": {"clusterIP": "None"}})),
            &[pod(1, json!({}))],
            &mut slices,
        );
        assert_eq!((slices[0].label("team"), slices[0].label("tier"), slices[0].label(HEADLESS)), (None, Some("b"), Some("")));
        assert_eq!(decide(&service(json!({"spec": {"selector": null}})), &[pod(1, json!({}))], &slices, &HashMap::new()), []);
    }

    #[test]
    fn a_quiet_service_is_looked_at_at_once_and_a_busy_one_gathers() {
        let now = Instant::now() + Duration::from_secs(60);
        let ago = |millis: u64| Some(now - Duration::from_millis(millis));
        for (written, expected) in [(None, 0), (ago(0), 250), (ago(999), 250), (ago(1000), 0), (ago(30_000), 0)] {
            assert_eq!(pause(written, now), Duration::from_millis(expected), "{:?}", written.map(|at| now - at));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn many_pods_of_one_service_give_four_turns_a_second() {
        let (queue, written, key) = (Queue::<Key>::new(), Written::default(), Key::new("shop", "web"));
        let start = Instant::now();
        let turns = Arc::new(Mutex::new(Vec::new()));
        let work = queue.run(4, |key: Key| {
            turns.lock().push(start.elapsed().as_millis());
            written.note(&key);
            async { Ok(None) }
        });
        let pods = async {
            for _ in 0..100 {
                written.ask(&queue, key.clone());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! { biased; () = work => {} () = pods => {} }
        assert!((4..=5).contains(&turns.lock().len()), "turns at {:?}", turns.lock());
        assert!(turns.lock()[0] < 10, "the first one at once");
    }

    #[test]
    fn a_hostname_counts_only_below_its_own_service() {
        let named = |subdomain: &str| pod(1, json!({"spec": {"hostname": "db-0", "subdomain": subdomain}}));
        let host = |pod: Arc<Pod>| endpoint(&service(json!({})), &pod, "10.0.0.1".into(), &HashMap::new()).hostname;
        assert_eq!((host(named("web")), host(named("other"))), (Some("db-0".into()), None));
    }
}
