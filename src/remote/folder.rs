//! A private folder per process for ssh's files and sockets, on a path short enough for a unix socket.

use crate::error::{Context, Kind, Result};
use crate::sys::files::{Lock, write_atomic};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// sun_path holds 108 bytes (unix(7)); the openssh crate adds `/.ssh-connectionXXXXXX/master`, ssh `.` and 16 letters while it binds,
/// and we `/ssh/<pid>`.
const LONGEST: usize = 108 - 1 - 29 - 17 - 12;
/// Held by who uses the folder: process numbers mean nothing to another container that shares the temporary folder.
const IN_USE: &str = "in-use";
/// Of this process's next folder.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// Removed with everything in it when dropped; what a killed process left is removed by the next.
pub struct Folder {
    path: PathBuf,
    _in_use: Lock,
}

impl Folder {
    pub fn make(state: &Path) -> Result<Folder> {
        let shared = shared(state, &std::env::temp_dir());
        Folder::make_in(&shared).or_fail(Kind::Host, || format!("could not make a private folder for SSH in {}", shared.display()))
    }

    fn make_in(shared: &Path) -> io::Result<Folder> {
        loop {
            // Never the same twice: who sweeps must not take a new folder for the one that it found.
            let name = format!("{}.{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
            match Folder::claim(shared, shared.join(name)) {
                Ok(Some(folder)) => {
                    sweep(shared);
                    return Ok(folder);
                }
                Ok(None) => {}
                // The last of the others took the shared one away meanwhile, or somebody swept before it was held.
                Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn claim(shared: &Path, path: PathBuf) -> io::Result<Option<Folder>> {
        private(shared)?;
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        let lock = Lock::try_take(&path.join(IN_USE))?;
        Ok(lock.filter(|_| path.join(IN_USE).exists()).map(|lock| Folder { path, _in_use: lock }))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        self.write_as(name, content, 0o600)
    }

    pub fn write_as(&self, name: &str, content: &[u8], mode: u32) -> Result<()> {
        write_atomic(&self.path.join(name), content, mode).or_fail(Kind::Host, || format!("could not write {name} for ssh"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
        // Gone with the last of its users; else it is not empty and stays.
        if let Some(shared) = self.path.parent() {
            let _ = fs::remove_dir(shared);
        }
    }
}

/// Below the state folder, unless its path is too long, or has letters that ssh's configuration would take for something else.
fn shared(state: &Path, temporary: &Path) -> PathBuf {
    let plain = |path: &Path| {
        let text = path.as_os_str().as_encoded_bytes();
        text.len() <= LONGEST && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(byte))
    };
    if plain(state) {
        return state.join("ssh");
    }
    // One for all clusters of this user: whoever is next removes what any of them left.
    temporary.join(format!("kprov-{}", nix::unistd::geteuid()))
}

/// Ours alone, or refused: in a folder that all may write to, somebody could have been there first.
fn private(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = fs::symlink_metadata(path)?;
    if !found.is_dir() || found.uid() != nix::unistd::geteuid().as_raw() || found.mode() & 0o077 != 0 {
        return Err(io::Error::other(format!("{} is not a private folder of this user", path.display())));
    }
    Ok(())
}

/// Folders that nobody holds.
fn sweep(shared: &Path) {
    for entry in fs::read_dir(shared).into_iter().flatten().flatten() {
        if let Ok(Some(_lock)) = Lock::try_take(&entry.path().join(IN_USE)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_or_strange_state_folder_gets_a_short_plain_one_elsewhere() {
        let check = |state: &str, expected: &str| {
            let found = shared(Path::new(state), Path::new("/tmp"));
            assert!(found.display().to_string().starts_with(expected), "{}", found.display());
        };
        check("/root/.local/state/kprov/clusters/shop", "/root/.local/state/kprov/clusters/shop/ssh");
        check(&format!("/{}", "long".repeat(20)), "/tmp/kprov-");
        check("/home/a b/state", "/tmp/kprov-");
        check("/home/%h/state", "/tmp/kprov-");
    }

    #[test]
    fn what_dead_processes_left_is_swept_and_the_living_keep_theirs() {
        let state = tempfile::tempdir().unwrap();
        let shared = state.path().join("ssh");
        let ours = Folder::make_in(&shared).unwrap();
        fs::create_dir_all(shared.join("1.0/.ssh-connection")).unwrap();
        let second = Folder::make_in(&shared).unwrap();
        assert!(!shared.join("1.0").exists());
        assert!(ours.path().exists() && second.path() != ours.path());
        drop(ours);
        assert!(second.path().exists());
        drop(second);
        assert!(!shared.exists());
    }

    #[test]
    fn many_at_once_get_folders_of_their_own() {
        let state = tempfile::tempdir().unwrap();
        let shared = state.path().join("ssh");
        let make = || {
            for _ in 0..100 {
                let folder = Folder::make_in(&shared).unwrap();
                folder.write("key", b"ours").unwrap();
                assert_eq!(fs::read(folder.path().join("key")).unwrap(), b"ours");
            }
        };
        std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(make))));
        assert!(!shared.exists());
    }

    #[test]
    fn what_others_may_read_and_what_is_no_folder_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let shared = tempfile::tempdir().unwrap();
        fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Folder::make_in(shared.path()).is_err());
        let (file, link) = (shared.path().join("file"), shared.path().join("link"));
        fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        assert!(Folder::make_in(&file).is_err() && Folder::make_in(&link).is_err());
    }
}
