//! A bare machine with nothing but sshd becomes a host, over real SSH with pinned keys, whatever goes wrong on the way.
//!
//! The machines here are this file's own (a mount, pid and network namespace around sshd), not the local provider's: the door to
//! hosts is tested against machines it does not know.

mod machine;

use kprov::bootstrap::install::{self, Program};
use kprov::bootstrap::spec::{CONTAINERD_SOCKET, File, HostSpec, Image, Marker, Node, Ready, Service, revision, worker};
use kprov::bootstrap::trust::Trust;
use kprov::engine::Cluster;
use kprov::error::{Kind, Result};
use kprov::remote::{Connection, Ssh};
use kprov::sys::executable::{Executable, sha256};
use kprov::sys::oci;
use machine::{LOCALHOST, Machine, run};
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

const PATIENCE: Duration = Duration::from_secs(20);
const DEMO_PORT: u16 = 8080;

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
            nfs: false,
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
    ctr.args(["-t", &machine.init().to_string(), "-m", "-p", "ctr", "-a", CONTAINERD_SOCKET, "-n", "k8s.io", "images", "list", "-q"]);
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
fn a_control_plane_keeps_its_keys_and_tells_them_to_whoever_comes_with_others() {
    story(async |story| {
        let machine = Machine::start("control-1", 2208, &story.trust, "");
        let spec = |trust: &Trust| {
            let pki = Path::new(kprov::sys::paths::PKI);
            let mut spec = story.spec("{}");
            spec.files.retain(|file| !file.path.starts_with(pki));
            spec.files.extend(trust.files().into_iter().map(|(name, content)| File { path: pki.join(name), mode: 0o600, content }));
            spec.revision = revision(&[("authority", &trust.ca.certificate)]);
            spec
        };
        story.ensure(&machine, &spec(&story.trust)).await.unwrap();
        let other = Trust::create(&story.trust.cluster, SystemTime::now()).unwrap();
        let error = story.ensure(&machine, &spec(&other)).await.unwrap_err();
        assert_eq!(error.kind, Kind::Conflict, "{}", error.chain());
        let connection = story.connect(&machine).await.unwrap();
        let kept = install::keys(&connection).await.unwrap().expect("it has keys");
        assert!(kept.ca == story.trust.ca && kept.ssh == story.trust.ssh);

        // Killed before they were complete: nobody has used them yet.
        std::fs::remove_file(machine.file("/etc/kprov/pki/trust.json")).unwrap();
        assert!(install::keys(&connection).await.unwrap().is_none());
        story.ensure(&machine, &spec(&other)).await.unwrap();
        let kept = install::keys(&connection).await.unwrap().expect("it has keys");
        assert!(kept.ca == other.ca);
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

#[test]
fn a_machine_with_systemd_runs_its_services_as_units() {
    story(async |story| {
        let machine = Machine::start_systemd("worker-1", 2207, &story.trust);
        let systemctl = |arguments: &[&str]| {
            let mut command = Command::new("nsenter");
            command.args(["-t", &machine.init().to_string(), "-a", "systemctl"]).args(arguments);
            run(&mut command).trim().to_string()
        };
        let main = |name: &str| systemctl(&["show", "--property=MainPID", "--value", name]);
        let (marker, _) = story.ensure(&machine, &story.spec("{}")).await.unwrap();
        assert_eq!(marker.services, ["kprov-containerd", "kprov-agent"]);
        assert!(serves());
        assert_eq!(systemctl(&["is-enabled", "kprov-containerd", "kprov-agent"]), "enabled\nenabled");
        let config = std::fs::read_to_string(machine.file("/etc/kprov/containerd.toml")).unwrap();
        assert!(config.contains("SystemdCgroup = true"));

        let (agent, runtime) = (main("kprov-agent"), main("kprov-containerd"));
        let (_, said) = story.ensure(&machine, &story.spec("{}")).await.unwrap();
        assert_eq!(said, ["examining the machine"]);
        story.ensure(&machine, &story.spec("{\"a\": 1}")).await.unwrap();
        assert_ne!(main("kprov-agent"), agent, "other settings restart the service that reads them");
        assert_eq!(main("kprov-containerd"), runtime, "and nothing else");

        install::remove(&story.connect(&machine).await.unwrap(), &|_| ()).await.unwrap();
        assert!(!serves());
        assert!(!machine.file("/etc/systemd/system/kprov-agent.service").exists());
    });
}
