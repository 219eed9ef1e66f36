//! The figures of the README: `cargo bench --bench cluster` (root). Brings the local example up and down and measures from outside.
//!
//! Each figure is printed as minimum, median and maximum over its runs; ratios between two machines need both run on the same day.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const RUNS: usize = 5;
const PODS: usize = 20;
/// After this long without anything to do, a cluster is idle: leases still tick.
const IDLE: Duration = Duration::from_secs(15);

fn main() {
    // `cargo bench -- --list` and test runners ask every bench for its tests: this one has none.
    if std::env::args().any(|argument| argument == "--list") {
        return;
    }
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_kprov"));
    let bench = Bench { binary, folder: tempfile::tempdir().expect("a folder") };
    println!("binary: {:.1} MB", std::fs::metadata(&bench.binary).expect("binary").len() as f64 / 1e6);
    let (mut up, mut again, mut down) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..RUNS {
        up.push(bench.time(&["up", &bench.blueprint(), "--yes"]));
        again.push(bench.time(&["up", &bench.blueprint(), "--yes"]));
        if run == 0 {
            bench.pods();
            std::thread::sleep(IDLE);
            bench.memory();
        }
        down.push(bench.time(&["down", "bench", "--yes"]));
    }
    print("up to all served", &mut up);
    print("up without a change", &mut again);
    print("down", &mut down);
}

struct Bench {
    binary: PathBuf,
    folder: tempfile::TempDir,
}

impl Bench {
    fn blueprint(&self) -> String {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("blueprints");
        let text = std::fs::read_to_string(examples.join("local.yaml")).expect("local.yaml");
        let path = self.folder.path().join("bench.yaml");
        std::fs::write(&path, text.replace("metadata: {name: shop}", "metadata: {name: bench}")).expect("bench.yaml");
        std::fs::copy(examples.join("web.yaml"), self.folder.path().join("web.yaml")).expect("web.yaml");
        path.display().to_string()
    }

    fn time(&self, arguments: &[&str]) -> Duration {
        let started = Instant::now();
        let output = Command::new(&self.binary)
            .args(arguments)
            .env("KPROV_HOME", self.folder.path().join("home"))
            .stdin(Stdio::null())
            .output()
            .expect("kprov starts");
        assert!(output.status.success(), "kprov {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        started.elapsed()
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        let kubeconfig = self.folder.path().join("home/clusters/local/bench/kubeconfig");
        let output = Command::new("kubectl").arg("--kubeconfig").arg(kubeconfig).args(arguments).output().expect("kubectl starts");
        assert!(output.status.success(), "kubectl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// From the API's own clock: creationTimestamp has whole seconds only, so the pods' annotations carry the client's send time and a
    /// watch tells when each was first seen Running.
    fn pods(&self) {
        let mut times = Vec::new();
        for number in 0..PODS {
            let name = format!("bench-{number}");
            let started = Instant::now();
            self.kubectl(&[
                "run",
                &name,
                "--image=kprov.dev/kprov:latest",
                "--image-pull-policy=IfNotPresent",
                "--restart=Never",
                "--",
                "pause",
            ]);
            self.kubectl(&["wait", &format!("pod/{name}"), "--for=jsonpath={.status.phase}=Running", "--timeout=60s"]);
            times.push(started.elapsed());
        }
        print("pod create to Running, two kubectl calls included", &mut times);
        let mut calls: Vec<Duration> = (0..PODS)
            .map(|_| {
                let started = Instant::now();
                self.kubectl(&["get", "pod", "bench-0", "-o", "name"]);
                started.elapsed()
            })
            .collect();
        print("one kubectl call", &mut calls);
        self.kubectl(&["delete", "pods", "--all", "--now", "--wait=false"]);
    }

    fn memory(&self) {
        for role in ["server", "agent"] {
            let mut sizes = resident(&self.binary, role);
            sizes.sort_unstable();
            println!("{role} idle RSS: {:?} MB", sizes.iter().map(|bytes| bytes / 1_000_000).collect::<Vec<_>>());
        }
    }
}

/// VmRSS of every process that runs `kprov <role>`, in bytes. Machines' processes are visible on the host.
fn resident(_binary: &Path, role: &str) -> Vec<u64> {
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    processes
        .filter_map(|process| {
            let command = std::fs::read(process.path().join("cmdline")).ok()?;
            let mut words = command.split(|byte| *byte == 0);
            (words.next()?.ends_with(b"kprov") && words.next()? == role.as_bytes()).then_some(())?;
            let status = std::fs::read_to_string(process.path().join("status")).ok()?;
            let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
            Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
        })
        .collect()
}

fn print(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |index: usize| times.get(index).map_or(0.0, Duration::as_secs_f64);
    let (first, middle, last) = (at(0), at(times.len() / 2), at(times.len().saturating_sub(1)));
    println!("{what}: min {first:.2} s, median {middle:.2} s, max {last:.2} s ({} runs)", times.len());
}
