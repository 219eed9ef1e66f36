//! The way to a cluster's daemon: over its socket on the host, or over TLS from inside the cluster.

use super::api::{Credentials, Failure};
use super::layout::Layout;
use super::{daemon, lock, record, secret};
use crate::engine::Cluster;
use crate::error::{Context, Error, Kind, Result};
use crate::sys::{files, paths};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Above everything the daemon itself waits for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// A daemon serves some 20 ms after its start; a crowded host needs longer.
const START_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Clone)]
pub enum Way {
    Socket(Layout),
    Network { credentials: Credentials, tls: Arc<rustls::ClientConfig> },
}

impl Way {
    pub fn network(credentials: Credentials) -> Result<Way> {
        let tls = secret::client(&credentials.certificate)?;
        Ok(Way::Network { credentials, tls })
    }

    pub async fn call<T: DeserializeOwned>(&self, method: &str, path: &str, body: &impl Serialize) -> Result<T> {
        let body: Bytes = serde_json::to_vec(body).or_fail(Kind::Internal, || "could not write a request to the local cloud")?.into();
        let failed = || "could not reach the local cloud's daemon";
        let answer = async {
            match self {
                Way::Socket(layout) => {
                    let stream = UnixStream::connect(layout.socket()).await.or_fail(Kind::Transient, failed)?;
                    talk(stream, method, path, None, body).await
                }
                Way::Network { credentials, tls } => {
                    let connect = async {
                        let stream = TcpStream::connect(credentials.address).await.or_fail(Kind::Transient, failed)?;
                        let connector = tokio_rustls::TlsConnector::from(tls.clone());
                        connector.connect(secret::server_name()?, stream).await.or_fail(Kind::Transient, failed)
                    };
                    let stream = tokio::time::timeout(CONNECT_TIMEOUT, connect).await.or_fail(Kind::Transient, failed)??;
                    talk(stream, method, path, Some(&credentials.token), body).await
                }
            }
        };
        let (status, text) = tokio::time::timeout(ANSWER_TIMEOUT, answer)
            .await
            .or_fail(Kind::Transient, || "the local cloud's daemon does not answer")??;
        let unreadable = || "could not understand the local cloud's daemon";
        if status.is_success() {
            return serde_json::from_slice(&text).or_fail(Kind::Internal, unreadable);
        }
        Err(serde_json::from_slice::<Failure>(&text).or_fail(Kind::Internal, unreadable)?.into())
    }
}

async fn talk(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    method: &str,
    path: &str,
    token: Option<&str>,
    body: Bytes,
) -> Result<(http::StatusCode, Bytes)> {
    let failed = || "lost the connection to the local cloud's daemon";
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.or_fail(Kind::Transient, failed)?;
    tokio::spawn(connection);
    let mut request = http::Request::builder().method(method).uri(path).header("host", secret::SERVER_NAME);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = request.body(Full::new(body)).or_fail(Kind::Internal, failed)?;
    let response = sender.send_request(request).await.or_fail(Kind::Transient, failed)?;
    let status = response.status();
    Ok((status, response.into_body().collect().await.or_fail(Kind::Transient, failed)?.to_bytes()))
}

/// Whether a daemon answers on the cluster's socket.
pub async fn is_served(layout: &Layout) -> bool {
    UnixStream::connect(layout.socket()).await.is_ok()
}

/// Starts the cluster's daemon where none answers; also after a host's reboot, when all it finds is files.
pub async fn ensure_daemon(program: &Path, layout: &Layout, cluster: &Cluster) -> Result<()> {
    let failed = || "could not start the local cloud's daemon";
    let deadline = Instant::now() + START_TIMEOUT;
    while !is_served(layout).await {
        if Instant::now() > deadline {
            return Err(Error::host(failed()).hint(format!("see {}", layout.log().display())));
        }
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o755).create(paths::LOCAL_CLOUD).or_fail(Kind::Host, failed)?;
        builder.mode(0o700).create(&layout.folder).or_fail(Kind::Host, failed)?;
        if record::read::<Cluster>(&layout.cluster())?.is_none() {
            let text = serde_json::to_vec(cluster).or_fail(Kind::Internal, failed)?;
            // The folder may go away right now, with the last thing of a cluster of this uid: then once more.
            let _ = files::write_atomic(&layout.cluster(), &text, 0o600);
        }
        match lock::try_take(&layout.lock()) {
            Ok(Some(held)) => {
                daemon::spawn(program, layout, held)?;
                // It holds the lock until it ends, and answers soon; one that ended at once shows by the lock.
                wait_for_start(layout).await;
            }
            Ok(None) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).or_fail(Kind::Host, failed),
        }
    }
    Ok(())
}

async fn wait_for_start(layout: &Layout) {
    for _ in 0..1000 {
        tokio::time::sleep(Duration::from_millis(3)).await;
        // Taken only for a moment, and only when the daemon is dead.
        if is_served(layout).await || matches!(lock::try_take(&layout.lock()), Ok(Some(_))) {
            return;
        }
    }
}
