//! DNS for pods, on every node: each agent answers on the cluster DNS address itself, so lookups never leave the node and do not need the
//! control plane.
//!
//! The address stands on the node's loopback device, which is why the service proxy leaves it alone.

pub mod answer;
pub mod index;
#[cfg(test)]
mod tests;
pub mod upstream;
pub mod wire;

use super::client::informer::{Change, Informer};
use super::config::AgentConfig;
use super::network::door::Door;
use super::proxy::endpoints::SERVICE_NAME;
use crate::error::{Context, Kind, Result};
use index::{Index, Key};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::RwLock;
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use wire::Step;

/// Questions that wait for others at one time; more are refused rather than piled up.
const MOST_FORWARDED: usize = 512;
const MOST_CONNECTIONS: usize = 256;
/// A TCP client that says nothing for this long is gone (RFC 7766 speaks of seconds).
const IDLE: Duration = Duration::from_secs(10);
/// Somebody else may hold the port for a moment, for instance the agent before this one.
const BIND_RETRY: Duration = Duration::from_secs(1);
/// What is known is written to disk this long after a change, once for all changes in between.
const SAVE_DELAY: Duration = Duration::from_secs(2);

/// Answers on the cluster DNS address until cancelled.
pub async fn run_with(
    config: Arc<AgentConfig>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    cancel: CancellationToken,
) -> Result<()> {
    if let IpAddr::V4(address) = config.dns_address {
        Door::open().await?.ensure_loopback_address(address).await?;
    }
    let ranges = vec![config.service_cidr, config.pod_cidr];
    let mut index = Index::new(&config.cluster_domain, config.dns_address, ranges);
    // An agent that starts while the control plane is away serves what it knew.
    let memory = config.data.join("dns.json");
    if std::fs::read(&memory).is_ok_and(|bytes| index.restore(&bytes)) {
        tracing::debug!("names from before the restart are served until the API answers");
    }
    let index = Arc::new(RwLock::new(index));
    let server = Arc::new(Server {
        index: index.clone(),
        own: config.dns_address,
        resolv_conf: "/etc/resolv.conf".into(),
        forwarding: Semaphore::new(MOST_FORWARDED),
        connections: Arc::new(Semaphore::new(MOST_CONNECTIONS)),
    });
    let address = SocketAddr::new(config.dns_address, 53);
    tokio::select! {
        _ = cancel.cancelled() => Ok(()),
        _ = follow(index, services, slices, memory) => Ok(()),
        _ = server.clone().serve_udp(address) => Ok(()),
        _ = server.serve_tcp(address) => Ok(()),
    }
}

/// Keeps the index at what the informers know; only services that changed are looked at.
async fn follow(index: Arc<RwLock<Index>>, services: Informer<Service>, slices: Informer<EndpointSlice>, memory: PathBuf) {
    slices.add_index(SERVICE_NAME, |slice| service_of(slice).map(|(namespace, name)| format!("{namespace}/{name}")).into_iter().collect());
    let (mut service_changes, mut slice_changes) = (services.changes(), slices.changes());
    let complete = async {
        services.synced().await;
        slices.synced().await;
    };
    tokio::pin!(complete);
    let (mut is_complete, mut told_all) = (false, false);
    let (mut some_services, mut some_slices) = (Vec::new(), Vec::new());
    let (mut unsaved, mut save_at) = (false, None::<tokio::time::Instant>);
    loop {
        tokio::select! {
            // In this order: everything that a sync brought is in the index before names may be denied.
            biased;
            count = service_changes.recv_many(&mut some_services, 1024) => if count == 0 { std::future::pending::<()>().await },
            count = slice_changes.recv_many(&mut some_slices, 1024) => if count == 0 { std::future::pending::<()>().await },
            _ = &mut complete, if !is_complete => is_complete = true,
            _ = tokio::time::sleep_until(save_at.unwrap_or_else(tokio::time::Instant::now)), if save_at.is_some() => {
                save_at = None;
                save(&index, &memory).await;
            }
        }
        let mut touched: HashSet<Key> = some_services.drain(..).map(|change| (change.key.namespace, change.key.name)).collect();
        for Change { old, new, .. } in some_slices.drain(..) {
            touched.extend(old.iter().chain(&new).filter_map(|slice| service_of(slice)));
        }
        if is_complete && !told_all {
            // What was remembered from before the restart and is gone since.
            touched.extend(index.read().keys());
            told_all = true;
        }
        for key in touched {
            let entry = services.get(&key.0, &key.1).and_then(|service| {
                let slices = slices.by_index(SERVICE_NAME, &format!("{}/{}", key.0, key.1));
                index::entry(&service, &slices)
            });
            unsaved |= index.write().put(key, entry);
        }
        // The pods of a service with an address of its own come and go without a change of names.
        if unsaved && is_complete {
            save_at.get_or_insert_with(|| tokio::time::Instant::now() + SAVE_DELAY);
            unsaved = false;
        }
        if is_complete && service_changes.is_empty() && slice_changes.is_empty() && !index.read().complete {
            index.write().complete = true;
        }
    }
}

/// Losing this file costs nothing while the control plane answers, so a failure is no more than noted.
async fn save(index: &RwLock<Index>, memory: &Path) {
    let (bytes, memory) = (index.read().save(), memory.to_path_buf());
    let written = tokio::task::spawn_blocking(move || crate::sys::files::write_atomic(&memory, &bytes, 0o600)).await;
    if !matches!(written, Ok(Ok(()))) {
        tracing::debug!(?written, "could not remember the names on disk");
    }
}

fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some((slice.metadata.namespace.clone()?, name.clone()))
}

struct Server {
    index: Arc<RwLock<Index>>,
    own: IpAddr,
    resolv_conf: PathBuf,
    forwarding: Semaphore,
    connections: Arc<Semaphore>,
}

impl Server {
    async fn serve_udp(self: Arc<Self>, address: SocketAddr) {
        let socket = Arc::new(bound(|| UdpSocket::bind(address), "UDP").await);
        let mut buffer = vec![0; 65_535];
        loop {
            let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
            let request = &buffer[..length];
            let step = wire::handle(&self.index.read(), request, true);
            match step {
                Step::Reply(bytes) => send(&socket, &bytes, client).await,
                Step::Ignore => {}
                step => {
                    let (server, socket, request) = (self.clone(), socket.clone(), request.to_vec());
                    tokio::spawn(async move {
                        if let Some(bytes) = server.elsewhere(step, &request, true).await {
                            send(&socket, &bytes, client).await;
                        }
                    });
                }
            }
        }
    }

    async fn serve_tcp(self: Arc<Self>, address: SocketAddr) {
        let listener = bound(|| TcpListener::bind(address), "TCP").await;
        loop {
            // The permit is taken first, so that a flood waits in the kernel's queue.
            let Ok(permit) = self.connections.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let server = self.clone();
                    tokio::spawn(async move {
                        server.converse(stream).await;
                        drop(permit);
                    });
                }
                // Out of file descriptors, most likely: a moment later some are free again.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Requests of one connection, one after the other.
    async fn converse(&self, mut stream: TcpStream) {
        while let Ok(Ok(request)) = tokio::time::timeout(IDLE, upstream::read_framed(&mut stream)).await {
            let step = wire::handle(&self.index.read(), &request, false);
            let answer = match step {
                Step::Reply(bytes) => Some(bytes),
                Step::Ignore => None,
                step => self.elsewhere(step, &request, false).await,
            };
            let Some(answer) = answer else { return };
            if !matches!(tokio::time::timeout(IDLE, upstream::write_framed(&mut stream, &answer)).await, Ok(Ok(()))) {
                return;
            }
        }
    }

    /// What others have to say.
    async fn elsewhere(&self, step: Step, request: &[u8], udp: bool) -> Option<Vec<u8>> {
        let Ok(_permit) = self.forwarding.try_acquire() else { return wire::failure(request) };
        let servers = upstream::servers(&self.resolv_conf, self.own);
        match step {
            Step::Resolve { request, query, aliases } => {
                let found = upstream::ask(&servers, &wire::question(query)?, udp).await;
                wire::resolved(&request, aliases, found.as_deref(), udp)
            }
            _ => match upstream::ask(&servers, request, udp).await {
                Some(bytes) => Some(bytes),
                None => wire::failure(request),
            },
        }
    }
}

async fn send(socket: &UdpSocket, bytes: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(bytes, client).await {
        tracing::debug!(%client, %error, "could not send a DNS answer");
    }
}

/// Tries until the address can be had.
async fn bound<S, F: Future<Output = std::io::Result<S>>>(bind: impl Fn() -> F, what: &str) -> S {
    let mut told = false;
    loop {
        match bind().await.or_fail(Kind::Host, || format!("could not listen for DNS over {what}")) {
            Ok(socket) => return socket,
            Err(error) if !told => {
                tracing::warn!(error = %error.chain(), "pods have no DNS until port 53 of the cluster DNS address is free");
                told = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(BIND_RETRY).await;
    }
}
