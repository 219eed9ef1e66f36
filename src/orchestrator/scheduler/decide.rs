//! One pod, one snapshot, one answer. Pure.

use super::filter::{Cluster, reason_against};
use super::pod::PodInfo;
use super::score::totals;
use super::snapshot::{NodeInfo, Snapshot};
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Bind {
        node: String,
    },
    /// A claim of the pod is waiting to hear the node before its volume is made: tell it, then try again when it is bound.
    Announce {
        node: String,
        claims: Vec<String>,
    },
    /// Upstream's sentence, for the condition and the event.
    Unschedulable {
        message: String,
    },
}

/// `tie` picks among equally good nodes: a random number passed in, so that the same input gives the same answer.
pub fn schedule(pod: &PodInfo, snapshot: &Snapshot, tie: u64) -> Decision {
    if let Some(message) = claims_in_the_way(pod, snapshot) {
        return Decision::Unschedulable { message };
    }
    let cluster = Cluster::new(pod, snapshot);
    let mut fitting: Vec<&NodeInfo> = Vec::new();
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for node in snapshot.known_nodes() {
        match reason_against(pod, node, &cluster) {
            None => fitting.push(node),
            Some(reason) => *reasons.entry(reason).or_default() += 1,
        }
    }
    let Some(node) = best(pod, &fitting, snapshot, tie) else {
        return Decision::Unschedulable { message: sentence(reasons) };
    };
    let waiting: Vec<String> = pod.claims.iter().filter(|claim| waits(pod, claim, snapshot)).cloned().collect();
    if waiting.is_empty() { Decision::Bind { node } } else { Decision::Announce { node, claims: waiting } }
}

fn best(pod: &PodInfo, fitting: &[&NodeInfo], snapshot: &Snapshot, tie: u64) -> Option<String> {
    let totals = totals(pod, fitting, snapshot);
    let highest = totals.iter().max()?;
    let equals: Vec<_> = fitting.iter().zip(&totals).filter(|(_, total)| *total == highest).map(|(node, _)| node).collect();
    Some(equals[(tie % equals.len() as u64) as usize].name.clone())
}

fn claims_in_the_way(pod: &PodInfo, snapshot: &Snapshot) -> Option<String> {
    pod.claims.iter().find_map(|name| match snapshot.claims.get(&(pod.namespace.clone(), name.clone())) {
        None => Some(format!("persistentvolumeclaim \"{name}\" not found")),
        Some(claim) if claim.volume.is_none() && !claim.waits_for_consumer => {
            Some("pod has unbound immediate PersistentVolumeClaims".into())
        }
        Some(_) => None,
    })
}

fn waits(pod: &PodInfo, claim: &str, snapshot: &Snapshot) -> bool {
    let claim = snapshot.claims.get(&(pod.namespace.clone(), claim.to_string()));
    claim.is_some_and(|claim| claim.volume.is_none() && claim.waits_for_consumer)
}

/// "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable."
fn sentence(reasons: BTreeMap<String, usize>) -> String {
    let all: usize = reasons.values().sum();
    if all == 0 {
        return "no nodes available to schedule pods".into();
    }
    let mut counted: Vec<String> = reasons.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    counted.sort();
    format!("0/{all} nodes are available: {}.", counted.join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::filter;
    use super::*;
    use k8s_openapi::api::core::v1::{Node, Pod};
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn node(name: &str, more: Value) -> Node {
        let mut node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "10"}}});
        json_patch::merge(&mut node, &more);
        serde_json::from_value(node).expect("node")
    }

    fn pod(name: &str, spec: Value) -> PodInfo {
        let mut whole = json!({"metadata": {"name": name, "namespace": "shop", "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "400m"}}}]}});
        json_patch::merge(&mut whole, &json!({ "spec": spec }));
        PodInfo::read(&serde_json::from_value::<Pod>(whole).expect("pod"))
    }

    fn snapshot(nodes: &[Node], placed: &[(&str, PodInfo)]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        nodes.iter().for_each(|node| snapshot.set_node(node));
        for (node, pod) in placed {
            snapshot.place(Arc::new(PodInfo { node: Some(node.to_string()), ..pod.clone() }));
        }
        snapshot
    }

    fn check(pod: &PodInfo, snapshot: &Snapshot, expected: Result<&str, &str>) {
        let expected = match expected {
            Ok(node) => Decision::Bind { node: node.into() },
            Err(message) => Decision::Unschedulable { message: message.into() },
        };
        for tie in 0..4 {
            assert_eq!(schedule(pod, snapshot, tie), expected, "tie {tie}");
        }
    }

    #[test]
    fn an_empty_cluster_says_so() {
        check(&pod("a", json!({})), &Snapshot::default(), Err("no nodes available to schedule pods"));
    }

    #[test]
    fn a_full_node_is_passed_over_and_the_reason_counts() {
        let full = snapshot(&[node("a", json!({})), node("b", json!({}))], &[("a", pod("x", json!({}))), ("a", pod("y", json!({})))]);
        check(&pod("new", json!({})), &full, Ok("b"));
        let none = snapshot(&[node("a", json!({}))], &[("a", pod("x", json!({}))), ("a", pod("y", json!({})))]);
        check(&pod("new", json!({})), &none, Err("0/1 nodes are available: 1 Insufficient cpu."));
    }

    #[test]
    fn taints_keep_pods_away_unless_tolerated() {
        let tainted = json!({"spec": {"taints": [{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}]}});
        let cluster = snapshot(&[node("control", tainted)], &[]);
        check(
            &pod("p", json!({})),
            &cluster,
            Err("0/1 nodes are available: 1 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }."),
        );
        check(&pod("p", json!({"tolerations": [{"operator": "Exists"}]})), &cluster, Ok("control"));
    }

    #[test]
    fn a_node_admits_by_taints_and_labels_whatever_is_on_it() {
        let admits = |spec: Value, node: Node| {
            let cluster = snapshot(&[node], &[("a", pod("x", json!({}))), ("a", pod("y", json!({})))]);
            filter::admits(&pod("p", spec), cluster.known_node("a").expect("known"))
        };
        let joining = || node("a", json!({"spec": {"taints": [{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]}}));
        assert!(admits(json!({}), node("a", json!({}))), "full, but its kind");
        assert!(!admits(json!({}), joining()));
        assert!(admits(json!({"tolerations": [{"operator": "Exists"}]}), joining()));
        assert!(!admits(json!({"nodeSelector": {"disk": "ssd"}}), node("a", json!({}))));
        assert!(!admits(json!({}), node("a", json!({"spec": {"unschedulable": true}}))));
    }

    #[test]
    fn a_cordoned_node_and_a_foreign_selector_are_two_reasons() {
        let cluster = snapshot(&[node("a", json!({"spec": {"unschedulable": true}})), node("b", json!({}))], &[]);
        check(
            &pod("p", json!({"nodeSelector": {"disk": "ssd"}})),
            &cluster,
            Err("0/2 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) were unschedulable."),
        );
    }

    #[test]
    fn replicas_of_one_owner_spread_over_nodes() {
        let owned = |name: &str| PodInfo { owner: Some("rs".into()), ..pod(name, json!({})) };
        let cluster = snapshot(&[node("a", json!({})), node("b", json!({}))], &[("a", owned("x"))]);
        check(&owned("y"), &cluster, Ok("b"));
        let leaving = |name: &str| PodInfo { leaving: true, ..owned(name) };
        let cluster = snapshot(&[node("a", json!({})), node("b", json!({}))], &[("a", owned("x")), ("b", leaving("y"))]);
        check(&PodInfo { requests: BTreeMap::new(), ..owned("z") }, &cluster, Ok("b"));
    }

    #[test]
    fn anti_affinity_works_both_ways() {
        let apart = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]}}});
        let cluster = snapshot(&[node("a", json!({}))], &[("a", pod("x", json!({})))]);
        check(&pod("y", apart.clone()), &cluster, Err("0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules."));
        let cluster = snapshot(&[node("a", json!({}))], &[("a", pod("x", apart))]);
        check(&pod("y", json!({})), &cluster, Err("0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules."));
    }

    #[test]
    fn the_first_pod_of_an_affinity_group_may_go_anywhere() {
        let together = json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]}}});
        check(&pod("x", together.clone()), &snapshot(&[node("a", json!({}))], &[]), Ok("a"));
        let cluster = snapshot(&[node("a", json!({})), node("b", json!({}))], &[("b", pod("x", json!({})))]);
        check(&pod("y", together), &cluster, Ok("b"));
    }

    #[test]
    fn topology_spread_holds_the_skew() {
        let spread = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]});
        let mut cluster = snapshot(&[node("a", json!({})), node("b", json!({}))], &[("a", pod("x", json!({})))]);
        check(&pod("y", spread.clone()), &cluster, Ok("b"));
        cluster.set_node(&node("b", json!({"spec": {"unschedulable": true}})));
        let answer = schedule(&pod("y", spread), &cluster, 0);
        assert!(matches!(answer, Decision::Unschedulable { message } if message.contains("topology spread")));
    }

    #[test]
    fn soft_spread_prefers_the_emptier_domain_and_takes_the_other_when_it_must() {
        let spread = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
            "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": {"app": "web"}}}]});
        let zone = |name: &str, zone: &str| node(name, json!({"metadata": {"labels": {"zone": zone}}}));
        // b is as empty as c, but its zone has a pod already.
        let mut cluster = snapshot(&[zone("a", "1"), zone("b", "1"), zone("c", "2")], &[("a", pod("x", json!({})))]);
        check(&pod("y", spread.clone()), &cluster, Ok("c"));
        cluster.set_node(&node("c", json!({"metadata": {"labels": {"zone": "2"}}, "spec": {"unschedulable": true}})));
        check(&pod("y", spread), &cluster, Ok("b"));
    }

    #[test]
    fn load_spreads_pods_that_ask_for_nothing_and_is_given_back() {
        let idle = |name: &str| PodInfo { requests: BTreeMap::new(), ..pod(name, json!({})) };
        let mut cluster = snapshot(&[node("a", json!({})), node("b", json!({}))], &[("a", idle("x")), ("a", idle("y")), ("b", idle("z"))]);
        check(&idle("new"), &cluster, Ok("b"));
        cluster.remove(&("shop".into(), "x".into()));
        cluster.remove(&("shop".into(), "y".into()));
        check(&idle("new"), &cluster, Ok("a"));
        for node in cluster.known_nodes() {
            let walked = node.pods.values().map(|pod| pod.load().cpu).sum::<u64>();
            assert_eq!(node.load.cpu, walked, "the sum kept of {} is the sum walked", node.name);
        }
    }

    #[test]
    fn an_unbound_claim_holds_the_pod_and_a_waiting_one_is_told_the_node() {
        let with_claim = pod("p", json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]}));
        let mut cluster = snapshot(&[node("a", json!({}))], &[]);
        check(&with_claim, &cluster, Err("persistentvolumeclaim \"data\" not found"));
        let key = ("shop".to_string(), "data".to_string());
        cluster.claims.insert(key.clone(), super::super::snapshot::ClaimInfo::default());
        check(&with_claim, &cluster, Err("pod has unbound immediate PersistentVolumeClaims"));
        cluster.claims.get_mut(&key).expect("claim").waits_for_consumer = true;
        assert_eq!(schedule(&with_claim, &cluster, 0), Decision::Announce { node: "a".into(), claims: vec!["data".into()] });
        cluster.claims.get_mut(&key).expect("claim").volume = Some("pv".into());
        check(&with_claim, &cluster, Ok("a"));
    }

    #[test]
    fn host_ports_clash_only_on_the_same_address_and_protocol() {
        let with_port = |name: &str, protocol: &str| {
            pod(name, json!({"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 80, "protocol": protocol}]}]}))
        };
        let cluster = snapshot(&[node("a", json!({}))], &[("a", with_port("x", "TCP"))]);
        check(&with_port("y", "UDP"), &cluster, Ok("a"));
        check(
            &with_port("y", "TCP"),
            &cluster,
            Err("0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."),
        );
    }

    #[test]
    fn removing_a_pod_gives_back_what_it_took() {
        let mut cluster = snapshot(&[node("a", json!({}))], &[("a", pod("x", json!({}))), ("a", pod("y", json!({})))]);
        assert!(cluster.remove(&("shop".into(), "x".into())));
        check(&pod("new", json!({})), &cluster, Ok("a"));
        assert!(!cluster.remove(&("shop".into(), "x".into())), "a second removal changes nothing");
    }
}
