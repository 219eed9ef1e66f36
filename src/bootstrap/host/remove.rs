//! Takes everything away again, for machines that stay when their cluster goes. Works on what half an installation left, too.

use super::init::Init;
use super::{Reporter, disk, machine};
use crate::bootstrap::spec::{CONTAINERD, CONTAINERD_CONFIG, CONTAINERD_SOCKET, CONTAINERD_STATE, MARKER};
use crate::error::{Context, Error, Kind, Result};
use crate::supervisor;
use crate::sys::{cgroups, paths};
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// What may run when the marker, which names them, was never written.
const SERVICES: [&str; 2] = ["kprov-agent", "kprov-server"];
/// Folders that only kprov, its containerd or its pods write to.
const DATA: [&str; 7] =
    [paths::DATA, "/var/log/kprov", "/var/log/pods", "/var/log/containers", paths::CNI, "/etc/kprov/services", paths::PKI];
/// What containerd and the CNI plugins put beside others' whatever they are told.
const CNI_RESULTS: &str = "/var/lib/cni/results";
const SHIM_SOCKETS: &str = "/run/containerd/s";
/// The proxy's table, the agent's address, the number of its routes and its tunnel: what it leaves in the kernel.
const TABLES: [&str; 1] = ["kprov"];
const DNS_ADDRESS: &str = "10.96.0.10/32";
const ROUTE_PROTOCOL: &str = "107";
const TUNNEL: &str = "kprov-vxlan";
/// By containerd's two ways of naming groups.
const POD_GROUPS: [&str; 2] = ["kpods", "kpods.slice"];
/// Killed processes leave their groups a moment later.
const GROUP_TRIES: u32 = 50;

/// Services, pods, files, data; the marker and the program last, so that an interrupted removal can be run again.
pub fn everything(reporter: &Reporter) -> Result<()> {
    let marker = disk::marker();
    if marker.is_none() && ![CONTAINERD_CONFIG, paths::BINARY].iter().any(|path| Path::new(path).exists()) {
        return Ok(());
    }
    // An installation whose operator went away may still be at work.
    let _lock = super::one_at_a_time(reporter)?;
    let marker = disk::marker().or(marker);
    let init = Init::detect()?;
    let named = marker.iter().flat_map(|marker| marker.services.iter().rev().map(String::as_str));
    let mut services: Vec<&str> = named.filter(|name| *name != CONTAINERD).collect();
    services.extend(SERVICES.iter().filter(|name| !services.contains(name)).collect::<Vec<_>>());
    for name in services {
        reporter.step(name, || init.remove(name).map(|()| true.into()))?;
    }
    reporter.step("pods", || {
        stop_pods();
        Ok(true.into())
    })?;
    reporter.step(CONTAINERD, || init.remove(CONTAINERD).map(|()| true.into()))?;
    reporter.step("shims", || {
        stop_shims();
        Ok(true.into())
    })?;
    reporter.step("kernel", || {
        network(init);
        Ok(true.into())
    })?;
    reporter.step("service manager", || Ok(supervisor::client::end()?.into()))?;
    reporter.step("files", || {
        for path in marker.iter().flat_map(|marker| &marker.files) {
            gone(path, std::fs::remove_file(path))?;
        }
        DATA.iter().try_for_each(|folder| clear(Path::new(folder)))?;
        for path in [CONTAINERD_CONFIG, "/etc/kprov/program.sum", "/etc/kprov/provider.json"] {
            gone(Path::new(path), std::fs::remove_file(path))?;
        }
        for path in ["/etc/kprov/server.json", "/etc/kprov/agent.json", paths::BINARY, MARKER] {
            gone(Path::new(path), std::fs::remove_file(path))?;
        }
        shared();
        clear(Path::new("/run/kprov"))?;
        Ok(true.into())
    })
}

/// Pods live on without their agent; a pod that cannot be stopped dies with its machine.
fn stop_pods() {
    if !Path::new(CONTAINERD_SOCKET).exists() {
        return;
    }
    let ctr = |arguments: &[&str]| {
        let mut command = machine::command("ctr");
        command.args(["--address", CONTAINERD_SOCKET, "--namespace", "k8s.io"]).args(arguments);
        machine::run(&mut command, "could not stop pods")
    };
    let containers = ctr(&["containers", "list", "--quiet"]).unwrap_or_default();
    for container in containers.lines() {
        let _ = ctr(&["tasks", "delete", "--force", container]);
        let _ = ctr(&["containers", "delete", container]);
    }
}

/// A sandbox that was on its way in or out keeps its shim, which nobody talks to any more.
fn stop_shims() {
    let is_shim = |process: &PathBuf| {
        let command = std::fs::read(process.join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
        words.first().is_some_and(|program| program.ends_with(b"/containerd-shim-runc-v2")) && words.contains(&CONTAINERD_SOCKET.as_bytes())
    };
    for process in entries("/proc").filter(is_shim) {
        kill(&process.file_name().unwrap_or_default().to_string_lossy());
    }
}

/// Folders that other containerds of the machine use, too: out of them goes what is ours, and they themselves when they are empty.
fn shared() {
    // A result names the pod's network namespace, which lies with our containerd.
    let is_ours = |path: &PathBuf| std::fs::read_to_string(path).is_ok_and(|text| text.contains(CONTAINERD_STATE));
    // Nobody listens at a socket whose shim is dead; then it is nobody's.
    let is_dead = |path: &PathBuf| UnixStream::connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
    for path in entries(CNI_RESULTS).filter(is_ours).chain(entries(SHIM_SOCKETS).filter(is_dead)) {
        let _ = std::fs::remove_file(path);
    }
    for folder in [CNI_RESULTS, "/var/lib/cni", SHIM_SOCKETS, "/run/containerd"] {
        let _ = std::fs::remove_dir(folder);
    }
}

fn kill(process: &str) {
    if let Ok(id) = process.trim().parse::<i32>()
        && id > 1
    {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGKILL);
    }
}

/// Nothing here is worth an error: a machine whose kernel refuses keeps an unused rule.
fn network(init: Init) {
    let quiet = |program: &str, arguments: &[&str]| {
        let _ = machine::command(program).args(arguments).output();
    };
    for table in TABLES {
        quiet("nft", &["delete", "table", "ip", table]);
    }
    quiet("ip", &["route", "flush", "proto", ROUTE_PROTOCOL]);
    quiet("ip", &["link", "delete", TUNNEL, "type", "vxlan"]);
    quiet("ip", &["address", "delete", DNS_ADDRESS, "dev", "lo"]);
    if init == Init::Systemd {
        // With it end the slices of classes and pods below.
        quiet("systemctl", &["stop", "kpods.slice"]);
        entries(paths::UNIT_PROPERTIES).filter(|path| is_of_pods(path)).for_each(|path| drop(std::fs::remove_dir_all(path)));
    }
    for hierarchy in cgroups::hierarchies().unwrap_or_default() {
        for group in POD_GROUPS.map(|name| hierarchy.mount.join(name)).iter().filter(|group| group.exists()) {
            for _ in 0..GROUP_TRIES {
                prune(group);
                if !group.exists() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    }
}

fn is_of_pods(properties: &Path) -> bool {
    let name = properties.file_name().unwrap_or_default().to_string_lossy();
    name == "kpods.slice.d" || (name.starts_with("kpods-") && name.ends_with(".slice.d"))
}

/// Control groups with what is left in them, children first.
fn prune(group: &Path) {
    std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines().for_each(kill);
    for child in entries(group).filter(|path| path.is_dir()) {
        prune(&child);
    }
    let _ = std::fs::remove_dir(group);
}

/// What is mounted below is let go first, never emptied: it may be a share that others use.
fn clear(folder: &Path) -> Result<()> {
    let failed = || format!("could not remove {}", folder.display());
    for mount in mounts_below(folder)? {
        nix::mount::umount2(&mount, nix::mount::MntFlags::MNT_DETACH).or_fail(Kind::Host, failed)?;
    }
    if let Some(left) = mounts_below(folder)?.first() {
        return Err(Error::host(failed()).because(format!("{} is still mounted", left.display())));
    }
    match std::fs::remove_dir_all(folder) {
        // A disk of its own is mounted there: it stays, empty.
        Err(error) if error.kind() == ErrorKind::ResourceBusy && entries(folder).next().is_none() => Ok(()),
        outcome => gone(folder, outcome),
    }
}

/// The deepest first.
fn mounts_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").or_fail(Kind::Host, || "could not read the list of mounts")?;
    let places = text.lines().filter_map(|line| line.split(' ').nth(4)).map(|place| PathBuf::from(place.replace("\\040", " ")));
    let mut below: Vec<PathBuf> = places.filter(|place| place.starts_with(folder) && place != folder).collect();
    below.reverse();
    Ok(below)
}

fn entries(folder: impl AsRef<Path>) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn gone(path: &Path, outcome: std::io::Result<()>) -> Result<()> {
    match outcome {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        outcome => {
            outcome.map_err(|error| Error::host(error.to_string())).or_fail(Kind::Host, || format!("could not remove {}", path.display()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_properties_of_pods_go() {
        let check = |name: &str, expected| assert_eq!(is_of_pods(&Path::new(paths::UNIT_PROPERTIES).join(name)), expected, "{name}");
        check("kpods.slice.d", true);
        check("kpods-besteffort.slice.d", true);
        check("kpods-burstable-poda_b.slice.d", true);
        check("kpodsother.slice.d", false);
        check("system.slice.d", false);
    }
}
