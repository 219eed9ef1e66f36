//! What everything of one cluster is called on this host: folders, links, namespaces, groups, addresses. Pure.
//!
//! All names come from the cluster's uid, so a sweep after any crash is a listing, not a memory.

use crate::engine::Id;
use crate::sys::paths::LOCAL_CLOUD;
use sha2::{Digest, Sha256};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// In the fabric's own network namespace.
pub const BRIDGE: &str = "fabric0";
pub const UPLINK: &str = "uplink";
/// The cloud's API for the loop inside the cluster, on the gateway's address.
pub const API_PORT: u16 = 7443;
/// Last byte of addresses in the cluster's /24.
pub const GATEWAY: u8 = 1;
pub const HOST: u8 = 2;
pub const MACHINES: std::ops::RangeInclusive<u8> = 10..=199;
pub const LOAD_BALANCERS: std::ops::RangeInclusive<u8> = 200..=250;

/// Where one cluster's things are.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    pub uid: String,
    pub folder: PathBuf,
    short: String,
}

impl Layout {
    pub fn new(uid: &str) -> Layout {
        Layout { uid: uid.into(), folder: Path::new(LOCAL_CLOUD).join(uid), short: short_hash(uid) }
    }

    pub fn cluster(&self) -> PathBuf {
        self.folder.join("cluster.json")
    }
    /// Bearer token, certificate and key of the API (0600).
    pub fn secret(&self) -> PathBuf {
        self.folder.join("secret.json")
    }
    pub fn epoch(&self) -> PathBuf {
        self.folder.join("epoch.json")
    }
    pub fn socket(&self) -> PathBuf {
        self.folder.join("daemon.sock")
    }
    pub fn lock(&self) -> PathBuf {
        self.folder.join("daemon.lock")
    }
    pub fn log(&self) -> PathBuf {
        self.folder.join("daemon.log")
    }
    pub fn records(&self) -> PathBuf {
        self.folder.join("records")
    }
    pub fn record(&self, id: &Id) -> PathBuf {
        self.records().join(&id.kind).join(format!("{}.json", id.name))
    }
    /// Shared folders; bound as a whole into every machine, so that one made later is seen at once.
    pub fn filesystems(&self) -> PathBuf {
        self.folder.join("filesystems")
    }
    pub fn machines(&self) -> PathBuf {
        self.folder.join("machines")
    }
    pub fn machine(&self, name: &str) -> PathBuf {
        self.machines().join(name)
    }
    /// Not in /run/netns: the first `ip netns add` of anybody mounts that folder over itself, and what was pinned there before can never be
    /// unpinned again.
    pub fn namespace(&self) -> PathBuf {
        PathBuf::from(format!("/run/kprov/netns/{}", self.link()))
    }
    /// The host's end of the way into the fabric; also the namespace's name. 11 of the 15 bytes a link's name may have.
    pub fn link(&self) -> String {
        format!("kp-{}", self.short)
    }
    /// The fabric's end of a machine's only network interface.
    pub fn machine_link(&self, machine: &str) -> String {
        format!("m-{}", short_hash(machine))
    }
    pub fn groups(&self) -> PathBuf {
        Path::new("kprov").join(&self.short)
    }
    pub fn group(&self, machine: &str) -> PathBuf {
        self.groups().join(machine)
    }
    /// A machine's follows from its IP address alone: whoever gets an address that another had is reached at once, since neighbour tables
    /// hold true. A bridge whose address followed its ports would lose traffic for half a minute whenever a machine comes or goes.
    pub fn mac(&self, interface: &str) -> [u8; 6] {
        let hash = Sha256::digest(format!("{}/{interface}", self.uid));
        // Locally administered, unicast.
        [0x02, hash[0], hash[1], hash[2], hash[3], hash[4]]
    }
}

fn short_hash(text: &str) -> String {
    hex::encode(&Sha256::digest(text)[..4])
}

/// The address `last` in the /24 that starts at `subnet`.
pub fn address(subnet: Ipv4Addr, last: u8) -> Ipv4Addr {
    let [a, b, c, _] = subnet.octets();
    Ipv4Addr::new(a, b, c, last)
}

/// /24 networks to try, in order; the last ones are for hosts on which a container engine has taken the first.
pub fn candidates() -> impl Iterator<Item = Ipv4Addr> {
    let first = (0..=255).map(|third| Ipv4Addr::new(10, 88, third, 0));
    let second = (0..=255).map(|third| Ipv4Addr::new(172, 29, third, 0));
    first.chain(second).chain((0..=255).map(|third| Ipv4Addr::new(192, 168, third, 0)))
}

/// The first candidate that overlaps none of the networks in use.
pub fn free_subnet(used: &[ipnet::Ipv4Net]) -> Option<Ipv4Addr> {
    candidates().find(|candidate| {
        let candidate = ipnet::Ipv4Net::new_assert(*candidate, 24);
        !used.iter().any(|used| used.contains(&candidate.network()) || candidate.contains(&used.network()))
    })
}

/// The lowest address of the range that is not taken.
pub fn free_address(subnet: Ipv4Addr, range: std::ops::RangeInclusive<u8>, taken: &[Ipv4Addr]) -> Option<Ipv4Addr> {
    range.map(|last| address(subnet, last)).find(|address| !taken.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_subnet(used: &[&str], expected: [u8; 4]) {
        let used: Vec<ipnet::Ipv4Net> = used.iter().map(|net| net.parse().unwrap()).collect();
        assert_eq!(free_subnet(&used), Some(expected.into()), "{used:?}");
    }

    #[test]
    fn a_subnet_is_chosen_that_the_host_has_no_route_to() {
        check_subnet(&[], [10, 88, 0, 0]);
        check_subnet(&["192.0.2.0/24", "10.88.0.0/24", "10.88.1.128/25"], [10, 88, 2, 0]);
        check_subnet(&["10.88.0.0/16"], [172, 29, 0, 0]);
        check_subnet(&["10.0.0.0/8", "172.16.0.0/12"], [192, 168, 0, 0]);
    }

    #[test]
    fn names_fit_the_kernel_and_differ_between_clusters() {
        let [a, b] = ["6f9d-1", "6f9d-2"].map(Layout::new);
        assert!(a.link().len() <= 15 && a.machine_link(&"long-name".repeat(9)).len() <= 15);
        assert_ne!(a.link(), b.link());
        assert_ne!(a.mac("m"), b.mac("m"));
        assert_eq!(a.mac("m")[0] & 3, 2, "locally administered unicast");
    }

    #[test]
    fn addresses_are_given_from_the_lowest_and_run_out() {
        let subnet = Ipv4Addr::new(10, 88, 7, 0);
        assert_eq!(free_address(subnet, 10..=12, &[address(subnet, 10)]), Some(Ipv4Addr::new(10, 88, 7, 11)));
        assert_eq!(free_address(subnet, 10..=10, &[address(subnet, 10)]), None);
    }
}
