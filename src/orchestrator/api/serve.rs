//! The API on the network: TLS with optional client certificates, HTTP/1.1 and HTTP/2, graceful end.

use super::authn;
use super::respond::{self, Response};
use super::server::{MOST_BODY_BYTES, Server};
use super::status::Status;
use crate::error::{Context, Error, Kind, Result};
use http::Request;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig as Tls};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

/// Rusternetes' watches starved at 100 and at 250.
const MOST_STREAMS: u32 = 1000;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// A peer that vanished is noticed after two of these.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Requests in flight get this long after `shut_down`.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

impl Server {
    /// Returns once `shut_down` was called and requests in flight have finished.
    pub async fn serve(self: &Arc<Self>, listener: TcpListener, tls: Arc<Tls>) -> Result<()> {
        let acceptor = TlsAcceptor::from(tls);
        let tasks = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.stop.cancelled() => break,
            };
            match accepted {
                Ok((stream, _)) => drop(tasks.spawn(connection(self.clone(), acceptor.clone(), stream))),
                Err(error) => {
                    tracing::warn!(%error, "could not accept a connection");
                    // Out of file descriptors most likely: let some close.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        tasks.close();
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, tasks.wait()).await;
        Ok(())
    }
}

async fn connection(server: Arc<Server>, acceptor: TlsAcceptor, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => return,
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).cloned();
    let user = certificate.and_then(|certificate| authn::from_certificate(&certificate));
    let stop = server.stop.clone();
    let service = service_fn(move |request| {
        let (server, user) = (server.clone(), user.clone());
        async move { Ok::<_, Infallible>(answer(&server, user, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE_TIMEOUT * 6);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MOST_STREAMS)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_INTERVAL);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "a connection ended badly");
    }
}

async fn answer(server: &Arc<Server>, by_certificate: Option<super::User>, request: Request<Incoming>) -> Response {
    let user = match (by_certificate, authn::from_headers(server, request.headers())) {
        (Some(user), _) | (None, Ok(Some(user))) => Some(user),
        (None, Ok(None)) => None,
        (None, Err(status)) => return respond::status(&status),
    };
    let user = match user.map(|user| authn::speaks_for(user, request.headers())).transpose() {
        Ok(user) => user,
        Err(status) => return respond::status(&status),
    };
    let (parts, body) = request.into_parts();
    let body = match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MOST_BODY_BYTES).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => return respond::status(&Status::too_large(MOST_BODY_BYTES)),
        Ok(Err(error)) => return respond::status(&Status::bad_request(format!("could not read the request's body: {error}"))),
        Err(_) => return respond::status(&Status::timeout("could not read the request's body in time", 0)),
    };
    server.handle(user.as_ref(), Request::from_parts(parts, body)).await
}

/// From `ca.crt`, `server.crt` and `server.key` of the folder. A renewed certificate is served without a restart.
pub fn server_tls(pki: &Path) -> Result<Arc<Tls>> {
    let failed = || "could not set up the API's TLS";
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&pki.join("ca.crt"))?), provider.clone());
    let verifier = verifier.allow_unauthenticated().build().or_fail(Kind::Host, failed)?;
    let builder = Tls::builder_with_provider(provider).with_safe_default_protocol_versions().or_fail(Kind::Internal, failed)?;
    let mut tls = builder.with_client_cert_verifier(verifier).with_cert_resolver(Arc::new(Renewed::read(pki)?));
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(tls))
}

/// The serving certificate, read again when its file has changed.
#[derive(Debug)]
struct Renewed {
    pki: PathBuf,
    current: Mutex<(Option<SystemTime>, Arc<CertifiedKey>)>,
}

impl Renewed {
    fn read(pki: &Path) -> Result<Renewed> {
        Ok(Renewed { pki: pki.to_owned(), current: Mutex::new((Self::changed(pki), Self::load(pki)?)) })
    }
    fn changed(pki: &Path) -> Option<SystemTime> {
        std::fs::metadata(pki.join("server.crt")).and_then(|file| file.modified()).ok()
    }
    fn load(pki: &Path) -> Result<Arc<CertifiedKey>> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let key = CertifiedKey::from_der(chain(&pki.join("server.crt"))?, key(&pki.join("server.key"))?, &provider);
        Ok(Arc::new(key.or_fail(Kind::Host, || "could not use the API's certificate")?))
    }
}

impl ResolvesServerCert for Renewed {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut current = self.current.lock();
        let changed = Self::changed(&self.pki);
        if changed != current.0 {
            // Half-written pairs do not load: the old one serves until they do.
            if let Ok(key) = Self::load(&self.pki) {
                *current = (changed, key);
            }
        }
        Some(current.1.clone())
    }
}

/// To kubelets, as `kubelet-client.crt`. Read each time: certificates are renewed while the server runs.
pub(super) fn client_tls(pki: &Path) -> Result<Arc<ClientConfig>> {
    let failed = || "could not set up TLS towards kubelets";
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().or_fail(Kind::Internal, failed)?;
    let builder = builder.with_root_certificates(roots(&pki.join("ca.crt"))?);
    let (chain, key) = (chain(&pki.join("kubelet-client.crt"))?, key(&pki.join("kubelet-client.key"))?);
    Ok(Arc::new(builder.with_client_auth_cert(chain, key).or_fail(Kind::Host, failed)?))
}

fn read<T>(path: &Path, read: impl FnOnce(&Path) -> Result<T, rustls::pki_types::pem::Error>) -> Result<T> {
    read(path).map_err(|error| Error::host(format!("could not read {}", path.display())).because(error.to_string()))
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    read(path, |path| CertificateDer::pem_file_iter(path)?.collect())
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    read(path, |path| PrivateKeyDer::from_pem_file(path))
}

fn roots(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in chain(path)? {
        roots.add(certificate).or_fail(Kind::Host, || format!("could not use {}", path.display()))?;
    }
    Ok(roots)
}
