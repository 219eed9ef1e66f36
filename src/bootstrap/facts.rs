//! What a machine is, read from one probe, and what is wrong with it before anything is sent. Pure.

use super::spec::Marker;
use crate::error::{Error, Kind, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

/// The probe: constant text for `sh -s`, on stdin; data never becomes part of a shell string.
pub const PROBE: &str = include_str!("../../templates/probe.sh");

/// See the module text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// As `uname -m` prints it.
    pub arch: String,
    /// e.g. `Linux 6.1.0-28-cloud-amd64`
    pub kernel: String,
    /// e.g. `debian 12`
    pub os: String,
    pub uid: u32,
    /// Not root, but may become it without a password.
    pub sudo: bool,
    pub init: Init,
    pub cgroup: Option<Cgroup>,
    pub overlay: bool,
    pub memory_bytes: u64,
    pub disk_free_bytes: u64,
    /// The machine's clock when it was asked.
    pub clock: SystemTime,
    /// containerd, ctr, runc, nft, apt-get, gzip: those that are there.
    pub programs: BTreeSet<String>,
    /// Where the CNI plugins are.
    pub cni_bin_dir: Option<String>,
    /// SHA-256 of /usr/local/bin/kprov.
    pub program: Option<String>,
    pub marker: Option<Marker>,
    /// Services of the marker that run.
    pub running: BTreeSet<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    Systemd,
    /// kprov's own supervisor runs the services.
    Supervisor,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cgroup {
    V1,
    V2,
}

/// One thing that stands in the way on one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub text: String,
    pub hint: String,
}

impl Facts {
    /// From the probe's output. Unknown keys are passed over: the `status` lines come from the machine's own version of kprov.
    pub fn parse(output: &str) -> Result<Facts> {
        let mut values = BTreeMap::new();
        let mut programs = BTreeSet::new();
        let mut running = BTreeSet::new();
        for (key, value) in output.lines().filter_map(|line| line.split_once('=')) {
            match key.split_once('.') {
                Some(("has", program)) => drop(programs.insert(program.to_string())),
                Some(("running", service)) if value == "yes" => drop(running.insert(service.to_string())),
                _ => drop(values.insert(key, value.trim())),
            }
        }
        if !values.contains_key("end") {
            return Err(Error::transient("could not find out what the machine is: the answer is cut off"));
        }
        let text = |key: &str| values.get(key).map(|value| value.to_string()).unwrap_or_default();
        let number = |key: &str| values.get(key).and_then(|value| value.parse::<u64>().ok());
        let marker = values.get("marker").map(|marker| serde_json::from_str(marker));
        // v1 says "no limit" with a number near 2^63, v2 with the word max.
        let memory = number("memory.total").map(|kib| kib << 10).into_iter().chain(number("memory.limit")).min();
        Ok(Facts {
            arch: text("arch"),
            kernel: text("kernel"),
            os: text("os"),
            uid: number("uid").unwrap_or(u64::from(u32::MAX)) as u32,
            sudo: values.contains_key("sudo"),
            init: if text("init") == "systemd" { Init::Systemd } else { Init::Supervisor },
            cgroup: match text("cgroup").as_str() {
                "v1" => Some(Cgroup::V1),
                "v2" => Some(Cgroup::V2),
                _ => None,
            },
            overlay: values.contains_key("overlay"),
            memory_bytes: memory.unwrap_or(0),
            disk_free_bytes: number("disk.free").unwrap_or(0) << 10,
            clock: SystemTime::UNIX_EPOCH + Duration::from_secs(number("clock").unwrap_or(0)),
            programs,
            cni_bin_dir: values.get("cni").map(|folder| folder.to_string()),
            program: values.get("program").filter(|sum| !sum.is_empty()).map(|sum| sum.to_string()),
            // A damaged marker is no marker: the host is installed again, step by step.
            marker: marker.and_then(|marker| marker.ok()),
            running,
        })
    }

    /// All services of the marker run.
    pub fn works(&self) -> bool {
        self.marker.as_ref().is_some_and(|marker| marker.services.iter().all(|service| self.running.contains(service)))
    }
}

/// What preflight compares a machine with.
#[derive(Debug, Clone)]
pub struct Needs<'a> {
    pub cluster_uid: &'a str,
    /// The architecture of the program to upload.
    pub arch: &'a str,
    /// Bytes that will be written below /var/lib.
    pub disk_bytes: u64,
    /// Our clock when the machine answered.
    pub now: SystemTime,
}

/// Below this the services do not fit beside the kernel.
const MEMORY_FLOOR: u64 = 200 << 20;
/// Certificates are backdated by an hour, leases compare no clocks; logs and people do not bear more.
const CLOCK_SKEW: Duration = Duration::from_secs(120);

/// Every problem of one machine at once.
pub fn preflight(facts: &Facts, needs: &Needs<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut check = |good: bool, text: String, hint: &str| {
        if !good {
            problems.push(Problem { text, hint: hint.to_string() });
        }
    };
    check(facts.kernel.starts_with("Linux "), format!("it runs {}", facts.kernel), "kprov installs on Linux");
    check(
        facts.arch == needs.arch,
        format!("it is {}, this kprov is for {}", facts.arch, needs.arch),
        "choose a machine size of the same architecture, or run the kprov built for it",
    );
    check(facts.uid == 0, "the SSH user is not root".into(), "let root log in with the cluster's key");
    check(facts.overlay, "its kernel has no overlay filesystem".into(), "choose an image with a standard kernel");
    check(facts.cgroup.is_some(), "no cgroups are mounted".into(), "mount cgroup2 on /sys/fs/cgroup");
    check(
        facts.memory_bytes >= MEMORY_FLOOR,
        format!("it has {} MiB of memory, {} are needed", facts.memory_bytes >> 20, MEMORY_FLOOR >> 20),
        "choose a larger size",
    );
    check(
        facts.disk_free_bytes >= needs.disk_bytes,
        format!("/var/lib has {} MiB free, {} are needed", facts.disk_free_bytes >> 20, needs.disk_bytes >> 20),
        "choose a larger disk, or make room",
    );
    let skew = facts.clock.duration_since(needs.now).or_else(|_| needs.now.duration_since(facts.clock)).unwrap_or_default();
    check(skew <= CLOCK_SKEW, format!("its clock is {} s off", skew.as_secs()), "run a time service on both machines (e.g. chrony)");
    let missing = missing(facts);
    check(
        missing.is_empty() || facts.programs.contains("apt-get"),
        format!("{} cannot be found, and there is no apt-get to install it with", missing.join(", ")),
        "install containerd, runc, nftables and the CNI plugins (Debian: containernetworking-plugins)",
    );
    let stranger = facts.marker.as_ref().filter(|marker| marker.cluster_uid != needs.cluster_uid);
    check(
        stranger.is_none(),
        format!("it is already {} of another cluster", stranger.map(|marker| marker.node_name.as_str()).unwrap_or_default()),
        "take it out of that cluster first: run `kprov host remove` on it",
    );
    problems
}

/// What has to be installed from packages.
fn missing(facts: &Facts) -> Vec<&'static str> {
    let mut missing: Vec<_> = ["containerd", "ctr", "runc", "nft"].into_iter().filter(|name| !facts.programs.contains(*name)).collect();
    if facts.cni_bin_dir.is_none() {
        missing.push("CNI plugins");
    }
    missing
}

/// All problems of one machine as the one error to return.
pub fn refusal(machine: &str, problems: &[Problem]) -> Option<Error> {
    let texts: Vec<_> = problems.iter().map(|problem| problem.text.as_str()).collect();
    let error = Error::new(Kind::Host, format!("could not use machine {machine}: {}", texts.join("; ")));
    (!problems.is_empty()).then(|| problems.iter().fold(error, |error, problem| error.hint(problem.hint.clone())))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const FRESH: &str = "arch=x86_64\nkernel=Linux 6.18.0\nclock=1800000000\nuid=0\nos=debian 12\ncgroup=v1\noverlay=yes\n\
        memory.limit=1073741824\nmemory.total=24000000\ndisk.free=9000000\nhas.containerd=yes\nhas.ctr=yes\nhas.runc=yes\nhas.nft=yes\n\
        has.apt-get=yes\nhas.gzip=yes\ncni=/usr/lib/cni\nend=yes\n";

    pub(crate) fn installed(revision: &str, running: &[&str]) -> String {
        let marker = Marker {
            cluster_uid: "u1".into(),
            node_name: "worker-1".into(),
            role: "worker".into(),
            revision: revision.into(),
            generation: 1,
            program: "abc".into(),
            services: vec!["containerd".into(), "kprov-agent".into()],
            images: Vec::new(),
            files: Vec::new(),
            rotate_at: 1_900_000_000,
        };
        let running: String = running.iter().map(|name| format!("running.{name}=yes\n")).collect();
        format!("program=abc\nmarker={}\n{running}{FRESH}", serde_json::to_string(&marker).unwrap())
    }

    fn needs() -> Needs<'static> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_001);
        Needs { cluster_uid: "u1", arch: "x86_64", disk_bytes: 1 << 30, now }
    }

    #[test]
    fn a_fresh_machine_has_no_problems_and_no_marker() {
        let facts = Facts::parse(FRESH).unwrap();
        assert_eq!(facts.init, Init::Supervisor);
        assert_eq!(facts.cgroup, Some(Cgroup::V1));
        assert_eq!(facts.memory_bytes, 1 << 30, "the cgroup's limit counts, not the host's memory");
        assert_eq!(facts.marker, None);
        assert_eq!(facts.program, None);
        assert_eq!(preflight(&facts, &needs()), []);
    }

    #[test]
    fn an_unlimited_cgroup_leaves_the_memory_of_the_machine() {
        for unlimited in ["memory.limit=max", "memory.limit=9223372036854771712"] {
            let facts = Facts::parse(&FRESH.replace("memory.limit=1073741824", unlimited)).unwrap();
            assert_eq!(facts.memory_bytes, 24_000_000 << 10);
        }
    }

    #[test]
    fn a_host_works_when_all_services_of_its_marker_run() {
        assert!(Facts::parse(&installed("r1", &["containerd", "kprov-agent"])).unwrap().works());
        assert!(!Facts::parse(&installed("r1", &["containerd"])).unwrap().works());
        assert!(!Facts::parse(FRESH).unwrap().works());
    }

    #[test]
    fn an_answer_cut_off_is_not_taken_for_a_fresh_machine() {
        let whole = installed("r1", &["containerd"]);
        let error = Facts::parse(&whole[..whole.len() / 2]).unwrap_err();
        assert_eq!(error.kind, Kind::Transient);
    }

    #[test]
    fn a_damaged_marker_means_install_again() {
        let facts = Facts::parse(&format!("marker={{\"clusterUid\":\n{FRESH}")).unwrap();
        assert_eq!(facts.marker, None);
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let text = "arch=aarch64\nkernel=Linux 6.1.0\nclock=1800000500\nuid=1000\nmemory.total=65536\ndisk.free=1000\nend=yes\n";
        let problems = preflight(&Facts::parse(text).unwrap(), &needs());
        let texts: Vec<_> = problems.iter().map(|problem| problem.text.as_str()).collect();
        assert_eq!(
            texts,
            [
                "it is aarch64, this kprov is for x86_64",
                "the SSH user is not root",
                "its kernel has no overlay filesystem",
                "no cgroups are mounted",
                "it has 64 MiB of memory, 200 are needed",
                "/var/lib has 0 MiB free, 1024 are needed",
                "its clock is 499 s off",
                "containerd, ctr, runc, nft, CNI plugins cannot be found, and there is no apt-get to install it with",
            ]
        );
        let error = refusal("worker-1", &problems).unwrap();
        assert!(error.to_string().starts_with("could not use machine worker-1: it is aarch64"));
        assert_eq!(error.hints().len(), problems.len());
    }

    #[test]
    fn a_machine_of_another_cluster_is_left_alone() {
        let facts = Facts::parse(&installed("r1", &[])).unwrap();
        let problems = preflight(&facts, &Needs { cluster_uid: "u2", ..needs() });
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].text, "it is already worker-1 of another cluster");
    }

    #[test]
    fn the_probe_is_plain_shell_and_answers_here() {
        let output = crate::remote::answer_here(PROBE);
        let facts = Facts::parse(&output).unwrap();
        assert_eq!(facts.arch, std::env::consts::ARCH);
        assert!(facts.memory_bytes > 0 && facts.disk_free_bytes > 0, "{output}");
    }
}
