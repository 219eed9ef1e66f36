//! A container's last words: the file it may write, or the end of its log.

use super::container::TERMINATION_MESSAGE_PATH;
use super::cri::messages::Mount;
use crate::sys::files;
use k8s_openapi::api::core::v1::Container;
use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Upstream's limits.
const LONGEST: u64 = 4096;
const LOG_BYTES: u64 = 2048;
const LOG_LINES: usize = 80;

fn path(pod_folder: &Path, container: &str, attempt: u32) -> PathBuf {
    pod_folder.join("containers").join(container).join(attempt.to_string())
}

/// An empty file that the container writes through a mount.
pub fn prepare(pod_folder: &Path, spec: &Container, attempt: u32) -> io::Result<Mount> {
    let file = path(pod_folder, &spec.name, attempt);
    fs::create_dir_all(file.parent().unwrap_or(&file))?;
    fs::write(&file, b"")?;
    // Any user in the container may write; the folder above is root's.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666))?;
    let inside = spec.termination_message_path.clone().filter(|path| !path.is_empty()).unwrap_or_else(|| TERMINATION_MESSAGE_PATH.into());
    Ok(Mount { container_path: inside, host_path: file.to_string_lossy().into_owned(), readonly: false, propagation: 0 })
}

/// What the container said; `from_log` allows the end of its log instead when it failed without a word.
pub fn read(pod_folder: &Path, container: &str, attempt: u32, log: &Path, from_log: bool) -> String {
    let said = tail(&path(pod_folder, container, attempt), LONGEST).unwrap_or_default();
    if !said.is_empty() || !from_log {
        return said;
    }
    let end = tail(log, LOG_BYTES * 2).unwrap_or_default();
    let lines: Vec<&str> = end.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).collect();
    let text = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
    let from = text.len().saturating_sub(LOG_BYTES as usize);
    let from = (from..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    text[from..].to_owned()
}

/// Forgets what the container said; nothing said is nothing to forget.
pub fn remove(pod_folder: &Path, container: &str, attempt: u32) -> io::Result<()> {
    files::remove(&path(pod_folder, container, attempt))
}

fn tail(file: &Path, bytes: u64) -> io::Result<String> {
    let mut file = fs::File::open(file)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
    let mut buffer = Vec::new();
    file.take(bytes).read_to_end(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_come_from_the_file_or_else_from_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let spec = Container { name: "web".into(), ..Default::default() };
        let mount = prepare(folder.path(), &spec, 1).unwrap();
        let log = folder.path().join("0.log");
        fs::write(&log, "2026-11-23T19:11:03.7Z stderr F panic: one\n2026-11-23T19:11:03.8Z stderr F two\n").unwrap();
        let check = |from_log, wanted: &str| assert_eq!(read(folder.path(), "web", 1, &log, from_log), wanted);
        check(false, "");
        check(true, "panic: one\ntwo");
        fs::write(&mount.host_path, "out of coffee").unwrap();
        check(true, "out of coffee");
        let next = prepare(folder.path(), &spec, 2).unwrap();
        for _ in 0..2 {
            remove(folder.path(), "web", 1).unwrap();
        }
        assert!(!Path::new(&mount.host_path).exists() && Path::new(&next.host_path).exists());
    }
}
