//! Processes by more than their number: a handle that cannot mean another process, and an identity that survives in a file.

use serde::{Deserialize, Serialize};
use std::fs;
use std::os::fd::{FromRawFd, OwnedFd};

/// A pid alone may have been given to another process since.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    pub pid: i32,
    /// Clock ticks after boot, from /proc/<pid>/stat.
    pub start_time: u64,
}

impl Identity {
    /// `None` when there is no such process, or it is a zombie.
    pub fn of(pid: i32) -> Option<Identity> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let start_time = fields.get(19)?.parse().ok()?;
        (fields.first() != Some(&"Z") && fields.first() != Some(&"X")).then_some(Identity { pid, start_time })
    }

    pub fn is_alive(&self) -> bool {
        Identity::of(self.pid).as_ref() == Some(self)
    }
}

/// Readable once the process has ended, child or not. `None` when it is gone already.
pub fn open_pidfd(pid: i32) -> Option<OwnedFd> {
    // SAFETY: plain system call with integer arguments; a non-negative result is a descriptor that nobody else owns.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        (fd >= 0).then(|| OwnedFd::from_raw_fd(fd as i32))
    }
}

/// Returns when the process has ended, whoever its parent is.
pub async fn ended(pid: i32) {
    use tokio::io::{Interest, unix::AsyncFd};
    let Some(fd) = open_pidfd(pid) else { return };
    // SAFETY: the descriptor is owned by what is registered, and stays open and the same until that is dropped.
    if let Ok(fd) = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) } {
        let _ = fd.readable().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_recognised_by_pid_and_start_time() {
        let me = Identity::of(std::process::id() as i32).expect("I exist");
        assert!(me.is_alive());
        assert!(!Identity { start_time: me.start_time + 1, ..me }.is_alive());
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_seen() {
        let mut child = std::process::Command::new("/bin/cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pid = child.id() as i32;
        let watched = tokio::spawn(ended(pid));
        drop(child.stdin.take());
        watched.await.unwrap();
        assert!(child.wait().unwrap().success());
    }
}
