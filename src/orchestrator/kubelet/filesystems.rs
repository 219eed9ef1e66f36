//! Shared filesystems of this node: mounted at the agent's start and after whatever unmounts them, let go when no longer wanted.
//!
//! What is mounted where is noted before it is mounted, so that a source that changed is noticed by the next run, whoever was killed.

use super::{Context, node};
use crate::error::{Context as _, Error, Kind, Result};
use crate::orchestrator::client::backoff::Backoff;
use crate::orchestrator::config::FilesystemMount;
use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Where they are, by name.
pub const FILESYSTEMS: &str = "/var/lib/kprov/filesystems";
/// The kernel tells nobody that a filesystem was unmounted by hand.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// Two rounds of NFS time-outs; longer is a server that does not answer.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(150);
/// Waits for a server that is away instead of failing writes; retries on another port, so that a fail-over is survived.
const NFS4_OPTIONS: &str = "hard,nfsvers=4.1,timeo=600,retrans=2,noresvport";
/// For servers that know the third version alone.
const NFS3_OPTIONS: &str = "hard,nfsvers=3,timeo=600,retrans=2";

type Wanted = BTreeMap<String, FilesystemMount>;

/// Keeps the node's filesystems until cancelled. One that cannot be mounted is an event of the Node and is tried again.
pub async fn keep(context: Arc<Context>, cancel: CancellationToken) {
    let mounts = Mounts { root: FILESYSTEMS.into(), notes: context.config.data.join("filesystems.json"), program: "mount".into() };
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30), rand::random());
    while !cancel.is_cancelled() {
        let troubles = mounts.settle(&context.config.filesystems).await;
        for trouble in &troubles {
            tracing::warn!(error = %trouble.chain(), "a filesystem is not as it should be");
            context.recorder.warning(node::subject(&context.config.node_name), "FilesystemUnavailable", trouble.chain());
        }
        if troubles.is_empty() {
            backoff.reset();
        }
        let pause = if troubles.is_empty() { LOOK_AGAIN } else { backoff.next_delay() };
        cancel.run_until_cancelled(tokio::time::sleep(pause)).await;
    }
}

/// A folder whose filesystem is not mounted has no mode at all: pods must not write into it.
pub fn is_there(folder: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(folder).is_ok_and(|found| found.is_dir() && found.permissions().mode() & 0o7777 != 0)
}

struct Mounts {
    root: PathBuf,
    notes: PathBuf,
    program: PathBuf,
}

impl Mounts {
    /// Everything is tried; what did not work comes back.
    async fn settle(&self, wanted: &Wanted) -> Vec<Error> {
        let mut notes: Wanted = std::fs::read(&self.notes).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let mut troubles = Vec::new();
        let stale: Vec<String> =
            notes.iter().filter(|(name, mount)| wanted.get(*name) != Some(*mount)).map(|(name, _)| name.clone()).collect();
        for name in stale {
            match self.let_go(&name).await {
                Ok(()) => drop(notes.remove(&name)),
                Err(error) => troubles.push(error),
            }
        }
        notes.extend(
            wanted
                .iter()
                .filter(|(name, _)| !notes.contains_key(*name))
                .map(|(name, mount)| (name.clone(), mount.clone()))
                .collect::<Wanted>(),
        );
        if let Err(error) = self.note(&notes) {
            troubles.push(error);
            return troubles;
        }
        for (name, mount) in wanted.iter().filter(|(name, mount)| notes.get(*name) == Some(*mount)) {
            troubles.extend(self.ensure(name, mount).await.err());
        }
        troubles
    }

    fn note(&self, notes: &Wanted) -> Result<()> {
        let text = serde_json::to_vec(notes).expect("plain data always serialises");
        if std::fs::read(&self.notes).is_ok_and(|held| held == text) || (notes.is_empty() && !self.notes.exists()) {
            return Ok(());
        }
        let failed = || format!("could not write {}", self.notes.display());
        crate::sys::files::write_atomic(&self.notes, &text, 0o600).or_fail(Kind::Host, failed)
    }

    async fn ensure(&self, name: &str, mount: &FilesystemMount) -> Result<()> {
        let folder = self.root.join(name);
        if is_mounted(&folder)? {
            return Ok(());
        }
        let failed = || format!("could not mount filesystem {name} from {}", mount.source);
        let arguments = arguments(mount).ok_or_else(|| Error::input(format!("{}: it is not of type bind, nfs or nfs4", failed())))?;
        if !folder.exists() {
            std::fs::create_dir_all(&self.root).or_fail(Kind::Host, failed)?;
            std::fs::DirBuilder::new().mode(0o000).create(&folder).or_fail(Kind::Host, failed)?;
        }
        let mut command = tokio::process::Command::new(&self.program);
        command.args(arguments).arg("--").arg(&mount.source).arg(&folder).stdin(std::process::Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(MOUNT_TIMEOUT, command.output()).await;
        let output =
            output.map_err(|_| Error::timeout(format!("{}: no answer", failed())).hint(hint(mount)))?.or_fail(Kind::Host, failed)?;
        if !output.status.success() {
            let words: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(1000).collect();
            return Err(Error::host(failed()).because(words).hint(hint(mount)));
        }
        tracing::info!(name, source = mount.source, "filesystem mounted");
        Ok(())
    }

    async fn let_go(&self, name: &str) -> Result<()> {
        let folder = self.root.join(name);
        let failed = || format!("could not unmount filesystem {name}");
        if is_mounted(&folder)? {
            let place = folder.clone();
            // A server that is gone would hold a plain unmount for ever.
            let detached = tokio::task::spawn_blocking(move || {
                nix::mount::umount2(&place, nix::mount::MntFlags::MNT_DETACH | nix::mount::MntFlags::UMOUNT_NOFOLLOW)
            });
            detached.await.or_fail(Kind::Internal, failed)?.or_fail(Kind::Host, failed)?;
            tracing::info!(name, "filesystem unmounted");
        }
        // Only where it is empty: whatever else is there is not kprov's to remove.
        let _ = std::fs::remove_dir(&folder);
        Ok(())
    }
}

/// What `mount` is told before source and folder; data never becomes an option.
fn arguments(mount: &FilesystemMount) -> Option<&'static [&'static str]> {
    match mount.r#type.as_str() {
        "nfs4" => Some(&["-t", "nfs4", "-o", NFS4_OPTIONS]),
        "nfs" => Some(&["-t", "nfs", "-o", NFS3_OPTIONS]),
        "bind" => Some(&["--bind"]),
        _ => None,
    }
}

fn hint(mount: &FilesystemMount) -> String {
    let server = mount.source.split(':').next().unwrap_or_default();
    match mount.r#type.as_str() {
        "bind" => format!("look whether {} is there on the machine", mount.source),
        _ => format!("look whether the machine reaches {server} at port 2049, and whether nfs-common is installed there"),
    }
}

fn is_mounted(folder: &Path) -> Result<bool> {
    let text = std::fs::read_to_string("/proc/thread-self/mountinfo").or_fail(Kind::Host, || "could not list mounts")?;
    Ok(text.lines().filter_map(|line| line.split(' ').nth(4)).any(|place| Path::new(place) == folder))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A program that notes its arguments and binds a folder of ours, as the real one would mount the server's.
    const STAND_IN: &str = "#!/bin/sh\nhere=$(dirname \"$0\")\necho \"$*\" >>$here/calls\n[ -e $here/down ] && { echo 'Connection timed out' >&2; exit 32; }\nfor last; do :; done\nexec mount --bind $here/share \"$last\"\n";

    struct Stage(tempfile::TempDir);

    impl Stage {
        fn new() -> Option<(Stage, Mounts)> {
            // SAFETY: geteuid only reads.
            if unsafe { libc::geteuid() } != 0 {
                eprintln!("skipped: needs root");
                return None;
            }
            let folder = tempfile::tempdir().expect("a folder");
            let at = |name: &str| folder.path().canonicalize().expect("there").join(name);
            std::fs::create_dir(at("share")).expect("made");
            std::fs::write(at("mount"), STAND_IN).expect("written");
            std::fs::set_permissions(at("mount"), std::fs::Permissions::from_mode(0o755)).expect("set");
            let mounts = Mounts { root: at("root"), notes: at("notes.json"), program: at("mount") };
            Some((Stage(folder), mounts))
        }
        fn calls(&self) -> Vec<String> {
            let text = std::fs::read_to_string(self.0.path().join("calls")).unwrap_or_default();
            let root = self.0.path().canonicalize().expect("there").display().to_string();
            text.lines().map(|line| line.replace(&root, "")).collect()
        }
    }

    impl Drop for Stage {
        fn drop(&mut self) {
            let root = self.0.path().canonicalize().expect("there").join("root");
            for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
                let _ = nix::mount::umount2(&entry.path(), nix::mount::MntFlags::MNT_DETACH);
            }
        }
    }

    fn wanted(list: &[(&str, &str, &str)]) -> Wanted {
        list.iter()
            .map(|(name, kind, source)| (name.to_string(), FilesystemMount { r#type: kind.to_string(), source: source.to_string() }))
            .collect()
    }

    async fn check(mounts: &Mounts, wanted: &Wanted) {
        let troubles = mounts.settle(wanted).await;
        assert!(troubles.is_empty(), "{}", troubles[0].chain());
    }

    #[tokio::test]
    async fn a_filesystem_is_mounted_once_comes_back_and_follows_its_source() {
        let Some((stage, mounts)) = Stage::new() else { return };
        let media = wanted(&[("media", "nfs4", "fs-1.example:/")]);
        check(&mounts, &media).await;
        check(&mounts, &media).await;
        let first = "-t nfs4 -o hard,nfsvers=4.1,timeo=600,retrans=2,noresvport -- fs-1.example:/ /root/media";
        assert_eq!(stage.calls(), [first], "mounted once");
        assert!(is_there(&mounts.root.join("media")));
        nix::mount::umount(&mounts.root.join("media")).expect("unmounted by hand");
        assert!(!is_there(&mounts.root.join("media")), "no pod may write where nothing is mounted");
        check(&mounts, &media).await;
        assert_eq!(stage.calls().len(), 2);
        let moved = wanted(&[("media", "nfs", "10.0.0.9:/share")]);
        check(&mounts, &moved).await;
        assert_eq!(stage.calls()[2], "-t nfs -o hard,nfsvers=3,timeo=600,retrans=2 -- 10.0.0.9:/share /root/media");
        check(&mounts, &Wanted::new()).await;
        assert!(!mounts.root.join("media").exists(), "unmounted, and its empty folder gone");
    }

    #[tokio::test]
    async fn a_server_that_does_not_answer_is_named_and_tried_again() {
        let Some((stage, mounts)) = Stage::new() else { return };
        std::fs::write(stage.0.path().join("down"), "").expect("written");
        let both = wanted(&[("media", "nfs4", "fs-1.example:/"), ("odd", "smb", "//server/share")]);
        let troubles: Vec<String> = mounts.settle(&both).await.iter().map(Error::chain).collect();
        assert_eq!(troubles.len(), 2, "{troubles:?}");
        assert!(troubles[0].contains("filesystem media from fs-1.example:/") && troubles[0].contains("timed out"), "{troubles:?}");
        assert!(troubles[1].contains("not of type bind, nfs or nfs4"), "{troubles:?}");
        std::fs::remove_file(stage.0.path().join("down")).expect("removed");
        check(&mounts, &wanted(&[("media", "nfs4", "fs-1.example:/")])).await;
    }
}
