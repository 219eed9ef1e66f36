//! `kprov demo`: a small web application to look at: says which pod answered, and which pods share the filesystem. Hidden.

use crate::error::{Context, Kind, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// A folder that all replicas share: each writes its name into it, every answer lists them.
    #[arg(long, default_value = "/media")]
    shared: PathBuf,
}

struct Replica {
    name: String,
    node: String,
    shared: PathBuf,
}

pub async fn run(args: Args) -> Result<()> {
    let replica = Arc::new(Replica {
        name: std::env::var("POD_NAME").or_else(|_| std::env::var("HOSTNAME")).unwrap_or_else(|_| "demo".into()),
        node: std::env::var("NODE_NAME").unwrap_or_default(),
        shared: args.shared,
    });
    replica.sign_in();
    let listener =
        TcpListener::bind(("0.0.0.0", args.port)).await.or_fail(Kind::Host, || format!("could not listen on port {}", args.port))?;
    // As a container's first process it gets no default signal handling: without this, every rollout would wait for the grace period.
    let mut terminate = signal(SignalKind::terminate()).or_fail(Kind::Host, || "could not handle signals")?;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let replica = replica.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| { let replica = replica.clone(); async move { Ok::<_, Infallible>(replica.answer(&request)) } });
                    // A client that goes away in the middle is its own business.
                    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
                });
            }
        }
    }
    replica.sign_out();
    Ok(())
}

impl Replica {
    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let (status, body) = match request.uri().path() {
            "/" => (StatusCode::OK, self.greeting()),
            "/healthz" => (StatusCode::OK, "ok\n".into()),
            _ => (StatusCode::NOT_FOUND, "not found\n".into()),
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response.headers_mut().insert("content-type", http::HeaderValue::from_static("text/plain; charset=utf-8"));
        response
    }

    fn greeting(&self) -> String {
        let place = if self.node.is_empty() { String::new() } else { format!(" on {}", self.node) };
        let mut text = format!("Hello from {}{place}.\n", self.name);
        let replicas = self.others();
        if !replicas.is_empty() {
            text.push_str(&format!("Sharing {} with: {}\n", self.shared.display(), replicas.join(", ")));
        }
        text
    }

    /// The shared folder is optional: without it the demo still serves.
    fn sign_in(&self) {
        if self.shared.is_dir() {
            let _ = std::fs::write(self.shared.join(format!("{}.replica", self.name)), &self.node);
        }
    }

    fn sign_out(&self) {
        let _ = std::fs::remove_file(self.shared.join(format!("{}.replica", self.name)));
    }

    fn others(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.shared).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".replica")?.to_string())).collect();
        names.sort();
        names
    }
}
