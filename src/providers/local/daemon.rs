//! The daemon's process: how it is started (by the command line, or by a machine's shim when the last one died), and what it serves.

use super::api::{Admit, Executed, Failure, SwapEpoch};
use super::cloud::Cloud;
use super::layout::Layout;
use super::network::Network;
use super::{lock, record, secret::Secret};
use crate::engine::{Cluster, Request};
use crate::error::{Context, Error, Kind, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

const LOCK_FD: &str = "KPROV_LOCAL_LOCK_FD";
const LARGEST_REQUEST: usize = 1 << 20;
/// A question for changes is answered after this long even without any, so that a dead peer is noticed.
const CHANGES_TIMEOUT: Duration = Duration::from_secs(30);
/// With nothing made at all: the command that started it has failed, or died.
const UNUSED_TIMEOUT: Duration = Duration::from_secs(60);

/// This program, even if its file was replaced since.
pub const OWN_PROGRAM: &str = "/proc/self/exe";

/// Starts the daemon as its own session and hands it the lock, which never is without an owner.
pub fn spawn(program: &Path, layout: &Layout, held: File) -> Result<()> {
    let failed = || "could not start the local cloud's daemon";
    let log = fs::OpenOptions::new().create(true).append(true).open(layout.log()).or_fail(Kind::Host, failed)?;
    let mut command = std::process::Command::new(program);
    command.arg0("kprov").args(["local", "daemon", &layout.uid]).env_clear().env(LOCK_FD, held.as_raw_fd().to_string()).current_dir("/");
    if let Some(filter) = std::env::var_os("KPROV_LOG") {
        command.env("KPROV_LOG", filter);
    }
    command.stdin(Stdio::null()).stdout(log.try_clone().or_fail(Kind::Host, failed)?).stderr(log);
    // SAFETY: only system calls between fork and exec.
    unsafe {
        command.pre_exec(move || {
            libc::setsid();
            // Whatever else the command line was given (a pipe somebody waits on) must not live as long as the cluster.
            libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as i32);
            lock::keep_over_exec(&held)
        });
    }
    let mut child = command.spawn().or_fail(Kind::Host, failed)?;
    // Whoever starts it lives on; an ended child must be collected.
    std::thread::spawn(move || child.wait());
    Ok(())
}

pub fn main(uid: &str) -> Result<()> {
    let layout = Layout::new(uid);
    let lock = match lock::inherited(LOCK_FD) {
        Some(lock) => Some(lock),
        None => lock::try_take(&layout.lock()).or_fail(Kind::Host, || "could not lock the local cloud")?,
    };
    let Some(_lock) = lock else { return Ok(()) };
    // SAFETY: umask cannot fail.
    unsafe { libc::umask(0o022) };
    let (_, most) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, most, most);
    let filter = tracing_subscriber::EnvFilter::try_from_env("KPROV_LOG").unwrap_or_else(|_| "info".into());
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).try_init();
    // Two: one may wait for a disk while the other answers.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.or_fail(Kind::Host, || "could not start the local cloud")?.block_on(run(layout))
}

async fn run(layout: Layout) -> Result<()> {
    let failed = || "could not start the local cloud";
    let cluster: Cluster = record::read(&layout.cluster())?.ok_or_else(|| Error::internal("the cluster is not on record"))?;
    let secret = Secret::ensure(&layout)?;
    let tls = tokio_rustls::TlsAcceptor::from(secret.server()?);
    let cloud = Cloud::open(cluster, layout.clone(), Network::new(layout.clone()))?;
    let doors = Arc::new(Doors { cloud: cloud.clone(), secret });
    let (inside, main) = (doors.clone(), tokio::runtime::Handle::current());
    // Served on this runtime: waiting for a disk must not hold up the load balancers' thread.
    cloud.network.serve_with(Arc::new(move |stream| {
        let (doors, tls) = (inside.clone(), tls.clone());
        main.spawn(async move {
            if let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_secs(5), tls.accept(stream)).await {
                doors.serve(stream, Way::Network).await;
            }
        });
    }));
    let _ = fs::remove_file(layout.socket());
    let listener = tokio::net::UnixListener::bind(layout.socket()).or_fail(Kind::Host, failed)?;
    fs::set_permissions(layout.socket(), fs::Permissions::from_mode(0o600)).or_fail(Kind::Host, failed)?;
    cloud.recover().await;
    tracing::info!("the local cloud of {} serves", cloud.cluster.name);
    let mut closed = cloud.closed.subscribe();
    let mut unused = tokio::time::interval(UNUSED_TIMEOUT);
    unused.tick().await;
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                let doors = doors.clone();
                tokio::spawn(async move { doors.serve(stream, Way::Socket).await });
            },
            _ = unused.tick() => {
                // Somebody removed the folder by hand: there is nothing left to answer for.
                if !layout.cluster().exists() {
                    break;
                }
                drop(cloud.close_if_unused());
            }
            _ = closed.wait_for(|closed| *closed) => break,
        }
    }
    // The answer to the last request is on its way.
    for _ in 0..200 {
        if Arc::strong_count(&doors) <= 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// Root on this host, by the socket's mode.
    Socket,
    /// The cluster's own loop, by its token.
    Network,
}

struct Doors {
    cloud: Arc<Cloud>,
    secret: Secret,
}

impl Doors {
    async fn serve(self: Arc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, way: Way) {
        let answer = service_fn(|request| {
            let doors = self.clone();
            async move { Ok::<_, std::convert::Infallible>(doors.answer(request, way).await) }
        });
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
    }

    async fn answer(&self, request: http::Request<Incoming>, way: Way) -> http::Response<Full<Bytes>> {
        if way == Way::Network && !self.secret.admits(request.headers().get(http::header::AUTHORIZATION)) {
            return reply::<()>(http::StatusCode::UNAUTHORIZED, Err(Error::provider("the local cloud does not know this token")));
        }
        let (method, path) = (request.method().clone(), request.uri().path().to_string());
        match (method.as_str(), path.as_str()) {
            ("GET", "/v1/observe") => done(Ok(self.cloud.observe())),
            ("POST", "/v1/execute") => done(self.execute(request).await),
            ("POST", "/v1/close") if way == Way::Socket => {
                done(self.cloud.close_if_unused().map(|closed| Executed { observed: None, closing: closing(closed) }))
            }
            ("GET", "/v1/epoch") => done(Ok(self.cloud.epoch())),
            ("POST", "/v1/epoch") => done(read::<SwapEpoch>(request).await.and_then(|swap| self.cloud.swap_epoch(swap))),
            ("GET", "/v1/changes") => {
                let after = request.uri().query().and_then(|query| query.strip_prefix("after=")).unwrap_or_default().to_string();
                let _ = tokio::time::timeout(CHANGES_TIMEOUT, self.cloud.changed(&after)).await;
                done(Ok(self.cloud.observe()))
            }
            ("GET", "/v1/credentials") if way == Way::Socket => done(self.cloud.credentials(&self.secret.token, &self.secret.certificate)),
            ("POST", "/v1/admit") if way == Way::Socket => {
                done(read::<Admit>(request).await.and_then(|admit| self.cloud.admit_key(&admit)))
            }
            _ => reply::<()>(http::StatusCode::NOT_FOUND, Err(Error::internal(format!("the local cloud has no {method} {path}")))),
        }
    }

    /// Goes on when the asker has gone: what was begun is finished.
    async fn execute(&self, request: http::Request<Incoming>) -> Result<Executed> {
        let request: Request = read(request).await?;
        let (observed, closed) =
            tokio::spawn(self.cloud.clone().execute(request)).await.or_fail(Kind::Internal, || "a task of the local cloud died")??;
        Ok(Executed { observed, closing: closing(closed) })
    }
}

fn closing(closed: bool) -> Option<i32> {
    closed.then_some(std::process::id() as i32)
}

async fn read<T: DeserializeOwned>(request: http::Request<Incoming>) -> Result<T> {
    let failed = || "could not read the request";
    let body = Limited::new(request.into_body(), LARGEST_REQUEST).collect().await.or_fail(Kind::Transient, failed)?.to_bytes();
    serde_json::from_slice(&body).or_fail(Kind::Input, failed)
}

fn done<T: Serialize>(outcome: Result<T>) -> http::Response<Full<Bytes>> {
    let status = if outcome.is_ok() { http::StatusCode::OK } else { http::StatusCode::UNPROCESSABLE_ENTITY };
    reply(status, outcome)
}

fn reply<T: Serialize>(status: http::StatusCode, outcome: Result<T>) -> http::Response<Full<Bytes>> {
    let body = match outcome {
        Ok(value) => serde_json::to_vec(&value),
        Err(error) => serde_json::to_vec(&Failure::from(&error)),
    };
    let mut response = http::Response::new(Full::new(Bytes::from(body.expect("plain data"))));
    *response.status_mut() = status;
    response
}
