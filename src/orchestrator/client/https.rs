//! The API over mutual TLS, HTTP/2, one connection kept open.

use super::{Body, Client, Transport};
use crate::error::{Context, Error, Kind, Result};
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;

/// A machine on the same network answers within a second; ten leave room for a busy one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Upstream's own limit for anything that is not a watch; a watch sends its headers at once.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(60);
/// A peer that vanished is noticed after two of these.
const PING: Duration = Duration::from_secs(10);

/// How the client proves who it is.
pub enum Identity {
    Certificate { cert_pem: String, key_pem: String },
    Token(String),
}

/// `server` is e.g. `https://10.88.0.10:6443`. Connects lazily, so it cannot fail for an API that is away.
pub fn connect(server: &str, ca_pem: &str, cert_pem: &str, key_pem: &str) -> Result<Client> {
    connect_as(server, ca_pem, Identity::Certificate { cert_pem: cert_pem.into(), key_pem: key_pem.into() })
}

/// The same for an API whose address may be another than its certificate says (a machine's public address changes when it was off):
/// `name` is what the certificate must say.
pub fn connect_named(server: &str, name: &str, ca_pem: &str, cert_pem: &str, key_pem: &str) -> Result<Client> {
    let identity = Identity::Certificate { cert_pem: cert_pem.into(), key_pem: key_pem.into() };
    let name = ServerName::try_from(name.to_string()).or_fail(Kind::Internal, || format!("could not expect an API called {name}"))?;
    Ok(Client::new(Arc::new(Https { name, ..Https::new(server, ca_pem, identity)? })))
}

pub fn connect_with_token(server: &str, ca_pem: &str, token: &str) -> Result<Client> {
    connect_as(server, ca_pem, Identity::Token(token.into()))
}

pub fn connect_as(server: &str, ca_pem: &str, identity: Identity) -> Result<Client> {
    Ok(Client::new(Arc::new(Https::new(server, ca_pem, identity)?)))
}

struct Https {
    host: String,
    port: u16,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
    authorization: Option<HeaderValue>,
    connection: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

impl Https {
    fn new(server: &str, ca_pem: &str, identity: Identity) -> Result<Self> {
        let wrong = || format!("could not understand the API's address {server}");
        let uri: Uri = server.parse().or_fail(Kind::Input, wrong)?;
        let host = uri.host().ok_or_else(|| Error::input(wrong()))?.trim_matches(['[', ']']).to_string();
        let name = ServerName::try_from(host.clone()).or_fail(Kind::Input, wrong)?;

        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
            let certificate = certificate.or_fail(Kind::Input, || "could not read the cluster's CA certificate")?;
            roots.add(certificate).or_fail(Kind::Input, || "could not use the cluster's CA certificate")?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .or_fail(Kind::Internal, || "could not set up TLS")?
            .with_root_certificates(roots);
        let mut authorization = None;
        let mut tls = match identity {
            Identity::Certificate { cert_pem, key_pem } => {
                let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(cert_pem.as_bytes()).collect();
                let chain = chain.or_fail(Kind::Input, || "could not read the client certificate")?;
                let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).or_fail(Kind::Input, || "could not read the client key")?;
                builder.with_client_auth_cert(chain, key).or_fail(Kind::Input, || "could not use the client certificate")?
            }
            Identity::Token(token) => {
                let mut value =
                    HeaderValue::from_str(&format!("Bearer {}", token.trim())).or_fail(Kind::Input, || "could not use the token")?;
                value.set_sensitive(true);
                authorization = Some(value);
                builder.with_no_client_auth()
            }
        };
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Https { port: uri.port_u16().unwrap_or(443), host, name, tls: Arc::new(tls), authorization, connection: Mutex::new(None) })
    }

    /// The kept connection, or a new one. Whoever comes first connects; the others wait for it.
    async fn sender(&self) -> Result<SendRequest<Full<Bytes>>> {
        let mut held = self.connection.lock().await;
        if let Some(sender) = held.as_mut()
            && !sender.is_closed()
            && sender.ready().await.is_ok()
        {
            return Ok(sender.clone());
        }
        *held = None;
        let away = || format!("could not reach the API at {}:{}", self.host, self.port);
        let sender = match tokio::time::timeout(CONNECT_TIMEOUT, self.dial()).await {
            Ok(Ok(sender)) => sender,
            Ok(Err(error)) => return Err(Error::transient(away()).because(error)),
            Err(_) => return Err(Error::transient(away()).because("no answer in 10 s")),
        };
        *held = Some(sender.clone());
        Ok(sender)
    }

    async fn dial(&self) -> Result<SendRequest<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        let stream = TlsConnector::from(self.tls.clone()).connect(self.name.clone(), stream).await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .keep_alive_while_idle(true)
            // A watch nobody reads for a moment must not stop the other streams of the connection.
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(64 << 20)
            .handshake(TokioIo::new(stream))
            .await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to the API ended");
            }
        });
        Ok(sender)
    }
}

#[async_trait]
impl Transport for Https {
    async fn call(&self, request: Request<Bytes>) -> Result<Response<Body>> {
        let (mut parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map(|path| path.as_str()).unwrap_or("/");
        let authority =
            if self.host.contains(':') { format!("[{}]:{}", self.host, self.port) } else { format!("{}:{}", self.host, self.port) };
        parts.uri =
            format!("https://{authority}{path}").parse().or_fail(Kind::Internal, || format!("could not build a request for {path}"))?;
        if let Some(value) = &self.authorization {
            parts.headers.insert(header::AUTHORIZATION, value.clone());
        }
        let mut retried = false;
        loop {
            let mut sender = self.sender().await?;
            let request = Request::from_parts(parts.clone(), Full::new(body.clone()));
            let answer = tokio::time::timeout(HEADERS_TIMEOUT, sender.send_request(request)).await;
            match answer {
                Ok(Ok(response)) => return Ok(response.map(|body| body.map_err(|error| error.into()).boxed_unsync())),
                // Refused before it was sent (the kept connection had just closed): once more on a new one, nothing was done twice.
                Ok(Err(error)) if error.is_canceled() && !retried => retried = true,
                Ok(Err(error)) => {
                    return Err(Error::transient(format!("could not complete a request to the API at {authority}")).because(error));
                }
                Err(_) => {
                    return Err(Error::transient(format!("could not get an answer from the API at {authority} in {HEADERS_TIMEOUT:?}")));
                }
            }
        }
    }
}
