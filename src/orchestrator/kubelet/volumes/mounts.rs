//! Mounts below a pod's folder: memory file systems for secrets, safe sub-paths, and their sure removal.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::unistd::Gid;

/// A file system in memory at `folder`, unless there is one already; true when it is new.
pub fn memory(folder: &Path, size_bytes: Option<i64>) -> io::Result<bool> {
    if is_mounted(folder)? {
        return Ok(false);
    }
    let options = size_bytes.filter(|size| *size > 0).map_or_else(|| "mode=0755".to_owned(), |size| format!("mode=0755,size={size}"));
    mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(options.as_str()))?;
    Ok(true)
}

/// Binds `inside` of `volume` at `target`. The kernel resolves the path below the volume, so no symbolic link that a container makes
/// meanwhile can lead out of it.
pub fn sub_path(volume: &Path, inside: &str, target: &Path) -> io::Result<()> {
    if is_bound(target)? {
        return Ok(());
    }
    let root = fs::File::open(volume)?;
    let source = match open_beneath(&root, inside) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_beneath(&root, inside)?;
            open_beneath(&root, inside)?
        }
        other => other?,
    };
    let source = format!("/proc/self/fd/{}", source.as_raw_fd());
    if fs::metadata(&source)?.is_dir() {
        fs::create_dir_all(target)?;
    } else {
        fs::create_dir_all(target.parent().unwrap_or(target))?;
        fs::File::create(target)?;
    }
    mount(Some(source.as_str()), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    Ok(())
}

fn how(flags: OFlag) -> OpenHow {
    OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS)
}

fn open_beneath(root: &impl std::os::fd::AsFd, path: &str) -> io::Result<OwnedFd> {
    Ok(openat2(root, path, how(OFlag::O_PATH))?)
}

/// Makes missing folders one by one, each below the one opened before, and each as open as the volume is (whatever the umask): who may
/// write there may write here.
fn make_beneath(root: &fs::File, path: &str) -> io::Result<()> {
    let (mode, group) = (Mode::from_bits_truncate(root.metadata()?.mode() & 0o7777), Gid::from_raw(root.metadata()?.gid()));
    let mut at: OwnedFd = root.try_clone()?.into();
    for part in Path::new(path).components() {
        let std::path::Component::Normal(name) = part else {
            return Err(io::Error::other(format!("could not use {path:?} as a path inside a volume")));
        };
        let made = match nix::sys::stat::mkdirat(&at, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) => true,
            Err(nix::errno::Errno::EEXIST) => false,
            Err(error) => return Err(error.into()),
        };
        at = openat2(&at, name, how(OFlag::O_RDONLY | OFlag::O_DIRECTORY))?;
        if made {
            nix::unistd::fchown(&at, None, Some(group))?;
            nix::sys::stat::fchmod(&at, mode)?;
        }
    }
    Ok(())
}

fn is_mounted(folder: &Path) -> io::Result<bool> {
    let parent = folder.parent().ok_or_else(|| io::Error::other("no parent"))?;
    Ok(fs::metadata(folder)?.dev() != fs::metadata(parent)?.dev())
}

fn is_bound(target: &Path) -> io::Result<bool> {
    Ok(below(target)?.iter().any(|mount| mount == target))
}

/// Mount points at and below `folder`, deepest last.
fn below(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo")?;
    let mut found: Vec<PathBuf> =
        text.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape).filter(|path| path.starts_with(folder)).collect();
    found.sort();
    Ok(found)
}

/// The kernel writes spaces and the like as octal.
fn unescape(text: &str) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let octal = (bytes[at] == b'\\').then(|| text.get(at + 1..at + 4)).flatten().and_then(|digits| u8::from_str_radix(digits, 8).ok());
        out.push(octal.unwrap_or(bytes[at]));
        at += if octal.is_some() { 4 } else { 1 };
    }
    PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(out))
}

/// Unmounts everything below `folder`, then removes it; with a mount left nothing is removed, because it could be somebody's data.
pub fn remove(folder: &Path) -> io::Result<()> {
    let Ok(folder) = fs::canonicalize(folder) else { return Ok(()) };
    for mount in below(&folder)?.iter().rev() {
        umount2(mount, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?;
    }
    if let Some(left) = below(&folder)?.first() {
        return Err(io::Error::other(format!("{} is still mounted", left.display())));
    }
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A folder with exactly this mode, whatever the umask.
pub fn make_folder(folder: &Path, mode: u32) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_as_the_kernel_escapes_them() {
        assert_eq!(unescape("/a\\040b/c"), Path::new("/a b/c"));
        assert_eq!(unescape("/plain"), Path::new("/plain"));
    }

    #[test]
    fn a_link_out_of_the_volume_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", folder.path().join("out")).unwrap();
        let root = fs::File::open(folder.path()).unwrap();
        assert!(open_beneath(&root, "out/passwd").is_err());
        make_beneath(&root, "a/b").unwrap();
        assert!(open_beneath(&root, "a/b").is_ok());
        assert!(make_beneath(&root, "../c").is_err());
    }
}
