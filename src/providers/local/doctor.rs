//! Whether this host can carry machines, everything at once and with what to install.

use super::fabric;
use super::layout;
use crate::blueprint::counted;
use crate::engine::Resource;
use crate::error::{Error, Result};
use crate::providers::resources::{LOAD_BALANCER, LoadBalancerSpec, MACHINE};
use crate::sys::{cgroups, paths};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};

/// One thing the host has or lacks.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    pub what: String,
    pub ok: bool,
    /// Where it was found, or what is wrong.
    pub detail: String,
    /// What to do about it; empty when there is nothing to do.
    pub fix: String,
    /// Debian's name of what provides it.
    pub package: Option<String>,
    /// Machines need it; anything else is advice.
    pub required: bool,
}

/// Programs that machines and their bootstrap use, and their Debian packages.
const PROGRAMS: [(&str, &str); 6] = [
    ("sshd", "openssh-server"),
    ("ssh", "openssh-client"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("nft", "nftables"),
];
/// What a machine writes before any image or data: below this nothing useful starts.
const LEAST_DISK_BYTES: u64 = 1 << 30;
/// A machine's agent and containerd together hold some ten.
const LEAST_INOTIFY: u64 = 128;
/// CAP_NET_ADMIN, CAP_SYS_CHROOT, CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_MKNOD (capability.h).
const CAPABILITIES: [(u32, &str); 5] =
    [(12, "CAP_NET_ADMIN"), (18, "CAP_SYS_CHROOT"), (19, "CAP_SYS_PTRACE"), (21, "CAP_SYS_ADMIN"), (27, "CAP_MKNOD")];

/// Everything that machines on this host need.
pub fn doctor() -> Vec<Finding> {
    let mut found = vec![root(), capabilities(), overlay(), disk(), groups(), inotify(), subnet()];
    found.extend(PROGRAMS.iter().map(|(program, package)| installed(program, package)));
    found.push(cni());
    found
}

/// The same list as one error, with what the wish itself asks too much.
pub fn check(resources: &[Resource]) -> Result<()> {
    let mut problems: Vec<(String, String)> = doctor()
        .into_iter()
        .filter(|finding| !finding.ok)
        .map(|finding| (format!("{}: {}", finding.what, finding.detail), finding.fix))
        .collect();
    for resource in resources {
        if resource.id.kind == LOAD_BALANCER
            && let Ok(spec) = serde_json::from_value::<LoadBalancerSpec>(resource.spec.clone())
            && let Some(other) = spec.listeners.iter().find(|listener| listener.protocol != "TCP")
        {
            problems.push((format!("{}: the local load balancer serves TCP, not {}", resource.id, other.protocol), String::new()));
        }
    }
    let machines = resources.iter().filter(|resource| resource.id.kind == MACHINE).count();
    if machines > layout::MACHINES.count() {
        problems
            .push((format!("{machines} machines: the local cloud's network has {} addresses", layout::MACHINES.count()), String::new()));
    }
    if problems.is_empty() {
        return Ok(());
    }
    let message = format!("could not use this host for machines: {}", counted(problems.len(), "problem"));
    let list = problems.iter().map(|(problem, _)| problem.as_str()).collect::<Vec<_>>().join("; ");
    let error = Error::host(message).because(list);
    let mut fixes: Vec<String> = problems.into_iter().map(|(_, fix)| fix).filter(|fix| !fix.is_empty()).collect();
    fixes.dedup();
    Err(fixes.into_iter().fold(error, Error::hint))
}

pub fn finding(what: &str, outcome: Result<String, (String, String)>) -> Finding {
    let (ok, detail, fix) = match outcome {
        Ok(detail) => (true, detail, String::new()),
        Err((detail, fix)) => (false, detail, fix),
    };
    Finding { what: what.into(), ok, detail, fix, package: None, required: true }
}

fn root() -> Finding {
    let user = nix::unistd::geteuid();
    finding("root", if user.is_root() { Ok("yes".into()) } else { Err((format!("user id {user}"), "run kprov as root (sudo)".into())) })
}

fn capabilities() -> Finding {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bits = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .unwrap_or(0);
    let missing: Vec<&str> = CAPABILITIES.iter().filter(|(bit, _)| bits >> bit & 1 == 0).map(|(_, name)| *name).collect();
    let fix = "in a container, run it privileged";
    finding(
        "capabilities",
        if missing.is_empty() { Ok("all".into()) } else { Err((format!("{} missing", missing.join(", ")), fix.into())) },
    )
}

/// The nearest folder that exists: nothing is made by looking.
fn base() -> PathBuf {
    Path::new(paths::LOCAL_CLOUD).ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/")).to_path_buf()
}

fn overlay() -> Finding {
    let supported = fs::read_to_string("/proc/filesystems").is_ok_and(|list| list.lines().any(|line| line.ends_with("\toverlay")));
    let base = base();
    let on_overlay = statfs(&base).is_ok_and(|found| found.filesystem_type() == OVERLAYFS_SUPER_MAGIC);
    let outcome = match () {
        // As a module it is loaded by the first mount.
        () if !supported && !module_exists("overlay") => {
            Err(("the kernel has no overlay filesystem".into(), "use a kernel with CONFIG_OVERLAY_FS".into()))
        }
        () if on_overlay => Err((
            format!("{} is itself on an overlay, which cannot hold a machine's disk", base.display()),
            format!("mount a disk or tmpfs at {}", paths::LOCAL_CLOUD),
        )),
        () => Ok(format!("machines' disks on {}", base.display())),
    };
    finding("overlay", outcome)
}

fn module_exists(name: &str) -> bool {
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
    ["modules.dep", "modules.builtin"]
        .iter()
        .any(|list| fs::read_to_string(format!("/lib/modules/{release}/{list}")).is_ok_and(|text| text.contains(&format!("/{name}.ko"))))
}

fn disk() -> Finding {
    let free = statfs(&base()).map(|found| found.blocks_available() * found.block_size() as u64).unwrap_or(0);
    let detail = format!("{:.1} GiB free at {}", free as f64 / (1u64 << 30) as f64, base().display());
    finding("disk space", if free >= LEAST_DISK_BYTES { Ok(detail) } else { Err((detail, "free at least 1 GiB".into())) })
}

fn groups() -> Finding {
    let found = cgroups::hierarchies().unwrap_or_default();
    let v2 = fs::read_to_string(Path::new(cgroups::ROOT).join("cgroup.controllers")).unwrap_or_default();
    let has = |name: &str| {
        v2.split_whitespace().any(|other| other == name)
            || found.iter().any(|tree| tree.controllers.as_deref().is_some_and(|names| names.split(',').any(|other| other == name)))
    };
    let missing: Vec<&str> = ["cpu", "memory", "pids"].into_iter().filter(|name| !has(name)).collect();
    let versions = if found.iter().any(|tree| tree.controllers.is_some()) { "version 1" } else { "version 2" };
    let fix = "mount control groups below /sys/fs/cgroup, with the cpu, memory and pids controllers";
    finding(
        "control groups",
        if missing.is_empty() { Ok(versions.into()) } else { Err((format!("no {} controller", missing.join(", ")), fix.into())) },
    )
}

fn inotify() -> Finding {
    let read = |name: &str| {
        fs::read_to_string(format!("/proc/sys/fs/inotify/{name}")).ok().and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    let instances = read("max_user_instances");
    let fix = "sysctl fs.inotify.max_user_instances=1024";
    let detail = format!("{instances} instances");
    finding("inotify", if instances >= LEAST_INOTIFY { Ok(detail) } else { Err((detail, fix.into())) })
}

fn subnet() -> Finding {
    let free = fabric::host_networks().map(|used| layout::free_subnet(&used));
    let outcome = match free {
        Ok(Some(subnet)) => Ok(format!("{subnet}/24 is free")),
        Ok(None) => Err(("this host has routes to all private networks the local cloud can use".into(), "see `ip route`".into())),
        Err(error) => Err((error.chain(), String::new())),
    };
    finding("network", outcome)
}

/// Where root's shell would find it; a user's PATH often lacks sbin.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path.split(':').chain(["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]);
    folders.map(|folder| Path::new(folder).join(name)).find(|candidate| candidate.is_file())
}

fn installed(program: &str, package: &str) -> Finding {
    let outcome = match find_program(program) {
        Some(path) => Ok(path.display().to_string()),
        None => Err(("not installed".into(), format!("apt-get install {package}"))),
    };
    Finding { package: Some(package.into()), ..finding(program, outcome) }
}

fn cni() -> Finding {
    let package = "containernetworking-plugins";
    let outcome = match paths::cni_plugin_folder() {
        Some(folder) => Ok(folder.to_string()),
        None => Err((format!("{} not found", paths::CNI_PLUGINS.join(", ")), format!("apt-get install {package}"))),
    };
    Finding { package: Some(package.into()), ..finding("CNI plugins", outcome) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_problems_come_in_one_error() {
        let udp = |name: &str| Resource {
            id: crate::engine::Id::new(LOAD_BALANCER, name),
            spec: serde_json::json!({"name": name, "machines": [], "listeners": [{"port": 53, "protocol": "UDP", "nodePort": 32000}]}),
            needs: Vec::new(),
            replace_on: Vec::new(),
            summary: String::new(),
        };
        let text = check(&[udp("a"), udp("b")]).unwrap_err().chain();
        assert!(text.contains("load-balancer/a") && text.contains("load-balancer/b"), "{text}");
    }
}
