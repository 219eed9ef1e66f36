//! A machine's root: an overlay over the host's own `/`, with the host's secrets and state masked, and fresh kernel filesystems.
//!
//! Runs in the machine's first process before it becomes the machine's init: in its own mount namespace, where nothing that is
//! mounted outlives the machine.

use crate::sys::cgroups::{self, Hierarchy};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{chdir, pivot_root};
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// What the machine is made of.
pub struct Root<'a> {
    /// The machine's folder: holds `upper`, `work`, `data`, `root` and `skeleton`.
    pub folder: &'a Path,
    /// The cluster's shared folders.
    pub filesystems: &'a Path,
}

/// On a real disk, below the machine's folder and in the machine: the overlay snapshotter refuses to work on an overlay, and databases
/// want a true fsync.
pub const DATA: &str = "data/kprov";
const DATA_PLACE: &str = "var/lib/kprov";

/// Host folders that a machine sees; all else at the top is hidden.
const SHOWN: [&str; 9] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc", "var"];
/// Made, and empty, whatever the host has there.
const EMPTY: [&str; 12] = ["root", "home", "tmp", "run", "srv", "mnt", "media", "boot", "opt", "dev", "proc", "sys"];
/// Below /etc: keys, tokens, other installations' configuration.
const ETC_EMPTY: [&str; 12] = [
    "ssh",
    "kprov",
    "cni",
    "containerd",
    "kubernetes",
    "rancher",
    "docker",
    "cron.d",
    "ssl/private",
    "NetworkManager",
    "wireguard",
    "letsencrypt",
];
const ETC_HIDDEN: [&str; 6] = ["shadow-", "gshadow", "gshadow-", "passwd-", "group-", "krb5.keytab"];
/// Below /var/lib, what programs of /usr need; everything else there is the host's own state.
const VAR_LIB_SHOWN: [&str; 4] = ["dpkg", "apt", "ucf", "pam"];

impl Root<'_> {
    /// Everything but the change of root.
    pub fn prepare(&self) -> io::Result<()> {
        // Mount points and device nodes get exactly the mode asked for.
        // SAFETY: umask cannot fail; this process has one thread.
        let umask = unsafe { libc::umask(0) };
        let made = self.make();
        // SAFETY: as above.
        unsafe { libc::umask(umask) };
        made
    }

    fn make(&self) -> io::Result<()> {
        let said = |what: &str, error: io::Error| io::Error::other(format!("{what}: {error}"));
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        self.mask().map_err(|error| said("could not mask the host", error))?;
        self.overlay().map_err(|error| said("could not mount the overlay", error))?;
        self.kernel_filesystems().map_err(|error| said("could not mount the kernel's filesystems", error))?;
        self.devices().map_err(|error| said("could not make devices", error))?;
        self.data().map_err(|error| said("could not bind data folders", error))?;
        self.groups().map_err(|error| said("could not mount control groups", error))
    }

    /// Makes it the root; the host's mounts are gone from here on.
    pub fn enter(&self) -> io::Result<()> {
        chdir(&self.root())?;
        pivot_root(".", ".")?;
        umount2(".", MntFlags::MNT_DETACH)?;
        chdir("/")?;
        // Volumes mounted later must reach containers that asked for them.
        Ok(mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SHARED, None::<&str>)?)
    }

    fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// The middle layer, on a tmpfs: the lower layer may not hold another layer's folder.
    fn mask(&self) -> io::Result<()> {
        let skeleton = self.folder.join("skeleton");
        mount(Some("skeleton"), &skeleton, Some("tmpfs"), MsFlags::empty(), Some("mode=0755,size=1m"))?;
        for entry in fs::read_dir("/")?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !SHOWN.contains(&name.as_str()) && !EMPTY.contains(&name.as_str()) {
                hide(&skeleton.join(&name))?;
            }
        }
        EMPTY.iter().try_for_each(|name| empty(&skeleton.join(name)))?;
        ETC_EMPTY.iter().try_for_each(|name| empty(&skeleton.join("etc").join(name)))?;
        for name in ETC_HIDDEN.iter().filter(|name| Path::new("/etc").join(name).exists()) {
            hide(&skeleton.join("etc").join(name))?;
        }
        for (folder, shown) in [("var", &["lib"][..]), ("var/lib", &VAR_LIB_SHOWN[..])] {
            for entry in fs::read_dir(Path::new("/").join(folder))?.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let kind = entry.file_type()?;
                let place = skeleton.join(folder).join(&name);
                match () {
                    () if shown.contains(&name.as_str()) || kind.is_symlink() => {}
                    () if kind.is_dir() => empty(&place)?,
                    () => hide(&place)?,
                }
            }
        }
        for name in ["var/log", "var/tmp", "var/cache", DATA_PLACE] {
            empty(&skeleton.join(name))?;
        }
        Ok(())
    }

    fn overlay(&self) -> io::Result<()> {
        let path = |name: &str| self.folder.join(name).display().to_string();
        let options = format!("lowerdir={}:/,upperdir={},workdir={}", path("skeleton"), path("upper"), path("work"));
        Ok(mount(Some("overlay"), &self.root(), Some("overlay"), MsFlags::empty(), Some(options.as_str()))?)
    }

    fn kernel_filesystems(&self) -> io::Result<()> {
        let at = |name: &str| self.root().join(name);
        let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("proc"), &at("proc"), Some("proc"), safe, None::<&str>)?;
        // Kernel-wide settings are the host's; those of the machine's own network are its own.
        bind(&at("proc/sys"), &at("proc/sys"))?;
        remount(&at("proc/sys"), safe | MsFlags::MS_RDONLY)?;
        bind(&at("proc/sys/net"), &at("proc/sys/net"))?;
        remount(&at("proc/sys/net"), safe)?;
        if at("proc/sysrq-trigger").exists() {
            bind(&at("proc/sysrq-trigger"), &at("proc/sysrq-trigger"))?;
            remount(&at("proc/sysrq-trigger"), safe | MsFlags::MS_RDONLY)?;
        }
        mount(Some("sysfs"), &at("sys"), Some("sysfs"), safe | MsFlags::MS_RDONLY, None::<&str>)?;
        mount(Some("run"), &at("run"), Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0755"))?;
        mount(Some("tmp"), &at("tmp"), Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=1777"))?;
        for name in ["run/sshd", "run/lock", "run/netns", "run/kprov"] {
            make(&at(name), 0o755)?;
        }
        Ok(())
    }

    /// Never the host's own devtmpfs: it shows the disks.
    fn devices(&self) -> io::Result<()> {
        let dev = self.root().join("dev");
        mount(Some("dev"), &dev, Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=0755,size=64k"))?;
        for (name, major, minor) in
            [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0), ("fuse", 10, 229)]
        {
            mknod(&dev.join(name), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor))?;
        }
        // The agent reads there whom the kernel killed for memory.
        mknod(&dev.join("kmsg"), SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 11))?;
        for folder in ["pts", "shm", "mqueue", "net"] {
            make(&dev.join(folder), 0o755)?;
        }
        mknod(&dev.join("net/tun"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(10, 200))?;
        let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        mount(Some("devpts"), &dev.join("pts"), Some("devpts"), quiet, Some("newinstance,ptmxmode=0666,mode=0620,gid=5"))?;
        mount(Some("shm"), &dev.join("shm"), Some("tmpfs"), quiet | MsFlags::MS_NODEV, Some("mode=1777"))?;
        mount(Some("mqueue"), &dev.join("mqueue"), Some("mqueue"), quiet | MsFlags::MS_NODEV, None::<&str>)?;
        let links = [
            ("pts/ptmx", "ptmx"),
            ("/proc/self/fd", "fd"),
            ("/proc/self/fd/0", "stdin"),
            ("/proc/self/fd/1", "stdout"),
            ("/proc/self/fd/2", "stderr"),
        ];
        links.iter().try_for_each(|(target, name)| symlink(target, dev.join(name)))
    }

    fn data(&self) -> io::Result<()> {
        bind(&self.folder.join(DATA), &self.root().join(DATA_PLACE))?;
        bind(self.filesystems, &self.root().join("var/lib/kprov/filesystems"))
    }

    /// The same trees as on the host; in the machine's own namespace each shows the machine's part only.
    fn groups(&self) -> io::Result<()> {
        let hierarchies = cgroups::hierarchies()?;
        let place = self.root().join(cgroups::ROOT.trim_start_matches('/'));
        let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        if let [Hierarchy { controllers: None, mount: only }] = &hierarchies[..]
            && only == Path::new(cgroups::ROOT)
        {
            return Ok(mount(Some("cgroup2"), &place, Some("cgroup2"), quiet, None::<&str>)?);
        }
        mount(Some("cgroup"), &place, Some("tmpfs"), quiet, Some("mode=0755,size=64k"))?;
        for hierarchy in &hierarchies {
            let name = hierarchy.mount.file_name().unwrap_or_default();
            make(&place.join(name), 0o755)?;
            let kind = if hierarchy.controllers.is_some() { "cgroup" } else { "cgroup2" };
            mount(Some(kind), &place.join(name), Some(kind), quiet, hierarchy.controllers.as_deref())?;
            // `cpu` and `cpuacct` mounted together are also looked for by their single names.
            for single in
                hierarchy.controllers.iter().flat_map(|names| names.split(',')).filter(|single| Path::new(single) != Path::new(name))
            {
                if !single.contains('=') && !place.join(single).exists() {
                    symlink(name, place.join(single))?;
                }
            }
        }
        Ok(())
    }
}

fn bind(source: &Path, target: &Path) -> io::Result<()> {
    Ok(mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

fn remount(place: &Path, flags: MsFlags) -> io::Result<()> {
    Ok(mount(None::<&str>, place, None::<&str>, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags, None::<&str>)?)
}

/// The overlay's mark for "this name does not exist".
fn hide(place: &Path) -> io::Result<()> {
    make(place.parent().expect("below the skeleton"), 0o755)?;
    Ok(mknod(place, SFlag::S_IFCHR, Mode::empty(), makedev(0, 0))?)
}

/// A folder that shows nothing of the same one below.
fn empty(place: &Path) -> io::Result<()> {
    make(place, if place.ends_with("root") { 0o700 } else { 0o755 })?;
    let path = CString::new(place.as_os_str().as_bytes())?;
    // SAFETY: both strings end in NUL and live through the call; the value is one byte long as told.
    let result = unsafe { libc::setxattr(path.as_ptr(), c"trusted.overlay.opaque".as_ptr(), b"y".as_ptr().cast(), 1, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn make(place: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(mode).create(place)
}
