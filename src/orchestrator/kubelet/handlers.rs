//! Ways to ask a container something: a command in it, an HTTP request, a TCP connection, gRPC health. Probes and hooks share them.

use super::cri::{Exec, Runtime};
use super::observed::containers;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, GRPCAction, HTTPGetAction, LifecycleHandler, Pod};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// As much of an answer as an event shows (upstream's limit).
const SHOWN: usize = 10 << 10;

/// What is asked of whom.
#[derive(Debug, Clone)]
pub struct Target {
    pub container_id: String,
    pub pod_ip: String,
}

/// `Ok` is a yes with what was said; the error is what an event says.
pub type Answer = Result<String, String>;

/// A container's hook, whatever its way; the error is what an event says.
pub async fn hook(
    runtime: &Runtime,
    pod: &Pod,
    spec: &Container,
    target: &Target,
    hook: &LifecycleHandler,
    timeout: Duration,
) -> Result<(), String> {
    let timeout = timeout.max(Duration::from_secs(1));
    if let Some(action) = &hook.exec {
        let command = action.command.as_deref().unwrap_or_default();
        return exec(runtime, target, command, timeout).await.map(drop);
    }
    if let Some(action) = &hook.http_get {
        return http(pod, spec, target, action, timeout).await.map(drop);
    }
    if let Some(action) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(action.seconds.max(0) as u64).min(timeout)).await;
    }
    Ok(())
}

pub async fn exec(runtime: &Runtime, target: &Target, command: &[String], timeout: Duration) -> Answer {
    match runtime.exec(&target.container_id, command, timeout.as_secs().max(1) as i64).await {
        Ok(Exec::Ended { exit_code: 0, output }) => Ok(output),
        Ok(Exec::Ended { output, .. }) => Err(output.chars().take(SHOWN).collect()),
        Ok(Exec::TimedOut) => Err(format!("command timed out: {:?} timed out after {}s", command.join(" "), timeout.as_secs())),
        Err(refusal) => Err(refusal.message),
    }
}

/// 200 to 399 is a yes.
pub async fn http(pod: &Pod, spec: &Container, target: &Target, action: &HTTPGetAction, timeout: Duration) -> Answer {
    let port = port(pod, spec, &action.port)?;
    let host = action.host.clone().filter(|host| !host.is_empty()).unwrap_or_else(|| target.pod_ip.clone());
    let secure = action.scheme.as_deref() == Some("HTTPS");
    let path = action.path.clone().filter(|path| !path.is_empty()).unwrap_or_else(|| "/".into());
    let path = if path.starts_with('/') { path } else { format!("/{path}") };
    let url = format!("{}://{host}:{port}{path}", if secure { "https" } else { "http" });
    let request = request(action, &path, &host, port).map_err(|error| format!("Get {url:?}: {error}"))?;
    let asked = async {
        let stream = TcpStream::connect((host.as_str(), port)).await.map_err(|error| error.to_string())?;
        if secure {
            let name = rustls::pki_types::ServerName::try_from(host.clone()).map_err(|error| error.to_string())?;
            let stream = any_certificate()?.connect(name, stream).await.map_err(|error| error.to_string())?;
            return send(stream, request).await;
        }
        send(stream, request).await
    };
    let late = || "context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned();
    let answer = tokio::time::timeout(timeout, asked).await.map_err(|_| late()).and_then(|answer| answer);
    match answer {
        Ok((status, body)) if (200..400).contains(&status) => Ok(body),
        Ok((status, _)) => Err(format!("HTTP probe failed with statuscode: {status}")),
        Err(error) => Err(format!("Get {url:?}: {error}")),
    }
}

fn request(action: &HTTPGetAction, path: &str, host: &str, port: u16) -> Result<http::Request<Empty<bytes::Bytes>>, http::Error> {
    let mut request =
        http::Request::get(path).header("user-agent", "kube-probe/1.33").header("accept", "*/*").header("connection", "close");
    let mut named_host = format!("{host}:{port}");
    for header in action.http_headers.iter().flatten() {
        match header.name.eq_ignore_ascii_case("host") {
            true => named_host = header.value.clone(),
            false => request = request.header(&header.name, &header.value),
        }
    }
    request.header("host", named_host).body(Empty::new())
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: http::Request<Empty<bytes::Bytes>>,
) -> Result<(u16, String), String> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    let result = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        let mut body = response.into_body();
        let mut text = Vec::new();
        while let Some(Ok(frame)) = body.frame().await {
            text.extend_from_slice(frame.data_ref().map(|data| data.as_ref()).unwrap_or_default());
            if text.len() > SHOWN {
                break;
            }
        }
        Ok((status, String::from_utf8_lossy(&text).into_owned()))
    };
    let result = result.await;
    connection.abort();
    result
}

pub async fn tcp(pod: &Pod, spec: &Container, target: &Target, host: Option<&str>, to: &IntOrString, timeout: Duration) -> Answer {
    let port = port(pod, spec, to)?;
    let host = host.filter(|host| !host.is_empty()).unwrap_or(&target.pod_ip);
    match tokio::time::timeout(timeout, TcpStream::connect((host, port))).await {
        Ok(Ok(_)) => Ok(String::new()),
        Ok(Err(error)) => Err(format!("dial tcp {host}:{port}: {error}")),
        Err(_) => Err(format!("dial tcp {host}:{port}: i/o timeout")),
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

pub async fn grpc(target: &Target, action: &GRPCAction, timeout: Duration) -> Answer {
    let ask = async {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}:{}", target.pod_ip, action.port))
            .map_err(|error| error.to_string())?;
        let channel = endpoint.connect().await.map_err(|error| error.to_string())?;
        let mut grpc = tonic::client::Grpc::new(channel);
        grpc.ready().await.map_err(|error| error.to_string())?;
        let request = HealthRequest { service: action.service.clone().unwrap_or_default() };
        let path = "/grpc.health.v1.Health/Check".parse().expect("a constant path");
        let codec = tonic_prost::ProstCodec::<HealthRequest, HealthResponse>::default();
        let answer = grpc.unary(tonic::Request::new(request), path, codec).await.map_err(|status| status.message().to_owned())?;
        match answer.into_inner().status {
            1 => Ok("service is SERVING".to_owned()),
            status => Err(format!("service unhealthy (responded with status {status})")),
        }
    };
    tokio::time::timeout(timeout, ask).await.map_err(|_| format!("timeout: failed to connect service within {}s", timeout.as_secs()))?
}

/// A number, or the name of one of the container's ports.
fn port(pod: &Pod, spec: &Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let own = spec.ports.iter().flatten();
            let all = own.chain(containers(pod).iter().flat_map(|container| container.ports.iter().flatten()));
            let mut named = all.filter(|port| port.name.as_deref() == Some(name));
            named.next().map(|port| port.container_port).or_else(|| name.parse().ok())
        }
    };
    number.and_then(|number| u16::try_from(number).ok()).ok_or_else(|| format!("couldn't find port: {port:?} in container {}", spec.name))
}

/// Probes ask whether something answers, not who: upstream checks no certificate here either.
fn any_certificate() -> Result<tokio_rustls::TlsConnector, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let config = config.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider))).with_no_client_auth();
    Ok(Arc::new(config).into())
}

#[derive(Debug)]
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &rustls::pki_types::CertificateDer<'_>,
        _intermediates: &[rustls::pki_types::CertificateDer<'_>],
        _name: &rustls::pki_types::ServerName<'_>,
        _ocsp: &[u8],
        _now: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &rustls::pki_types::CertificateDer<'_>,
        _signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &rustls::pki_types::CertificateDer<'_>,
        _signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
