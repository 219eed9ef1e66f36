//! Control groups of this host, version 1, 2 or both at once: a named group in every hierarchy, its limits, its processes, its end.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where the kernel and every init mount them.
pub const ROOT: &str = "/sys/fs/cgroup";
/// Killed processes leave their group after their exit has run, which a loaded host may delay.
const EMPTY_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(2);

/// One mounted tree.
#[derive(Debug, Clone, PartialEq)]
pub struct Hierarchy {
    pub mount: PathBuf,
    /// Mount options that name it (`cpu,cpuacct`, `name=systemd`); `None` is version 2.
    pub controllers: Option<String>,
}

/// All trees of this host, from its mount table.
pub fn hierarchies() -> io::Result<Vec<Hierarchy>> {
    Ok(parse(&fs::read_to_string("/proc/self/mountinfo")?))
}

/// Lines of mountinfo: `id parent major:minor root mount-point options [fields] - type source super-options` (proc(5)).
fn parse(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (Some(mount), mut right) = (left.split(' ').nth(4), right.split(' ')) else { continue };
        let (Some(kind), Some(options)) = (right.next(), right.nth(1)) else { continue };
        let controllers = match kind {
            "cgroup2" => None,
            "cgroup" => {
                let flags = ["rw", "ro", "xattr", "clone_children", "noprefix", "cpuset_v2_mode", "none"];
                let names = options.split(',').filter(|option| !flags.contains(option) && !option.starts_with("release_agent="));
                Some(names.collect::<Vec<_>>().join(","))
            }
            _ => continue,
        };
        if Path::new(mount).starts_with(ROOT) && !found.iter().any(|other| other.controllers == controllers) {
            found.push(Hierarchy { mount: mount.into(), controllers });
        }
    }
    found
}

/// In a machine of its own (process 1 of a cgroup namespace): version 2 forbids processes beside child groups, so this one moves
/// aside and everything is delegated to the groups below.
pub fn settle_root() {
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").exists() {
        let scope = root.join("init.scope");
        let _ = fs::create_dir_all(&scope);
        let _ = fs::write(scope.join("cgroup.procs"), "0");
        enable_controllers(root);
    }
}

/// Each on its own: one that the parent does not offer, or that refuses, must not hold back the others.
fn enable_controllers(group: &Path) {
    for controller in fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default().split_whitespace() {
        let _ = fs::write(group.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// A group of one relative path in every hierarchy.
#[derive(Debug, Clone)]
pub struct Group {
    path: PathBuf,
    hierarchies: Vec<Hierarchy>,
}

impl Group {
    pub fn new(path: impl Into<PathBuf>) -> io::Result<Group> {
        Ok(Group { path: path.into(), hierarchies: hierarchies()? })
    }

    fn folders(&self) -> impl Iterator<Item = PathBuf> {
        self.hierarchies.iter().map(|hierarchy| hierarchy.mount.join(&self.path))
    }

    pub fn exists(&self) -> bool {
        self.folders().any(|folder| folder.exists())
    }

    pub fn create(&self) -> io::Result<()> {
        for hierarchy in &self.hierarchies {
            let mut folder = hierarchy.mount.clone();
            for part in &self.path {
                if hierarchy.controllers.is_none() {
                    enable_controllers(&folder);
                }
                let parent = folder.clone();
                folder.push(part);
                match fs::create_dir(&folder) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                    _ => {}
                }
                if hierarchy.controllers.as_deref().is_some_and(|names| names.split(',').any(|name| name == "cpuset")) {
                    inherit_cpuset(&parent, &folder)?;
                }
            }
        }
        Ok(())
    }

    /// Moves the calling process in.
    pub fn join(&self) -> io::Result<()> {
        self.folders().try_for_each(|folder| fs::write(folder.join("cgroup.procs"), "0"))
    }

    /// In thousandths of a core, and bytes.
    pub fn limit(&self, cpu_millis: u64, memory_bytes: u64) -> io::Result<()> {
        for hierarchy in &self.hierarchies {
            let folder = hierarchy.mount.join(&self.path);
            let has = |name: &str| hierarchy.controllers.as_deref().is_some_and(|names| names.split(',').any(|other| other == name));
            if hierarchy.controllers.is_none() && folder.join("memory.max").exists() {
                fs::write(folder.join("memory.max"), memory_bytes.to_string())?;
                fs::write(folder.join("cpu.max"), format!("{} 100000", cpu_millis * 100))?;
            }
            if has("memory") {
                fs::write(folder.join("memory.limit_in_bytes"), memory_bytes.to_string())?;
            }
            if has("cpu") {
                fs::write(folder.join("cpu.cfs_period_us"), "100000")?;
                fs::write(folder.join("cpu.cfs_quota_us"), (cpu_millis * 100).to_string())?;
            }
        }
        Ok(())
    }

    /// All processes in the group and below it, as this process sees them.
    pub fn processes(&self) -> BTreeSet<i32> {
        let mut found = BTreeSet::new();
        for folder in self.folders().flat_map(|folder| with_children(&folder)) {
            let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
        }
        found
    }

    /// Thaws (a frozen process cannot die in version 1), kills everything below, and waits until all of it is gone.
    pub fn kill(&self) -> io::Result<()> {
        let deadline = Instant::now() + EMPTY_TIMEOUT;
        loop {
            for folder in self.folders().flat_map(|folder| with_children(&folder)) {
                // Each exists in one version only, or not in this hierarchy.
                for (file, word) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0"), ("cgroup.kill", "1")] {
                    let file = folder.join(file);
                    if file.exists() {
                        let _ = fs::write(file, word);
                    }
                }
            }
            let processes = self.processes();
            if processes.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("processes {processes:?} do not end")));
            }
            for pid in processes {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
            std::thread::sleep(POLL);
        }
    }

    /// Removes the empty group and all groups below it.
    pub fn remove(&self) -> io::Result<()> {
        let deadline = Instant::now() + EMPTY_TIMEOUT;
        for folder in self.folders().flat_map(|folder| with_children(&folder).into_iter().rev().collect::<Vec<_>>()) {
            loop {
                match fs::remove_dir(&folder) {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => std::thread::sleep(POLL),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Removes the folders above it that are empty now; others may use them.
    pub fn remove_empty_parents(&self) {
        for hierarchy in &self.hierarchies {
            for parent in self.path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
                let _ = fs::remove_dir(hierarchy.mount.join(parent));
            }
        }
    }
}

/// A group takes no process before its cpuset is filled from the parent's; children copy it by themselves.
fn inherit_cpuset(parent: &Path, child: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if fs::read_to_string(child.join(file))?.trim().is_empty() {
            fs::write(child.join(file), fs::read_to_string(parent.join(file))?.trim())?;
        }
    }
    fs::write(child.join("cgroup.clone_children"), "1")
}

/// The folder and all below it, parents first.
fn with_children(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        open.extend(entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()));
        found.push(folder);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(mountinfo: &str, expected: &[(&str, Option<&str>)]) {
        let found: Vec<_> = parse(mountinfo).into_iter().map(|found| (found.mount, found.controllers)).collect();
        let expected: Vec<_> = expected.iter().map(|(mount, names)| (PathBuf::from(mount), names.map(String::from))).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn both_versions_are_found_in_a_mount_table() {
        check(
            "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n\
             32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
             40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
             50 1 0:38 / /elsewhere rw - cgroup2 cgroup2 rw",
            &[
                ("/sys/fs/cgroup/cpu,cpuacct", Some("cpu,cpuacct")),
                ("/sys/fs/cgroup/systemd", Some("name=systemd")),
                ("/sys/fs/cgroup/unified", None),
            ],
        );
        check("41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate", &[("/sys/fs/cgroup", None)]);
    }
}
