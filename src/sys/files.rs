//! Files that are whole or absent: atomic writes, and locks that the kernel releases on any death.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Replaces `path` with `bytes` so that a reader, or the next run after a crash, sees the old content or the new, never a part.
/// The file gets exactly `mode` from its first byte on; the folder is synced, so the rename survives a power cut.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| io::Error::other("no file name"))?;
    let temporary = folder.join(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id()));
    let result = (|| {
        let _ = fs::remove_file(&temporary);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        // The umask may have taken bits away; a secret never gets more than asked because create_new used the mode already.
        fs::set_permissions(&temporary, std::os::unix::fs::PermissionsExt::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(folder)?.sync_all()
    })();
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// Makes sure that there is no such file.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// An exclusive lock on a file; released when dropped and by the kernel when the process dies in any way.
#[derive(Debug)]
pub struct Lock {
    _file: nix::fcntl::Flock<File>,
}

impl Lock {
    /// `Ok(None)` when somebody else holds it.
    pub fn try_take(path: &Path) -> io::Result<Option<Lock>> {
        Self::take(path, nix::fcntl::FlockArg::LockExclusiveNonblock)
    }

    /// Waits in the kernel until the lock is free; for threads of their own.
    pub fn wait(path: &Path) -> io::Result<Lock> {
        Self::take(path, nix::fcntl::FlockArg::LockExclusive)?.ok_or_else(|| io::Error::other("lock refused"))
    }

    fn take(path: &Path, how: nix::fcntl::FlockArg) -> io::Result<Option<Lock>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match nix::fcntl::Flock::lock(file, how) {
            Ok(file) => Ok(Some(Lock { _file: file })),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => Err(error.into()),
        }
    }
}
