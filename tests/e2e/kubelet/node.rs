//! A node of its own for one test: network, mounts, containerd and kubelet that no other test and not the host can see.

use super::api::Api;
use kprov::orchestrator::client::https;
use kprov::orchestrator::config::AgentConfig;
use kprov::orchestrator::kubelet;
use kprov::sys::oci;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

pub struct Node {
    pub api: Api,
    pub folder: PathBuf,
    containerd: Child,
    pub config: Arc<AgentConfig>,
    cancel: CancellationToken,
    task: Option<tokio::task::JoinHandle<kprov::error::Result<()>>>,
}

/// Runs `story` on a thread in new namespaces: everything it starts is in them too.
pub fn alone<F: Future<Output = ()>>(story: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("this test needs root");
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        for folder in ["/etc/kprov", "/var/log", "/run"] {
            std::fs::create_dir_all(folder).unwrap();
            mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        }
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none).unwrap();
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(story());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

impl Node {
    pub async fn start() -> Node {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let folder = PathBuf::from(format!("/tmp/kubelet-e2e-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::SeqCst)));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let socket = folder.join("containerd.sock");
        std::fs::write(folder.join("containerd.toml"), containerd_config(&folder, &socket)).unwrap();
        let log = std::fs::File::create(folder.join("containerd.log")).unwrap();
        let containerd = Command::new("containerd")
            .args(["--config", folder.join("containerd.toml").to_str().unwrap()])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("containerd is installed");
        let begun = Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(20), "containerd does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        let archive = folder.join("kprov.tar");
        let binary = std::fs::read(env!("CARGO_BIN_EXE_kprov")).unwrap();
        oci::write_archive(std::fs::File::create(&archive).unwrap(), oci::KPROV_IMAGE, &binary, oci::architecture()).unwrap();
        let import = Command::new("ctr")
            .args(["-a", socket.to_str().unwrap(), "-n", "k8s.io", "images", "import", archive.to_str().unwrap()])
            .output()
            .unwrap();
        assert!(import.status.success(), "{}", String::from_utf8_lossy(&import.stderr));
        std::fs::remove_file(&archive).unwrap();
        certificates(&folder.join("pki"));
        let config = json!({
            "nodeName": "n1", "address": "127.0.0.1", "api": "", "data": folder.join("agent"), "pki": folder.join("pki"),
            "serviceCidr": "10.96.0.0/16", "podCidr": "10.244.0.0/16", "dnsAddress": "10.96.0.10", "clusterDomain": "cluster.local",
            "containerdSocket": socket, "providerId": "kprov-local://t/n1", "taints": ["a=b:NoSchedule"], "labels": {"x": "y"}
        });
        let config: AgentConfig = serde_json::from_value(config).unwrap();
        let mut node =
            Node { api: Api::start().await, folder, containerd, config: Arc::new(config), cancel: CancellationToken::new(), task: None };
        node.start_agent();
        node
    }

    pub fn start_agent(&mut self) {
        self.cancel = CancellationToken::new();
        let client = self.api.node_client();
        self.task = Some(tokio::spawn(kubelet::run(self.config.clone(), client, self.cancel.clone())));
    }

    pub async fn stop_agent(&mut self) {
        self.cancel.cancel();
        if let Some(task) = self.task.take() {
            task.await.unwrap().unwrap();
        }
    }

    pub fn write_network(&self) {
        let network = json!({
            "cniVersion": "0.4.0", "name": "kprov", "plugins": [
                {"type": "ptp", "ipMasq": false, "ipam": {"type": "host-local", "dataDir": self.folder.join("ipam"), "ranges": [[{"subnet": "10.244.1.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
                {"type": "portmap", "capabilities": {"portMappings": true}}
            ]
        });
        std::fs::create_dir_all("/etc/kprov/cni").unwrap();
        std::fs::write("/etc/kprov/cni/10-kprov.conflist.tmp", network.to_string()).unwrap();
        std::fs::rename("/etc/kprov/cni/10-kprov.conflist.tmp", "/etc/kprov/cni/10-kprov.conflist").unwrap();
    }

    /// A pod whose containers have the host's programs.
    pub async fn pod(&self, name: &str, mut spec: Value) -> String {
        let path = pod_path(name);
        let mounts = ["usr", "lib", "lib64", "bin"].map(|folder| (folder, format!("/{folder}")));
        spec["nodeName"] = "n1".into();
        let volumes: Vec<Value> = mounts.iter().map(|(name, path)| json!({"name": name, "hostPath": {"path": path}})).collect();
        append(&mut spec["volumes"], &volumes);
        let mounts: Vec<Value> = mounts.iter().map(|(name, path)| json!({"name": name, "mountPath": path, "readOnly": true})).collect();
        for list in ["containers", "initContainers"] {
            for container in spec[list].as_array_mut().into_iter().flatten() {
                append(&mut container["volumeMounts"], &mounts);
                container["image"] = container.get("image").cloned().unwrap_or_else(|| oci::KPROV_IMAGE.into());
                container["imagePullPolicy"] = container.get("imagePullPolicy").cloned().unwrap_or_else(|| "IfNotPresent".into());
            }
        }
        let object = json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": spec});
        self.api.put("/api/v1/namespaces/default/pods", object).await;
        path
    }

    /// Waits until `condition` holds for the object at `path` (null when it is gone).
    pub async fn wait(&self, path: &str, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let object = self.api.get(path).await.unwrap_or_default();
            if condition(&object) {
                println!("{:>6} ms until {path} {what}", begun.elapsed().as_millis());
                return object;
            }
            if begun.elapsed() > Duration::from_secs(60) {
                panic!("{path} never {what}: {:#}\nevents: {:#?}", object["status"], self.events("").await);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn events(&self, about: &str) -> Vec<String> {
        let all = self.api.list("/api/v1/namespaces/default/events").await;
        let about = |event: &&Value| about.is_empty() || event["involvedObject"]["name"] == about;
        all.iter()
            .filter(about)
            .map(|event| format!("{} {}", event["reason"].as_str().unwrap(), event["message"].as_str().unwrap()))
            .collect()
    }

    /// A node whose network is there.
    pub async fn ready() -> Node {
        let node = Node::start().await;
        node.write_network();
        node.wait("/api/v1/nodes/n1", "ready", |node| condition(node, "Ready") == "True").await;
        node
    }

    /// Asks the kubelet's server with one of the certificates made for this test.
    pub async fn ask(&self, who: &str, path: &str) -> (u16, String) {
        let read = |name: String| std::fs::read_to_string(self.folder.join("pki").join(name)).unwrap();
        let (certificate, key) = (read(format!("{who}.crt")), read(format!("{who}.key")));
        let client = https::connect("https://127.0.0.1:10250", &read("ca.crt".into()), &certificate, &key).unwrap();
        let request = http::Request::get(path).body(bytes::Bytes::new()).unwrap();
        let response = client.raw(request).await.unwrap();
        let status = response.status().as_u16();
        let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    pub async fn log(&self, pod: &str, container: &str, query: &str) -> String {
        let (status, text) = self.ask("caller", &format!("/containerLogs/default/{pod}/{container}?{query}")).await;
        assert_eq!(status, 200, "{text}");
        text
    }

    pub async fn log_until(&self, pod: &str, container: &str, word: &str) -> String {
        let begun = Instant::now();
        loop {
            let text = self.log(pod, container, "").await;
            if text.contains(word) {
                return text;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "{word} is not in the log: {text}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn wait_until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !condition() {
            assert!(begun.elapsed() < Duration::from_secs(30), "not within 30 s: {what}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub fn ctr(&self, arguments: &[&str]) -> String {
        let output = Command::new("ctr")
            .args(["-a", self.config.containerd_socket.to_str().unwrap(), "-n", "k8s.io"])
            .args(arguments)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The agent first, or it would start again what is ended below.
        self.cancel.cancel();
        if let Some(task) = self.task.take() {
            task.abort();
        }
        let folder = self.folder.display().to_string();
        let run = |script: &str| drop(Command::new("sh").args(["-c", script]).status());
        run(&sweep(&self.folder));
        let pid = nix::unistd::Pid::from_raw(self.containerd.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.containerd.wait();
        run(&format!(
            "for uid in $(ls {folder}/agent/pods); do find /sys/fs/cgroup -depth -type d -path \"*pod$uid*\" -exec rmdir {{}} + 2>/dev/null; done"
        ));
        run("for class in /burstable /besteffort ''; do rmdir /sys/fs/cgroup/*/kpods$class 2>/dev/null; done");
        run(&format!("grep -o '{folder}[^ ]*' /proc/self/mountinfo | sort -r | xargs -r -n1 umount -l; rm -rf {folder}"));
    }
}

/// Ends what containers are left through containerd itself.
fn sweep(folder: &Path) -> String {
    let ctr = format!("ctr -a {}/containerd.sock -n k8s.io", folder.display());
    format!("for t in $({ctr} tasks ls -q); do {ctr} tasks kill -s KILL $t; {ctr} tasks rm -f $t; done >/dev/null 2>&1; sleep 0.3")
}

pub fn condition(object: &Value, kind: &str) -> String {
    let list = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = list.iter().find(|condition| condition["type"] == kind);
    found.and_then(|condition| condition["status"].as_str()).unwrap_or_default().to_owned()
}

pub fn pod_path(name: &str) -> String {
    format!("/api/v1/namespaces/default/pods/{name}")
}

pub fn shell(name: &str, script: &str) -> Value {
    json!({"name": name, "command": ["/usr/bin/sh", "-c", format!("PATH=/usr/bin; {script}")]})
}

fn append(list: &mut Value, more: &[Value]) {
    let mut all = list.as_array().cloned().unwrap_or_default();
    all.extend_from_slice(more);
    *list = all.into();
}

fn containerd_config(folder: &Path, socket: &Path) -> String {
    let (folder, socket) = (folder.display(), socket.display());
    format!(
        r#"version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "kprov.dev/kprov:latest"
  disable_apparmor = true
  restrict_oom_score_adj = true
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/kprov/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"
"#
    )
}

/// A CA, the node's certificate, and the API server's client certificate.
fn certificates(pki: &Path) {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    std::fs::create_dir_all(pki).unwrap();
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    std::fs::write(pki.join("ca.crt"), ca_certificate.pem()).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    for (file, common_name) in [("node", "system:node:n1"), ("caller", "kprov:api-server"), ("stranger", "system:node:n2")] {
        let key = KeyPair::generate().unwrap();
        let mut own = CertificateParams::new(vec!["n1".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        own.distinguished_name.push(DnType::CommonName, common_name);
        let certificate = own.signed_by(&key, &issuer).unwrap();
        std::fs::write(pki.join(format!("{file}.crt")), certificate.pem()).unwrap();
        std::fs::write(pki.join(format!("{file}.key")), key.serialize_pem()).unwrap();
    }
}
