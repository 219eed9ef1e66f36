//! The kinds of AWS's own, and names where AWS asks for one: made from the cluster's uid, so that no two clusters meet. Pure.

use crate::engine::{Cluster, Id, Observed, Phase};
use crate::providers::resources::{FILESYSTEM, LOAD_BALANCER, MACHINE, NETWORK};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

pub const SUBNET: &str = "subnet";
pub const GATEWAY: &str = "internet-gateway";
pub const ROUTES: &str = "route-table";
pub const GROUP: &str = "security-group";
pub const KEY_PAIR: &str = "key-pair";
pub const ROLE: &str = "role";
pub const PROFILE: &str = "instance-profile";
pub const SECRET: &str = "secret";
pub const MOUNT: &str = "mount-target";
pub const TARGETS: &str = "target-group";

/// The one of its kind.
pub const MAIN: &str = "main";
/// Security groups, and the identity of the machines that run the loop.
pub const MACHINES: &str = "machines";
pub const BALANCERS: &str = "balancers";
pub const CONTROL_PLANE: &str = "control-plane";

/// `kprov-<start of the name>-<12 hexadecimal letters>`: at most 32 letters, the shortest limit (load balancers). The generation is
/// in it, so a replacement does not meet its forerunner.
pub fn name(cluster: &Cluster, id: &Id, generation: u32) -> String {
    let digest = hex::encode(Sha256::digest(format!("{}\n{id}\n{generation}", cluster.uid)));
    let start: String = id.name.chars().take(12).collect();
    format!("kprov-{}-{}", start.trim_matches('-'), &digest[..12])
}

/// The same for things of which there is one per cluster and that people look for in the console.
pub fn plain(cluster: &Cluster, what: &str) -> String {
    let uid: String = cluster.uid.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
    format!("kprov-{}-{uid}-{what}", cluster.name)
}

/// IAM's limit for the name of a role.
const LONGEST_ROLE: usize = 64;

/// The role of the machines that run the loop, and the profile that gives it. A long name of a cluster is cut: its uid tells it apart.
pub fn identity(cluster: &Cluster) -> String {
    let short = Cluster { name: identity_start(&cluster.name).into(), ..cluster.clone() };
    plain(&short, CONTROL_PLANE)
}

/// What of a cluster's name is in its identity's: "kprov-", two more dashes and twelve letters of the uid are beside it.
pub fn identity_start(cluster: &str) -> &str {
    let room = LONGEST_ROLE - "kprov-".len() - "-".len() - 12 - "-".len() - CONTROL_PLANE.len();
    cluster.get(..room).unwrap_or(cluster)
}

/// Below it, a folder of parameters per cluster.
pub const PARAMETERS: &str = "/kprov";

pub fn parameters(cluster: &Cluster) -> String {
    format!("{PARAMETERS}/{}", cluster.uid)
}

/// What stands between a thing and its end: kinds that go before those they are built on.
pub fn needs(thing: &Id, all: &[Observed]) -> Vec<Id> {
    let of_kinds =
        |kinds: &[&str]| all.iter().filter(|other| kinds.contains(&other.id.kind.as_str())).map(|other| other.id.clone()).collect();
    match thing.kind.as_str() {
        SUBNET | GATEWAY => of_kinds(&[NETWORK]),
        ROUTES => of_kinds(&[NETWORK, GATEWAY, SUBNET]),
        GROUP if thing.name == MACHINES => {
            let mut needs: Vec<Id> = of_kinds(&[NETWORK]);
            needs.extend(all.iter().map(|other| other.id.clone()).filter(|id| *id == Id::new(GROUP, BALANCERS)));
            needs
        }
        GROUP => of_kinds(&[NETWORK]),
        PROFILE => of_kinds(&[ROLE]),
        KEY_PAIR => of_kinds(&[SECRET]),
        MOUNT => of_kinds(&[FILESYSTEM, SUBNET, GROUP]),
        MACHINE => of_kinds(&[NETWORK, SUBNET, GATEWAY, ROUTES, GROUP, KEY_PAIR, PROFILE, ROLE, SECRET, FILESYSTEM, MOUNT]),
        TARGETS => of_kinds(&[NETWORK, MACHINE]),
        LOAD_BALANCER => of_kinds(&[NETWORK, SUBNET, GATEWAY, GROUP, TARGETS, MACHINE]),
        _ => Vec::new(),
    }
}

/// A network takes no token when it is made, so two writers at once may make two. The one that something was built in (`outputs.network`)
/// stays; the other is broken, which is how the planner knows which to take away.
pub fn mark_empty_twins(all: &mut [Observed]) {
    let used: BTreeSet<String> = all.iter().filter_map(|thing| thing.outputs["network"].as_str().map(String::from)).collect();
    let networks = || all.iter().filter(|thing| thing.id.kind == NETWORK);
    if networks().count() < 2 || !networks().any(|network| used.contains(&network.handle)) {
        return;
    }
    for network in all.iter_mut().filter(|thing| thing.id.kind == NETWORK && !used.contains(&thing.handle)) {
        network.phase = Phase::Broken("a second one, and nothing is in it".into());
    }
}

/// A way to the internet is one by a gateway of ours (`outputs.gateway`): through another one, nothing comes back.
pub fn mark_strange_routes(all: &mut [Observed]) {
    let gateways: BTreeSet<String> = all.iter().filter(|thing| thing.id.kind == GATEWAY).map(|thing| thing.handle.clone()).collect();
    for table in all.iter_mut().filter(|thing| thing.id.kind == ROUTES) {
        let ours = table.outputs["gateway"].as_str().is_some_and(|gateway| gateways.contains(gateway));
        table.spec["internet"] = serde_json::json!(ours);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn of_two_networks_the_one_with_something_in_it_stays() {
        let thing = |kind: &str, handle: &str, outputs| {
            let (id, spec, needs) = (Id::new(kind, "shop"), json!({}), vec![]);
            Observed { id, handle: handle.into(), generation: 1, phase: Phase::Ready, spec, outputs, needs }
        };
        let twins = [thing(NETWORK, "vpc-1", json!({})), thing(NETWORK, "vpc-2", json!({}))];
        let mut all = [&twins[..], &[thing(SUBNET, "subnet-1", json!({"network": "vpc-2"}))]].concat();
        mark_empty_twins(&mut all);
        assert!(matches!(all[0].phase, Phase::Broken(_)) && all[1].phase == Phase::Ready);
        let mut empty = twins.to_vec();
        mark_empty_twins(&mut empty);
        assert_eq!(empty, twins, "where nothing is built, either may stay");
    }

    #[test]
    fn names_fit_and_differ_by_cluster_and_generation() {
        let cluster = |uid: &str| Cluster { name: "a".repeat(40), uid: uid.into() };
        let id = Id::new(LOAD_BALANCER, "a-very-long-name-of-a-load-balancer");
        let one = name(&cluster("u-1"), &id, 1);
        assert!(one.len() <= 32, "{one}");
        assert!(one != name(&cluster("u-2"), &id, 1) && one != name(&cluster("u-1"), &id, 2));
        assert!(plain(&cluster("0b5e1d3c-aaaa-bbbb-cccc-000000000000"), "instance").len() <= 128);
    }

    #[test]
    fn an_identity_fits_and_keeps_the_name_that_fits() {
        let cluster = |length| Cluster { name: "a".repeat(length), uid: "0b5e1d3c-aaaa-bbbb-cccc-000000000000".into() };
        assert_eq!(identity(&cluster(31)), plain(&cluster(31), CONTROL_PLANE));
        let longest = identity(&cluster(40));
        assert_eq!((longest.len(), &longest), (LONGEST_ROLE, &identity(&cluster(32))));
        assert!(longest.ends_with("a-0b5e1d3caaaa-control-plane"), "{longest}");
    }

    #[test]
    fn a_way_out_is_one_by_the_clusters_own_gateway() {
        let thing = |kind: &str, handle: &str, spec, outputs| {
            let (id, needs) = (Id::new(kind, MAIN), vec![]);
            Observed { id, handle: handle.into(), generation: 1, phase: Phase::Ready, spec, outputs, needs }
        };
        let check = |gateway: &str, expected: bool| {
            let routes = thing(ROUTES, "rtb-1", json!({"internet": true}), json!({"gateway": gateway}));
            let mut all = [thing(GATEWAY, "igw-1", json!({}), json!({})), routes];
            mark_strange_routes(&mut all);
            assert_eq!(all[1].spec["internet"], expected, "{gateway}");
        };
        check("igw-1", true);
        check("igw-2", false);
        check("", false);
    }
}
