//! A pod network range for every node: the lowest free /24 of the cluster's pod range.

use super::write::{Write, apply_all};
use super::{Context, Informers, each, whole, work};
use crate::orchestrator::client::{Key, Object, Queue};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use serde_json::json;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// Ranges for the nodes that have none, in name order. `promised` are those given out but not yet seen, by node uid.
pub fn decide(nodes: &[Arc<Node>], promised: &BTreeMap<String, IpNet>, range: IpNet) -> Vec<(Arc<Node>, IpNet)> {
    let mut used: HashSet<IpNet> = nodes.iter().filter_map(|node| held(node)).collect();
    used.extend(promised.values());
    let prefix = (if range.addr().is_ipv4() { 24 } else { 64 }).max(range.prefix_len());
    let Ok(subnets) = range.subnets(prefix) else { return Vec::new() };
    let mut free = subnets.filter(|subnet| !used.contains(subnet));
    let waiting = nodes.iter().filter(|node| held(node).is_none() && !node.deleting());
    waiting.filter_map(|node| Some((node.clone(), promised.get(node.uid()).copied().or_else(|| free.next())?))).collect()
}

fn held(node: &Node) -> Option<IpNet> {
    node.spec.as_ref()?.pod_cidr.as_deref()?.parse().ok()
}

pub fn start(context: &Context, informers: &Informers) {
    let queue: Queue<Key> = Queue::new();
    {
        let queue = queue.clone();
        each(&context.cancel, informers.nodes.changes(), move |_| queue.add(whole()));
    }
    let (client, nodes, range) = (context.client.clone(), informers.nodes.clone(), context.config.pod_cidr);
    let promised = Arc::new(Mutex::new(BTreeMap::<String, IpNet>::new()));
    work(context, informers, queue, 1, move |_| {
        let (client, nodes, promised) = (client.clone(), nodes.clone(), promised.clone());
        async move {
            let all = nodes.list();
            promised.lock().retain(|uid, _| all.iter().any(|node| node.uid() == uid && held(node).is_none()));
            let decided = decide(&all, &promised.lock(), range);
            let waiting = all.iter().filter(|node| held(node).is_none() && !node.deleting()).count();
            if waiting > decided.len() {
                tracing::warn!(nodes = waiting - decided.len(), %range, "no pod range is left for these nodes: pods cannot run there");
            }
            for (node, subnet) in decided {
                promised.lock().insert(node.uid().into(), subnet);
                let body = json!({"spec": {"podCIDR": subnet.to_string(), "podCIDRs": [subnet.to_string()]}});
                apply_all(&client, &[Write::merge_at::<Node>(&*node, "", body)]).await?;
                tracing::info!(node = node.name(), %subnet, "pod range given out");
            }
            Ok(None)
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, cidr: Option<&str>) -> Arc<Node> {
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name, "uid": name}, "spec": {"podCIDR": cidr}})).unwrap())
    }

    fn check(nodes: &[(&str, Option<&str>)], promised: &[(&str, &str)], range: &str, expected: &[(&str, &str)]) {
        let nodes: Vec<_> = nodes.iter().map(|(name, cidr)| node(name, *cidr)).collect();
        let promised = promised.iter().map(|(uid, cidr)| (uid.to_string(), cidr.parse().unwrap())).collect();
        let decided: Vec<_> = decide(&nodes, &promised, range.parse().unwrap())
            .iter()
            .map(|(node, cidr)| (node.name().to_string(), cidr.to_string()))
            .collect();
        let expected: Vec<_> = expected.iter().map(|(name, cidr)| (name.to_string(), cidr.to_string())).collect();
        assert_eq!(decided, expected);
    }

    #[test]
    fn the_lowest_free_range_is_given_out_once() {
        let range = "10.244.0.0/16";
        check(&[("a", None), ("b", None)], &[], range, &[("a", "10.244.0.0/24"), ("b", "10.244.1.0/24")]);
        check(&[("a", Some("10.244.1.0/24")), ("b", None), ("c", None)], &[], range, &[("b", "10.244.0.0/24"), ("c", "10.244.2.0/24")]);
        // The cache does not show b's range yet: c must not get it, and b gets the same again.
        check(&[("b", None), ("c", None)], &[("b", "10.244.0.0/24")], range, &[("b", "10.244.0.0/24"), ("c", "10.244.1.0/24")]);
    }

    #[test]
    fn a_full_range_gives_nothing() {
        check(&[("a", Some("10.1.0.0/24")), ("b", None)], &[], "10.1.0.0/24", &[]);
    }
}
