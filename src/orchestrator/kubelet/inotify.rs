//! Waits for changes of files and folders through the kernel; nothing is polled.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use tokio::io::unix::AsyncFd;

pub struct Watch {
    fd: AsyncFd<OwnedFd>,
}

impl Watch {
    /// Everything that happens to the entries of `folder`: written, created, renamed, deleted.
    pub fn folder(folder: &Path) -> io::Result<Watch> {
        // SAFETY: no pointers are passed; the result is checked.
        let raw = unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `raw` is a descriptor that was just opened and that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        let path = CString::new(folder.as_os_str().as_bytes())?;
        let mask = libc::IN_MODIFY | libc::IN_CREATE | libc::IN_MOVED_TO | libc::IN_MOVED_FROM | libc::IN_DELETE | libc::IN_CLOSE_WRITE;
        // SAFETY: `path` is a terminated string that outlives the call.
        if unsafe { libc::inotify_add_watch(fd.as_raw_fd(), path.as_ptr(), mask) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is valid, and the AsyncFd owns it until it has deregistered it.
        let fd = unsafe { AsyncFd::register(fd) }.map_err(io::Error::other)?;
        Ok(Watch { fd })
    }

    /// Returns when something happened since the last return.
    pub async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.fd.readable().await?;
            let mut buffer = [0_u8; 4096];
            // SAFETY: the buffer is as long as said and outlives the call. What is in it does not matter: the caller looks itself.
            let read = ready.try_io(|fd| match unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) } {
                count if count < 0 => Err(io::Error::last_os_error()),
                count => Ok(count),
            });
            match read {
                Ok(result) => return result.map(drop),
                Err(_would_block) => continue,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_written_file_wakes_the_watcher() {
        let folder = tempfile::tempdir().unwrap();
        let watch = Watch::folder(folder.path()).unwrap();
        std::fs::write(folder.path().join("a"), "x").unwrap();
        watch.changed().await.unwrap();
    }
}
