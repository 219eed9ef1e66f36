//! Machines for emulated clouds: namespaces over the host's own files, with an address, limits, a user, a fresh host key and sshd.
//!
//! A machine is one process tree under `unshare --kill-child`: when that dies, or this process does, the kernel takes all of it.

use super::cloud_init;
use super::namespace::{BRIDGE, Namespace};
use ipnet::Ipv4Net;
use kprov::sys::cgroups::Group;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};

const SCRIPT: &str = concat!(include_str!("root.sh"), include_str!("machine.sh"));
const MOUNT_HELPER: &str = include_str!("mount_nfs4.sh");

/// What a cloud knows of a machine when it starts it.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The cloud's own name for it; unique.
    pub name: String,
    pub hostname: String,
    pub address: Ipv4Addr,
    /// The subnet's gateway is its first address.
    pub subnet: Ipv4Net,
    /// Another address that leads to it.
    pub public: Option<Ipv4Addr>,
    /// Who may log in with the keys, and become root without a password.
    pub user: String,
    pub authorized_keys: Vec<String>,
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    /// cloud-config or a script, plain text; may be empty.
    pub user_data: String,
}

pub struct Machines {
    namespace: Namespace,
    folder: tempfile::TempDir,
    /// What mounts of NFS servers lead to: a folder, or a link to one, per server's address.
    shared: PathBuf,
    running: Mutex<BTreeMap<String, Arc<Mutex<Machine>>>>,
}

struct Machine {
    process: Child,
    /// Held open: its end would be an answer.
    _go: ChildStdin,
    group: Group,
    folder: PathBuf,
    address: Ipv4Addr,
    public: Option<Ipv4Addr>,
}

impl Machines {
    pub fn new(namespace: &Namespace) -> Machines {
        sweep();
        let prefix = format!("kprov-rig-{}-", std::process::id());
        // On a real disk: an overlay's upper layer cannot lie on an overlay or on most tmpfs.
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir_in("/var/tmp").expect("a folder for machines");
        let shared = folder.path().join("shared");
        fs::create_dir(&shared).expect("the shared folder");
        Machines { namespace: namespace.clone(), folder, shared, running: Mutex::default() }
    }

    /// Returns its public host key when its sshd answers.
    pub fn start(&self, spec: &Spec) -> io::Result<String> {
        let folder = self.folder.path().join(&spec.name);
        for part in ["upper", "work", "root", "data/kprov", "data/containerd"] {
            fs::create_dir_all(folder.join(part))?;
        }
        let key = furnish(&folder.join("upper"), spec)?;
        self.gateway(spec.subnet);
        let group = Group::new(self.group(&spec.name))?;
        group.create()?;
        group.limit(spec.cpu_millis, spec.memory_bytes)?;
        let (mut process, mut go, mut said) = self.boot(spec, &folder, group.clone())?;
        let started = hear(&mut said, "namespaces")
            .and_then(|()| self.plug(spec, process.id()))
            .and_then(|()| go.write_all(b"go\n"))
            .and_then(|()| hear(&mut said, "Server listening"));
        if let Err(error) = started {
            let _ = (process.kill(), process.wait(), group.kill(), group.remove());
            return Err(io::Error::other(format!("could not start machine {}: {error}", spec.name)));
        }
        // Drained as long as it is open, or sshd would block on its own log.
        let log = folder.join("console.log");
        std::thread::spawn(move || File::create(log).and_then(|mut log| io::copy(&mut said, &mut log)));
        if let Some(public) = spec.public {
            self.namespace.publish(public, spec.address);
        }
        let machine = Machine { process, _go: go, group, folder, address: spec.address, public: spec.public };
        self.running.lock().expect("machines").insert(spec.name.clone(), Arc::new(Mutex::new(machine)));
        Ok(key)
    }

    /// Nothing of it is left when this returns; one that is not there is stopped already.
    pub fn stop(&self, name: &str) -> io::Result<()> {
        let machine = self.running.lock().expect("machines").remove(name);
        let Some(machine) = machine else { return Ok(()) };
        let mut machine = machine.lock().expect("machine");
        if let Some(public) = machine.public {
            self.namespace.unpublish(public);
        }
        machine.group.kill()?;
        let _ = machine.process.kill();
        machine.process.wait()?;
        // The kernel takes it with the machine's namespace, but in its own time.
        self.namespace.script(&format!("ip link del {} 2>/dev/null || true", link(machine.address)));
        machine.group.remove()?;
        machine.group.remove_empty_parents();
        fs::remove_dir_all(&machine.folder)
    }

    pub fn names(&self) -> Vec<String> {
        self.running.lock().expect("machines").keys().cloned().collect()
    }

    /// The folder of the machine's own files.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A command in the machine, as its root, without SSH.
    pub fn inside(&self, name: &str, shell: &str) -> std::process::Output {
        let machine = self.running.lock().expect("machines").get(name).expect("the machine runs").clone();
        let init = init_of(machine.lock().expect("machine").process.id()).expect("the machine has a first process");
        let mut command = Command::new("nsenter");
        command.args(["-t", &init.to_string(), "-m", "-p", "-n", "-u", "-r", "-w", "sh", "-c", shell]);
        command.stdin(Stdio::null()).output().expect("nsenter")
    }

    /// The files that the machine has beside those of the host below it, but for logs. Looking for them inside would read the whole host.
    pub fn own_files(&self, name: &str) -> Vec<String> {
        let upper = self.folder(name).join("upper");
        let (mut files, mut folders) = (Vec::new(), vec![upper.clone()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("the machine's files").flatten() {
                let path = entry.path();
                let shown = path.strip_prefix(&upper).expect("below").display().to_string();
                match entry.file_type().expect("a type") {
                    kind if kind.is_dir() && !["var/log", "var/lib/cloud"].contains(&shown.as_str()) => folders.push(path),
                    kind if kind.is_file() => files.push(shown),
                    _ => {}
                }
            }
        }
        files.sort();
        files
    }

    /// From now on an NFS server answers at this address (or name) and serves this filesystem.
    pub fn serve_filesystem(&self, server: &str, filesystem: &str) {
        let _ = fs::create_dir(self.shared.join(filesystem));
        let _ = std::os::unix::fs::symlink(filesystem, self.shared.join(server));
    }

    /// What clients mount of it, below its root.
    pub fn export(&self, filesystem: &str, share: &str) {
        fs::create_dir_all(self.shared.join(filesystem).join(share)).expect("the share's folder");
    }

    pub fn unserve_filesystem(&self, server: &str) {
        let _ = fs::remove_file(self.shared.join(server));
    }

    /// The servers that answer.
    pub fn filesystem_servers(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.shared).expect("the shared folder").flatten();
        let servers = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
        servers.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    fn group(&self, name: &str) -> PathBuf {
        Path::new(&self.folder.path().file_name().expect("a name")).join(name)
    }

    fn boot(&self, spec: &Spec, folder: &Path, group: Group) -> io::Result<(Child, ChildStdin, BufReader<std::process::ChildStdout>)> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--ipc", "--uts", "--net", "--cgroup", "--fork", "--kill-child", "sh", "-c", SCRIPT]);
        command.env("FOLDER", folder).env("DATA", folder.join("data")).env("SHARED", &self.shared).env("ADDRESS", spec.address.to_string());
        command.env("PREFIX", spec.subnet.prefix_len().to_string()).env("GATEWAY", gateway(spec.subnet).to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(File::create(folder.join("boot.log"))?);
        // SAFETY: writes to files between fork and exec; into its groups first: a cgroup namespace shows as root its maker's group.
        unsafe { command.pre_exec(move || group.join()) };
        let mut process = self.namespace.spawn(command)?;
        let (go, said) = (process.stdin.take().expect("stdin"), process.stdout.take().expect("stdout"));
        Ok((process, go, BufReader::new(said)))
    }

    /// The cable from the bridge to the machine's eth0, with a MAC that belongs to its address.
    fn plug(&self, spec: &Spec, process: u32) -> io::Result<()> {
        let init = init_of(process).ok_or_else(|| io::Error::other("its first process ended"))?;
        let [_, b, c, d] = spec.address.octets();
        let (link, mac) = (link(spec.address), format!("02:0a:00:{b:02x}:{c:02x}:{d:02x}"));
        self.namespace.script(&format!(
            "ip link add {link} master {BRIDGE} type veth peer name eth0 address {mac} netns {init}
             ip link set {link} up"
        ));
        Ok(())
    }

    fn gateway(&self, subnet: Ipv4Net) {
        self.namespace.script(&format!("ip address replace {}/{} dev {BRIDGE}", gateway(subnet), subnet.prefix_len()));
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for name in self.names() {
            if std::thread::panicking() {
                self.show(&name);
            }
            if let Err(error) = self.stop(&name) {
                eprintln!("could not stop machine {name}: {error}");
            }
        }
        let group = Group::new(self.group(".")).expect("control groups");
        group.remove_empty_parents();
    }
}

impl Machines {
    /// What a failed story needs to be understood.
    fn show(&self, name: &str) {
        let root = self.folder(name).join("upper");
        let logs = [
            ("../boot.log", 30),
            ("../console.log", 5),
            ("var/log/cloud-init-output.log", 30),
            ("var/log/kprov/kprov-server.log", 40),
            ("var/log/kprov/kprov-agent.log", 10),
        ];
        for (log, lines) in logs {
            if let Ok(text) = fs::read_to_string(root.join(log)).map(|text| text.trim().to_string())
                && !text.is_empty()
            {
                let tail: Vec<&str> = text.lines().rev().take(lines).collect();
                eprintln!("--- {name} {log}\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
        }
    }
}

/// On the bridge's side.
pub fn link(address: Ipv4Addr) -> String {
    format!("v{:08x}", address.to_bits())
}

fn gateway(subnet: Ipv4Net) -> Ipv4Addr {
    subnet.hosts().next().expect("a subnet has addresses")
}

/// The first process of the machine: the child of `unshare`.
fn init_of(process: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// Lines up to the one that has the word; the end without it is a failure.
fn hear(said: &mut impl BufRead, word: &str) -> io::Result<()> {
    let mut heard = String::new();
    loop {
        let mut line = String::new();
        if said.read_line(&mut line)? == 0 {
            return Err(io::Error::other(format!("it ended before it said {word:?}: {heard}")));
        }
        if line.contains(word) {
            return Ok(());
        }
        heard += &line;
    }
}

const SSHD_CONFIG: &str = "Port 22
HostKey /etc/ssh/ssh_host_ed25519_key
UsePAM no
UseDNS no
PermitRootLogin no
PasswordAuthentication no
KbdInteractiveAuthentication no
AuthorizedKeysFile .ssh/authorized_keys
PrintMotd no
PrintLastLog no
Subsystem sftp internal-sftp
";

/// What the machine finds on its disk at its first boot, below the overlay before it is mounted. The public host key.
fn furnish(upper: &Path, spec: &Spec) -> io::Result<String> {
    mask(upper)?;
    let put = |path: &str, text: &str, mode: u32| write(&upper.join(path), text, mode);
    put("etc/hostname", &format!("{}\n", spec.hostname), 0o644)?;
    put("etc/hosts", &format!("127.0.0.1 localhost\n{} {}\n", spec.address, spec.hostname), 0o644)?;
    put("etc/resolv.conf", "# an emulated cloud has no resolver\n", 0o644)?;
    put("etc/machine-id", &format!("{}\n", uuid::Uuid::new_v4().simple()), 0o444)?;
    put("etc/ssh/sshd_config", SSHD_CONFIG, 0o644)?;
    for helper in ["usr/sbin/mount.nfs4", "usr/sbin/mount.nfs"] {
        put(helper, MOUNT_HELPER, 0o755)?;
    }
    let key = upper.join("etc/ssh/ssh_host_ed25519_key");
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", &spec.hostname, "-f"]).arg(&key).status()?;
    assert!(made.success(), "ssh-keygen failed");
    cloud_init::apply(upper, spec)?;
    fs::read_to_string(key.with_extension("pub")).map(|key| key.trim().to_string())
}

/// Top-level folders of the host that machines see; all else there is hidden.
const SHOWN: [&str; 8] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc"];
const EMPTY: [&str; 11] = ["root", "home", "tmp", "run", "srv", "mnt", "media", "opt", "dev", "proc", "sys"];
/// Below /etc and /var: keys, tokens, other installations' configuration and state.
const EMPTY_BELOW: [&str; 16] = [
    "etc/ssh",
    "etc/kprov",
    "etc/cni",
    "etc/containerd",
    "etc/kubernetes",
    "etc/docker",
    "etc/cron.d",
    "etc/ssl/private",
    "usr/local/bin",
    "var/log",
    "var/tmp",
    "var/cache",
    "var/spool",
    "var/lib/containerd",
    "var/lib/kprov",
    "var/lib/cloud",
];

fn mask(upper: &Path) -> io::Result<()> {
    for entry in fs::read_dir("/")?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != "var" && !SHOWN.contains(&name.as_str()) && !EMPTY.contains(&name.as_str()) {
            // The overlay's mark for "this name does not exist".
            mknod(&upper.join(&name), SFlag::S_IFCHR, Mode::empty(), makedev(0, 0))?;
        }
    }
    for entry in fs::read_dir("/var/lib")?.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !["dpkg", "apt", "ucf", "pam"].contains(&name.as_str()) {
            empty(&upper.join("var/lib").join(&name))?;
        }
    }
    EMPTY.iter().chain(&EMPTY_BELOW).try_for_each(|name| empty(&upper.join(name)))?;
    fs::set_permissions(upper.join("root"), fs::Permissions::from_mode(0o700))?;
    fs::set_permissions(upper.join("var/tmp"), fs::Permissions::from_mode(0o1777))?;
    for log in ["lastlog", "wtmp", "btmp"] {
        File::create(upper.join("var/log").join(log))?;
    }
    // Without passwords: `*` cannot match and, unlike `!`, does not lock out keys.
    let shadow = fs::read_to_string("/etc/shadow").unwrap_or_default();
    let accounts = shadow.lines().filter_map(|line| line.split(':').next()).map(|name| format!("{name}:*:19000:0:99999:7:::\n"));
    write(&upper.join("etc/shadow"), &accounts.collect::<String>(), 0o640)
}

/// A folder that shows nothing of the same one below.
fn empty(place: &Path) -> io::Result<()> {
    fs::create_dir_all(place)?;
    let path = CString::new(place.as_os_str().as_bytes())?;
    // SAFETY: both strings end in NUL and live through the call; the value is one byte long as told.
    let result = unsafe { libc::setxattr(path.as_ptr(), c"trusted.overlay.opaque".as_ptr(), b"y".as_ptr().cast(), 1, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

pub fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    fs::create_dir_all(path.parent().expect("below the machine's root"))?;
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// What runs that were killed have left: their processes went with them, their folders and groups did not.
fn sweep() {
    let entries = fs::read_dir("/var/tmp").into_iter().flatten().flatten();
    for name in entries.filter_map(|entry| entry.file_name().into_string().ok()) {
        let Some(owner) = name.strip_prefix("kprov-rig-").and_then(|rest| rest.split('-').next()?.parse::<i32>().ok()) else { continue };
        if kill(Pid::from_raw(owner), None::<Signal>).is_ok() {
            continue;
        }
        for machine in fs::read_dir(Path::new("/var/tmp").join(&name)).into_iter().flatten().flatten() {
            if let Ok(group) = Group::new(Path::new(&name).join(machine.file_name())) {
                let _ = (group.kill(), group.remove());
                group.remove_empty_parents();
            }
        }
        let _ = fs::remove_dir_all(Path::new("/var/tmp").join(&name));
    }
}
