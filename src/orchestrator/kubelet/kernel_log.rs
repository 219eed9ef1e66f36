//! Whom the kernel killed for memory, from its own log: the runtime's word for it gets lost when a container is gone before the runtime
//! has looked at its cgroup.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;

const PLACE: &str = "/dev/kmsg";
/// One record's most, by the kernel's own words (`CONSOLE_EXT_LOG_MAX`).
const RECORD: usize = 8192;
/// Whoever asks, asks soon after.
const KEPT: usize = 1024;

/// Reads what the kernel still has from before it was opened, too.
pub struct KernelLog {
    /// `None` where the machine does not let us read it.
    log: Option<File>,
    /// Memory cgroups of killed processes, the newest last.
    killed: VecDeque<String>,
}

impl KernelLog {
    pub fn open() -> KernelLog {
        let log = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(PLACE);
        let log = log.inspect_err(|error| tracing::debug!(%error, "could not read the kernel's log")).ok();
        KernelLog { log, killed: VecDeque::new() }
    }

    /// The kernel killed a process of this container for memory. It writes so before it kills: true from the container's end on.
    pub fn has_killed(&mut self, container: &str) -> bool {
        self.read();
        self.killed.iter().any(|cgroup| cgroup.contains(container))
    }

    fn read(&mut self) {
        let Some(log) = &mut self.log else { return };
        let mut record = [0; RECORD];
        loop {
            match log.read(&mut record) {
                Ok(0) => break,
                Ok(length) => self.killed.extend(killed(&String::from_utf8_lossy(&record[..length])).map(str::to_owned)),
                // What we did not read in time is overwritten; the next read goes on with the oldest that is left.
                Err(error) if error.raw_os_error() == Some(nix::libc::EPIPE) || error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::debug!(%error, "could not read the kernel's log");
                    self.log = None;
                    break;
                }
            }
        }
        self.killed.drain(..self.killed.len().saturating_sub(KEPT));
    }
}

/// The memory cgroup that a record says the victim was in. Kernels say it since 5.0.
fn killed(record: &str) -> Option<&str> {
    let (_, told) = record.split_once(";oom-kill:")?;
    let (_, cgroup) = told.split_once(",task_memcg=")?;
    // Names of processes may hold commas, names of cgroups ours do not.
    Some(cgroup.split([',', '\n']).next().unwrap_or(cgroup))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_victims_cgroup_is_read_from_the_kernels_own_words() {
        let record = "6,38800,41666414573,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=c1,mems_allowed=0,\
            oom_memcg=/kubepods/pod1,task_memcg=/kubepods/pod1/c1,task=tail,pid=4242,uid=0\n SUBSYSTEM=x\n";
        assert_eq!(killed(record), Some("/kubepods/pod1/c1"));
        let under_systemd = "6,1,1,-;oom-kill:constraint=CONSTRAINT_NONE,task_memcg=/kubepods.slice/cri-containerd-c1.scope,task=a,b,pid=1";
        assert_eq!(killed(under_systemd), Some("/kubepods.slice/cri-containerd-c1.scope"));
        assert_eq!(killed("3,2,1,-;Memory cgroup out of memory: Killed process 4242 (tail) total-vm:10kB"), None);
        assert_eq!(killed("6,2,1,-;somebody wrote oom-kill:,task_memcg=/kubepods/pod1/c1"), None);
    }
}
