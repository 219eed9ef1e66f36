//! Machines that only this test knows: a handful of namespaces around sshd on the loopback of the calling thread's network namespace.

use kprov::bootstrap::trust::Trust;
use kprov::remote::Target;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

pub const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const MACHINE: &str = include_str!("machine.sh");
const SYSTEMD: &str = concat!(include_str!("../rig/root.sh"), include_str!("systemd.sh"));

/// A machine on 127.0.0.1 of the calling thread's own network namespace; gone with everything in it when dropped.
pub struct Machine {
    process: Option<Child>,
    pub folder: tempfile::TempDir,
    pub target: Target,
    /// Its groups in the host's hierarchies, where it has some of its own.
    cgroups: Vec<PathBuf>,
}

impl Machine {
    pub fn start(name: &str, port: u16, trust: &Trust, more: &str) -> Machine {
        let mut machine = Machine::prepare(name, port, trust, more);
        machine.boot();
        machine
    }

    /// One whose process 1 is the host's systemd. sshd answers when systemd has come so far.
    pub fn start_systemd(name: &str, port: u16, trust: &Trust) -> Machine {
        assert!(Path::new("/lib/systemd/systemd").exists(), "this story needs systemd as a program: apt-get install systemd");
        let mut machine = Machine::prepare(name, port, trust, "");
        let group = machine.folder.path().file_name().unwrap().to_owned();
        for mount in cgroup_mounts() {
            let path = mount.join(&group);
            std::fs::create_dir(&path).unwrap();
            for inherited in ["cpuset.cpus", "cpuset.mems"].into_iter().filter(|_| mount.ends_with("cpuset")) {
                std::fs::write(path.join(inherited), std::fs::read(mount.join(inherited)).unwrap()).unwrap();
            }
            if mount.ends_with("cpuset") {
                std::fs::write(path.join("cgroup.clone_children"), "1").unwrap();
            }
            machine.cgroups.push(path);
        }
        // The shell joins the groups before `unshare` makes them the root of what the machine sees.
        let join = "for group in $GROUPS_OF_MACHINE; do echo 0 >$group/cgroup.procs; done; \
                    exec unshare --mount --pid --ipc --uts --cgroup --fork --kill-child sh -c \"$SCRIPT\"";
        let groups: Vec<_> = machine.cgroups.iter().map(|path| path.display().to_string()).collect();
        let mut command = Command::new("sh");
        command
            .args(["-c", join])
            .env("FOLDER", machine.folder.path())
            .env("DATA", machine.folder.path().join("var"))
            .env("SCRIPT", SYSTEMD)
            .env("GROUPS_OF_MACHINE", groups.join(" "));
        machine.process = Some(command.stdin(Stdio::null()).spawn().unwrap());
        machine
    }

    /// Its keys and configuration; nothing runs.
    pub fn prepare(name: &str, port: u16, trust: &Trust, more: &str) -> Machine {
        let folder = tempfile::Builder::new().prefix("kprov-bootstrap-").tempdir_in("/var/tmp").unwrap();
        let path = folder.path().display();
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(folder.path().join("host")));
        std::fs::write(folder.path().join("authorized"), format!("{}\n", trust.ssh.public)).unwrap();
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {path}/host\nAuthorizedKeysFile {path}/authorized\nStrictModes no\n\
             UsePAM no\nPidFile none\nPermitRootLogin prohibit-password\n{more}\n"
        );
        std::fs::write(folder.path().join("sshd_config"), config).unwrap();
        let key = std::fs::read_to_string(folder.path().join("host.pub")).unwrap();
        let target = Target {
            machine: name.into(),
            address: LOCALHOST.to_string(),
            ssh_port: port,
            ssh_user: "root".into(),
            host_keys: vec![key.trim().into()],
            jump: None,
            login: None,
        };
        Machine { process: None, folder, target, cgroups: Vec::new() }
    }

    pub fn boot(&mut self) {
        let mut process = Command::new("unshare")
            .args(["--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "sh", "-c", MACHINE])
            .env("FOLDER", self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut words = BufReader::new(process.stdout.take().unwrap());
        self.process = Some(process);
        let mut line = String::new();
        while !line.contains("Server listening") {
            line.clear();
            assert_ne!(words.read_line(&mut line).unwrap(), 0, "sshd did not start");
        }
        // Drained as long as it is open, or sshd would block on its own log.
        std::thread::spawn(move || std::io::copy(&mut words, &mut std::io::sink()));
    }

    /// A file of the machine, seen from outside.
    pub fn file(&self, path: &str) -> PathBuf {
        let root = format!("/proc/{}/root", self.init());
        PathBuf::from(root + path)
    }

    /// Process 1 of the machine: the child of `unshare`.
    pub fn init(&self) -> u32 {
        self.child().expect("the machine runs")
    }

    fn child(&self) -> Option<u32> {
        let id = self.process.as_ref()?.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// Processes in the machine whose command line begins so.
    pub fn processes(&self, start: &str) -> Vec<u32> {
        let space = |id: &str| std::fs::read_link(format!("/proc/{id}/ns/pid")).ok();
        let ours = space(&self.init().to_string());
        let all = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let here = all.filter(|id| id.parse::<u32>().is_ok() && space(id) == ours);
        let line = |id: &str| std::fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default().replace('\0', " ");
        here.filter(|id| line(id).starts_with(start)).map(|id| id.parse().unwrap()).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The kernel takes the namespace's processes and mounts with its process 1; `unshare` ends when all are gone.
        match (self.child(), &mut self.process) {
            (Some(init), _) => drop(kill(Pid::from_raw(init as i32), Signal::SIGKILL)),
            (None, Some(process)) => drop(process.kill()),
            (None, None) => {}
        }
        let _ = self.process.as_mut().map(Child::wait);
        self.cgroups.iter().for_each(|group| remove_group(group));
    }
}

fn cgroup_mounts() -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let cgroups = mounts.lines().filter(|line| line.contains(" - cgroup"));
    cgroups.map(|line| line.split(' ').nth(4).unwrap().into()).collect()
}

/// Children first.
fn remove_group(group: &Path) {
    for child in std::fs::read_dir(group).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        remove_group(&child.path());
    }
    let _ = std::fs::remove_dir(group);
}

pub fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
