//! The kinds of AWS's own, and names where AWS asks for one: made from the cluster's uid, so that no two clusters meet. Pure.

use crate::engine::{Cluster, Id, Observed};
use crate::providers::resources::{FILESYSTEM, LOAD_BALANCER, MACHINE, NETWORK};
use sha2::{Digest, Sha256};

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
/// Who logs in to Debian's images.
pub const SSH_USER: &str = "admin";

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_differ_by_cluster_and_generation() {
        let cluster = |uid: &str| Cluster { name: "a".repeat(40), uid: uid.into() };
        let id = Id::new(LOAD_BALANCER, "a-very-long-name-of-a-load-balancer");
        let one = name(&cluster("u-1"), &id, 1);
        assert!(one.len() <= 32, "{one}");
        assert!(one != name(&cluster("u-2"), &id, 1) && one != name(&cluster("u-1"), &id, 2));
        assert!(plain(&cluster("0b5e1d3c-aaaa-bbbb-cccc-000000000000"), "instance").len() <= 128);
    }
}
