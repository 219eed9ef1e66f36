//! A whole cluster for one story: its own state folder, its own name, and gone afterwards whatever happened.

use kprov::engine::Cluster;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The binary under test: `KPROV_BINARY`, else the one cargo built for this test run.
pub fn binary() -> PathBuf {
    std::env::var_os("KPROV_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_kprov").into(), PathBuf::from)
}

/// Stories of whole clusters need root; anywhere else they would fail for a reason that says nothing about kprov.
pub fn require_root() {
    assert!(nix::unistd::geteuid().is_root(), "end-to-end tests make machines: run them as root");
}

/// Whoever operates the one cluster of a story.
pub trait Operated {
    /// kprov, with the operator's state, from where they are.
    fn command(&self) -> Command;

    fn kubectl_command(&self) -> Command;

    fn kprov(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().expect("kprov starts")
    }

    /// Runs and must succeed; its stdout.
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.kprov(arguments);
        assert!(output.status.success(), "kprov {arguments:?} failed ({}):\n{}", output.status, text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn kubectl(&self, arguments: &[&str]) -> Output {
        self.kubectl_command().args(arguments).output().expect("kubectl starts")
    }

    fn kubectl_ok(&self, arguments: &[&str]) -> String {
        let output = self.kubectl(arguments);
        assert!(output.status.success(), "kubectl {arguments:?} failed ({}):\n{}", output.status, text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A Service of type LoadBalancer for the shop's pods, at port 8081: the address that it gets.
    fn expose(&self, name: &str) -> String {
        let name_of = format!("--name={name}");
        self.kubectl_ok(&[
            "expose",
            "deployment",
            "web",
            "-n",
            "shop",
            &name_of,
            "--type=LoadBalancer",
            "--port=8081",
            "--target-port=8080",
        ]);
        let ingress = "jsonpath={.status.loadBalancer.ingress[0].ip}";
        let address = || self.kubectl_ok(&["get", "service", name, "-n", "shop", "-o", ingress]);
        until("the service has an address", || !address().is_empty());
        address()
    }
}

/// For what nothing tells, and for what only a newer kubectl than Debian's waits for; asks often enough that a story does not wait.
pub fn until(what: &str, condition: impl FnMut() -> bool) {
    assert!(within_a_minute(condition), "not within a minute: {what}");
}

pub fn within_a_minute(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

pub struct Story {
    pub name: String,
    folder: tempfile::TempDir,
}

impl Story {
    /// `name` becomes part of the cluster's name; the process id keeps two runs apart.
    pub fn new(name: &str) -> Story {
        Story::called(format!("{name}-{}", std::process::id()))
    }

    /// The example's own name: not a letter of it is changed, unless a cluster of somebody else on this host is called so.
    pub fn of_the_shop() -> Story {
        let taken = kprov::providers::local::clusters().expect("this host is readable").iter().any(|cluster| cluster.name == "shop");
        if taken { Story::new("shop") } else { Story::called("shop".into()) }
    }

    pub fn called(name: String) -> Story {
        require_root();
        let folder = tempfile::Builder::new().prefix("kprov-e2e-").tempdir().expect("a folder for the story");
        Story { name, folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn home(&self) -> PathBuf {
        self.path("home")
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).expect("a file of the story");
        path
    }

    /// The repository's example under this story's name, with its manifests beside it.
    pub fn example(&self) -> PathBuf {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("blueprints");
        std::fs::copy(examples.join("web.yaml"), self.path("web.yaml")).expect("web.yaml");
        let text = std::fs::read_to_string(examples.join("shop.yaml")).expect("shop.yaml");
        assert!(text.contains("  provider: local "), "the example is for this host as it is");
        let renamed = text.replace("  name: shop\n", &format!("  name: {}\n", self.name));
        assert!(renamed.contains(&format!("  name: {}\n", self.name)), "the example's name was not found");
        self.write("blueprint.yaml", &renamed)
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.home().join("clusters/local").join(&self.name).join("kubeconfig")
    }

    /// Who the cluster is, while it exists.
    pub fn cluster(&self) -> Cluster {
        let found =
            kprov::providers::local::clusters().expect("this host is readable").into_iter().find(|cluster| cluster.name == self.name);
        found.expect("the cluster exists on this host")
    }

    /// The first process of a machine, as the host sees it.
    pub fn machine_pid(&self, machine: &str) -> i32 {
        self.process(&["local", "init", &format!("{}/{machine}", self.cluster().uid)])
    }

    /// kill -9 of the one process of this cluster that kprov started with these words.
    pub fn kill_process(&self, words: &[&str]) {
        let uid = self.cluster().uid;
        let pid = self.process(&[words, &[&uid]].concat());
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).expect("kill");
    }

    /// The same for the cloud's daemon, where one runs.
    pub fn kill_daemon(&self) {
        let clusters = kprov::providers::local::clusters().expect("this host is readable");
        let uid = clusters.into_iter().find(|cluster| cluster.name == self.name).map(|cluster| cluster.uid);
        if let Some(daemon) = uid.and_then(|uid| self.find_process(&["local", "daemon", &uid])) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon), nix::sys::signal::Signal::SIGKILL);
        }
    }

    /// By the command line after the program's name.
    fn process(&self, words: &[&str]) -> i32 {
        self.find_process(words).unwrap_or_else(|| panic!("no process runs kprov {words:?}"))
    }

    fn find_process(&self, words: &[&str]) -> Option<i32> {
        let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
        let found = processes.filter_map(|process| {
            let command = std::fs::read(process.path().join("cmdline")).ok()?;
            let theirs: Vec<&[u8]> = command.split(|byte| *byte == 0).skip(1).collect();
            let ours = words.iter().zip(&theirs).all(|(ours, theirs)| ours.as_bytes() == *theirs) && theirs.len() > words.len();
            ours.then(|| process.file_name().to_str()?.parse().ok()).flatten()
        });
        found.min()
    }
}

/// What is left on this host of a cluster: mounts, links, namespaces, cgroups, processes, files.
pub fn assert_gone(cluster: &Cluster) {
    assert_eq!(kprov::providers::local::leftovers(cluster), Vec::<String>::new());
}

impl Operated for Story {
    fn command(&self) -> Command {
        let mut command = Command::new(binary());
        command.env("KPROV_HOME", self.home()).stdin(Stdio::null());
        command
    }

    fn kubectl_command(&self) -> Command {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(self.kubeconfig()).stdin(Stdio::null());
        command
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        let output = self.kprov(&["down", &self.name, "--yes"]);
        if !output.status.success() {
            eprintln!("could not take {} down:\n{}", self.name, text(&output));
        }
        show_logs_of_a_failure(&self.home());
    }
}

/// Ends of the logs that kprov has written below its `home`, when the story is failing: for `Drop`.
pub fn show_logs_of_a_failure(home: &Path) {
    if !std::thread::panicking() {
        return;
    }
    for entry in std::fs::read_dir(home.join("log")).into_iter().flatten().flatten() {
        let log = std::fs::read_to_string(entry.path()).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(60).collect();
        eprintln!("--- {}\n{}", entry.path().display(), tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
    }
}

pub fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("not JSON ({error}): {text}"))
}

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// One HTTP GET without any library in between: what a stranger's client sees.
pub fn http_get(address: &str, path: &str) -> std::io::Result<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
