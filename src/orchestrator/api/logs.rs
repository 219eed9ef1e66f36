//! pods/log: a container's output, streamed from the kubelet of its node.

use super::kinds::KindRow;
use super::object::{decode, key_of, text};
use super::read::missing;
use super::respond::{self, Response};
use super::server::{Call, Query, Server};
use super::status::{Answer, Status};
use super::tokens::find;
use crate::error::{Context, Error, Kind, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const KUBELET_PORT: u16 = 10250;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// What a kubelet understands of `PodLogOptions`.
const PASSED_ON: &[&str] = &["follow", "previous", "timestamps", "tailLines", "limitBytes", "sinceSeconds", "sinceTime"];

pub async fn get(call: &Call<'_>) -> Answer<Response> {
    let entry = call.server.store.get(&key_of(&call.row, &call.target)).ok_or_else(|| missing(call))?;
    let pod = decode(&entry)?;
    let container = container(&call.row, &call.target.name, &pod, call.query.text("container"))?;
    let node = text(&pod, "spec", "nodeName");
    if node.is_empty() {
        return Ok(respond::full(200, "text/plain", Bytes::new()));
    }
    let address = address(call.server, node)?;
    let (namespace, name) = (&call.target.namespace, &call.target.name);
    let path = format!("/containerLogs/{namespace}/{name}/{container}?{}", passed_on(&call.query));
    let answer = ask(call.server, address, &path).await;
    let answer = answer.map_err(|error| Status::internal(format!("could not read logs from node {node}: {}", error.chain())))?;
    forward(answer).await
}

fn passed_on(query: &Query) -> String {
    let given = PASSED_ON.iter().map(|name| (name, query.text(name))).filter(|(_, value)| !value.is_empty());
    form_urlencoded::Serializer::new(String::new()).extend_pairs(given).finish()
}

fn container(row: &KindRow, pod_name: &str, pod: &Value, asked: &str) -> Answer<String> {
    let lists = ["initContainers", "containers", "ephemeralContainers"].map(|list| pod["spec"][list].as_array());
    let named = lists.iter().flatten().copied().flatten().filter_map(|container| container["name"].as_str());
    let all: Vec<&str> = named.collect();
    let regular: Vec<&str> = lists[1].into_iter().flatten().filter_map(|container| container["name"].as_str()).collect();
    match asked {
        "" if all.len() == 1 => Ok(all[0].to_owned()),
        "" if regular.len() == 1 => Ok(regular[0].to_owned()),
        "" => {
            let text =
                format!("a container name must be specified for {} {pod_name}, choose one of: [{}]", row.singular, regular.join(" "));
            Err(Status::bad_request(text))
        }
        asked if all.contains(&asked) => Ok(asked.to_owned()),
        asked => Err(Status::bad_request(format!("container {asked} is not valid for {} {pod_name}", row.singular))),
    }
}

/// Where the node says its kubelet is.
fn address(server: &Server, node: &str) -> Answer<SocketAddr> {
    let entry = find(server, "nodes", "", node).ok_or_else(|| Status::not_found("", "nodes", node))?;
    let object = decode(&entry)?;
    let addresses = object.pointer("/status/addresses").and_then(Value::as_array);
    let internal = addresses.into_iter().flatten().find(|address| address["type"] == "InternalIP");
    let address: Option<IpAddr> = internal.and_then(|address| address["address"].as_str()).and_then(|address| address.parse().ok());
    let port = object.pointer("/status/daemonEndpoints/kubeletEndpoint/Port").and_then(Value::as_u64);
    let port = port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0).unwrap_or(KUBELET_PORT);
    let address = address.ok_or_else(|| Status::internal(format!("node {node} has no InternalIP")))?;
    Ok(SocketAddr::new(address, port))
}

async fn ask(server: &Server, address: SocketAddr, path: &str) -> Result<http::Response<hyper::body::Incoming>> {
    let failed = || format!("could not reach the kubelet at {address}");
    let pki = server.config.pki.clone();
    let tls = super::serve::client_tls(&pki)?;
    let connect = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(tls).connect(ServerName::IpAddress(address.ip().into()), stream).await
    };
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, connect).await.or_fail(Kind::Transient, failed)?.or_fail(Kind::Transient, failed)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.or_fail(Kind::Transient, failed)?;
    tokio::spawn(connection);
    let request = http::Request::get(path).header(http::header::HOST, address.to_string()).body(Empty::<Bytes>::new());
    let request = request.map_err(|error| Error::internal("could not ask for logs").because(error))?;
    sender.send_request(request).await.or_fail(Kind::Transient, failed)
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
