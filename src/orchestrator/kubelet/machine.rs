//! How large this machine is: what its provider wrote down, else its cgroup's limits, else the hardware; whichever is smallest.

use super::cgroups;
use serde::Deserialize;
use std::fs;
use std::path::Path;

/// Written by what made the machine, where there is somebody who knows.
const MACHINE_FILE: &str = "/run/kprov/machine.json";
/// Kept back from pods: the agent (30 MiB) and containerd (30 MiB) with what they need under load, and a twentieth of a core.
const RESERVED_MEMORY_BYTES: i64 = 64 << 20;
const RESERVED_CPU_MILLIS: i64 = 50;
/// The share of the disk that pods do not get, as upstream's eviction threshold.
const RESERVED_DISK_PERCENT: i64 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub cpu_millis: i64,
    pub memory_bytes: i64,
    pub disk_bytes: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Written {
    cpu_millis: Option<i64>,
    memory_bytes: Option<i64>,
    disk_bytes: Option<i64>,
}

impl Size {
    /// What pods may use.
    pub fn allocatable(self) -> Size {
        Size {
            cpu_millis: (self.cpu_millis - RESERVED_CPU_MILLIS).max(0),
            memory_bytes: (self.memory_bytes - RESERVED_MEMORY_BYTES).max(0),
            disk_bytes: self.disk_bytes / 100 * (100 - RESERVED_DISK_PERCENT),
        }
    }
}

/// Whoever made this machine gave it a size and no disk of that size.
pub fn shares_its_disk() -> bool {
    written().disk_bytes.is_some()
}

fn written() -> Written {
    fs::read(MACHINE_FILE).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// Measures; `data` is on the disk that pods fill.
pub fn measure(data: &Path) -> Size {
    let written = written();
    let (cpu, memory) = if cgroups::is_unified() { unified_limits() } else { classic_limits() };
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as i64) * 1000;
    let least = |amounts: [Option<i64>; 2], hardware: i64| amounts.into_iter().flatten().chain([hardware]).min().unwrap_or(hardware);
    Size {
        cpu_millis: written.cpu_millis.unwrap_or_else(|| least([cpu, None], cores)),
        memory_bytes: written.memory_bytes.unwrap_or_else(|| least([memory, None], total_memory())),
        disk_bytes: written.disk_bytes.unwrap_or_else(|| disk(data)),
    }
}

fn unified_limits() -> (Option<i64>, Option<i64>) {
    let cpu = fs::read_to_string("/sys/fs/cgroup/cpu.max").ok().and_then(|text| {
        let (quota, period) = text.trim().split_once(' ')?;
        Some(quota.parse::<i64>().ok()? * 1000 / period.parse::<i64>().ok()?.max(1))
    });
    (cpu, read_number("/sys/fs/cgroup/memory.max"))
}

fn classic_limits() -> (Option<i64>, Option<i64>) {
    let quota = read_number("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").filter(|quota| *quota > 0);
    let period = read_number("/sys/fs/cgroup/cpu/cpu.cfs_period_us").filter(|period| *period > 0);
    let cpu = quota.zip(period).map(|(quota, period)| quota * 1000 / period);
    (cpu, read_number("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
}

fn read_number(path: &str) -> Option<i64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn total_memory() -> i64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse::<i64>().ok()).unwrap_or(0) * 1024
}

fn disk(data: &Path) -> i64 {
    let existing = data.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    nix::sys::statvfs::statvfs(existing).map_or(0, |stat| (stat.blocks() as i64).saturating_mul(stat.fragment_size() as i64))
}
