//! A pod's volumes on this machine: made, filled, kept current, and removed. Every step may be done again.

pub mod mounts;
pub mod payload;
pub mod tokens;
pub mod writer;

use super::cri::messages::Mount;
use super::environment::expand;
use super::fields::Facts;
use super::filesystems::{self, FILESYSTEMS};
use super::objects::Objects;
use super::sandbox::{namespace, uid};
use crate::blueprint::quantity;
use crate::orchestrator::client::Client;
use k8s_openapi::api::core::v1::{Container, HostPathVolumeSource, PersistentVolume, Pod, Volume, VolumeProjection};
use k8s_openapi::jiff::Timestamp;
use payload::DEFAULT_MODE;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use tokens::Tokens;
use writer::Payload;

/// A pod's volumes, ready to be mounted into containers.
#[derive(Debug, Clone, Default)]
pub struct Prepared {
    /// By volume name.
    pub folders: BTreeMap<String, PathBuf>,
    /// When a token in them wants renewal.
    pub renew_at: Option<Timestamp>,
}

#[derive(Clone)]
pub struct Volumes {
    pub objects: Objects,
    client: Client,
    tokens: Tokens,
    /// e.g. /var/lib/kprov/agent/pods
    root: PathBuf,
}

impl Volumes {
    pub fn new(client: Client, objects: Objects, root: PathBuf) -> Volumes {
        Volumes { objects, tokens: Tokens::new(client.clone()), client, root }
    }

    /// One folder per pod (uid) below it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn pod_folder(&self, uid: &str) -> PathBuf {
        self.root.join(uid)
    }

    /// Makes and fills what the pod names, and brings files up to date; the error is the text of the event `FailedMount`.
    pub async fn prepare(&self, pod: &Pod, facts: &Facts) -> Result<Prepared, String> {
        let mut prepared = Prepared::default();
        for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            let folder = self.volume(pod, facts, volume, &mut prepared.renew_at).await;
            let folder = folder.map_err(|error| format!("MountVolume.SetUp failed for volume \"{}\" : {error}", volume.name))?;
            prepared.folders.insert(volume.name.clone(), folder);
        }
        Ok(prepared)
    }

    async fn volume(&self, pod: &Pod, facts: &Facts, volume: &Volume, renew_at: &mut Option<Timestamp>) -> Result<PathBuf, String> {
        if let Some(source) = &volume.host_path {
            return host_path(source);
        }
        if let Some(source) = &volume.persistent_volume_claim {
            return self.claim(pod, &source.claim_name).await;
        }
        if let Some(source) = &volume.empty_dir {
            let size = source.size_limit.as_ref().and_then(|size| quantity::bytes(&size.0).ok());
            return self.empty(pod, &volume.name, source.medium.as_deref() == Some("Memory"), size);
        }
        let sources = projections(volume).ok_or("the type of this volume is not supported")?;
        let folder = self.folder(pod, sources.plugin, &volume.name)?;
        if sources.in_memory {
            mounts::memory(&folder, None).map_err(text)?;
        }
        let payload = match self.payload(pod, facts, &sources, renew_at).await {
            Ok(payload) => payload,
            // After an agent restart without the API: what an earlier run wrote still serves.
            Err(Trouble::Unanswered(_)) if writer::is_filled(&folder) => return Ok(folder),
            Err(Trouble::Unanswered(message) | Trouble::Wrong(message)) => return Err(message),
        };
        let group = fs_group(pod);
        tokio::task::spawn_blocking(move || writer::write(&folder, &payload, group).map(|_| folder)).await.map_err(text)?.map_err(text)
    }

    fn folder(&self, pod: &Pod, plugin: &str, name: &str) -> Result<PathBuf, String> {
        let folder = self.pod_folder(uid(pod)).join("volumes").join(format!("kubernetes.io~{plugin}")).join(name);
        fs::create_dir_all(&folder).map_err(text)?;
        Ok(folder)
    }

    fn empty(&self, pod: &Pod, name: &str, in_memory: bool, size_bytes: Option<i64>) -> Result<PathBuf, String> {
        let folder = self.folder(pod, "empty-dir", name)?;
        let fresh = in_memory && mounts::memory(&folder, size_bytes).map_err(text)?;
        // Set once: what a container did to its mode later is the container's choice.
        let mark = self.pod_folder(uid(pod)).join(format!("volumes/.{name}.made"));
        if fresh || !mark.exists() {
            let mode = if fs_group(pod).is_some() { 0o2777 } else { 0o777 };
            chown(&folder, None, fs_group(pod)).map_err(text)?;
            fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).map_err(text)?;
            fs::write(&mark, b"").map_err(text)?;
        }
        Ok(folder)
    }

    async fn claim(&self, pod: &Pod, name: &str) -> Result<PathBuf, String> {
        let claim = self.objects.claim(uid(pod), namespace(pod), name).await.map_err(text)?;
        let claim = claim.ok_or_else(|| format!("persistentvolumeclaim \"{name}\" not found"))?;
        let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).filter(|_| bound);
        let volume = volume.ok_or_else(|| format!("persistentvolumeclaim \"{name}\" is not bound"))?;
        // The answer is kept on disk: a volume of a claim never moves, and the API may be away at the next start.
        let memo = self.pod_folder(uid(pod)).join(format!("volumes/.{name}.claim"));
        if let Ok(path) = fs::read_to_string(&memo) {
            return shared_folder(Path::new(&path), fs_group(pod));
        }
        let found = self.client.get::<PersistentVolume>("", volume).await.map_err(text)?;
        let found = found.ok_or_else(|| format!("persistentvolume \"{volume}\" not found"))?;
        let spec = found.spec.unwrap_or_default();
        let path = spec.host_path.map(|source| source.path).or(spec.local.map(|source| source.path));
        let path = path.ok_or("the type of this persistent volume is not supported")?;
        let folder = shared_folder(Path::new(&path), fs_group(pod))?;
        fs::create_dir_all(memo.parent().unwrap_or(&memo)).map_err(text)?;
        fs::write(&memo, &path).map_err(text)?;
        Ok(folder)
    }

    async fn payload(&self, pod: &Pod, facts: &Facts, sources: &Sources, renew_at: &mut Option<Timestamp>) -> Result<Payload, Trouble> {
        let mut payload = Payload::new();
        for source in &sources.list {
            payload.extend(self.projection(pod, facts, source, sources.mode, renew_at).await?);
        }
        Ok(payload)
    }

    async fn projection(
        &self,
        pod: &Pod,
        facts: &Facts,
        source: &VolumeProjection,
        mode: i32,
        renew_at: &mut Option<Timestamp>,
    ) -> Result<Payload, Trouble> {
        let (user, namespace) = (uid(pod), namespace(pod));
        let mut payload = Payload::new();
        if let Some(wanted) = &source.config_map {
            let optional = wanted.optional == Some(true);
            let map = self.objects.config_map(user, namespace, &wanted.name).await.map_err(|error| Trouble::Unanswered(text(error)))?;
            match map {
                Some(map) => payload.extend(payload::choose(payload::of_config_map(&map), wanted.items.as_ref(), mode, optional)?),
                None if optional => {}
                None => return Err(Trouble::Wrong(format!("configmap \"{}\" not found", wanted.name))),
            }
        }
        if let Some(wanted) = &source.secret {
            let optional = wanted.optional == Some(true);
            let secret = self.objects.secret(user, namespace, &wanted.name).await.map_err(|error| Trouble::Unanswered(text(error)))?;
            match secret {
                Some(secret) => payload.extend(payload::choose(payload::of_secret(&secret), wanted.items.as_ref(), mode, optional)?),
                None if optional => {}
                None => return Err(Trouble::Wrong(format!("secret \"{}\" not found", wanted.name))),
            }
        }
        if let Some(wanted) = &source.downward_api {
            payload.extend(payload::downward(pod, facts, wanted.items.as_ref(), mode)?);
        }
        if let Some(wanted) = &source.service_account_token {
            let (token, at) = self.tokens.get(pod, wanted).await.map_err(Trouble::Unanswered)?;
            *renew_at = Some(renew_at.map_or(at, |before| before.min(at)));
            let mut file = payload::file(token.into_bytes(), mode);
            // A token is for the one who runs the pod: nobody else on the machine reads it.
            let user = only_user(pod);
            if user.is_some() || fs_group(pod).is_some() {
                (file.mode, file.user) = (0o600, user);
            }
            payload.insert(wanted.path.clone(), file);
        }
        Ok(payload)
    }

    /// How the volumes appear in one container. The error is the message of `CreateContainerConfigError`.
    pub fn mounts(
        &self,
        pod: &Pod,
        spec: &Container,
        prepared: &Prepared,
        look: impl Fn(&str) -> Option<String>,
    ) -> Result<Vec<Mount>, String> {
        let mut mounts = Vec::new();
        for (index, mount) in spec.volume_mounts.iter().flatten().enumerate() {
            let folder = prepared.folders.get(&mount.name).ok_or_else(|| format!("volume \"{}\" is not mounted", mount.name))?;
            let inside = match (&mount.sub_path, &mount.sub_path_expr) {
                (Some(path), _) => path.clone(),
                (None, Some(path)) => expand(path, &look),
                (None, None) => String::new(),
            };
            let mut host_path = folder.clone();
            if !inside.is_empty() {
                let below = format!("volume-subpaths/{}/{}/{index}", mount.name, spec.name);
                host_path = self.pod_folder(uid(pod)).join(below);
                mounts::sub_path(folder, &inside, &host_path)
                    .map_err(|error| format!("failed to prepare subPath for volumeMount \"{}\": {error}", mount.name))?;
            }
            let claim_read_only = volume_of(pod, &mount.name)
                .and_then(|volume| volume.persistent_volume_claim.as_ref())
                .is_some_and(|claim| claim.read_only == Some(true));
            mounts.push(Mount {
                container_path: absolute(&mount.mount_path),
                host_path: host_path.to_string_lossy().into_owned(),
                readonly: mount.read_only.unwrap_or(false) || claim_read_only,
                propagation: match mount.mount_propagation.as_deref() {
                    Some("HostToContainer") => 1,
                    Some("Bidirectional") => 2,
                    _ => 0,
                },
            });
        }
        Ok(mounts)
    }

    /// The pod is gone: its mounts, files, tokens and watches too.
    pub async fn clean(&self, uid: &str) -> std::io::Result<()> {
        self.objects.release(uid);
        self.tokens.release(uid);
        let folder = self.pod_folder(uid);
        tokio::task::spawn_blocking(move || mounts::remove(&folder)).await?
    }
}

enum Trouble {
    /// The API did not answer: what was there before may serve on.
    Unanswered(String),
    Wrong(String),
}

impl From<String> for Trouble {
    fn from(message: String) -> Self {
        Trouble::Wrong(message)
    }
}

/// Config map, secret, downward API and projected volumes are one thing: a list of projections.
struct Sources {
    plugin: &'static str,
    in_memory: bool,
    mode: i32,
    list: Vec<VolumeProjection>,
}

fn projections(volume: &Volume) -> Option<Sources> {
    use k8s_openapi::api::core::v1::{ConfigMapProjection, DownwardAPIProjection, SecretProjection};
    if let Some(source) = &volume.config_map {
        let own = ConfigMapProjection { name: source.name.clone(), items: source.items.clone(), optional: source.optional };
        let list = vec![VolumeProjection { config_map: Some(own), ..Default::default() }];
        return Some(Sources { plugin: "configmap", in_memory: false, mode: source.default_mode.unwrap_or(DEFAULT_MODE), list });
    }
    if let Some(source) = &volume.secret {
        let name = source.secret_name.clone().unwrap_or_default();
        let own = SecretProjection { name, items: source.items.clone(), optional: source.optional };
        let list = vec![VolumeProjection { secret: Some(own), ..Default::default() }];
        return Some(Sources { plugin: "secret", in_memory: true, mode: source.default_mode.unwrap_or(DEFAULT_MODE), list });
    }
    if let Some(source) = &volume.downward_api {
        let own = DownwardAPIProjection { items: source.items.clone() };
        let list = vec![VolumeProjection { downward_api: Some(own), ..Default::default() }];
        return Some(Sources { plugin: "downward-api", in_memory: true, mode: source.default_mode.unwrap_or(DEFAULT_MODE), list });
    }
    let source = volume.projected.as_ref()?;
    let list = source.sources.clone().unwrap_or_default();
    Some(Sources { plugin: "projected", in_memory: true, mode: source.default_mode.unwrap_or(DEFAULT_MODE), list })
}

/// True when the pod has files that can change while it runs.
pub fn has_live_files(pod: &Pod) -> bool {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).any(|volume| projections(volume).is_some())
}

fn volume_of<'a>(pod: &'a Pod, name: &str) -> Option<&'a Volume> {
    pod.spec.as_ref()?.volumes.as_ref()?.iter().find(|volume| volume.name == name)
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let group = pod.spec.as_ref()?.security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// The one user that all containers run as, if the pod says so.
fn only_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let common = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    let own = |container: &Container| container.security_context.as_ref().and_then(|context| context.run_as_user).or(common);
    let mut users = spec.containers.iter().chain(spec.init_containers.iter().flatten()).map(own);
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok()).flatten()
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

/// A folder of a shared filesystem is made on first use; anything else must be there.
fn shared_folder(path: &Path, group: Option<u32>) -> Result<PathBuf, String> {
    if path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(format!("path {} leads out of its filesystem", path.display()));
    }
    if let Ok(inside) = path.strip_prefix(FILESYSTEMS) {
        let filesystem = inside.components().next().map(|name| Path::new(FILESYSTEMS).join(name));
        if !filesystem.is_some_and(|filesystem| filesystems::is_there(&filesystem)) {
            return Err(format!("the filesystem of {} is not mounted on this node", path.display()));
        }
        if !path.exists() {
            mounts::make_folder(path, 0o777).map_err(text)?;
        }
    } else if !path.exists() {
        return Err(format!("path {} does not exist", path.display()));
    }
    if let Some(group) = group
        && fs::metadata(path).map_err(text)?.gid() != group
    {
        chown(path, None, Some(group)).map_err(text)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o2777)).map_err(text)?;
    }
    Ok(path.to_owned())
}

fn host_path(source: &HostPathVolumeSource) -> Result<PathBuf, String> {
    let path = PathBuf::from(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    if kind == "DirectoryOrCreate" && !path.exists() {
        mounts::make_folder(&path, 0o755).map_err(text)?;
    }
    if kind == "FileOrCreate" && !path.exists() {
        fs::write(&path, b"").map_err(text)?;
    }
    let meta = fs::metadata(&path).map(|meta| meta.file_type());
    let fits = match kind {
        "" => return Ok(path),
        "DirectoryOrCreate" | "Directory" => meta.map(|kind| kind.is_dir()),
        "FileOrCreate" | "File" => meta.map(|kind| kind.is_file()),
        "Socket" => meta.map(|kind| kind.is_socket()),
        "CharDevice" => meta.map(|kind| kind.is_char_device()),
        "BlockDevice" => meta.map(|kind| kind.is_block_device()),
        other => return Err(format!("unknown hostPath type {other}")),
    };
    match fits {
        Ok(true) => Ok(path),
        _ => Err(format!("hostPath type check failed: {} is not a {}", path.display(), kind.trim_end_matches("OrCreate").to_lowercase())),
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn host_paths_are_checked_and_made_by_their_type() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::net::UnixListener::bind(folder.path().join("socket")).unwrap();
        let check = |name: &str, kind: &str, wanted: bool| {
            let path = folder.path().join(name).to_string_lossy().into_owned();
            let source = serde_json::from_value(json!({"path": path, "type": kind})).unwrap();
            assert_eq!(host_path(&source).is_ok(), wanted, "{name} as {kind}");
        };
        check("none", "Directory", false);
        check("made", "DirectoryOrCreate", true);
        check("made", "Directory", true);
        check("made", "File", false);
        check("file", "FileOrCreate", true);
        check("file", "File", true);
        check("socket", "Socket", true);
        check("file", "Socket", false);
        check("none", "", true);
    }

    #[test]
    fn a_token_belongs_to_the_one_user_of_the_pod() {
        let check = |spec, wanted| {
            let pod: Pod = serde_json::from_value(json!({ "spec": spec })).unwrap();
            assert_eq!(only_user(&pod), wanted);
        };
        check(json!({"securityContext": {"runAsUser": 5}, "containers": [{"name": "a"}]}), Some(5));
        check(
            json!({"securityContext": {"runAsUser": 5}, "containers": [{"name": "a"}, {"name": "b", "securityContext": {"runAsUser": 6}}]}),
            None,
        );
        check(json!({"containers": [{"name": "a"}]}), None);
    }
}
