//! Connections that stop being HTTP: `kubectl exec`, `attach`, `cp` and `port-forward`. After the upgrade kubectl talks SPDY with the
//! container runtime; API server and kubelet in between decide who may, and pass the bytes on.

use super::client::Body;
use crate::error::{Context, Error, Kind, Result};
use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderMap, HeaderName, UPGRADE};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// Which of the stream protocols client and runtime can both speak is theirs to settle.
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// Until the other side has opened the stream, or refused.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is passed on. A client that asks for a WebSocket first is refused, and then asks for this.
pub fn is_spdy(headers: &HeaderMap) -> bool {
    let asked = headers.get(UPGRADE).and_then(|value| value.to_str().ok());
    asked.is_some_and(|protocol| protocol.eq_ignore_ascii_case("SPDY/3.1"))
}

/// Asks for the same upgrade at `path` of whoever is at the other end of `stream`, and answers as they do. Once both sides have
/// upgraded, bytes go both ways until one of them ends.
pub async fn pass_on<S>(headers: &HeaderMap, client: OnUpgrade, stream: S, path: &str) -> Result<Response<Body>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let failed = || "could not open a stream";
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.or_fail(Kind::Transient, failed)?;
    tokio::spawn(connection.with_upgrades());
    let request = Request::post(path).header(HOST, "localhost").body(Empty::<Bytes>::new());
    let mut request = request.or_fail(Kind::Internal, failed)?;
    request.headers_mut().extend(passed(headers));
    let answer = tokio::time::timeout(PATIENCE, sender.send_request(request)).await;
    let mut answer = answer.map_err(|_| Error::timeout(failed()).because("no answer"))?.or_fail(Kind::Transient, failed)?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer.map(|body| body.map_err(Into::into).boxed_unsync()));
    }
    let mut accepted = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *accepted.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    accepted.headers_mut().extend(passed(answer.headers()));
    let server = hyper::upgrade::on(&mut answer);
    tokio::spawn(async move {
        let Ok((client, server)) = futures::future::try_join(client, server).await else { return };
        let ended = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(server)).await;
        tracing::debug!(?ended, "a stream ended");
    });
    Ok(accepted)
}

fn passed(headers: &HeaderMap) -> HeaderMap {
    let names = [UPGRADE, CONNECTION, STREAM_PROTOCOL];
    names.iter().flat_map(|name| headers.get_all(name).iter().map(move |value| (name.clone(), value.clone()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    /// A server that upgrades whatever comes, says which protocols it was offered, and echoes.
    async fn echo(stream: tokio::io::DuplexStream) {
        let service = hyper::service::service_fn(async |mut request: Request<hyper::body::Incoming>| {
            let offered = request.headers().get_all(STREAM_PROTOCOL).iter().count();
            let upgraded = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut stream = TokioIo::new(upgraded.await.expect("an upgrade"));
                stream.write_all(&[b'0' + offered as u8]).await.expect("written");
                let (mut reader, mut writer) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
            let accepted =
                Response::builder().status(StatusCode::SWITCHING_PROTOCOLS).header(UPGRADE, "SPDY/3.1").header(CONNECTION, "Upgrade");
            accepted.header(STREAM_PROTOCOL, "v4.channel.k8s.io").body(Empty::<Bytes>::new())
        });
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_the_protocols_are_the_ends_own_matter() {
        let (near, far) = duplex(1 << 16);
        let (client, middle) = duplex(1 << 16);
        tokio::spawn(echo(far));
        // In the middle: a server towards the client that passes on.
        let near = std::sync::Mutex::new(Some(near));
        let service = hyper::service::service_fn(move |mut request: Request<hyper::body::Incoming>| {
            let near = near.lock().expect("no panic").take().expect("one request");
            async move {
                let upgrade = hyper::upgrade::on(&mut request);
                pass_on(request.headers(), upgrade, near, "/exec/token").await
            }
        });
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(middle), service).with_upgrades());

        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(client)).await.expect("a connection");
        tokio::spawn(connection.with_upgrades());
        let request = Request::post("/").header(HOST, "api").header(UPGRADE, "SPDY/3.1").header(CONNECTION, "Upgrade");
        let request = request.header(STREAM_PROTOCOL, "v4.channel.k8s.io").header(STREAM_PROTOCOL, "v3.channel.k8s.io");
        let mut answer = sender.send_request(request.body(Empty::<Bytes>::new()).expect("a request")).await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(answer.headers()[STREAM_PROTOCOL], "v4.channel.k8s.io");
        let mut stream = TokioIo::new(hyper::upgrade::on(&mut answer).await.expect("an upgrade"));
        stream.write_all(b"ping").await.expect("written");
        let mut heard = [0; 5];
        stream.read_exact(&mut heard).await.expect("an echo");
        assert_eq!(&heard, b"2ping");
    }

    #[test]
    fn only_spdy_is_passed_on() {
        let headers = |protocol: &'static str| HeaderMap::from_iter([(UPGRADE, protocol.parse().expect("a value"))]);
        assert!(is_spdy(&headers("SPDY/3.1")) && is_spdy(&headers("spdy/3.1")));
        assert!(!is_spdy(&headers("websocket")) && !is_spdy(&HeaderMap::new()));
    }
}
