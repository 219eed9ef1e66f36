//! The local cloud by itself: machines that answer over SSH, and what happens when any of its processes is killed.

use crate::harness::{binary, require_root};
use kprov::engine::handoff::{Epoch, EpochStore};
use kprov::engine::{Cluster, Door, Id, Observed, Phase, Request, Verb, token};
use kprov::error::{Kind, Result};
use kprov::providers::local::{FABRIC, Local, clusters, leftovers};
use kprov::providers::resources::{FILESYSTEM, LOAD_BALANCER, MACHINE, NETWORK};
use kprov::providers::{Provider, conformance};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

struct Stage {
    cluster: Cluster,
    cloud: Local,
    /// The SSH key and known hosts.
    folder: tempfile::TempDir,
}

impl Stage {
    fn new(name: &str) -> Stage {
        require_root();
        let cluster = Cluster { name: name.into(), uid: format!("{name}-{}", std::process::id()) };
        let cloud = connect(&cluster);
        let folder = tempfile::tempdir().expect("a folder");
        let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(folder.path().join("key")).status();
        assert!(made.expect("ssh-keygen is installed").success());
        Stage { cluster, cloud, folder }
    }

    fn machine_spec(&self, role: &str) -> Value {
        let key = self.public_key();
        json!({"role": role, "group": role, "cpuMillis": 500, "memoryBytes": 256 << 20, "diskBytes": 1u64 << 30, "sshPublicKey": key})
    }

    fn request(&self, verb: Verb, kind: &str, name: &str, spec: Value) -> Request {
        let id = Id::new(kind, name);
        let body = if spec.is_null() { json!({}) } else { json!({"spec": spec}) };
        Request { verb, token: token(&self.cluster.uid, &id, 1), id, generation: 1, handle: None, epoch: 0, body }
    }

    fn public_key(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("key.pub")).expect("the public key").trim().into()
    }

    async fn send(&self, request: &Request) -> Result<Option<Observed>> {
        self.cloud.execute(request, &|_| {}).await
    }

    async fn act(&self, verb: Verb, kind: &str, name: &str, spec: Value) -> Option<Observed> {
        let outcome = self.send(&self.request(verb, kind, name, spec)).await;
        outcome.unwrap_or_else(|error| panic!("{verb} {kind}/{name}: {} {:?}", error.chain(), error.hints()))
    }

    async fn machine(&self, name: &str, role: &str) -> Observed {
        self.act(Verb::Create, MACHINE, name, self.machine_spec(role)).await.expect("it is there")
    }

    async fn find(&self, kind: &str, name: &str) -> Option<Observed> {
        self.cloud.observe(&[]).await.expect("the cloud answers").into_iter().find(|found| found.id == Id::new(kind, name))
    }

    /// Waits for events of the cloud, not for time.
    async fn until(&self, kind: &str, name: &str, wanted: impl Fn(&Phase) -> bool) -> Observed {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut seen = String::new();
        loop {
            if let Ok(version) = self.cloud.changed(&seen).await {
                seen = version;
            }
            let found = self.find(kind, name).await;
            if let Some(found) = found.filter(|found| wanted(&found.phase)) {
                return found;
            }
            assert!(Instant::now() < deadline, "{kind}/{name} did not get there");
        }
    }

    /// Real SSH, with the host key that the cloud told and no other.
    fn ssh(&self, machine: &Observed, command: &str) -> String {
        self.try_ssh(machine, command).unwrap_or_else(|error| panic!("ssh {} {command}: {error}", machine.id))
    }

    fn try_ssh(&self, machine: &Observed, command: &str) -> Result<String, String> {
        let address = machine.outputs["address"].as_str().expect("an address");
        let known = self.folder.path().join("known_hosts");
        std::fs::write(&known, format!("{address} {}\n", machine.outputs["hostKeys"][0].as_str().expect("a key"))).expect("written");
        let output = Command::new("ssh")
            .args([
                "-F",
                "none",
                "-o",
                "BatchMode=yes",
                "-o",
                "StrictHostKeyChecking=yes",
                "-o",
                "ConnectTimeout=5",
                "-o",
                "LogLevel=ERROR",
            ])
            .arg("-o")
            .arg(format!("UserKnownHostsFile={}", known.display()))
            .arg("-i")
            .arg(self.folder.path().join("key"))
            .args([&format!("root@{address}"), command])
            .stdin(Stdio::null())
            .output()
            .expect("ssh runs");
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_string()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    fn folder(&self) -> std::path::PathBuf {
        Path::new("/var/lib/kprov/local").join(&self.cluster.uid)
    }

    fn running(&self, machine: &str) -> Value {
        let text = std::fs::read(self.folder().join("machines").join(machine).join("shim.json")).expect("the machine runs");
        serde_json::from_slice(&text).expect("numbers")
    }

    /// The daemon's pid, by its arguments.
    fn daemon(&self) -> Option<i32> {
        let pids = std::fs::read_dir("/proc").expect("proc").flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let mut daemons = pids.filter(|pid| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            command.ends_with(format!("\0local\0daemon\0{}\0", self.cluster.uid).as_bytes())
        });
        daemons.next()
    }

    async fn delete_everything(&self) {
        let mut all = self.cloud.observe(&[]).await.expect("the cloud answers");
        // Users before what they need.
        all.sort_by_key(|found| [LOAD_BALANCER, MACHINE, FILESYSTEM, NETWORK].iter().position(|kind| *kind == found.id.kind));
        for id in all.into_iter().map(|found| found.id) {
            let epoch = self.cloud.read().await.expect("the epoch can be read").map_or(0, |epoch| epoch.epoch);
            let request = Request { epoch, ..self.request(Verb::Delete, &id.kind, &id.name, Value::Null) };
            self.send(&request).await.unwrap_or_else(|error| panic!("{id} goes: {}", error.chain()));
        }
        assert_eq!(self.cloud.leftovers().await, Vec::<String>::new());
        assert!(!clusters().unwrap().contains(&self.cluster));
        assert_eq!(self.cloud.observe(&[]).await.expect("nothing to ask"), Vec::new());
    }
}

impl Drop for Stage {
    /// After a failed test only: leaves nothing for the next one.
    fn drop(&mut self) {
        if std::thread::panicking() {
            for left in leftovers(&self.cluster) {
                eprintln!("left: {left}");
            }
            let log = std::fs::read_to_string(self.folder().join("daemon.log")).unwrap_or_default();
            eprintln!("{log}");
            let clean = || tokio::runtime::Runtime::new().expect("a runtime").block_on(self.delete_everything());
            let _ = std::thread::scope(|scope| scope.spawn(clean).join());
        }
    }
}

fn connect(cluster: &Cluster) -> Local {
    Local::connect(cluster).with_program(binary())
}

fn kill(pid: i64) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL).expect("it runs");
}

fn number(value: &Value) -> i64 {
    value.as_i64().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn three_machines_come_up_with_their_limits_and_go_without_a_trace() {
    let stage = Stage::new("e2e-three");
    assert_eq!(stage.cloud.observe(&[]).await.unwrap(), Vec::new(), "looking starts nothing");
    assert_eq!(leftovers(&stage.cluster), Vec::<String>::new());
    stage.act(Verb::Create, NETWORK, FABRIC, json!({})).await;
    let begun = Instant::now();
    let machines = futures::join!(
        stage.machine("control-1", "control-plane"),
        stage.machine("worker-1", "worker"),
        stage.machine("worker-2", "worker")
    );
    let machines = [machines.0, machines.1, machines.2];
    eprintln!("three machines in {:?}", begun.elapsed());
    for machine in &machines {
        assert_eq!(machine.phase, Phase::Ready);
        assert_eq!(stage.ssh(machine, "hostname"), machine.id.name);
    }
    let facts: Value = serde_json::from_str(&stage.ssh(&machines[1], "cat /run/kprov/machine.json")).unwrap();
    assert_eq!((&facts["cpuMillis"], &facts["memoryBytes"]), (&json!(500), &json!(256 << 20)));
    let limit = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
    assert_eq!(stage.ssh(&machines[1], limit), (256 << 20).to_string());
    assert_eq!(
        stage.ssh(&machines[1], "ls /root /home /var/lib/kprov/local 2>/dev/null | grep -v : ; ls / | grep -c work; true"),
        "0",
        "the host's own files are hidden"
    );
    let open = "umask; find / -xdev -type d -perm -0002 ! -perm -1000";
    assert_eq!(stage.ssh(&machines[1], open), "0022", "nothing that anybody may write");
    assert_eq!(
        stage.ssh(
            &machines[1],
            "echo 1 > /proc/sys/kernel/panic 2>/dev/null && echo written; echo 1 > /proc/sys/net/ipv4/ip_forward && echo own"
        ),
        "own"
    );

    let mut changed = stage.machine_spec("worker");
    changed["memoryBytes"] = json!(512 << 20);
    stage.act(Verb::Update, MACHINE, "worker-1", changed.clone()).await;
    assert_eq!(stage.ssh(&machines[1], limit), (512 << 20).to_string());
    assert_eq!(stage.find(MACHINE, "worker-1").await.unwrap().spec, changed);

    let begun = Instant::now();
    stage.act(Verb::Delete, MACHINE, "worker-2", Value::Null).await;
    eprintln!("one machine gone in {:?}", begun.elapsed());
    let refused = stage.send(&stage.request(Verb::Delete, NETWORK, FABRIC, Value::Null)).await.unwrap_err();
    assert_eq!(refused.kind, Kind::Provider, "the network is still used");
    stage.delete_everything().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_killed_comes_back_or_can_be_repaired() {
    let stage = Stage::new("e2e-kill");
    stage.act(Verb::Create, NETWORK, FABRIC, json!({})).await;
    let (control, worker) = futures::join!(stage.machine("control-1", "control-plane"), stage.machine("worker-1", "worker"));
    stage.ssh(&worker, "echo kept > /root/note");

    // A worker's first process: seen as broken at once, repaired on its own disk.
    kill(number(&stage.running("worker-1")["init"]));
    stage.until(MACHINE, "worker-1", |phase| matches!(phase, Phase::Broken(_))).await;
    let repaired = stage.act(Verb::Repair, MACHINE, "worker-1", Value::Null).await.unwrap();
    assert_eq!((&repaired.phase, &repaired.outputs), (&Phase::Ready, &worker.outputs));
    assert_eq!(stage.ssh(&repaired, "cat /root/note"), "kept");

    // Its shim: the machine goes with it, by the kernel's doing.
    let running = stage.running("worker-1");
    kill(number(&running["shim"]));
    stage.until(MACHINE, "worker-1", |phase| matches!(phase, Phase::Broken(_))).await;
    kprov::sys::process::ended(number(&running["init"]) as i32).await;
    stage.act(Verb::Repair, MACHINE, "worker-1", Value::Null).await;

    // The control plane's machine: the cloud itself starts it again.
    let first = number(&stage.running("control-1")["init"]);
    kill(first);
    stage.until(MACHINE, "control-1", |phase| *phase != Phase::Ready).await;
    stage.until(MACHINE, "control-1", |phase| *phase == Phase::Ready).await;
    assert_ne!(number(&stage.running("control-1")["init"]), first);
    assert_eq!(stage.ssh(&control, "hostname"), "control-1");

    // The daemon: a shim starts the next one, machines do not notice.
    let before = stage.ssh(&control, "cat /proc/sys/kernel/random/boot_id; cat /etc/machine-id");
    let init = number(&stage.running("control-1")["init"]);
    let daemon = stage.daemon().expect("it runs");
    kill(daemon.into());
    let begun = Instant::now();
    stage.until(MACHINE, "worker-1", |phase| *phase == Phase::Ready).await;
    eprintln!("daemon back after {:?}", begun.elapsed());
    assert_ne!(stage.daemon(), Some(daemon));
    assert_eq!(number(&stage.running("control-1")["init"]), init);
    assert_eq!(stage.ssh(&control, "cat /proc/sys/kernel/random/boot_id; cat /etc/machine-id"), before);

    // A reboot from inside.
    let init = number(&stage.running("worker-1")["init"]);
    let version = stage.cloud.changed("").await.unwrap();
    let _ = stage.try_ssh(&worker, "python3 -c 'import ctypes; ctypes.CDLL(None).reboot(0x01234567)'");
    stage.cloud.changed(&version).await.unwrap();
    stage.until(MACHINE, "worker-1", |phase| *phase == Phase::Ready).await;
    assert_ne!(number(&stage.running("worker-1")["init"]), init);
    stage.delete_everything().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_done_once_and_only_for_the_current_writer() {
    let stage = Stage::new("e2e-once");
    stage.act(Verb::Create, NETWORK, FABRIC, json!({})).await;
    let create = stage.request(Verb::Create, MACHINE, "a", stage.machine_spec("worker"));
    let first = stage.send(&create).await.unwrap();
    let init = number(&stage.running("a")["init"]);
    assert_eq!(stage.send(&create).await.unwrap(), first);
    stage.act(Verb::Repair, MACHINE, "a", Value::Null).await;
    assert_eq!(number(&stage.running("a")["init"]), init, "nothing was done twice");
    let other = stage.request(Verb::Create, MACHINE, "a", stage.machine_spec("control-plane"));
    assert_eq!(stage.send(&other).await.unwrap_err().kind, Kind::Provider);

    let cli = Epoch { epoch: 1, owner: "cli".into() };
    let inside = Epoch { epoch: 2, owner: "cluster".into() };
    assert_eq!(EpochStore::read(&stage.cloud).await.unwrap(), None);
    assert!(stage.cloud.swap(None, &cli).await.unwrap());
    assert!(stage.cloud.swap(None, &cli).await.unwrap(), "the same swap again");
    assert!(!stage.cloud.swap(None, &inside).await.unwrap());
    // The loop inside the cluster, from this side of the fabric.
    let credentials = stage.cloud.loop_credentials().await.unwrap();
    let within = Local::from_credentials(&credentials).unwrap();
    assert!(within.swap(Some(&cli), &inside).await.unwrap());
    assert_eq!(within.observe(&[]).await.unwrap(), stage.cloud.observe(&[]).await.unwrap());
    let late = Request { epoch: 1, ..stage.request(Verb::Delete, MACHINE, "a", Value::Null) };
    assert_eq!(stage.send(&late).await.unwrap_err().kind, Kind::Conflict);
    let mut forged = credentials.clone();
    forged["token"] = json!("0".repeat(64));
    assert!(Local::from_credentials(&forged).unwrap().observe(&[]).await.is_err());
    let current = Request { epoch: 2, ..late };
    within.execute(&current, &|_| {}).await.unwrap();
    assert_eq!(stage.find(MACHINE, "a").await, None);
    let last = Request { epoch: 2, ..stage.request(Verb::Delete, NETWORK, FABRIC, Value::Null) };
    stage.send(&last).await.unwrap();
    assert_eq!(leftovers(&stage.cluster), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_at_any_moment_of_a_create_or_delete_costs_one_repetition() {
    let stage = Stage::new("e2e-moments");
    stage.act(Verb::Create, NETWORK, FABRIC, json!({})).await;
    let create = stage.request(Verb::Create, MACHINE, "a", stage.machine_spec("worker"));
    let delete = stage.request(Verb::Delete, MACHINE, "a", Value::Null);
    // The moments are the test's subject: from before the request arrives to after it is done.
    for moment in (0..200).step_by(20) {
        for request in [&create, &delete] {
            let shot = async {
                tokio::time::sleep(Duration::from_millis(moment)).await;
                kill(stage.daemon().expect("it runs").into());
            };
            let _ = futures::join!(stage.send(request), shot);
            let outcome = stage.send(request).await.unwrap_or_else(|error| panic!("{moment} ms into {}: {}", request.verb, error.chain()));
            match request.verb {
                Verb::Create => assert_eq!(stage.ssh(&outcome.expect("made"), "pgrep -c sshd >/dev/null && hostname"), "a", "{moment} ms"),
                _ => assert_eq!(outcome, None, "{moment} ms"),
            }
        }
    }
    stage.delete_everything().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_of_the_host_leaves_files_from_which_everything_comes_back() {
    let stage = Stage::new("e2e-reboot");
    stage.act(Verb::Create, NETWORK, FABRIC, json!({})).await;
    let (control, worker) = futures::join!(stage.machine("control-1", "control-plane"), stage.machine("worker-1", "worker"));
    // The daemon first stops (so that it starts nothing again), and then everything that lives in memory goes.
    let daemon = stage.daemon().expect("it runs");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon), nix::sys::signal::Signal::SIGSTOP).unwrap();
    for name in ["control-1", "worker-1"] {
        kill(number(&stage.running(name)["shim"]));
    }
    kill(daemon.into());
    kprov::sys::process::ended(daemon).await;
    let network = stage_link(&leftovers(&stage.cluster));
    let namespace = format!("/run/kprov/netns/{network}");
    nix::mount::umount2(namespace.as_str(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    std::fs::remove_file(&namespace).unwrap();

    let after = stage.until(MACHINE, "control-1", |phase| *phase == Phase::Ready).await;
    assert_eq!(after.outputs, control.outputs);
    assert_eq!(stage.ssh(&control, "hostname"), "control-1", "the control plane came up by itself");
    stage.until(MACHINE, "worker-1", |phase| matches!(phase, Phase::Broken(_))).await;
    stage.act(Verb::Repair, MACHINE, "worker-1", Value::Null).await;
    assert_eq!(stage.ssh(&worker, "hostname"), "worker-1");
    stage.delete_everything().await;
}

/// The network's name, as the sweep finds it.
fn stage_link(left: &[String]) -> String {
    left.iter().find_map(|line| line.strip_prefix("link ")).expect("the host's link").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_service_manager_adopts_what_the_last_one_started() {
    let stage = Stage::new("e2e-supervise");
    stage.act(Verb::Create, NETWORK, FABRIC, json!({})).await;
    let machine = stage.machine("a", "worker").await;
    // Inside the machine, so that nothing of it can stay on the host; beside its init, as on a machine with another one.
    let script = r#"unshare -m sh -e <<'END'
mount -t tmpfs t /run/kprov
mount -t tmpfs t /etc/kprov
kprov=/proc/1/exe
begin() { $kprov supervise >/dev/null 2>&1 & manager=$!; until $kprov service status >/dev/null 2>&1; do sleep 0.01; done; }
field() { $kprov service status | grep ""$1"" | tr -dc '0-9a-zA-Z'; }
begin
echo '{"name": "s", "argv": ["/bin/sleep", "5000"]}' | $kprov service ensure
before=$(field pid)
kill -9 $manager
begin
[ "$(field pid)" = "$before" ] && echo adopted
kill -9 $(echo $before | tr -dc 0-9)
until [ "$(field state)" = staterunning ] && [ "$(field pid)" != "$before" ]; do sleep 0.01; done
kill -TERM $manager
wait $manager && echo stopped
pgrep -f '^/bin/sleep 5000' >/dev/null || echo empty
END"#;
    assert_eq!(stage.ssh(&machine, script), "changed\nadopted\nstopped\nempty");
    stage.delete_everything().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn services_run_restart_change_and_survive_a_boot() {
    let stage = Stage::new("e2e-services");
    stage.act(Verb::Create, NETWORK, FABRIC, json!({})).await;
    let machine = stage.machine("a", "worker").await;
    let service = |command: &str| stage.ssh(&machine, &format!("/proc/1/exe service {command}"));
    let ensure = |revision: &str| {
        let definition = json!({"name": "s", "argv": ["/bin/sh", "-c", "sleep 1000 & echo started $WHAT; exec sleep 1001"], "env": {"WHAT": "it"}, "revision": revision, "after": ["sshd"]});
        service(&format!("ensure <<'END'\n{definition}\nEND"))
    };
    let status = || {
        let all: Vec<Value> = serde_json::from_str(&service("status")).expect("a list");
        all.into_iter().find(|one| one["name"] == "s").expect("defined")
    };
    assert_eq!((ensure("1"), ensure("1")), ("changed".to_string(), "unchanged".to_string()));
    let first = status();
    assert_eq!(ensure("2"), "changed");
    let second = wait_for(&status, |now| now["state"] == "running" && now["pid"] != first["pid"]);
    assert_eq!(stage.ssh(&machine, "cat /var/log/kprov/s.log"), "started it\nstarted it");
    assert_eq!(stage.ssh(&machine, "pgrep -fc 'sleep 1000'"), "2", "what the service started lives on");
    stage.ssh(&machine, &format!("kill -9 {}", second["pid"]));
    let third = wait_for(&status, |now| now["state"] == "running" && now["pid"] != second["pid"]);
    assert_eq!((&third["restarts"], &third["lastExit"]), (&json!(1), &json!("killed by SIGKILL")));
    assert_eq!(service("stop s"), "changed");
    assert_eq!((status()["state"].clone(), service("stop s")), (json!("stopped"), "unchanged".to_string()));
    kill(number(&stage.running("a")["init"]));
    stage.until(MACHINE, "a", |phase| matches!(phase, Phase::Broken(_))).await;
    stage.act(Verb::Repair, MACHINE, "a", Value::Null).await;
    wait_for(&status, |now| now["state"] == "running");
    assert_eq!(service("remove s"), "changed");
    assert_eq!(stage.ssh(&machine, "ls /etc/kprov/services"), "sshd.json");
    stage.delete_everything().await;
}

fn wait_for(read: &dyn Fn() -> Value, wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let value = read();
        if wanted(&value) {
            return value;
        }
        assert!(Instant::now() < deadline, "still {value}");
    }
}

fn ask(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(3))).ok()?;
    stream.write_all(b"x").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    (!answer.is_empty()).then(|| answer.trim().to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_balancer_serves_through_deaths_and_filesystems_are_shared() {
    let stage = Stage::new("e2e-serve");
    stage.act(Verb::Create, NETWORK, FABRIC, json!({})).await;
    let (a, b) = futures::join!(stage.machine("a", "worker"), stage.machine("b", "worker"));
    let filesystem = stage.act(Verb::Create, FILESYSTEM, "media", json!({"sizeBytes": 1 << 30})).await.unwrap();
    let place = filesystem.outputs["mount"]["source"].as_str().unwrap().to_string();
    stage.ssh(&a, &format!("echo shared > {place}/file"));
    assert_eq!(stage.ssh(&b, &format!("cat {place}/file")), "shared", "made after the machines, seen by both");

    // Services survive as files: a repaired machine serves again by itself.
    let program = "import socket\ns = socket.create_server(('0.0.0.0', 32000))\nwhile True:\n    c, _ = s.accept()\n    try:\n        c.recv(1) and c.sendall(socket.gethostname().encode())\n    except OSError:\n        pass\n    c.close()\n";
    for machine in [&a, &b] {
        stage.ssh(machine, &format!("cat > /root/serve.py <<'END'\n{program}END"));
        let service = json!({"name": "serve", "argv": ["/usr/bin/python3", "/root/serve.py"], "revision": "1"});
        stage.ssh(machine, &format!("cat > /etc/kprov/services/serve.json <<'END'\n{service}\nEND"));
        kill(number(&stage.running(&machine.id.name)["init"]));
        stage.until(MACHINE, &machine.id.name, |phase| matches!(phase, Phase::Broken(_))).await;
        stage.act(Verb::Repair, MACHINE, &machine.id.name, Value::Null).await;
    }
    let spec = json!({"name": "web", "machines": ["a", "b"], "listeners": [{"port": 80, "protocol": "TCP", "nodePort": 32000}]});
    let balancer = stage.act(Verb::Create, LOAD_BALANCER, "web", spec.clone()).await.unwrap();
    let address: SocketAddr = format!("{}:80", balancer.outputs["address"].as_str().unwrap()).parse().unwrap();
    let both = || (0..20).filter_map(|_| ask(address)).collect::<std::collections::BTreeSet<_>>();
    let deadline = Instant::now() + Duration::from_secs(10);
    while both().len() < 2 {
        assert!(Instant::now() < deadline, "both machines serve");
    }

    kill(number(&stage.running("a")["init"]));
    stage.until(MACHINE, "a", |phase| matches!(phase, Phase::Broken(_))).await;
    for _ in 0..10 {
        assert_eq!(ask(address).as_deref(), Some("b"), "no request is lost with a dead machine");
    }
    kill(stage.daemon().expect("it runs").into());
    let begun = Instant::now();
    while ask(address).is_none() {
        assert!(begun.elapsed() < Duration::from_secs(5), "the load balancer is back");
    }
    eprintln!("load balancer back after {:?}", begun.elapsed());
    let udp = json!({"name": "web", "machines": ["b"], "listeners": [{"port": 53, "protocol": "UDP", "nodePort": 32001}]});
    assert_eq!(stage.send(&stage.request(Verb::Update, LOAD_BALANCER, "web", udp)).await.unwrap_err().kind, Kind::Provider);
    stage.delete_everything().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clusters_live_side_by_side() {
    let stages = [Stage::new("e2e-left"), Stage::new("e2e-right")];
    for stage in &stages {
        stage.act(Verb::Create, NETWORK, FABRIC, json!({})).await;
        stage.machine("same-name", "worker").await;
    }
    let subnets: Vec<Value> = futures::future::join_all(stages.iter().map(|stage| stage.find(NETWORK, FABRIC)))
        .await
        .into_iter()
        .map(|found| found.unwrap().outputs["subnet"].clone())
        .collect();
    assert_ne!(subnets[0], subnets[1]);
    stages[0].delete_everything().await;
    let right = stages[1].find(MACHINE, "same-name").await.unwrap();
    assert_eq!(stages[1].ssh(&right, "hostname"), "same-name");
    stages[1].delete_everything().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_local_cloud_conforms() {
    let stages = [Stage::new("e2e-conform-a"), Stage::new("e2e-conform-b")];
    let [a, b] = &stages;
    conformance::run(async |cluster: &Cluster| connect(cluster), &a.cluster, &b.cluster, &a.public_key()).await;
    for stage in &stages {
        stage.delete_everything().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_in_which_nothing_was_made_is_no_leftover() {
    let stage = Stage::new("e2e-empty");
    assert!(stage.cloud.swap(None, &Epoch { epoch: 1, owner: "cli".into() }).await.unwrap());
    assert_ne!(leftovers(&stage.cluster), Vec::<String>::new(), "whoever claimed it died");
    let request = Request { epoch: 1, ..stage.request(Verb::Await, NETWORK, FABRIC, Value::Null) };
    assert_eq!(stage.send(&request).await.unwrap(), None);
    assert_eq!(stage.cloud.leftovers().await, Vec::<String>::new());
    assert_eq!(EpochStore::read(&stage.cloud).await.unwrap(), None);
}
