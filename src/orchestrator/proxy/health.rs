//! `GET /healthz` of the service proxy, as upstream's: whether this node serves what load balancers send it. Says nothing else to anybody.

use crate::orchestrator::config::HEALTH_PORT;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Another program may hold the port for a while: no reason to stop serving.
const BIND_AGAIN: Duration = Duration::from_secs(5);
/// A checker sends one line at once.
const PATIENCE: Duration = Duration::from_secs(5);
/// Checkers are a handful; more at a time is somebody else.
const AT_ONCE: usize = 64;
const LONGEST_REQUEST: usize = 8 << 10;

/// Whether the kernel's rules are what they should be.
pub type InSync = Arc<AtomicBool>;

/// Answers at every address of the node until cancelled.
pub async fn serve(in_sync: InSync, cancel: CancellationToken) {
    while !cancel.is_cancelled() {
        match TcpListener::bind(("0.0.0.0", HEALTH_PORT)).await {
            Ok(listener) => return answer_all(listener, in_sync, cancel).await,
            Err(error) => {
                tracing::warn!(%error, "could not listen on port {HEALTH_PORT}: load balancers cannot see whether this node serves")
            }
        }
        cancel.run_until_cancelled(tokio::time::sleep(BIND_AGAIN)).await;
    }
}

async fn answer_all(listener: TcpListener, in_sync: InSync, cancel: CancellationToken) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    while let Some(accepted) = cancel.run_until_cancelled(listener.accept()).await {
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, most likely: a pause instead of a loop at full speed.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let in_sync = in_sync.clone();
        tokio::spawn(async move {
            let _ = tokio::time::timeout(PATIENCE, answer(stream, &in_sync)).await;
            drop(place);
        });
    }
}

async fn answer(mut stream: TcpStream, in_sync: &AtomicBool) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < LONGEST_REQUEST {
        if stream.read_buf(&mut request).await? == 0 {
            break;
        }
    }
    stream.write_all(response(&request, in_sync.load(Ordering::Relaxed)).as_bytes()).await?;
    stream.shutdown().await
}

fn response(request: &[u8], in_sync: bool) -> String {
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
    let (status, body) = match (method, path) {
        (b"GET" | b"HEAD", b"/healthz" | b"/" | b"/livez") if in_sync => ("200 OK", "ok\n"),
        (b"GET" | b"HEAD", b"/healthz" | b"/" | b"/livez") => ("503 Service Unavailable", "services are not in the kernel yet\n"),
        _ => ("404 Not Found", "not found\n"),
    };
    let shown = if method == b"HEAD" { "" } else { body };
    format!("HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{shown}", body.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_healthy_while_its_rules_are_in_the_kernel() {
        let check = |request: &str, in_sync: bool, expected: &str| {
            let answer = response(request.as_bytes(), in_sync);
            assert!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{request}: {answer}");
        };
        check("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n", true, "200");
        check("GET /healthz HTTP/1.0\r\n\r\n", false, "503");
        check("HEAD /healthz?verbose HTTP/1.1\r\n\r\n", true, "200");
        check("GET /secrets HTTP/1.1\r\n\r\n", true, "404");
        check("POST /healthz HTTP/1.1\r\n\r\n", true, "404");
        check("\u{0}\u{1}", true, "404");
    }
}
