//! pods/log: a container's output, streamed from the kubelet of its node.

use super::kubelets;
use super::object::{decode, key_of, text};
use super::read::missing;
use super::respond::{self, Response};
use super::server::{Call, Server};
use super::status::{Answer, Status};
use crate::error::{Context, Error, Kind, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use std::time::Duration;

/// What a kubelet understands of `PodLogOptions`.
const PASSED_ON: &[&str] = &["follow", "previous", "timestamps", "tailLines", "limitBytes", "sinceSeconds", "sinceTime"];

/// For the head of the answer, which comes before any output: a kubelet asks its container runtime once before it sends that.
const PATIENCE: Duration = Duration::from_secs(30);

pub async fn get(call: &Call<'_>) -> Answer<Response> {
    let entry = call.server.store.get(&key_of(&call.row, &call.target)).ok_or_else(|| missing(call))?;
    let pod = decode(&entry)?;
    let container = kubelets::container(&call.row, &call.target.name, &pod, call.query.text("container"))?;
    let node = text(&pod, "spec", "nodeName");
    if node.is_empty() {
        return Ok(respond::full(200, "text/plain", Bytes::new()));
    }
    let address = kubelets::address(call.server, node)?;
    let (namespace, name) = (&call.target.namespace, &call.target.name);
    let path = format!("/containerLogs/{namespace}/{name}/{container}?{}", call.query.only(PASSED_ON));
    let answer = ask(call.server, address, &path).await;
    let answer = answer.map_err(|error| Status::internal(format!("could not read logs from node {node}: {}", error.chain())))?;
    forward(answer).await
}

async fn ask(server: &Server, address: SocketAddr, path: &str) -> Result<http::Response<hyper::body::Incoming>> {
    let failed = || format!("could not ask the kubelet at {address}");
    let stream = kubelets::connect(server, address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.or_fail(Kind::Transient, failed)?;
    tokio::spawn(connection);
    let request = http::Request::get(path).header(http::header::HOST, address.to_string()).body(Empty::<Bytes>::new());
    let request = request.map_err(|error| Error::internal("could not ask for logs").because(error))?;
    let answer = tokio::time::timeout(PATIENCE, sender.send_request(request)).await;
    answer.map_err(|_| Error::timeout(failed()).because("no answer"))?.or_fail(Kind::Transient, failed)
}

/// The output as it comes, or the kubelet's refusal in its own words.
async fn forward(answer: http::Response<hyper::body::Incoming>) -> Answer<Response> {
    let code = answer.status().as_u16();
    if code == 200 {
        return Ok(respond::body(200, "text/plain", answer.into_body().map_err(Into::into).boxed_unsync()));
    }
    let text = answer.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    Err(match code {
        400 => Status::bad_request(text),
        404 => Status::new(404, "NotFound", text),
        _ => Status::internal(text),
    })
}
