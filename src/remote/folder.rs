//! A private folder per process for ssh's files and sockets, on a path short enough for a unix socket.

use crate::error::{Context, Kind, Result};
use crate::sys::executable::sha256;
use crate::sys::files::write_atomic;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// sun_path holds 108 bytes (unix(7)); the openssh crate adds `/.ssh-connectionXXXXXX/master`, ssh `.` and 16 letters while it binds,
/// and we `/ssh/<pid>`.
const LONGEST: usize = 108 - 1 - 29 - 17 - 12;

/// Removed with everything in it when dropped; what a killed process left is removed by the next.
pub struct Folder(PathBuf);

impl Folder {
    pub fn make(state: &Path) -> Result<Folder> {
        let failed = || format!("could not make a private folder for SSH in {}", state.display());
        let shared = shared(state, &std::env::temp_dir());
        private(&shared).or_fail(Kind::Host, failed)?;
        sweep(&shared);
        // One process may hold several: each gets a number of its own, by whoever creates it first.
        let mut names = (0..).map(|n| shared.join(format!("{}.{n}", std::process::id())));
        let own = loop {
            let path = names.next().expect("numbers do not end");
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => break path,
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                outcome => outcome.or_fail(Kind::Host, failed)?,
            }
        };
        Ok(Folder(own))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        self.write_as(name, content, 0o600)
    }

    pub fn write_as(&self, name: &str, content: &[u8], mode: u32) -> Result<()> {
        write_atomic(&self.0.join(name), content, mode).or_fail(Kind::Host, || format!("could not write {name} for ssh"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
        // Gone with the last of its users; else it is not empty and stays.
        if let Some(shared) = self.0.parent() {
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
    let name = format!("kprov-{}-{}", nix::unistd::geteuid(), &sha256(state.as_os_str().as_encoded_bytes())[..8]);
    temporary.join(name)
}

/// Ours alone, or refused: in a folder that all may write to, somebody could have been there first.
fn private(path: &Path) -> std::io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let found = fs::symlink_metadata(path)?;
    if !found.is_dir() || found.uid() != nix::unistd::geteuid().as_raw() || found.mode() & 0o077 != 0 {
        return Err(std::io::Error::other(format!("{} is not a private folder of this user", path.display())));
    }
    Ok(())
}

/// Folders of processes that are no more.
fn sweep(shared: &Path) {
    for entry in fs::read_dir(shared).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.split('.').next()).and_then(|id| id.parse::<u32>().ok());
        if process.is_some_and(|id| !Path::new("/proc").join(id.to_string()).exists()) {
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
        let ours = Folder::make(state.path()).unwrap();
        let shared = ours.path().parent().unwrap().to_path_buf();
        fs::create_dir(shared.join("4194305.0")).unwrap();
        let second = Folder::make(state.path()).unwrap();
        assert!(!shared.join("4194305.0").exists());
        assert!(ours.path().exists() && second.path() != ours.path());
        drop(ours);
        assert!(second.path().exists());
        drop(second);
        assert!(!shared.exists());
    }

    #[test]
    fn a_folder_that_others_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let state = tempfile::tempdir().unwrap();
        let shared = shared(state.path(), &std::env::temp_dir());
        fs::create_dir(&shared).unwrap();
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Folder::make(state.path()).is_err());
    }
}
