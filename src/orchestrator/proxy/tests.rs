//! Stories of services: what the rules say, and what packets do in real network namespaces.

use super::endpoints::{self, Protocol};
use super::ruleset::{Network, Ruleset, ruleset};
use super::watch::Watch;
use super::{nft, rest, run_with, write};
use crate::orchestrator::client::informer::{Informer, Key};
use crate::orchestrator::config::Fabric;
use crate::orchestrator::network::testing::{Spaces, ask, in_own_namespace, inside, serve, sh};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

fn network() -> Network {
    Network {
        pods: "10.244.0.0/16".parse().expect("a range"),
        services: "10.96.0.0/16".parse().expect("a range"),
        dns: "10.96.0.10".parse().expect("an address"),
        node: "10.88.0.11".parse().expect("an address"),
        fabric: Fabric::Switched,
    }
}

/// A service `shop/<name>` on port 80 with more `spec`.
fn service(name: &str, address: &str, spec: Value) -> Arc<Service> {
    let mut object = json!({"metadata": {"namespace": "shop", "name": name}, "spec": {"clusterIP": address, "ports": [{"port": 80}]}});
    for (field, value) in spec.as_object().into_iter().flatten() {
        object["spec"][field] = value.clone();
    }
    Arc::new(serde_json::from_value(object).expect("a service"))
}

/// A slice of `shop/<name>` on port 8080; each endpoint is (address, node, conditions).
fn slice(name: &str, endpoints: &[(&str, &str, &str)]) -> Arc<EndpointSlice> {
    let endpoint = |(address, node, state): &(&str, &str, &str)| {
        let conditions = match *state {
            "ready" => json!({"ready": true, "serving": true, "terminating": false}),
            "ending" => json!({"ready": false, "serving": true, "terminating": true}),
            "unready" => json!({"ready": false, "serving": false, "terminating": false}),
            other => panic!("{other}"),
        };
        json!({"addresses": [address], "nodeName": node, "conditions": conditions})
    };
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "name": format!("{name}-x"), "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4", "ports": [{"port": 8080, "protocol": "TCP", "name": ""}],
            "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        }))
        .expect("a slice"),
    )
}

fn table(services: &[Arc<Service>], slices: &[Arc<EndpointSlice>]) -> Ruleset {
    ruleset(&endpoints::ports(services, slices, "worker-1", network().dns), &network())
}

/// The script's lines without the base table, digests shortened to `*`.
fn check(rules: &Ruleset, expected: &[&str]) {
    let script = Ruleset::default().update(rules).unwrap_or_default();
    let digest = regex::Regex::new("(svc|local|ext|ep|sticky)-[0-9a-f]{10}-").expect("a pattern");
    let lines: Vec<String> = script.lines().map(|line| digest.replace_all(line, "$1-*-").replace(" ip kprov ", " ")).collect();
    assert_eq!(lines, expected, "\n{script}");
}

#[test]
fn a_cluster_address_spreads_over_its_ready_endpoints() {
    let slices =
        [slice("web", &[("10.244.1.5", "worker-1", "ready"), ("10.244.2.5", "worker-2", "ready"), ("10.244.2.6", "worker-2", "unready")])];
    check(
        &table(&[service("web", "10.96.0.80", json!({}))], &slices),
        &[
            "add chain svc-*-shop/web/tcp/80",
            "add rule svc-*-shop/web/tcp/80 meta l4proto tcp dnat to numgen random mod 2 map { 0 : 10.244.1.5 . 8080, 1 : 10.244.2.5 . 8080 }",
            "add element local-endpoints { 10.244.1.5 . 10.244.1.5 }",
            "add element service-addresses { 10.96.0.80 . tcp . 80 : goto svc-*-shop/web/tcp/80 }",
        ],
    );
}

#[test]
fn endpoints_that_end_serve_only_while_nothing_is_ready() {
    let ports = |slices: &[Arc<EndpointSlice>]| {
        endpoints::ports(&[service("web", "10.96.0.80", json!({}))], slices, "worker-1", network().dns)[0].clone()
    };
    let both = ports(&[slice("web", &[("10.244.1.5", "worker-1", "ending"), ("10.244.2.5", "worker-2", "ready")])]);
    assert_eq!(both.endpoints.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.244.2.5:8080"]);
    assert_eq!(both.local_endpoints.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.244.1.5:8080"]);
    let none = ports(&[slice("web", &[("10.244.1.5", "worker-1", "unready")])]);
    assert!(none.endpoints.is_empty());
    let split = ports(&[
        slice("web", &[("10.244.1.5", "worker-1", "ready")]),
        slice("web", &[("10.244.1.5", "worker-1", "ready"), ("10.244.2.7", "worker-2", "ready")]),
    ]);
    assert_eq!(split.endpoints.len(), 2);
}

#[test]
fn a_node_port_masquerades_and_without_endpoints_refuses() {
    let spec = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 32000}]});
    check(
        &table(&[service("web", "10.96.0.80", spec.clone())], &[slice("web", &[("10.244.2.5", "worker-2", "ready")])]),
        &[
            "add chain ext-*-shop/web/tcp/80",
            "add chain svc-*-shop/web/tcp/80",
            "add rule ext-*-shop/web/tcp/80 meta mark set meta mark | 0x4000",
            "add rule ext-*-shop/web/tcp/80 goto svc-*-shop/web/tcp/80",
            "add rule svc-*-shop/web/tcp/80 meta l4proto tcp dnat to 10.244.2.5:8080",
            "add element node-ports { tcp . 32000 : goto ext-*-shop/web/tcp/80 }",
            "add element service-addresses { 10.96.0.80 . tcp . 80 : goto svc-*-shop/web/tcp/80 }",
        ],
    );
    check(&table(&[service("web", "10.96.0.80", spec)], &[]), &["add element refused-node-ports { tcp . 32000 : goto refuse }"]);
}

#[test]
fn local_policy_keeps_traffic_on_its_node_and_drops_where_nobody_serves() {
    let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local", "externalIPs": ["192.0.2.7"], "ports": [{"port": 80, "nodePort": 32000}]});
    let here = table(
        &[service("web", "10.96.0.80", spec.clone())],
        &[slice("web", &[("10.244.1.5", "worker-1", "ready"), ("10.244.2.5", "worker-2", "ready")])],
    );
    check(
        &here,
        &[
            "add chain ext-*-shop/web/tcp/80",
            "add chain local-*-shop/web/tcp/80",
            "add chain svc-*-shop/web/tcp/80",
            "add rule ext-*-shop/web/tcp/80 ip saddr 10.244.0.0/16 goto svc-*-shop/web/tcp/80",
            "add rule ext-*-shop/web/tcp/80 fib saddr type local meta mark set meta mark | 0x4000 goto svc-*-shop/web/tcp/80",
            "add rule ext-*-shop/web/tcp/80 goto local-*-shop/web/tcp/80",
            "add rule local-*-shop/web/tcp/80 meta l4proto tcp dnat to 10.244.1.5:8080",
            "add rule svc-*-shop/web/tcp/80 meta l4proto tcp dnat to numgen random mod 2 map { 0 : 10.244.1.5 . 8080, 1 : 10.244.2.5 . 8080 }",
            "add element local-endpoints { 10.244.1.5 . 10.244.1.5 }",
            "add element node-ports { tcp . 32000 : goto ext-*-shop/web/tcp/80 }",
            "add element service-addresses { 10.96.0.80 . tcp . 80 : goto local-*-shop/web/tcp/80, 192.0.2.7 . tcp . 10256 : goto health, 192.0.2.7 . tcp . 80 : goto ext-*-shop/web/tcp/80 }",
        ],
    );
    let script =
        Ruleset::default().update(&table(&[service("web", "10.96.0.80", spec)], &[slice("web", &[("10.244.2.5", "worker-2", "ready")])]));
    let script = script.expect("rules");
    assert!(script.contains("refused-node-ports { tcp . 32000 : drop }") && !script.contains("10.96.0.80"), "{script}");
}

#[test]
fn affinity_gives_every_endpoint_a_set_of_its_clients() {
    let spec = json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}});
    check(
        &table(&[service("web", "10.96.0.80", spec)], &[slice("web", &[("10.244.2.5", "worker-2", "ready")])]),
        &[
            "add set sticky-*-shop/web/tcp/80/10.244.2.5.8080 { type ipv4_addr; size 65535; flags dynamic,timeout; timeout 60s; }",
            "add chain ep-*-shop/web/tcp/80/10.244.2.5.8080",
            "add chain svc-*-shop/web/tcp/80",
            "add rule ep-*-shop/web/tcp/80/10.244.2.5.8080 update @sticky-*-shop/web/tcp/80/10.244.2.5.8080 { ip saddr }",
            "add rule ep-*-shop/web/tcp/80/10.244.2.5.8080 meta l4proto tcp dnat to 10.244.2.5:8080",
            "add rule svc-*-shop/web/tcp/80 ip saddr @sticky-*-shop/web/tcp/80/10.244.2.5.8080 goto ep-*-shop/web/tcp/80/10.244.2.5.8080",
            "add rule svc-*-shop/web/tcp/80 numgen random mod 1 vmap { 0 : goto ep-*-shop/web/tcp/80/10.244.2.5.8080 }",
            "add element service-addresses { 10.96.0.80 . tcp . 80 : goto svc-*-shop/web/tcp/80 }",
        ],
    );
}

#[test]
fn what_has_no_address_and_the_nodes_own_dns_are_left_alone() {
    let slices = [slice("web", &[("10.244.1.5", "worker-1", "ready")])];
    for spec in [
        json!({"clusterIP": "None"}),
        json!({"clusterIP": "10.96.0.10"}),
        json!({"type": "ExternalName", "clusterIP": ""}),
        json!({"clusterIP": "fd00::1"}),
    ] {
        check(&table(&[service("web", "10.96.0.80", spec)], &slices), &[]);
    }
    let mut other = (*service("web", "10.96.0.80", json!({}))).clone();
    other.metadata.labels = Some(BTreeMap::from([("service.kubernetes.io/service-proxy-name".into(), "mine".into())]));
    check(&table(&[Arc::new(other)], &slices), &[]);
}

#[test]
fn ports_are_told_apart_by_name_and_protocol() {
    let spec = json!({"ports": [{"name": "a", "port": 53, "protocol": "UDP"}, {"name": "b", "port": 53}, {"name": "c", "port": 9}]});
    let mut slice = (*slice("web", &[("10.244.2.5", "worker-2", "ready")])).clone();
    slice.ports =
        serde_json::from_value(json!([{"name": "a", "port": 5353, "protocol": "UDP"}, {"name": "b", "port": 5354, "protocol": "TCP"}]))
            .expect("ports");
    let ports = endpoints::ports(&[service("web", "10.96.0.80", spec)], &[Arc::new(slice)], "worker-1", network().dns);
    let found: Vec<_> =
        ports.iter().map(|port| (port.protocol, port.port, port.endpoints.first().map(|endpoint| endpoint.port()))).collect();
    assert_eq!(found, [(Protocol::Udp, 53, Some(5353)), (Protocol::Tcp, 53, Some(5354)), (Protocol::Tcp, 9, None)]);
}

/// A random cluster: services with all policies and endpoints in all states.
fn cluster() -> impl Strategy<Value = Ruleset> {
    let one = (0_u8..4, any::<[bool; 4]>(), proptest::collection::btree_set((1_u8..3, 1_u8..5), 0..4), 30_u32..33);
    proptest::collection::btree_map(0_u8..5, one, 0..5).prop_map(|services| {
        let (mut objects, mut slices) = (Vec::new(), Vec::new());
        for (number, (kind, [affinity, external, internal, ending], endpoints, seconds)) in services {
            let name = format!("s{number}");
            let mut spec = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 32000 + u32::from(number)}]});
            if kind == 0 {
                spec = json!({"ports": [{"port": 80 + u32::from(number)}]});
            }
            if affinity {
                spec["sessionAffinity"] = json!("ClientIP");
                spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": seconds}});
            }
            spec["externalTrafficPolicy"] = json!(if external { "Local" } else { "Cluster" });
            spec["internalTrafficPolicy"] = json!(if internal { "Local" } else { "Cluster" });
            objects.push(service(&name, &format!("10.96.1.{number}"), spec));
            let list: Vec<(String, String)> =
                endpoints.iter().map(|(node, pod)| (format!("10.244.{node}.{pod}"), format!("worker-{node}"))).collect();
            let list: Vec<(&str, &str, &str)> =
                list.iter().map(|(address, node)| (address.as_str(), node.as_str(), if ending { "ending" } else { "ready" })).collect();
            slices.push(slice(&name, &list));
        }
        table(&objects, &slices)
    })
}

/// The rules in the kernel, without what counts or ages.
fn listing() -> String {
    sh("nft -s list table ip kprov")
}

#[test]
fn any_table_becomes_any_other_as_if_written_anew() {
    in_own_namespace(async {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let mut held: Option<Ruleset> = None;
        for _ in 0..40 {
            let wanted = cluster().new_tree(&mut runner).expect("a cluster").current();
            write(held.as_ref(), &wanted, &network()).await.unwrap_or_else(|error| panic!("{}", error.chain()));
            let updated = listing();
            nft(&wanted.replace(&network())).await.unwrap_or_else(|error| panic!("{}", error.chain()));
            let mut updated: Vec<&str> = updated.lines().map(str::trim).collect();
            let anew = listing();
            let mut anew: Vec<&str> = anew.lines().map(str::trim).collect();
            // Sets of elements and chains are listed in the order they were made.
            updated.sort_unstable();
            anew.sort_unstable();
            assert_eq!(updated, anew);
            held = Some(wanted);
        }
    });
}

#[test]
fn a_thousand_services_are_written_at_once_and_one_change_is_cheap() {
    in_own_namespace(async {
        let address = |number: u32| format!("10.96.{}.{}", 1 + number / 200, 1 + number % 200);
        let services: Vec<_> = (0..1000).map(|number| service(&format!("s{number}"), &address(number), json!({}))).collect();
        let endpoints = |number: u32, last: u32| {
            slice(
                &format!("s{number}"),
                &[
                    (&format!("10.244.1.{last}"), "worker-1", "ready"),
                    ("10.244.2.7", "worker-2", "ready"),
                    ("10.244.3.7", "worker-3", "ready"),
                ],
            )
        };
        let mut slices: Vec<_> = (0..1000).map(|number| endpoints(number, 1 + number % 200)).collect();
        let first = table(&services, &slices);
        let mut watch = Watch::open();
        let start = Instant::now();
        write(None, &first, &network()).await.expect("written");
        let whole = start.elapsed();
        // What the kernel said of that is more than the socket held.
        assert!(watch.stands());
        slices[500] = endpoints(500, 250);
        let start = Instant::now();
        let second = table(&services, &slices);
        let computed = start.elapsed();
        let start = Instant::now();
        write(Some(&first), &second, &network()).await.expect("written");
        let one = start.elapsed();
        println!("whole table {whole:?}, table computed {computed:?}, one change {one:?}");
        assert!(first.update(&second).expect("a difference").lines().count() <= 4);
    });
}

/// Waits until the kernel's table says (or no longer says) `text`.
async fn until_listed(text: &str, wanted: bool) {
    let listed = || std::process::Command::new("nft").args(["list", "table", "ip", "kprov"]).output().expect("nft runs").stdout;
    while String::from_utf8_lossy(&listed()).contains(text) != wanted {
        tokio::task::yield_now().await;
    }
}

/// The proxy at work for one service with one endpoint, of which it has not been told yet that this is all.
struct Proxy {
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    cancel: CancellationToken,
    running: tokio::task::JoinHandle<crate::error::Result<()>>,
}

impl Proxy {
    fn start() -> Proxy {
        let config = Arc::new(crate::orchestrator::network::wanted::tests::config());
        let (services, slices) = (Informer::<Service>::detached(), Informer::<EndpointSlice>::detached());
        let cancel = CancellationToken::new();
        let running = tokio::spawn(run_with(config, services.clone(), slices.clone(), cancel.clone()));
        services.put((*service("web", "10.96.0.80", json!({}))).clone());
        slices.put((*slice("web", &[("10.244.2.5", "worker-2", "ready")])).clone());
        Proxy { services, slices, cancel, running }
    }
}

#[test]
fn writes_that_take_long_lie_further_apart() {
    let check = |took, expected| assert_eq!(rest(Duration::from_millis(took)), Duration::from_millis(expected), "{took}");
    check(0, 0);
    check(20, 60);
    check(2_000, 6_000);
    check(30_000, 10_000);
}

#[test]
fn the_kernel_follows_the_informers_and_a_lost_table_comes_back_whole() {
    in_own_namespace(async {
        let Proxy { services, slices, cancel, running } = Proxy::start();
        services.mark_synced();
        // Half of the objects is no reason to write: the table stays absent until both lists are whole.
        tokio::task::yield_now().await;
        until_listed("10.96.0.80", false).await;
        slices.mark_synced();
        until_listed("dnat to 10.244.2.5:8080", true).await;
        slices.put((*slice("web", &[("10.244.2.6", "worker-2", "ready")])).clone());
        until_listed("dnat to 10.244.2.6:8080", true).await;
        sh("nft delete table ip kprov");
        services.put((*service("more", "10.96.0.81", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 32001}]}))).clone());
        slices.put((*slice("web", &[("10.244.2.7", "worker-2", "ready")])).clone());
        until_listed("dnat to 10.244.2.7:8080", true).await;
        until_listed("32001", true).await;
        services.apply(Key::new("shop", "more"), None);
        until_listed("32001", false).await;
        cancel.cancel();
        running.await.expect("no panic").expect("cancelled, not failed");
        until_listed("dnat to 10.244.2.7:8080", true).await;
    });
}

#[test]
fn what_others_flush_comes_back_at_once_and_our_own_writes_are_no_loss() {
    in_own_namespace(async {
        let Proxy { services, slices, cancel, running } = Proxy::start();
        services.mark_synced();
        slices.mark_synced();
        until_listed("dnat to 10.244.2.5:8080", true).await;
        sh("nft flush ruleset");
        until_listed("dnat to 10.244.2.5:8080", true).await;
        // A firewall's saved rules may hold an old table of ours: one that stands, but not as it should.
        nft("flush ruleset\nadd table ip kprov\nadd chain ip kprov old\n").await.expect("written");
        until_listed("chain old", false).await;
        until_listed("dnat to 10.244.2.5:8080", true).await;
        // Tables of others are theirs.
        let mut watch = Watch::open();
        sh("nft add table ip other");
        sh("nft delete table ip other");
        slices.put((*slice("web", &[("10.244.2.6", "worker-2", "ready")])).clone());
        until_listed("dnat to 10.244.2.6:8080", true).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!watch.has_lost(), "the whole table was written without a need");
        cancel.cancel();
        running.await.expect("no panic").expect("cancelled, not failed");
        sh("nft delete table ip kprov");
        assert!(watch.has_lost() && !watch.stands());
    });
}

#[test]
fn packets_reach_services_from_pods_nodes_and_outside() {
    let Some(spaces) = Spaces::make(&["node", "pod1", "pod2", "outside"]) else { return };
    let [node, pod1, pod2, outside] = [0, 1, 2, 3].map(|index| spaces.0[index].as_str());
    for (number, pod) in [(1, pod1), (2, pod2)] {
        sh(&format!("ip -n {node} link add p{number} type veth peer name eth0 netns {pod}"));
        sh(&format!("ip -n {node} address add 10.244.1.1/32 dev p{number}"));
        sh(&format!("ip -n {node} link set p{number} up"));
        sh(&format!("ip -n {node} route add 10.244.1.1{number}/32 dev p{number}"));
        sh(&format!("ip -n {pod} address add 10.244.1.1{number}/32 dev eth0"));
        sh(&format!("ip -n {pod} link set eth0 up"));
        sh(&format!("ip -n {pod} route add 10.244.1.1 dev eth0 scope link"));
        sh(&format!("ip -n {pod} route add default via 10.244.1.1"));
    }
    sh(&format!("ip -n {node} link add up0 type veth peer name eth0 netns {outside}"));
    sh(&format!("ip -n {node} address add 10.88.0.11/24 dev up0"));
    sh(&format!("ip -n {node} link set up0 up"));
    sh(&format!("ip -n {outside} address add 10.88.0.1/24 dev eth0"));
    sh(&format!("ip -n {outside} link set eth0 up"));
    sh(&format!("ip -n {node} route add 10.96.0.0/16 dev lo src 10.88.0.11"));
    sh(&format!("ip netns exec {node} sysctl -qw net.ipv4.ip_forward=1"));
    serve(pod1, "10.244.1.11:8080", "one");
    serve(pod2, "10.244.1.12:8080", "two");
    serve(outside, "10.88.0.1:8080", "outside");
    serve(node, "10.88.0.11:10256", "healthy");
    sh(&format!("ip -n {outside} route add 192.0.2.7 via 10.88.0.11"));
    sh(&format!("ip -n {outside} address add 169.254.169.254/32 dev eth0"));
    sh(&format!("ip -n {node} route add 169.254.169.254 via 10.88.0.1"));
    serve(outside, "169.254.169.254:80", "credentials");
    serve(outside, "169.254.169.254:53", "names");

    let spec = |port: u16, more: Value| {
        let mut spec = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
        spec.as_object_mut().expect("a map").extend(more.as_object().cloned().unwrap_or_default());
        spec
    };
    let services = [
        service("both", "10.96.0.80", spec(32000, json!({"externalIPs": ["192.0.2.7"]}))),
        service("one", "10.96.0.81", spec(32001, json!({"externalTrafficPolicy": "Local"}))),
        service("sticky", "10.96.0.82", spec(32002, json!({"sessionAffinity": "ClientIP"}))),
        service("empty", "10.96.0.83", spec(32003, json!({}))),
        service("away", "10.96.0.84", spec(32004, json!({"externalTrafficPolicy": "Local"}))),
    ];
    let slices = [
        slice("both", &[("10.244.1.11", "worker-1", "ready"), ("10.244.1.12", "worker-1", "ready")]),
        slice("one", &[("10.244.1.11", "worker-1", "ready")]),
        slice("sticky", &[("10.244.1.11", "worker-1", "ready"), ("10.244.1.12", "worker-1", "ready")]),
        slice("away", &[("10.88.0.1", "worker-2", "ready")]),
    ];
    let script = table(&services, &slices).replace(&network());
    inside(node, async move { nft(&script).await.unwrap_or_else(|error| panic!("{}", error.chain())) });

    let names = |space: &str, address: &str| {
        let answers: std::collections::BTreeSet<String> =
            (0..24).map(|_| ask(space, address).split(' ').next().unwrap_or_default().to_string()).collect();
        answers.into_iter().collect::<Vec<_>>().join(" ")
    };
    // Spread: from a pod (which is an endpoint itself: hairpin), from the node, from outside by node port.
    assert_eq!(names(pod1, "10.96.0.80:80"), "one two");
    assert_eq!(names(node, "10.96.0.80:80"), "one two");
    assert_eq!(names(outside, "10.88.0.11:32000"), "one two");
    assert_eq!(names(node, "10.88.0.11:32000"), "one two");
    assert_eq!(names(pod2, "10.88.0.11:32000"), "one two");
    // By a load balancer's address that no interface has; its health is the node's own word.
    assert_eq!(names(outside, "192.0.2.7:80"), "one two");
    assert_eq!(ask(outside, "192.0.2.7:10256"), "healthy 10.88.0.1");
    // One client, one endpoint.
    assert_eq!(names(pod1, "10.96.0.82:80").split(' ').count(), 1);
    // Who asks: pods keep their address, a pod that reaches itself does not, outside is hidden by policy Cluster and kept by Local.
    assert_eq!(ask(pod2, "10.96.0.81:80"), "one 10.244.1.12");
    assert_eq!(ask(pod1, "10.96.0.81:80"), "one 10.244.1.1");
    assert_eq!(ask(outside, "10.88.0.11:32001"), "one 10.88.0.1");
    assert_ne!(ask(outside, "10.88.0.11:32000").split(' ').next_back(), Some("10.88.0.1"));
    assert_eq!(ask(node, "10.96.0.81:80"), "one 10.88.0.11");
    // Nobody serves: refused at once, from everywhere; an unknown service address and port too; policy Local is silent outside.
    for (space, address) in
        [(pod1, "10.96.0.83:80"), (node, "10.96.0.83:80"), (outside, "10.88.0.11:32003"), (pod1, "10.96.7.7:80"), (pod1, "10.96.0.80:81")]
    {
        assert_eq!(ask(space, address), "ConnectionRefused", "{address}");
    }
    assert_eq!(ask(outside, "10.88.0.11:32004"), "TimedOut");
    assert_eq!(ask(pod1, "10.88.0.11:32004"), "outside 10.88.0.11");
    // Pods reach the outside as their node; other ports of the node are not the proxy's.
    assert_eq!(ask(pod1, "10.88.0.1:8080"), "outside 10.88.0.11");
    assert_eq!(ask(outside, "10.88.0.11:32009"), "ConnectionRefused");
    // What a cloud tells its machines is not for pods.
    assert_eq!(ask(node, "169.254.169.254:80"), "credentials 10.88.0.11");
    assert_eq!(ask(pod1, "169.254.169.254:80"), "ConnectionRefused");
    assert_eq!(ask(pod1, "169.254.169.254:53"), "names 10.88.0.11");
}

/// Rules for one service with one endpoint elsewhere and node port 32000, on a node in its own namespace.
pub fn serve_one(space: &str, node: &str, address: &str, endpoint: &str, fabric: Fabric) {
    let network = Network { node: node.parse().expect("an address"), fabric, ..network() };
    let services = [service("web", address, json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 32000}]}))];
    let slices = [slice("web", &[(endpoint, "worker-2", "ready")])];
    let ports = endpoints::ports(&services, &slices, "worker-1", network.dns);
    let script = ruleset(&ports, &network).replace(&network);
    inside(space, async move { nft(&script).await.unwrap_or_else(|error| panic!("{}", error.chain())) });
}
