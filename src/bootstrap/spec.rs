//! What a host should be, as data: files, certificates, services, images. Sent to the machine whole; never written to the journal,
//! because it holds keys.

use super::trust::{Pair, ServerNames, Trust};
use crate::error::Result;
use crate::sys::{executable, paths};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::SystemTime;

pub const CONTROL_PLANE: &str = "control-plane";
pub const WORKER: &str = "worker";

/// Written last on the machine; where it is, everything in it is installed.
pub const MARKER: &str = "/etc/kprov/host.json";
/// Where the provider's credentials for the loop inside the cluster lie on a control plane.
pub const PROVIDER_FILE: &str = "/etc/kprov/provider.json";
/// A containerd of kprov's own, beside what Docker or others have: only the program is shared.
pub const CONTAINERD: &str = "kprov-containerd";
pub const CONTAINERD_CONFIG: &str = "/etc/kprov/containerd.toml";
pub const CONTAINERD_ROOT: &str = "/var/lib/kprov/containerd";
pub const CONTAINERD_STATE: &str = "/run/kprov/containerd";
pub const CONTAINERD_SOCKET: &str = "/run/kprov/containerd/containerd.sock";
/// Archives lie here: on a control plane for as long as the blueprint names them, elsewhere until they are imported.
pub const ARCHIVES: &str = "/var/lib/kprov/images";
/// The pause and demo image, packed on the machine from the uploaded program.
pub use crate::sys::oci::KPROV_IMAGE;

/// Everything a machine must be told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostSpec {
    pub cluster_uid: String,
    pub node_name: String,
    /// `control-plane` or `worker`.
    pub role: String,
    /// Equal revisions are equal wishes; see [`revision`].
    pub revision: String,
    pub generation: u32,
    #[serde(default)]
    pub directories: Vec<Directory>,
    #[serde(default)]
    pub files: Vec<File>,
    #[serde(default)]
    pub leaves: Vec<Leaf>,
    /// Those that cannot be set (a kernel-wide one inside a container) are reported and passed over.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    #[serde(default)]
    pub images: Vec<Image>,
    /// Whether it mounts NFS shares.
    #[serde(default)]
    pub nfs: bool,
    /// containerd comes by itself; these run beside it.
    #[serde(default)]
    pub services: Vec<Service>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    pub path: PathBuf,
    pub mode: u32,
}

/// Owned by root.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    pub path: PathBuf,
    pub mode: u32,
    #[serde(with = "as_base64")]
    pub content: Vec<u8>,
}

impl fmt::Debug for File {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {:o} ({} bytes)", self.path.display(), self.mode, self.content.len())
    }
}

/// A certificate with its key. The machine keeps what it has as long as that still says the same and is young enough.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaf {
    pub certificate: File,
    pub key: File,
}

/// An archive to import, when the machine does not have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Full image names inside it.
    pub names: Vec<String>,
    pub sha256: String,
    pub size: u64,
    /// Where the one who sends it finds it; nothing to the machine.
    pub source: PathBuf,
}

impl Image {
    /// Where a control plane keeps it.
    pub fn kept(&self) -> PathBuf {
        PathBuf::from(ARCHIVES).join(format!("{}.tar", self.sha256))
    }
}

/// A long-running program, kept running by systemd or by kprov's own supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub name: String,
    pub description: String,
    pub argv: Vec<String>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Names of services started before.
    #[serde(default)]
    pub after: Vec<String>,
    /// Files whose content it reads only at its start: when one changes, it starts again.
    #[serde(default)]
    pub restart_on: Vec<PathBuf>,
    #[serde(default)]
    pub ready: Option<Ready>,
}

/// How a service shows that it works: somebody answers there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ready {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Left on the machine when all is done. Holds no secret: the probe prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Marker {
    pub cluster_uid: String,
    pub node_name: String,
    pub role: String,
    pub revision: String,
    pub generation: u32,
    /// SHA-256 of the program the services run.
    pub program: String,
    pub services: Vec<String>,
    /// SHA-256 of imported archives.
    pub images: Vec<String>,
    /// What `kprov host remove` takes away.
    pub files: Vec<PathBuf>,
    /// When the first of the host's certificates is due for renewal, seconds since 1970.
    pub rotate_at: u64,
}

/// A short name of everything that is known about a host before its machine exists: the program, the cluster's settings, the archives.
/// Addresses are not in it: they belong to the machine, and a machine that gets others is another machine.
pub fn revision(parts: &[(&str, &str)]) -> String {
    let text: Vec<String> = parts.iter().map(|(name, value)| format!("{name} {} {value}\n", value.len())).collect();
    executable::sha256(text.concat().as_bytes())[..16].to_string()
}

/// What both kinds of host are made from. The configuration texts come from whoever knows the orchestrator.
#[derive(Clone, Debug)]
pub struct Node<'a> {
    pub trust: &'a Trust,
    pub name: &'a str,
    /// Where other nodes reach it.
    pub address: IpAddr,
    pub revision: &'a str,
    pub generation: u32,
    /// Whether it mounts NFS shares.
    pub nfs: bool,
    /// Text of /etc/kprov/agent.json.
    pub agent_config: String,
    pub images: Vec<Image>,
    /// More files (registry configuration, ...).
    pub files: Vec<File>,
}

/// What a control plane needs beside being a node.
#[derive(Clone, Debug)]
pub struct ControlPlane<'a> {
    /// Text of /etc/kprov/server.json.
    pub server_config: String,
    pub names: ServerNames<'a>,
    /// Text of [`PROVIDER_FILE`]: a secret.
    pub provider: Option<String>,
    pub port: u16,
}

/// A worker: containerd and the agent.
pub fn worker(node: Node<'_>, now: SystemTime) -> Result<HostSpec> {
    let pki = PathBuf::from(paths::PKI);
    let agent = PathBuf::from(paths::ETC).join("agent.json");
    let leaf = leaf("node", node.trust.authority()?.node(node.name, node.address, now)?);
    let mut files = vec![
        File { path: pki.join("ca.crt"), mode: 0o600, content: node.trust.ca.certificate.clone().into_bytes() },
        File { path: agent.clone(), mode: 0o600, content: node.agent_config.into_bytes() },
    ];
    files.extend(node.files);
    Ok(HostSpec {
        cluster_uid: node.trust.cluster.uid.clone(),
        node_name: node.name.to_string(),
        role: WORKER.to_string(),
        revision: node.revision.to_string(),
        generation: node.generation,
        directories: [(paths::ETC, 0o755), (paths::PKI, 0o700), (paths::DATA, 0o755)].map(directory).to_vec(),
        services: vec![Service {
            name: "kprov-agent".into(),
            description: "kprov agent: kubelet, service proxy and DNS".into(),
            argv: argv("agent", &agent),
            env: BTreeMap::new(),
            after: vec![CONTAINERD.into()],
            restart_on: vec![agent, pki.join("ca.crt"), leaf.certificate.path.clone()],
            ready: Some(Ready::Tcp(SocketAddr::new(node.address, KUBELET_PORT))),
        }],
        files,
        leaves: vec![leaf],
        sysctls: sysctls(),
        images: node.images,
        nfs: node.nfs,
    })
}

/// A control plane: a node that also runs the server and keeps the cluster's keys.
pub fn control_plane(node: Node<'_>, control: ControlPlane<'_>, now: SystemTime) -> Result<HostSpec> {
    let trust = node.trust;
    let mut spec = worker(node, now)?;
    let pki = PathBuf::from(paths::PKI);
    let config = PathBuf::from(paths::ETC).join("server.json");
    let authority = trust.authority()?;
    let leaves = [("server", authority.server(&control.names, now)?), ("kubelet-client", authority.kubelet_client(now)?)];
    let leaves = leaves.map(|(stem, pair)| leaf(stem, pair));
    // The people's certificate stays with the people: the loop inside the cluster has its own way in.
    let keys = trust.files().into_iter().filter(|(name, _)| !name.starts_with("admin.") && *name != "ca.crt");
    spec.role = CONTROL_PLANE.to_string();
    spec.files.push(File { path: config.clone(), mode: 0o600, content: control.server_config.into_bytes() });
    spec.files.extend(keys.map(|(name, content)| File { path: pki.join(name), mode: 0o600, content }));
    spec.files.extend(control.provider.map(|text| File { path: PROVIDER_FILE.into(), mode: 0o600, content: text.into_bytes() }));
    let reads = spec.files.iter().map(|file| file.path.clone()).filter(|path| !path.ends_with("agent.json"));
    let server = Service {
        name: "kprov-server".into(),
        description: "kprov server: store, API, scheduler and controllers".into(),
        argv: argv("server", &config),
        env: BTreeMap::new(),
        after: Vec::new(),
        restart_on: reads.chain(leaves.iter().map(|leaf| leaf.certificate.path.clone())).collect(),
        ready: Some(Ready::Tcp(SocketAddr::new(control.names.advertise, control.port))),
    };
    // The agent tells on its Node when the first of them is due: it must hear of new ones.
    spec.services[0].restart_on.extend(leaves.iter().map(|leaf| leaf.certificate.path.clone()));
    spec.leaves.extend(leaves);
    spec.services.insert(0, server);
    Ok(spec)
}

/// The kubelet's port, in Kubernetes' own list of ports.
const KUBELET_PORT: u16 = 10250;

/// Forwarding for pods. Only settings of the machine's own network: kernel-wide ones may belong to a host that machines share.
fn sysctls() -> BTreeMap<String, String> {
    [("net.ipv4.ip_forward", "1"), ("net.ipv4.conf.all.rp_filter", "0"), ("net.ipv4.conf.default.rp_filter", "0")]
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .into()
}

fn directory((path, mode): (&str, u32)) -> Directory {
    Directory { path: path.into(), mode }
}

fn argv(command: &str, config: &std::path::Path) -> Vec<String> {
    vec![paths::BINARY.into(), command.into(), "--config".into(), config.display().to_string()]
}

fn leaf(stem: &str, pair: Pair) -> Leaf {
    let file = |end: &str, text: String| File {
        path: PathBuf::from(paths::PKI).join(format!("{stem}.{end}")),
        mode: 0o600,
        content: text.into_bytes(),
    };
    Leaf { certificate: file("crt", pair.certificate), key: file("key", pair.key) }
}

/// JSON has no bytes.
mod as_base64 {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Cluster;

    fn trust() -> Trust {
        Trust::create(&Cluster { name: "shop".into(), uid: "u1".into() }, SystemTime::now()).unwrap()
    }

    fn node(trust: &Trust) -> Node<'_> {
        Node {
            trust,
            name: "control-1",
            address: "10.88.0.10".parse().unwrap(),
            revision: "r1",
            generation: 1,
            nfs: false,
            agent_config: "{}".into(),
            images: Vec::new(),
            files: Vec::new(),
        }
    }

    fn control(trust: &Trust) -> HostSpec {
        let names = ServerNames {
            node: "control-1",
            advertise: "10.88.0.10".parse().unwrap(),
            service: "10.96.0.1".parse().unwrap(),
            domain: "cluster.local",
            others: &[],
        };
        let control = ControlPlane { server_config: "{}".into(), names, provider: Some("{}".into()), port: 6443 };
        control_plane(node(trust), control, SystemTime::now()).unwrap()
    }

    fn names(spec: &HostSpec) -> Vec<String> {
        let files = spec.files.iter().chain(spec.leaves.iter().flat_map(|leaf| [&leaf.certificate, &leaf.key]));
        files.map(|file| file.path.display().to_string()).collect()
    }

    #[test]
    fn a_worker_never_gets_the_clusters_keys() {
        let trust = trust();
        let spec = worker(node(&trust), SystemTime::now()).unwrap();
        let text = serde_json::to_string(&spec).unwrap();
        use base64::Engine;
        for secret in [trust.ca.key.as_bytes(), trust.service_account_key.as_bytes(), &trust.encryption_key, trust.ssh.private.as_bytes()] {
            assert!(!text.contains(&base64::engine::general_purpose::STANDARD.encode(secret)));
        }
        assert_eq!(names(&spec), ["/etc/kprov/pki/ca.crt", "/etc/kprov/agent.json", "/etc/kprov/pki/node.crt", "/etc/kprov/pki/node.key"]);
    }

    #[test]
    fn a_control_plane_has_what_the_server_reads_and_not_the_peoples_key() {
        let trust = trust();
        let spec = control(&trust);
        let names = names(&spec);
        for name in ["ca.crt", "ca.key", "server.crt", "server.key", "kubelet-client.crt", "kubelet-client.key", "sa.key", "sa.pub"] {
            assert_eq!(names.iter().filter(|path| **path == format!("/etc/kprov/pki/{name}")).count(), 1, "{name} in {names:?}");
        }
        assert!(names.contains(&"/etc/kprov/pki/encryption.key".to_string()));
        assert!(!names.iter().any(|name| name.contains("admin")));
        assert_eq!(spec.services.iter().map(|service| service.name.as_str()).collect::<Vec<_>>(), ["kprov-server", "kprov-agent"]);
        assert!(spec.files.iter().all(|file| file.mode == 0o600));
    }

    #[test]
    fn what_a_control_plane_keeps_is_enough_to_load_the_trust_again() {
        let trust = trust();
        let spec = control(&trust);
        let files = spec.files.iter().filter_map(|file| {
            let name = file.path.strip_prefix(paths::PKI).ok()?.to_str()?.to_string();
            Some((name, file.content.clone()))
        });
        let again = Trust::from_files(&files.collect(), SystemTime::now()).unwrap();
        assert_eq!(again.ca, trust.ca);
        assert_eq!(again.ssh, trust.ssh);
    }

    #[test]
    fn debug_output_shows_no_content() {
        let trust = trust();
        let shown = format!("{:?}", control(&trust));
        assert!(!shown.contains("PRIVATE") && !shown.contains("BEGIN"));
    }

    #[test]
    fn a_revision_is_stable_and_no_two_splits_of_a_text_share_one() {
        assert_eq!(revision(&[("a", "b")]), revision(&[("a", "b")]));
        assert_ne!(revision(&[("a", "b"), ("c", "d")]), revision(&[("a", "b\nc 1 d")]));
        assert_ne!(revision(&[("a", "b")]), revision(&[("a", "c")]));
    }
}
