//! What is wrong with a host before it is claimed: everything at once, each with the next step. Pure.

use super::hosts::{Host, Silence};
use super::record::lines;
use crate::error::Result;
use crate::providers::POD_NETWORK;
use crate::providers::resources::MachineSpec;
use crate::remote::failure::Class;
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, SystemTime};

pub const SCRIPT: &str = include_str!("../../../templates/survey.sh");

/// kprov itself, its image, containerd's content and its snapshots.
const DISK_FLOOR: u64 = 1 << 30;
/// Firmware and kernel take their part of what was bought.
const LEAST_SHARE: u64 = 90;
/// Certificates are backdated by an hour; leases, logs and people do not bear more.
const CLOCK_SKEW: Duration = Duration::from_secs(120);
const PORTS: [(u16, &str); 4] = [(6443, "the API"), (10250, "the agent"), (10256, "the agent's health"), (53, "DNS for pods")];

/// What a host is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    pub arch: String,
    pub kernel: String,
    pub clock: u64,
    pub is_root: bool,
    pub cpus: u64,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
    pub disk_free_bytes: u64,
    pub overlay: bool,
    pub cgroups: bool,
    pub writable: bool,
    /// Its kernel mounts NFS, exports by NFS; some export of its own is the root of all others.
    pub nfs_client: bool,
    pub nfs_server: bool,
    pub nfs_root: bool,
    pub programs: BTreeSet<String>,
    pub addresses: BTreeSet<Ipv4Addr>,
    pub ports: BTreeSet<u16>,
    pub processes: BTreeSet<String>,
    /// What drops packets unless told otherwise: `input`, `forward`, `firewalld`.
    pub firewall: BTreeSet<String>,
    /// It knows of the pods' network.
    pub firewall_knows_pods: bool,
    /// Whose kprov is installed there.
    pub owner: Option<String>,
}

/// A sentence about a host, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub text: String,
    pub hint: String,
}

fn problem(text: impl Into<String>, hint: impl Into<String>) -> Problem {
    Problem { text: text.into(), hint: hint.into() }
}

impl Facts {
    pub fn parse(text: &str) -> Result<Facts> {
        let mut facts = Facts::default();
        let mut limits = Vec::new();
        for (key, value) in lines(text)? {
            let number = value.parse::<u64>().ok();
            match key {
                "arch" => facts.arch = value.into(),
                "kernel" => facts.kernel = value.into(),
                "clock" => facts.clock = number.unwrap_or(0),
                "uid" => facts.is_root = value == "0",
                "cpus" => facts.cpus = number.unwrap_or(0),
                "memory.total" => limits.extend(number.map(|kib| kib << 10)),
                // "max", or a number near 2^63, is no limit.
                "memory.limit" => limits.extend(number),
                "disk.total" => facts.disk_bytes = number.unwrap_or(0) << 10,
                "disk.free" => facts.disk_free_bytes = number.unwrap_or(0) << 10,
                "overlay" => facts.overlay = true,
                "cgroup" => facts.cgroups = true,
                "writable" => facts.writable = true,
                "nfs.client" => facts.nfs_client = true,
                "nfs.server" => facts.nfs_server = true,
                "nfs.root" => facts.nfs_root = true,
                "address" => facts.addresses.extend(value.parse::<Ipv4Addr>()),
                "port" => facts.ports.extend(value.parse::<u16>()),
                "process" => drop(facts.processes.insert(value.into())),
                "firewall" => drop(facts.firewall.insert(value.into())),
                "firewall.pods" => facts.firewall_knows_pods = true,
                "marker" => {
                    facts.owner = serde_json::from_str::<Value>(value).ok().and_then(|marker| Some(marker["clusterUid"].as_str()?.into()))
                }
                _ => drop(key.strip_prefix("has.").map(|program| facts.programs.insert(program.into()))),
            }
        }
        facts.memory_bytes = limits.into_iter().min().unwrap_or(0);
        Ok(facts)
    }
}

/// Nobody let us in, or nobody is there.
pub fn silent(host: &Host, silence: &Silence) -> Problem {
    let (user, address, port) = (&host.target.ssh_user, &host.target.address, host.target.ssh_port);
    let by_hand = if port == 22 { format!("ssh {user}@{address}") } else { format!("ssh -p {port} {user}@{address}") };
    let text = &silence.text;
    let told = !host.target.host_keys.is_empty() || host.target.login.as_ref().is_some_and(|login| login.fingerprint.is_some());
    let reason = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    match silence.class {
        Class::HostKey if host.target.jump.is_some() => problem(
            format!("its host key, or that of the host to go through, is not known or not the expected one ({reason})"),
            "log in once by hand, through that host; or give hostKey and jumpHostKey in the blueprint",
        ),
        Class::HostKey if told || text.contains("HAS CHANGED") || text.contains("offending") => problem(
            format!("its host key is not the expected one ({reason})"),
            "somebody else may answer there: compare with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on its console, then correct hostKey, \
             fingerprint or known_hosts (ssh-keygen -R)",
        ),
        Class::HostKey => problem(
            format!("its host key is not known ({reason})"),
            format!("log in once by hand (`{by_hand}`), or give its fingerprint in the blueprint"),
        ),
        Class::Denied => {
            problem(format!("{user} may not log in ({reason})"), format!("`ssh-copy-id {user}@{address}`, or give its user and key"))
        }
        Class::Refused => problem("nothing answers at its SSH port", format!("start sshd there, or give its port; try `{by_hand}`")),
        Class::Timeout | Class::Unreachable => {
            problem("it cannot be reached", format!("is it running, and is the way open? try `{by_hand}`"))
        }
        Class::Unresolved => problem("its name cannot be resolved", "correct the address"),
        Class::Closed | Class::Other => problem(format!("SSH fails ({reason})"), format!("try `{by_hand}`")),
    }
}

/// The login works; becoming root, or the question itself, does not.
pub fn refused(host: &Host, words: &str) -> Problem {
    let (user, line) = (&host.target.ssh_user, words.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("no answer"));
    if user != "root" && words.contains("sudo") {
        let hint = format!("on the host: echo '{user} ALL=(ALL) NOPASSWD: ALL' | sudo tee /etc/sudoers.d/kprov");
        return problem(format!("{user} cannot become root without a password ({line})"), hint);
    }
    problem(format!("it could not be examined ({line})"), "it needs a POSIX shell and the usual tools")
}

/// Every problem of a host that would become this machine. `arch` and `now` are ours.
pub fn problems(facts: &Facts, wish: &MachineSpec, cluster_uid: &str, arch: &str, now: SystemTime) -> Vec<Problem> {
    let mut all = unfit(facts, arch, now);
    all.extend(too_small(facts, wish));
    all.extend(incomplete(facts));
    // What runs on one of ours is what we installed.
    if facts.owner.as_deref() != Some(cluster_uid) {
        all.extend(occupied(facts));
    }
    all
}

/// Those checks that failed: each with whether it is good, what is wrong otherwise, and what to do.
fn failed<const N: usize>(checks: [(bool, String, &str); N]) -> Vec<Problem> {
    checks.into_iter().filter(|(good, ..)| !good).map(|(_, text, hint)| problem(text, hint)).collect()
}

fn unfit(facts: &Facts, arch: &str, now: SystemTime) -> Vec<Problem> {
    let skew = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs().abs_diff(facts.clock);
    failed([
        (facts.kernel.starts_with("Linux "), format!("it runs {}", facts.kernel), "kprov installs on Linux"),
        (facts.arch == arch, format!("it is {}, this kprov is for {arch}", facts.arch), "run the kprov that is built for it"),
        (facts.is_root, "commands there do not run as root".into(), "let sudo become root"),
        (facts.overlay, "its kernel has no overlay filesystem".into(), "use a standard kernel"),
        (facts.cgroups, "no cgroups are mounted".into(), "mount cgroup2 on /sys/fs/cgroup"),
        (facts.writable, "/etc cannot be written to".into(), "kprov cannot install on a read-only root"),
        (skew <= CLOCK_SKEW.as_secs(), format!("its clock is {skew} s off"), "run a time service on both (e.g. chrony)"),
    ])
}

fn too_small(facts: &Facts, wish: &MachineSpec) -> Vec<Problem> {
    let mib = |bytes: u64| bytes >> 20;
    let enough = |there: u64, wanted: u64| there >= wanted / 100 * LEAST_SHARE;
    let other = "lower the group's size, or use another host";
    failed([
        (
            facts.cpus * 1000 >= wish.cpu_millis,
            format!("it has {} cores, {} are wanted", facts.cpus, wish.cpu_millis.div_ceil(1000)),
            other,
        ),
        (
            enough(facts.memory_bytes, wish.memory_bytes),
            format!("it has {} MiB of memory, {} are wanted", mib(facts.memory_bytes), mib(wish.memory_bytes)),
            other,
        ),
        (
            enough(facts.disk_bytes, wish.disk_bytes),
            format!("/var/lib is on a disk of {} MiB, {} are wanted", mib(facts.disk_bytes), mib(wish.disk_bytes)),
            other,
        ),
        (
            facts.disk_free_bytes >= DISK_FLOOR,
            format!("/var/lib has {} MiB free, {} are needed", mib(facts.disk_free_bytes), mib(DISK_FLOOR)),
            "make room there",
        ),
    ])
}

fn incomplete(facts: &Facts) -> Vec<Problem> {
    let absent = |names: &[&'static str]| -> Vec<&str> { names.iter().copied().filter(|name| !facts.programs.contains(*name)).collect() };
    let tools = absent(&["flock", "sha256sum", "sed", "ip"]);
    let packages = absent(&["containerd", "ctr", "runc", "nft", "cni"]);
    failed([
        (tools.is_empty(), format!("{} cannot be found", tools.join(", ")), "install util-linux, coreutils and iproute2 there"),
        (
            packages.is_empty() || facts.programs.contains("apt-get"),
            format!("{} cannot be found, and there is no apt-get to install it with", packages.join(", ")),
            "install containerd, runc, nftables and the CNI plugins there",
        ),
    ])
}

/// By others.
fn occupied(facts: &Facts) -> Vec<Problem> {
    let mut all = Vec::new();
    if facts.owner.is_some() {
        all.push(problem("kprov of another cluster is installed there", "take that cluster away first (kprov down)"));
    }
    for (port, whose) in PORTS.iter().filter(|(port, _)| facts.ports.contains(port)) {
        all.push(problem(format!("port {port}, which {whose} needs, is in use"), "stop what listens there"));
    }
    let names = |set: &BTreeSet<String>| set.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    if !facts.processes.is_empty() {
        let hint = "a host is one cluster's: stop and disable it, or use another host";
        all.push(problem(format!("{} runs there", names(&facts.processes)), hint));
    }
    if !facts.firewall.is_empty() && !facts.firewall_knows_pods {
        all.push(problem(
            format!("its firewall ({}) drops what pods send", names(&facts.firewall)),
            format!(
                "let in and pass on the pods' network {POD_NETWORK} and your other hosts (`ufw allow from {POD_NETWORK}`, the same for the hosts' \
                 network, `ufw default allow routed`; with Docker, accept {POD_NETWORK} in its chain DOCKER-USER, or reboot when Docker is gone)"
            ),
        ));
    }
    all
}

/// Where the other machines are to reach it: `said` in the blueprint, or any address of its own.
pub fn addressing(facts: &Facts, said: Option<IpAddr>) -> Option<Problem> {
    match said {
        _ if facts.addresses.is_empty() => {
            Some(problem("it has no IPv4 address", "clusters speak IPv4 among themselves: give it one, a private one is enough"))
        }
        Some(said) if !facts.addresses.iter().any(|own| IpAddr::V4(*own) == said) => {
            let own: Vec<String> = facts.addresses.iter().map(Ipv4Addr::to_string).collect();
            Some(problem(format!("privateAddress {said} is not one of its IPv4 addresses"), format!("it has {}", own.join(", "))))
        }
        _ => None,
    }
}

/// What shared filesystems ask of a host: all machines mount them, some keep one.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Shares {
    pub mounts: bool,
    /// Bytes of new ones; `None` where none is kept.
    pub keeps: Option<u64>,
}

pub fn sharing(facts: &Facts, shares: Shares) -> Vec<Problem> {
    let installs = |program: &str| facts.programs.contains(program) || facts.programs.contains("apt-get");
    let keeps = shares.keeps.is_some();
    let free = facts.disk_free_bytes;
    let wanted = shares.keeps.unwrap_or(0);
    let elsewhere = "let another host keep the filesystem: spec.providers.ssh.filesystems";
    let bad = [
        (shares.mounts && !facts.nfs_client, "its kernel cannot mount NFS, which shared filesystems need".into(), "use a standard kernel"),
        (shares.mounts && !installs("mount.nfs4"), "mount.nfs4 cannot be found".into(), "install nfs-common (or nfs-utils) there"),
        (keeps && !facts.nfs_server, "its kernel has no NFS server, and it is to keep a filesystem".into(), elsewhere),
        (keeps && !installs("exportfs"), "exportfs cannot be found".into(), "install nfs-kernel-server (or nfs-utils) there"),
        (keeps && facts.nfs_root, "an export of its own has fsid=0, which hides all others".into(), elsewhere),
        (keeps && free < wanted, format!("/var/lib has {} MiB free, its filesystems want {}", free >> 20, wanted >> 20), elsewhere),
    ];
    failed(bad.map(|(bad, text, hint)| (!bad, text, hint)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "arch=x86_64\nkernel=Linux 6.1.0\nclock=1800000000\nuid=0\ncpus=2\nmemory.total=2000000\nmemory.limit=max\n\
        disk.total=20000000\ndisk.free=9000000\noverlay=yes\ncgroup=v2\nhas.containerd=yes\nhas.ctr=yes\nhas.runc=yes\nhas.nft=yes\nhas.ip=yes\n\
        has.flock=yes\nhas.sha256sum=yes\nhas.sed=yes\nhas.cni=yes\nhas.apt-get=yes\nwritable=yes\nend=yes\n";

    fn check(text: &str, expected: &[&str]) {
        let wish = MachineSpec {
            role: "worker".into(),
            group: "worker".into(),
            cpu_millis: 1000,
            memory_bytes: 2 << 30,
            disk_bytes: 10 << 30,
            ssh_public_key: String::new(),
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_001);
        let found = problems(&Facts::parse(text).unwrap(), &wish, "u", "x86_64", now);
        assert_eq!(found.iter().map(|problem| problem.text.as_str()).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_fit_host_has_no_problems_and_one_of_ours_may_run_what_we_installed() {
        check(GOOD, &[]);
        check(&GOOD.replace("end=yes", "port=10250\nprocess=kprov\nfirewall=forward\nmarker={\"clusterUid\":\"u\"}\nend=yes"), &[]);
        // Somebody's etcd is in nobody's way: kprov has none.
        check(&GOOD.replace("end=yes", "port=2379\nend=yes"), &[]);
    }

    #[test]
    fn all_problems_of_a_host_are_told_at_once() {
        let text = "arch=aarch64\nkernel=Linux 6.1.0\nclock=1800000500\nuid=0\ncpus=0\nmemory.total=65536\ndisk.total=1000\ndisk.free=1000\n\
                    cgroup=v1\nport=6443\nprocess=k3s\nmarker={\"clusterUid\":\"v\"}\nwritable=yes\nend=yes\n";
        check(
            text,
            &[
                "it is aarch64, this kprov is for x86_64",
                "its kernel has no overlay filesystem",
                "its clock is 499 s off",
                "it has 0 cores, 1 are wanted",
                "it has 64 MiB of memory, 2048 are wanted",
                "/var/lib is on a disk of 0 MiB, 10240 are wanted",
                "/var/lib has 0 MiB free, 1024 are needed",
                "flock, sha256sum, sed, ip cannot be found",
                "containerd, ctr, runc, nft, cni cannot be found, and there is no apt-get to install it with",
                "kprov of another cluster is installed there",
                "port 6443, which the API needs, is in use",
                "k3s runs there",
            ],
        );
    }

    #[test]
    fn a_firewall_that_drops_must_know_of_the_pods() {
        let closed = GOOD.replace("end=yes", "firewall=forward\nfirewall=input\nend=yes");
        check(&closed, &["its firewall (forward, input) drops what pods send"]);
        check(&closed.replace("end=yes", "firewall.pods=yes\nend=yes"), &[]);
    }

    #[test]
    fn what_shared_filesystems_need_is_asked_of_those_that_mount_or_keep_them() {
        let check = |more: &str, shares: Shares, expected: &[&str]| {
            let facts = Facts::parse(&GOOD.replace("end=yes", &format!("{more}end=yes"))).unwrap();
            assert_eq!(sharing(&facts, shares).iter().map(|problem| problem.text.as_str()).collect::<Vec<_>>(), expected);
        };
        check("", Shares::default(), &[]);
        check("nfs.client=yes\n", Shares { mounts: true, keeps: None }, &[]);
        check("nfs.client=yes\nnfs.server=yes\n", Shares { mounts: true, keeps: Some(5 << 30) }, &[]);
        check("", Shares { mounts: true, keeps: None }, &["its kernel cannot mount NFS, which shared filesystems need"]);
        check(
            "nfs.root=yes\n",
            Shares { mounts: false, keeps: Some(50 << 30) },
            &[
                "its kernel has no NFS server, and it is to keep a filesystem",
                "an export of its own has fsid=0, which hides all others",
                "/var/lib has 8789 MiB free, its filesystems want 51200",
            ],
        );
    }

    #[test]
    fn a_host_is_reached_by_an_ipv4_address_of_its_own() {
        let check = |lines: &str, said: Option<&str>, expected: Option<&str>| {
            let facts = Facts::parse(&GOOD.replace("end=yes", &format!("{lines}end=yes"))).unwrap();
            let found = addressing(&facts, said.map(|text| text.parse().unwrap()));
            assert_eq!(found.map(|problem| problem.text).as_deref(), expected);
        };
        check("", None, Some("it has no IPv4 address"));
        check("address=10.0.0.5\n", None, None);
        check("address=10.0.0.5\n", Some("10.0.0.5"), None);
        check("address=10.0.0.5\n", Some("10.0.0.6"), Some("privateAddress 10.0.0.6 is not one of its IPv4 addresses"));
        check("address=10.0.0.5\n", Some("fd00::5"), Some("privateAddress fd00::5 is not one of its IPv4 addresses"));
    }

    #[test]
    fn the_survey_is_plain_shell_and_answers_here() {
        let output = crate::remote::answer_here(SCRIPT);
        let facts = Facts::parse(&output).unwrap();
        assert_eq!(facts.arch, std::env::consts::ARCH);
        assert!(facts.memory_bytes > 0 && facts.disk_free_bytes > 0 && facts.cpus > 0, "{output}");
    }
}
