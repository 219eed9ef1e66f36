//! Files and folders that are as they should be, or are made so.

use crate::bootstrap::spec::{Directory, File, Leaf, MARKER, Marker};
use crate::bootstrap::trust::{self, read};
use crate::error::{Context, Kind, Result};
use crate::sys::executable::Executable;
use crate::sys::files::write_atomic;
use crate::sys::paths;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::SystemTime;

/// Written by the upload beside the program: sum, size, time of last change (seconds).
const PROGRAM_SUM: &str = "/etc/kprov/program.sum";

pub fn ensure_directory(folder: &Directory) -> Result<bool> {
    let failed = || format!("could not make the folder {}", folder.path.display());
    match fs::metadata(&folder.path) {
        Ok(found) if found.is_dir() && found.mode() & 0o7777 == folder.mode => return Ok(false),
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {
            fs::DirBuilder::new().recursive(true).mode(folder.mode).create(&folder.path).or_fail(Kind::Host, failed)?;
        }
        Err(error) => return Err(crate::error::Error::host(failed()).because(error)),
    }
    fs::set_permissions(&folder.path, fs::Permissions::from_mode(folder.mode)).or_fail(Kind::Host, failed)?;
    Ok(true)
}

/// Same content and mode: untouched. A secret has its mode from the first byte on.
pub fn ensure(path: &Path, mode: u32, content: &[u8]) -> Result<bool> {
    let failed = || format!("could not write {}", path.display());
    let same = fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.mode() & 0o7777 == mode)
        && fs::read(path).is_ok_and(|found| found == content);
    if same {
        return Ok(false);
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).or_fail(Kind::Host, failed)?;
    }
    write_atomic(path, content, mode).or_fail(Kind::Host, failed)?;
    Ok(true)
}

/// Keeps a pair that still says what is wanted, fits together and is young enough; else both files are replaced.
pub fn ensure_leaf(leaf: &Leaf, now: SystemTime) -> Result<bool> {
    let text = |path: &Path| fs::read_to_string(path).ok();
    if let (Some(certificate), Some(key)) = (text(&leaf.certificate.path), text(&leaf.key.path)) {
        let offered = String::from_utf8_lossy(&leaf.certificate.content);
        if read::still_good(&certificate, &offered, now) && read::key_fits(&certificate, &key) {
            return Ok(false);
        }
    }
    for file in [&leaf.key, &leaf.certificate] {
        ensure(&file.path, file.mode, &file.content)?;
    }
    Ok(true)
}

pub fn marker() -> Option<Marker> {
    serde_json::from_slice(&fs::read(MARKER).ok()?).ok()
}

/// The installed program's SHA-256; read anew only when the upload's note does not fit it.
pub fn program_sum() -> Result<String> {
    let failed = || format!("could not read {}", paths::BINARY);
    let found = fs::metadata(paths::BINARY).or_fail(Kind::Host, failed)?;
    let noted = fs::read_to_string(PROGRAM_SUM).unwrap_or_default();
    let fits = format!("{} {}", found.size(), found.mtime());
    match noted.trim_end().split_once(' ') {
        Some((sum, rest)) if rest == fits && sum.len() == 64 => Ok(sum.to_string()),
        _ => Ok(Executable::at(Path::new(paths::BINARY))?.sha256),
    }
}

/// The cluster's keys, where this machine has them.
pub fn keys(folder: &Path) -> Result<Vec<File>> {
    let mut files = Vec::new();
    for name in trust::FILES {
        match fs::read(folder.join(name)) {
            Ok(content) => files.push(File { path: name.into(), mode: 0o600, content }),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(crate::error::Error::host(format!("could not read {name}")).because(error)),
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap::trust::Trust;
    use crate::engine::Cluster;
    use std::time::Duration;

    #[test]
    fn a_file_is_written_once_and_again_when_its_mode_or_content_differ() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/file");
        assert!(ensure(&path, 0o600, b"one").unwrap());
        assert!(!ensure(&path, 0o600, b"one").unwrap());
        assert!(ensure(&path, 0o600, b"two").unwrap());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(ensure(&path, 0o600, b"two").unwrap());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_link_in_a_files_place_is_replaced_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        fs::write(&target, "mine").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(ensure(&link, 0o600, b"secret").unwrap());
        assert_eq!(fs::read(&target).unwrap(), b"mine");
    }

    #[test]
    fn a_directory_gets_its_mode_back() {
        let folder = tempfile::tempdir().unwrap();
        let wanted = Directory { path: folder.path().join("pki"), mode: 0o700 };
        assert!(ensure_directory(&wanted).unwrap());
        assert!(!ensure_directory(&wanted).unwrap());
        fs::set_permissions(&wanted.path, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(ensure_directory(&wanted).unwrap());
    }

    #[test]
    fn a_crash_between_key_and_certificate_heals_on_the_next_run() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let trust = Trust::create(&Cluster { name: "shop".into(), uid: "u1".into() }, now).unwrap();
        let offer = || {
            let pair = trust.authority().unwrap().node("worker-1", "10.0.0.1".parse().unwrap(), now).unwrap();
            let file = |name: &str, text: String| File { path: folder.path().join(name), mode: 0o600, content: text.into_bytes() };
            Leaf { certificate: file("node.crt", pair.certificate), key: file("node.key", pair.key) }
        };
        assert!(ensure_leaf(&offer(), now).unwrap());
        assert!(!ensure_leaf(&offer(), now).unwrap(), "a new offer does not replace what still does");
        fs::write(folder.path().join("node.key"), offer().key.content).unwrap();
        assert!(ensure_leaf(&offer(), now).unwrap());
        assert!(ensure_leaf(&offer(), now + Duration::from_secs(300 * 86_400)).unwrap());
    }
}
