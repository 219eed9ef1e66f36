//! Files that change all at once: a volume's content lives in a dated folder, `..data` points to it, and one rename swaps them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Component, Path};

const DATA: &str = "..data";

#[derive(Debug, Clone, PartialEq)]
pub struct File {
    pub bytes: Vec<u8>,
    pub mode: u32,
    /// Owner, when it is not root.
    pub user: Option<u32>,
}

/// By path relative to the volume.
pub type Payload = BTreeMap<String, File>;

/// Makes `folder` hold exactly `payload`; true when something changed. Readers see the old content or the new.
pub fn write(folder: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    for path in payload.keys() {
        check_path(path)?;
    }
    let current = fs::read_link(folder.join(DATA)).ok();
    if let Some(current) = &current
        && holds(&folder.join(current), payload, group)
    {
        return Ok(false);
    }
    let dated = format!("..{}.{:08x}", crate::orchestrator::client::time::now().strftime("%Y_%m_%d_%H_%M_%S"), rand::random::<u32>());
    fill(&folder.join(&dated), payload, group)?;
    let temporary = folder.join("..data_tmp");
    let _ = fs::remove_file(&temporary);
    symlink(&dated, &temporary)?;
    fs::rename(&temporary, folder.join(DATA))?;
    link_names(folder, payload)?;
    if let Some(current) = current {
        let _ = fs::remove_dir_all(folder.join(current));
    }
    Ok(true)
}

/// True when the volume was filled before (by an earlier run of the agent).
pub fn is_filled(folder: &Path) -> bool {
    folder.join(DATA).exists()
}

fn check_path(path: &str) -> io::Result<()> {
    let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    let hidden = path.split('/').next().is_some_and(|first| first.starts_with(".."));
    if path.is_empty() || !plain || hidden {
        return Err(io::Error::other(format!("could not use {path:?} as a path inside a volume")));
    }
    Ok(())
}

fn fill(folder: &Path, payload: &Payload, group: Option<u32>) -> io::Result<()> {
    make_folder(folder, group)?;
    for (path, file) in payload {
        let target = folder.join(path);
        let mut parent = folder.to_owned();
        for part in Path::new(path).parent().into_iter().flat_map(Path::components) {
            parent.push(part);
            make_folder(&parent, group)?;
        }
        fs::write(&target, &file.bytes)?;
        if file.user.is_some() || group.is_some() {
            chown(&target, file.user, group)?;
        }
        fs::set_permissions(&target, fs::Permissions::from_mode(mode(file, group)))?;
    }
    Ok(())
}

fn make_folder(folder: &Path, group: Option<u32>) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        other => other?,
    }
    if group.is_some() {
        chown(folder, None, group)?;
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(if group.is_some() { 0o2775 } else { 0o755 }))
}

/// The group of the pod may read what the owner may.
fn mode(file: &File, group: Option<u32>) -> u32 {
    if group.is_some() { file.mode | 0o440 } else { file.mode }
}

fn holds(folder: &Path, payload: &Payload, group: Option<u32>) -> bool {
    let same = |(path, file): (&String, &File)| {
        let target = folder.join(path);
        let Ok(meta) = fs::symlink_metadata(&target) else { return false };
        meta.is_file()
            && meta.mode() & 0o7777 == mode(file, group)
            && group.is_none_or(|group| meta.gid() == group)
            && fs::read(&target).is_ok_and(|bytes| bytes == file.bytes)
    };
    count(folder) == payload.len() && payload.iter().all(same)
}

fn count(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| if entry.file_type().is_ok_and(|kind| kind.is_dir()) { count(&entry.path()) } else { 1 }).sum()
}

/// Names that users see point through `..data`, so that they change together.
fn link_names(folder: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: BTreeSet<&str> = payload.keys().filter_map(|path| path.split('/').next()).collect();
    for entry in fs::read_dir(folder)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        if ours && !name.starts_with("..") && !wanted.contains(name.as_str()) {
            fs::remove_file(entry.path())?;
        }
    }
    for name in wanted {
        match symlink(Path::new(DATA).join(name), folder.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |text: &str| File { bytes: text.as_bytes().to_vec(), mode: 0o640, user: None };
        files.iter().map(|(path, text)| ((*path).to_owned(), file(text))).collect()
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.retain(|name| !name.starts_with(".."));
        names.sort();
        names
    }

    #[test]
    fn content_is_swapped_whole_and_unchanged_content_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        assert!(write(path, &payload(&[("a", "1"), ("dir/b", "2")]), None).unwrap());
        assert_eq!(names(path), ["a", "dir"]);
        assert_eq!(fs::read_to_string(path.join("dir/b")).unwrap(), "2");
        assert_eq!(fs::metadata(path.join("a")).unwrap().mode() & 0o7777, 0o640);
        let before = fs::read_link(path.join(DATA)).unwrap();
        assert!(!write(path, &payload(&[("a", "1"), ("dir/b", "2")]), None).unwrap());
        assert_eq!(fs::read_link(path.join(DATA)).unwrap(), before);
        assert!(write(path, &payload(&[("a", "3"), ("c", "4")]), None).unwrap());
        assert_eq!(names(path), ["a", "c"]);
        assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "3");
        assert!(!path.join(before).exists());
    }

    #[test]
    fn paths_out_of_the_volume_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for bad in ["../a", "/a", "a/../../b", "..data", ""] {
            assert!(write(folder.path(), &payload(&[(bad, "x")]), None).is_err(), "{bad:?}");
        }
    }
}
