//! The container runtime's door: CRI v1 over containerd's unix socket, and containerd's own events on the same socket.

pub mod events;
pub mod messages;

use crate::error::{Error, Result};
use messages::*;
use prost::Message;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// Short calls answer in milliseconds; a runtime that takes longer is stuck, and the pod's worker tries again.
const SHORT: Duration = Duration::from_secs(30);
/// Sandboxes wait for CNI plugins, containers for snapshots on slow disks (upstream's runtime request timeout is 2 min, 4 for sandboxes).
const LONG: Duration = Duration::from_secs(240);
/// A pull may move gigabytes.
const PULL: Duration = Duration::from_secs(3600);

/// Why the runtime refused: the gRPC code and its words.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub code: tonic::Code,
    pub message: String,
}

impl Refusal {
    pub fn is_not_found(&self) -> bool {
        self.code == tonic::Code::NotFound
    }
}

impl From<tonic::Status> for Refusal {
    fn from(status: tonic::Status) -> Self {
        Refusal { code: status.code(), message: status.message().to_owned() }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Error::transient("could not get the container runtime to act").because(refusal)
    }
}

/// What `ExecSync` brought: a command that ran, or that did not end in time.
#[derive(Debug, PartialEq)]
pub enum Exec {
    Ended { exit_code: i32, output: String },
    TimedOut,
}

/// Cheap to clone; reconnects by itself when containerd restarts.
#[derive(Clone)]
pub struct Runtime {
    channel: Channel,
}

impl Runtime {
    /// Does not wait for the socket: the first call connects.
    pub fn connect(socket: &Path) -> Result<Runtime> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))
            .map_err(|error| Error::input(format!("could not use {} as a socket", socket.display())).because(error))?;
        Ok(Runtime { channel: endpoint.connect_lazy() })
    }

    async fn call<Q, A>(&self, service: &str, method: &str, request: Q, deadline: Duration) -> Result<A, Refusal>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(32 << 20);
        let path = format!("/runtime.v1.{service}/{method}").parse().expect("service and method names are plain words");
        let answer = async {
            grpc.ready().await.map_err(|error| Refusal { code: tonic::Code::Unavailable, message: describe(&error) })?;
            let answer = grpc.unary(tonic::Request::new(request), path, tonic_prost::ProstCodec::<Q, A>::default()).await;
            answer.map(tonic::Response::into_inner).map_err(Refusal::from)
        };
        let late =
            |_| Refusal { code: tonic::Code::DeadlineExceeded, message: format!("{method} took longer than {} s", deadline.as_secs()) };
        tokio::time::timeout(deadline, answer).await.map_err(late)?
    }

    async fn runtime<Q, A>(&self, method: &str, request: Q, deadline: Duration) -> Result<A, Refusal>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        self.call("RuntimeService", method, request, deadline).await
    }

    async fn images<Q, A>(&self, method: &str, request: Q, deadline: Duration) -> Result<A, Refusal>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        self.call("ImageService", method, request, deadline).await
    }

    pub async fn version(&self) -> Result<VersionResponse, Refusal> {
        self.runtime("Version", Empty {}, SHORT).await
    }

    pub async fn status(&self) -> Result<RuntimeStatus, Refusal> {
        let answer: StatusResponse = self.runtime("Status", Empty {}, SHORT).await?;
        Ok(answer.status.unwrap_or_default())
    }

    pub async fn run_sandbox(&self, config: PodSandboxConfig, handler: &str) -> Result<String, Refusal> {
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: handler.to_owned() };
        Ok(self.runtime::<_, Id>("RunPodSandbox", request, LONG).await?.id)
    }

    /// Stops every process of the sandbox and frees its address; an unknown sandbox is stopped.
    pub async fn stop_sandbox(&self, id: &str) -> Result<(), Refusal> {
        gone_is_fine(self.runtime::<_, Empty>("StopPodSandbox", Id { id: id.into() }, LONG).await)
    }

    /// Removes the sandbox and its containers; an unknown sandbox is removed.
    pub async fn remove_sandbox(&self, id: &str) -> Result<(), Refusal> {
        gone_is_fine(self.runtime::<_, Empty>("RemovePodSandbox", Id { id: id.into() }, LONG).await)
    }

    pub async fn sandbox_status(&self, id: &str) -> Result<PodSandboxStatus, Refusal> {
        let answer: PodSandboxStatusResponse = self.runtime("PodSandboxStatus", Id { id: id.into() }, SHORT).await?;
        Ok(answer.status.unwrap_or_default())
    }

    /// Sandboxes with all of `labels`.
    pub async fn list_sandboxes(&self, labels: Map) -> Result<Vec<PodSandbox>, Refusal> {
        let filter = PodSandboxFilter { label_selector: labels, ..Default::default() };
        let answer: ListPodSandboxResponse = self.runtime("ListPodSandbox", ListPodSandboxRequest { filter: Some(filter) }, SHORT).await?;
        Ok(answer.items)
    }

    pub async fn create_container(&self, sandbox: &str, config: ContainerConfig, of: PodSandboxConfig) -> Result<String, Refusal> {
        let request = CreateContainerRequest { pod_sandbox_id: sandbox.into(), config: Some(config), sandbox_config: Some(of) };
        Ok(self.runtime::<_, Id>("CreateContainer", request, LONG).await?.id)
    }

    pub async fn start_container(&self, id: &str) -> Result<(), Refusal> {
        self.runtime::<_, Empty>("StartContainer", Id { id: id.into() }, LONG).await.map(drop)
    }

    /// Asks with the image's stop signal, kills after `grace_seconds`; an unknown container is stopped.
    pub async fn stop_container(&self, id: &str, grace_seconds: i64) -> Result<(), Refusal> {
        let request = StopContainerRequest { container_id: id.into(), timeout: grace_seconds };
        let deadline = LONG + Duration::from_secs(grace_seconds.max(0) as u64);
        gone_is_fine(self.runtime::<_, Empty>("StopContainer", request, deadline).await)
    }

    pub async fn remove_container(&self, id: &str) -> Result<(), Refusal> {
        gone_is_fine(self.runtime::<_, Empty>("RemoveContainer", Id { id: id.into() }, LONG).await)
    }

    /// Containers with all of `labels`.
    pub async fn list_containers(&self, labels: Map) -> Result<Vec<Container>, Refusal> {
        let filter = ContainerFilter { label_selector: labels, ..Default::default() };
        let answer: ListContainersResponse = self.runtime("ListContainers", ListContainersRequest { filter: Some(filter) }, SHORT).await?;
        Ok(answer.containers)
    }

    pub async fn container_status(&self, id: &str) -> Result<ContainerStatus, Refusal> {
        let answer: ContainerStatusResponse = self.runtime("ContainerStatus", Id { id: id.into() }, SHORT).await?;
        Ok(answer.status.unwrap_or_default())
    }

    /// Runs a command in a container to its end; `timeout_seconds` 0 waits for ever (bounded by an hour).
    pub async fn exec(&self, id: &str, command: &[String], timeout_seconds: i64) -> Result<Exec, Refusal> {
        let request = ExecSyncRequest { container_id: id.into(), cmd: command.to_vec(), timeout: timeout_seconds };
        // The runtime kills the command at the timeout; the reply gets a little longer than that.
        let deadline = if timeout_seconds > 0 { Duration::from_secs(timeout_seconds as u64 + 5) } else { PULL };
        match self.runtime::<_, ExecSyncResponse>("ExecSync", request, deadline).await {
            Ok(answer) => {
                let output = [answer.stdout, answer.stderr].concat();
                Ok(Exec::Ended { exit_code: answer.exit_code, output: String::from_utf8_lossy(&output).into_owned() })
            }
            Err(refusal) if refusal.code == tonic::Code::DeadlineExceeded || refusal.message.contains("deadline exceeded") => {
                Ok(Exec::TimedOut)
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// The address of a stream to a new process in the container.
    pub async fn exec_stream(&self, request: ExecRequest) -> Result<String, Refusal> {
        Ok(self.runtime::<_, StreamResponse>("Exec", request, SHORT).await?.url)
    }

    /// The address of a stream to the container's own process.
    pub async fn attach_stream(&self, request: AttachRequest) -> Result<String, Refusal> {
        Ok(self.runtime::<_, StreamResponse>("Attach", request, SHORT).await?.url)
    }

    /// The address of a stream to ports of the sandbox.
    pub async fn port_forward_stream(&self, sandbox: &str) -> Result<String, Refusal> {
        let request = PortForwardRequest { pod_sandbox_id: sandbox.into() };
        Ok(self.runtime::<_, StreamResponse>("PortForward", request, SHORT).await?.url)
    }

    /// Opens a container's log file anew after it was renamed.
    pub async fn reopen_log(&self, id: &str) -> Result<(), Refusal> {
        self.runtime::<_, Empty>("ReopenContainerLog", Id { id: id.into() }, SHORT).await.map(drop)
    }

    pub async fn list_stats(&self) -> Result<Vec<ContainerStats>, Refusal> {
        Ok(self.runtime::<_, ListContainerStatsResponse>("ListContainerStats", Empty {}, SHORT).await?.stats)
    }

    /// `None` when the image is not on this node.
    pub async fn image_status(&self, image: &str) -> Result<Option<Image>, Refusal> {
        let request = ImageRequest { image: Some(ImageSpec { image: image.into() }) };
        Ok(self.images::<_, ImageStatusResponse>("ImageStatus", request, SHORT).await?.image)
    }

    /// Returns the image's reference on this node.
    pub async fn pull_image(&self, image: &str, auth: Option<AuthConfig>) -> Result<String, Refusal> {
        let request = PullImageRequest { image: Some(ImageSpec { image: image.into() }), auth };
        Ok(self.images::<_, Id>("PullImage", request, PULL).await?.id)
    }

    pub async fn list_images(&self) -> Result<Vec<Image>, Refusal> {
        Ok(self.images::<_, ListImagesResponse>("ListImages", Empty {}, SHORT).await?.images)
    }

    /// Where images lie, unpacked.
    pub async fn image_folder(&self) -> Result<Option<PathBuf>, Refusal> {
        let answer: ImageFsInfoResponse = self.images("ImageFsInfo", Empty {}, SHORT).await?;
        let folder = answer.image_filesystems.into_iter().find_map(|filesystem| filesystem.fs_id);
        Ok(folder.map(|folder| PathBuf::from(folder.mountpoint)))
    }

    /// With all its names.
    pub async fn remove_image(&self, image: &str) -> Result<(), Refusal> {
        let request = ImageRequest { image: Some(ImageSpec { image: image.into() }) };
        gone_is_fine(self.images::<_, Empty>("RemoveImage", request, LONG).await)
    }
}

fn gone_is_fine<T>(answer: Result<T, Refusal>) -> Result<(), Refusal> {
    match answer {
        Err(refusal) if refusal.is_not_found() => Ok(()),
        other => other.map(drop),
    }
}

/// A transport error's innermost cause says more than its outer "transport error".
fn describe(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    format!("{error}: {innermost}")
}
