//! A pod's own cgroup, parent of its containers' ones: its name by driver, its limits, its removal; cgroup v1 and v2.

use super::resources::{Amounts, PERIOD_MICROS, Quality, quota, shares};
use super::slices;
use crate::error::{Context, Kind, Result};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

const ROOT: &str = "/sys/fs/cgroup";
/// Controllers of v1 that get limits here; the runtime makes the pod's folder in the others.
const LIMITED: [&str; 2] = ["cpu", "memory"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    Files,
    Systemd,
}

/// systemd owns the tree where it is PID 1; elsewhere it is plain folders.
pub fn driver() -> Driver {
    match fs::read_to_string("/proc/1/comm") {
        Ok(name) if name.trim() == "systemd" => Driver::Systemd,
        _ => Driver::Files,
    }
}

/// What the runtime takes as the sandbox's `cgroup_parent`.
pub fn parent(driver: Driver, quality: Quality, uid: &str) -> String {
    let class = match quality {
        Quality::Guaranteed => None,
        Quality::Burstable => Some("burstable"),
        Quality::BestEffort => Some("besteffort"),
    };
    match (driver, class) {
        (Driver::Files, Some(class)) => format!("/kpods/{class}/pod{uid}"),
        (Driver::Files, None) => format!("/kpods/pod{uid}"),
        // A dash in a slice's name is a level of the tree.
        (Driver::Systemd, Some(class)) => format!("kpods-{class}-pod{}.slice", uid.replace('-', "_")),
        (Driver::Systemd, None) => format!("kpods-pod{}.slice", uid.replace('-', "_")),
    }
}

/// The groups that pods are in, with the weights upstream gives them: all pods weigh what they may use, the burstable ones the sum of
/// what they ask for, the best-effort ones together the least there is. A guaranteed pod stands beside the two with its own weight.
pub fn classes(driver: Driver, all_millis: i64, burstable_millis: i64) -> [(&'static str, Amounts); 3] {
    let names = match driver {
        Driver::Files => ["/kpods", "/kpods/burstable", "/kpods/besteffort"],
        Driver::Systemd => ["kpods.slice", "kpods-burstable.slice", "kpods-besteffort.slice"],
    };
    let amounts = |millis| Amounts { cpu_request_millis: Some(millis), ..Amounts::default() };
    [(names[0], amounts(all_millis)), (names[1], amounts(burstable_millis)), (names[2], amounts(0))]
}

/// Makes a cgroup with its limits. Where the machine does not let us (no delegation), containers still have their own limits.
pub async fn make(parent: &str, amounts: Amounts) -> Result<()> {
    match parent.ends_with(slices::SUFFIX) {
        true => slices::limit(parent, amounts).await,
        false => make_folder(parent, amounts).or_fail(Kind::Host, || format!("could not make the cgroup {parent}")),
    }
}

fn make_folder(parent: &str, amounts: Amounts) -> io::Result<()> {
    let below = parent.trim_start_matches('/');
    if is_unified() {
        enable_controllers(below);
        let folder = Path::new(ROOT).join(below);
        fs::create_dir_all(&folder)?;
        write(&folder, "cpu.weight", weight(amounts.cpu_request_millis.unwrap_or(0)).to_string());
        write(&folder, "cpu.max", amounts.cpu_limit_millis.map_or("max".into(), |millis| format!("{} {PERIOD_MICROS}", quota(millis))));
        write(&folder, "memory.max", amounts.memory_limit_bytes.map_or("max".into(), |bytes| bytes.to_string()));
        return Ok(());
    }
    for controller in LIMITED {
        fs::create_dir_all(Path::new(ROOT).join(controller).join(below))?;
    }
    let (cpu, memory) = (Path::new(ROOT).join("cpu").join(below), Path::new(ROOT).join("memory").join(below));
    write(&cpu, "cpu.shares", shares(amounts.cpu_request_millis.unwrap_or(0)).to_string());
    write(&cpu, "cpu.cfs_quota_us", amounts.cpu_limit_millis.map_or(-1, quota).to_string());
    write(&memory, "memory.limit_in_bytes", amounts.memory_limit_bytes.unwrap_or(-1).to_string());
    Ok(())
}

/// Removes the pod's cgroup and what is left in it, in every hierarchy; the runtime's last processes may need a moment to go.
pub async fn remove(parent: &str) {
    if parent.ends_with(slices::SUFFIX) {
        if let Err(error) = slices::remove(parent).await {
            tracing::warn!(error = %error.chain(), "could not end a pod's slice");
        }
        return;
    }
    let below = parent.trim_start_matches('/').to_owned();
    for _ in 0..20 {
        let folders: Vec<PathBuf> = hierarchies().into_iter().map(|root| root.join(&below)).filter(|folder| folder.is_dir()).collect();
        folders.iter().for_each(|folder| remove_tree(folder));
        if folders.iter().all(|folder| !folder.exists()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tracing::warn!(cgroup = below, "could not remove a pod's cgroup");
}

/// Uids of pods that have a cgroup here, with its name: to find what an earlier run left.
pub fn pods() -> Vec<(String, String)> {
    let mut found = pods_of_systemd();
    for root in hierarchies() {
        for class in ["", "burstable", "besteffort"] {
            let entries = fs::read_dir(root.join("kpods").join(class)).into_iter().flatten().flatten();
            found.extend(entries.filter_map(|entry| {
                let uid = entry.file_name().to_string_lossy().strip_prefix("pod")?.to_owned();
                let parent = Path::new("/kpods").join(class).join(format!("pod{uid}"));
                Some((uid, parent.to_string_lossy().into_owned()))
            }));
        }
    }
    found.sort();
    found.dedup();
    found
}

fn pods_of_systemd() -> Vec<(String, String)> {
    let folders = ["kpods.slice", "kpods.slice/kpods-burstable.slice", "kpods.slice/kpods-besteffort.slice"];
    let folders = hierarchies().into_iter().flat_map(|root| folders.map(|folder| root.join(folder)));
    let entries = folders.flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter_map(|name| Some((slices::pod(&name)?, name))).collect()
}

pub fn is_unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

fn hierarchies() -> Vec<PathBuf> {
    if is_unified() {
        return vec![PathBuf::from(ROOT)];
    }
    fs::read_dir(ROOT).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

fn remove_tree(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_tree(&entry.path());
    }
    let _ = fs::remove_dir(folder);
}

/// v2: each level must hand the controllers on to the next.
fn enable_controllers(below: &str) {
    let mut folder = PathBuf::from(ROOT);
    for part in Path::new(below).components() {
        for controller in ["+cpu", "+memory", "+pids", "+cpuset", "+io"] {
            let _ = fs::write(folder.join("cgroup.subtree_control"), controller);
        }
        folder.push(part);
        let _ = fs::create_dir(&folder);
    }
}

/// The kernel's own mapping of shares (2..262144) to weight (1..10000).
pub fn weight(millis: i64) -> i64 {
    1 + (shares(millis) - 2) * 9999 / 262_142
}

fn write(folder: &Path, file: &str, value: String) {
    if let Err(error) = fs::write(folder.join(file), &value) {
        tracing::debug!(%error, cgroup = %folder.display(), file, value, "could not set a limit");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_driver() {
        let check = |driver, quality, wanted: &str| assert_eq!(parent(driver, quality, "a-b"), wanted);
        check(Driver::Files, Quality::Guaranteed, "/kpods/poda-b");
        check(Driver::Files, Quality::BestEffort, "/kpods/besteffort/poda-b");
        check(Driver::Systemd, Quality::Burstable, "kpods-burstable-poda_b.slice");
    }

    #[test]
    fn a_guaranteed_pod_outweighs_all_best_effort_ones_together() {
        for driver in [Driver::Files, Driver::Systemd] {
            let [all, burstable, best_effort] =
                classes(driver, 1950, 700).map(|(_, amounts)| weight(amounts.cpu_request_millis.unwrap_or(0)));
            assert_eq!((all, burstable, best_effort), (77, 28, 1));
            // Each class is the parent of its pods.
            for (quality, (name, _)) in
                [Quality::Guaranteed, Quality::Burstable, Quality::BestEffort].into_iter().zip(classes(driver, 0, 0))
            {
                assert!(parent(driver, quality, "a").starts_with(name.trim_end_matches(slices::SUFFIX)));
            }
        }
    }
}
