//! The kubelets, as the API server reaches them: which container of a pod is meant, where its node is, and a connection to there.

use super::kinds::KindRow;
use super::object::decode;
use super::server::Server;
use super::status::{Answer, Status};
use super::tokens::find;
use crate::error::{Context, Kind, Result};
use crate::sys::sockets;
use rustls::pki_types::ServerName;
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const KUBELET_PORT: u16 = 10250;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The container that is asked for, or the only one.
pub(super) fn container(row: &KindRow, pod_name: &str, pod: &Value, asked: &str) -> Answer<String> {
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
pub(super) fn address(server: &Server, node: &str) -> Answer<SocketAddr> {
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

pub(super) async fn connect(server: &Server, address: SocketAddr) -> Result<TlsStream<TcpStream>> {
    let failed = || format!("could not reach the kubelet at {address}");
    let tls = super::serve::client_tls(&server.config.pki)?;
    let connect = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        sockets::keep_alive(&stream)?;
        TlsConnector::from(tls).connect(ServerName::IpAddress(address.ip().into()), stream).await
    };
    tokio::time::timeout(CONNECT_TIMEOUT, connect).await.or_fail(Kind::Transient, failed)?.or_fail(Kind::Transient, failed)
}
