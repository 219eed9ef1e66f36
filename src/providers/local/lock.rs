//! Locks that outlive their taker: an open lock file can be handed to a child, and no moment without an owner exists in between.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// `None` when it is held; the lock is on the file that has this name now, not on one that was removed meanwhile.
pub fn try_take(path: &Path) -> io::Result<Option<File>> {
    let file = open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(still_named(&file, path).then_some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Waits in the kernel; `None` when the file was removed meanwhile.
pub fn wait(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    file.lock()?;
    Ok(still_named(&file, path).then_some(file))
}

fn still_named(file: &File, path: &Path) -> bool {
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    matches!((file.metadata().map(identity), std::fs::metadata(path).map(identity)), (Ok(ours), Ok(named)) if ours == named)
}

/// In a child between fork and exec: lets the descriptor through.
pub fn keep_over_exec(file: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: fcntl on a descriptor that the caller holds.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, 0) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The lock handed over by the parent in the named environment variable; not handed on any further.
pub fn inherited(variable: &str) -> Option<File> {
    let fd: i32 = std::env::var(variable).ok()?.parse().ok()?;
    // SAFETY: the parent opened it for this process and says so; it is taken once, at start.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC)).ok()?;
    Some(fd.into())
}
