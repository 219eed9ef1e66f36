//! Keeps logs from filling the disk: 10 MiB a file, five files a container, as upstream.

use crate::orchestrator::kubelet::cri::Runtime;
use crate::sys::files;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const LARGEST_BYTES: u64 = 10 << 20;
const FILES: usize = 5;

/// Rotates the log of one running container if it is too large.
pub async fn rotate(runtime: &Runtime, container_id: &str, log: &Path) -> io::Result<()> {
    if !fs::metadata(log).is_ok_and(|meta| meta.len() > LARGEST_BYTES) {
        return Ok(());
    }
    let stamp = crate::orchestrator::client::time::now().strftime("%Y%m%d-%H%M%S").to_string();
    let aside = PathBuf::from(format!("{}.{stamp}", log.display()));
    fs::rename(log, &aside)?;
    if let Err(refusal) = runtime.reopen_log(container_id).await {
        // The runtime still writes to the old file: it gets its name back.
        fs::rename(&aside, log)?;
        return Err(io::Error::other(refusal));
    }
    remove_oldest(log, FILES - 1)
}

/// Removes a log with all that was rotated out of it; what is not there is removed already.
pub fn remove(log: &Path) -> io::Result<()> {
    let old = match rotated(log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    old.iter().map(PathBuf::as_path).chain([log]).try_for_each(files::remove)
}

fn remove_oldest(log: &Path, keep: usize) -> io::Result<()> {
    let mut old = rotated(log)?;
    old.sort();
    let surplus = old.len().saturating_sub(keep);
    old[..surplus].iter().try_for_each(fs::remove_file)
}

fn rotated(log: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(folder), Some(name)) = (log.parent(), log.file_name()) else { return Ok(Vec::new()) };
    let prefix = format!("{}.", name.to_string_lossy());
    let entries = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    Ok(entries.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_of(names: [&str; 5]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        names.iter().for_each(|name| fs::write(folder.path().join(name), "").unwrap());
        folder
    }

    #[test]
    fn the_oldest_files_go_first() {
        let folder =
            folder_of(["0.log", "0.log.20260101-000003", "0.log.20260101-000001", "0.log.20260101-000002", "1.log.20260101-000001"]);
        let log = folder.path().join("0.log");
        remove_oldest(&log, 2).unwrap();
        assert_eq!(rotated(&log).unwrap().len(), 2);
        assert!(!folder.path().join("0.log.20260101-000001").exists());
        assert!(folder.path().join("1.log.20260101-000001").exists());
    }

    #[test]
    fn a_log_goes_with_its_rotated_files_and_no_others() {
        let folder = folder_of(["1.log", "1.log.20260101-000001", "11.log", "11.log.20260101-000001", "2.log"]);
        let log = folder.path().join("1.log");
        for _ in 0..2 {
            remove(&log).unwrap();
        }
        let mut left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["11.log", "11.log.20260101-000001", "2.log"]);
        remove(&folder.path().join("never/0.log")).unwrap();
    }
}
