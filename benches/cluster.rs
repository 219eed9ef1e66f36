//! The figures of the README: `cargo bench --bench cluster` (root). Brings the local example up and down and measures from outside.
//!
//! Each figure is printed as minimum, median and maximum over its runs; ratios between two machines need both run on the same day.

use k8s_openapi::api::core::v1::Pod;
use kprov::bootstrap::trust::Trust;
use kprov::orchestrator::client::{Client, Delete, Informer, Selector, https};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};
use tokio_util::sync::CancellationToken;

const RUNS: usize = 5;
const PODS: usize = 20;
/// After this long without anything to do, a cluster is idle: leases still tick.
const IDLE: Duration = Duration::from_secs(15);
/// For one pod; the image is there.
const PATIENCE: Duration = Duration::from_secs(60);

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
        let text = std::fs::read_to_string(examples.join("shop.yaml")).expect("shop.yaml");
        let path = self.folder.path().join("bench.yaml");
        std::fs::write(&path, text.replace("  name: shop\n", "  name: bench\n")).expect("bench.yaml");
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

    /// The API as administrator, with what `up` wrote into the operator's folder.
    fn client(&self) -> Client {
        let folder = self.folder.path().join("home/clusters/local/bench");
        let trust = Trust::load(&folder.join("pki"), SystemTime::now()).expect("keys").expect("keys are there");
        let kubeconfig = std::fs::read_to_string(folder.join("kubeconfig")).expect("a kubeconfig");
        let server = kubeconfig.lines().find_map(|line| line.trim().trim_start_matches("- ").strip_prefix("server:")).expect("a server");
        let server = server.trim().trim_matches('"');
        https::connect(server, &trust.ca.certificate, &trust.admin.certificate, &trust.admin.key).expect("a client")
    }

    /// Create to Running as a watch sees it, one pod after the other: a kubectl per step would mostly measure kubectl's own start.
    fn pods(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let mut times = runtime.block_on(pods_seen_running(&self.client()));
        print("pod create to Running, by watch", &mut times);
    }

    fn memory(&self) {
        for role in ["server", "agent"] {
            let mut sizes = resident(&self.binary, role);
            sizes.sort_unstable();
            println!("{role} idle RSS: {:?} MB", sizes.iter().map(|bytes| bytes / 1_000_000).collect::<Vec<_>>());
        }
    }
}

async fn pods_seen_running(client: &Client) -> Vec<Duration> {
    let cancel = CancellationToken::new();
    let pods = Informer::<Pod>::start_in(client.clone(), "default", Selector::all(), &cancel);
    pods.synced().await;
    let mut changed = pods.changed();
    let mut times = Vec::new();
    for number in 0..PODS {
        let name = format!("bench-{number}");
        let image = "kprov.dev/kprov:latest";
        let container = json!({"name": "pause", "image": image, "imagePullPolicy": "IfNotPresent", "args": ["pause"]});
        let pod = json!({"metadata": {"name": name}, "spec": {"restartPolicy": "Never", "containers": [container]}});
        let started = Instant::now();
        client.create::<Pod>("default", &pod).await.expect("a pod is created");
        while !pods.get("default", &name).is_some_and(|pod| is_running(&pod)) {
            tokio::time::timeout(PATIENCE, changed.wait()).await.expect("the pod runs within a minute");
        }
        times.push(started.elapsed());
    }
    for number in 0..PODS {
        client.delete::<Pod>("default", &format!("bench-{number}"), &Delete::default()).await.expect("a pod is deleted");
    }
    cancel.cancel();
    times
}

fn is_running(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"))
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
