//! A bare machine with nothing but sshd becomes a host, over real SSH with pinned keys, whatever goes wrong on the way.
//!
//! The machines here are this file's own (a mount, pid and network namespace around sshd), not the local provider's: the door to
//! hosts is tested against machines it does not know.

use kprov::bootstrap::install::{self, Program};
use kprov::bootstrap::remote::{Connection, Ssh, Target};
use kprov::bootstrap::spec::{HostSpec, Image, Marker, Node, Ready, Service, revision, worker};
use kprov::bootstrap::trust::Trust;
use kprov::engine::Cluster;
use kprov::error::Result;
use kprov::sys::executable::{Executable, sha256};
use kprov::sys::oci;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const PATIENCE: Duration = Duration::from_secs(20);
const DEMO_PORT: u16 = 8080;

/// What a machine sees of its own: fresh /etc (over the host's), /run, /var/lib/..., /usr/local. Paths come in the environment.
const MACHINE: &str = r#"
set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd
for dir in etc usr/local root; do
  mkdir -p "$FOLDER/$dir/upper" "$FOLDER/$dir/work"
  mount -t overlay overlay -o "lowerdir=/$dir,upperdir=$FOLDER/$dir/upper,workdir=$FOLDER/$dir/work" "/$dir"
done
rm -rf /etc/kprov /etc/containerd /etc/cni/net.d /usr/local/bin/kprov
for dir in kprov containerd; do
  mkdir -p "$FOLDER/var/$dir" "/var/lib/$dir"
  mount --bind "$FOLDER/var/$dir" "/var/lib/$dir"
done
exec /usr/sbin/sshd -D -e -f "$FOLDER/sshd_config" 2>&1
"#;

/// A machine on 127.0.0.1 of the calling thread's own network namespace; gone with everything in it when dropped.
struct Machine {
    process: Option<Child>,
    folder: tempfile::TempDir,
    target: Target,
}

impl Machine {
    fn start(name: &str, port: u16, trust: &Trust, more: &str) -> Machine {
        let mut machine = Machine::prepare(name, port, trust, more);
        machine.boot();
        machine
    }

    /// Its keys and configuration; nothing runs.
    fn prepare(name: &str, port: u16, trust: &Trust, more: &str) -> Machine {
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
        };
        Machine { process: None, folder, target }
    }

    fn boot(&mut self) {
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
    fn file(&self, path: &str) -> PathBuf {
        let root = format!("/proc/{}/root", self.init());
        PathBuf::from(root + path)
    }

    /// Process 1 of the machine: the child of `unshare`.
    fn init(&self) -> u32 {
        let id = self.process.as_ref().unwrap().id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        children.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Processes in the machine whose command line begins so.
    fn processes(&self, start: &str) -> Vec<u32> {
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
        let Some(process) = &self.process else { return };
        let (id, init) = (process.id(), self.init());
        // The kernel takes the namespace's processes and mounts with its process 1; `unshare` ends when all are gone.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(init as i32), nix::sys::signal::Signal::SIGKILL);
        let _ = self.process.as_mut().map(Child::wait);
        assert!(!Path::new(&format!("/proc/{id}")).exists());
    }
}

fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Everything a story needs, in a network namespace of this thread: its connections and its machines' are the only traffic there.
struct Story {
    trust: Trust,
    ssh: Ssh,
    program: Arc<Program>,
    _state: tempfile::TempDir,
}

fn story(tell: impl AsyncFnOnce(&Story)) {
    assert!(nix::unistd::geteuid().is_root(), "these tests make machines: run them as root");
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    run(Command::new("ip").args(["link", "set", "lo", "up"]));
    let trust = Trust::create(&Cluster { name: "shop".into(), uid: "u1".into() }, SystemTime::now()).unwrap();
    let state = tempfile::tempdir().unwrap();
    let ssh = Ssh::open(state.path(), &trust.ssh).unwrap();
    let program = Program::of(Executable::at(Path::new(env!("CARGO_BIN_EXE_kprov"))).unwrap());
    let story = Story { trust, ssh, program, _state: state };
    // One thread: children and sockets stay in this thread's namespace.
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(tell(&story));
}

impl Story {
    /// A worker whose agent is played by the demo application.
    fn spec(&self, settings: &str) -> HostSpec {
        let node = Node {
            trust: &self.trust,
            name: "worker-1",
            address: LOCALHOST,
            revision: &revision(&[("settings", settings), ("program", self.program.sha256())]),
            generation: 1,
            agent_config: settings.into(),
            images: Vec::new(),
            files: Vec::new(),
        };
        let mut spec = worker(node, SystemTime::now()).unwrap();
        let Service { argv, ready, .. } = &mut spec.services[0];
        *argv = [kprov::sys::paths::BINARY, "demo"].map(String::from).to_vec();
        *ready = Some(Ready::Tcp(SocketAddr::new(LOCALHOST, DEMO_PORT)));
        spec
    }

    async fn connect(&self, machine: &Machine) -> Result<Connection> {
        self.ssh.connect(&machine.target, PATIENCE).await
    }

    /// Installs, and tells what was said on the way.
    async fn ensure(&self, machine: &Machine, spec: &HostSpec) -> Result<(Marker, Vec<String>)> {
        let said = Mutex::new(Vec::new());
        let connection = self.connect(machine).await?;
        let listen = |words: &str| said.lock().unwrap().push(words.to_string());
        let marker = install::ensure(&connection, spec, &self.program, &listen).await?;
        Ok((marker, said.into_inner().unwrap()))
    }
}

fn serves() -> bool {
    let Ok(mut stream) = TcpStream::connect((LOCALHOST, DEMO_PORT)) else { return false };
    use std::io::Write;
    stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).is_ok() && answer.contains("200 OK")
}

fn images(machine: &Machine) -> String {
    let mut ctr = Command::new("nsenter");
    ctr.args(["-t", &machine.init().to_string(), "-m", "-p", "ctr", "-n", "k8s.io", "images", "list", "-q"]);
    run(&mut ctr)
}

#[test]
fn a_fresh_machine_becomes_a_host_and_a_second_run_changes_nothing() {
    story(async |story| {
        let machine = Machine::start("worker-1", 2201, &story.trust, "");
        let spec = story.spec("{}");
        let begin = std::time::Instant::now();
        let (marker, said) = story.ensure(&machine, &spec).await.unwrap();
        eprintln!("fresh machine to host: {:?}", begin.elapsed());
        assert!(said.iter().any(|words| words.starts_with("uploading kprov")), "{said:?}");
        assert_eq!((marker.revision.as_str(), marker.program.as_str()), (spec.revision.as_str(), story.program.sha256()));
        assert!(serves());
        assert!(images(&machine).lines().any(|name| name == oci::KPROV_IMAGE));
        for path in ["/etc/kprov/pki/node.key", "/etc/kprov/pki/ca.crt", "/etc/kprov/agent.json"] {
            assert_eq!(machine.file(path).metadata().unwrap().mode() & 0o777, 0o600, "{path}");
        }
        assert!(!machine.file("/etc/kprov/pki/ca.key").exists(), "a worker has no authority");

        let (agents, runtimes) = (machine.processes("/usr/local/bin/kprov demo"), machine.processes("/usr/bin/containerd "));
        let begin = std::time::Instant::now();
        let (again, said) = story.ensure(&machine, &story.spec("{}")).await.unwrap();
        eprintln!("second run: {:?}", begin.elapsed());
        assert_eq!(again, marker);
        assert_eq!(said, ["examining the machine"]);

        // Other settings restart the service that reads them, and nothing else; the host keeps its key.
        let key = std::fs::read(machine.file("/etc/kprov/pki/node.key")).unwrap();
        let (third, said) = story.ensure(&machine, &story.spec("{\"a\": 1}")).await.unwrap();
        assert!(!said.iter().any(|words| words.contains("uploading") || words.contains("packing")), "{said:?}");
        assert_ne!(third.revision, marker.revision);
        assert_ne!(machine.processes("/usr/local/bin/kprov demo"), agents);
        assert_eq!(machine.processes("/usr/bin/containerd "), runtimes);
        assert_eq!(std::fs::read(machine.file("/etc/kprov/pki/node.key")).unwrap(), key);
        assert!(serves());

        install::remove(&story.connect(&machine).await.unwrap(), &|_| ()).await.unwrap();
        assert!(!serves());
        assert_eq!(machine.processes("/usr/bin/containerd "), [0; 0]);
        for path in ["/usr/local/bin/kprov", "/etc/kprov/pki", "/etc/kprov/host.json"] {
            assert!(!machine.file(path).exists(), "{path}");
        }
    });
}

#[test]
fn an_image_is_sent_once_and_again_only_when_the_machine_lost_it() {
    story(async |story| {
        let machine = Machine::start("worker-1", 2202, &story.trust, "");
        let archive = machine.folder.path().join("demo.tar");
        oci::write_archive(std::fs::File::create(&archive).unwrap(), "example.com/demo:1", b"#!/bin/true\n", "amd64").unwrap();
        let bytes = std::fs::read(&archive).unwrap();
        let mut spec = story.spec("{}");
        let names = vec!["example.com/demo:1".to_string()];
        spec.images = vec![Image { names, sha256: sha256(&bytes), size: bytes.len() as u64, source: archive }];
        let sent = |said: &[String]| said.iter().any(|words| words.starts_with("uploading image example.com/demo:1"));
        let (_, said) = story.ensure(&machine, &spec).await.unwrap();
        assert!(sent(&said), "{said:?}");
        assert!(images(&machine).contains("example.com/demo:1"));
        spec.revision = "another".into();
        let (_, said) = story.ensure(&machine, &spec).await.unwrap();
        assert!(!sent(&said), "{said:?}");
    });
}

#[test]
fn an_installation_cut_off_anywhere_is_finished_by_the_next() {
    story(async |story| {
        let machine = Machine::start("worker-1", 2203, &story.trust, "");
        let spec = story.spec("{}");
        for cut in 1..5 {
            let connection = story.connect(&machine).await.unwrap();
            let count = AtomicUsize::new(0);
            let reached = tokio::sync::Notify::new();
            let progress = |_: &str| {
                if count.fetch_add(1, Ordering::Relaxed) + 1 == cut {
                    reached.notify_one();
                }
            };
            tokio::select! {
                outcome = install::ensure(&connection, &spec, &story.program, &progress) => { outcome.unwrap(); }
                () = reached.notified() => {}
            }
            // Dropped in the middle, as when this host loses power: the machine's side sees its connection end.
            drop(connection);
            story.ssh.forget("worker-1");
        }
        let (marker, _) = story.ensure(&machine, &spec).await.unwrap();
        assert_eq!(marker.revision, spec.revision);
        assert!(serves());
        assert_eq!(machine.processes("/usr/bin/containerd ").len(), 1);
        let leftovers = |folder: &str| {
            let entries = std::fs::read_dir(machine.file(folder)).unwrap().flatten();
            entries.map(|entry| entry.file_name().into_string().unwrap()).filter(|name| name.starts_with('.')).collect::<Vec<_>>()
        };
        assert_eq!(leftovers("/usr/local/bin"), [""; 0]);
        assert_eq!(leftovers("/etc/kprov"), [""; 0]);
    });
}

#[test]
fn a_machine_with_another_host_key_gets_not_one_byte() {
    story(async |story| {
        let caught = tempfile::tempdir().unwrap();
        let trap = format!("ForceCommand cat > {}/stdin", caught.path().display());
        let stranger = Machine::start("worker-1", 2204, &story.trust, &trap);
        let mut target = stranger.target.clone();
        target.host_keys = vec!["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJgD4ku4s0YQ0LhyzXpzWWVYxOZf2Z0xS1kDqQxN1o3C".into()];
        let error = story.ssh.connect(&target, PATIENCE).await.err().expect("the stranger's key is refused");
        assert!(error.to_string().ends_with("wrong host key"), "{}", error.chain());
        assert!(!caught.path().join("stdin").exists());

        // The trap works: with its key taken for the right one, the stranger would have got what we send.
        let connection = story.connect(&stranger).await.unwrap();
        let _ = connection.shell("cat", b"secret").await;
        assert_eq!(std::fs::read(caught.path().join("stdin")).unwrap(), b"secret");
    });
}

#[test]
fn a_key_that_is_not_let_in_says_so() {
    story(async |story| {
        let machine = Machine::start("worker-1", 2205, &story.trust, "");
        std::fs::write(machine.folder.path().join("authorized"), "").unwrap();
        let error = story.ssh.connect(&machine.target, Duration::from_secs(1)).await.err().expect("not let in");
        assert!(error.to_string().ends_with("permission denied"), "{}", error.chain());
        assert!(error.hints()[0].contains("authorized_keys of root"));
    });
}

#[test]
fn a_machine_that_boots_late_is_waited_for() {
    story(async |story| {
        let mut machine = Machine::prepare("worker-1", 2206, &story.trust, "");
        let target = machine.target.clone();
        let error = story.ssh.connect(&target, Duration::from_millis(200)).await.err().expect("nobody there yet");
        assert!(error.to_string().ends_with("connection refused"), "{}", error.chain());
        let (connection, ()) = tokio::join!(story.ssh.connect(&target, PATIENCE), async { machine.boot() });
        assert_eq!(connection.unwrap().machine, "worker-1");
    });
}
