//! Looks over the whole host for anything of a cluster: by names alone, so it works with all records lost.

use super::layout::Layout;
use crate::engine::Cluster;
use crate::sys::process::Identity;
use std::fs;
use std::path::{Path, PathBuf};

/// Everything of this cluster that is on the host; empty after `down`.
pub fn leftovers(cluster: &Cluster) -> Vec<String> {
    let layout = Layout::new(&cluster.uid);
    let mut found = Vec::new();
    found.extend(mounts_below(&layout.folder).into_iter().map(|mount| format!("mount {mount}")));
    let namespace = layout.namespace();
    if namespace.exists() {
        found.push(format!("network namespace {}", namespace.display()));
    }
    if Path::new("/sys/class/net").join(layout.link()).exists() {
        found.push(format!("link {}", layout.link()));
    }
    for hierarchy in crate::sys::cgroups::hierarchies().unwrap_or_default() {
        let group = hierarchy.mount.join(layout.groups());
        if group.exists() {
            found.push(format!("control group {}", group.display()));
        }
    }
    found.extend(processes(&layout).into_iter().map(|(pid, command)| format!("process {pid} {command}")));
    if layout.folder.exists() {
        found.push(format!("folder {}", layout.folder.display()));
    }
    found
}

/// Mount points at or below the folder, in this process's view of the host.
pub fn mounts_below(folder: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| Path::new(point).starts_with(folder)).map(String::from).collect()
}

/// Daemon, shims and first processes carry the uid in their arguments; everything in a machine is in one of the cluster's groups.
pub fn processes(layout: &Layout) -> Vec<(i32, String)> {
    let mut found = Vec::new();
    let group = format!("/{}/", layout.groups().display());
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        // A zombie holds nothing but its number until its parent looks.
        if Identity::of(pid).is_none() {
            continue;
        }
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<String> = command.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        let ours = words.get(1).is_some_and(|word| word == "local")
            && words.get(3).is_some_and(|word| word == &layout.uid || word.starts_with(&format!("{}/", layout.uid)));
        let grouped =
            || fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default().lines().any(|line| format!("{line}/").contains(&group));
        if ours || grouped() {
            found.push((pid, words.join(" ").trim().to_string()));
        }
    }
    found
}

/// Folders of machines that are not on record: a removal that was cut short.
pub fn unrecorded_machines(layout: &Layout, recorded: &[String]) -> Vec<String> {
    let folders: Vec<PathBuf> = fs::read_dir(layout.machines()).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    let names = folders.iter().filter_map(|folder| folder.file_name()).map(|name| name.to_string_lossy().into_owned());
    names.filter(|name| !recorded.contains(name)).collect()
}
