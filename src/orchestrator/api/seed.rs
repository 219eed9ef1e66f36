//! What every cluster has from the start, put in through the API's own door.

use super::server::Server;
use super::{User, respond};
use crate::error::{Error, Result};
use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;

pub async fn put_in(server: &Arc<Server>) -> Result<()> {
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        ensure(server, "/api/v1/namespaces", &json!({"metadata": {"name": name}})).await?;
    }
    let config = &server.config;
    let first = config.service_cidr.hosts().next().ok_or_else(|| Error::input("could not find an address in the service CIDR"))?;
    let api = service(
        "kubernetes",
        &json!({"component": "apiserver", "provider": "kubernetes"}),
        first,
        &json!([
        {"name": "https", "port": 443, "protocol": "TCP", "targetPort": config.port}]),
    );
    ensure(server, "/api/v1/namespaces/default/services", &api).await?;
    replace(server, "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", &api_slice(config.advertise, config.port)).await?;
    let labels = json!({"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"});
    let dns = service(
        "kube-dns",
        &labels,
        config.dns_address,
        &json!([
        {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53}, {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53}]),
    );
    ensure(server, "/api/v1/namespaces/kube-system/services", &dns).await
}

fn service(name: &str, labels: &Value, address: IpAddr, ports: &Value) -> Value {
    json!({"metadata": {"name": name, "labels": labels}, "spec": {"type": "ClusterIP", "clusterIP": address, "ports": ports}})
}

fn api_slice(advertise: IpAddr, port: u16) -> Value {
    let kind = if advertise.is_ipv4() { "IPv4" } else { "IPv6" };
    json!({"metadata": {"name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}}, "addressType": kind,
        "endpoints": [{"addresses": [advertise], "conditions": {"ready": true}}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}]})
}

/// There afterwards, whoever made it.
async fn ensure(server: &Arc<Server>, path: &str, object: &Value) -> Result<()> {
    match call(server, "POST", path, object).await? {
        (201 | 409, _) => Ok(()),
        (_, answer) => Err(refused(path, &answer)),
    }
}

/// There afterwards, exactly so: the API's address may have changed.
async fn replace(server: &Arc<Server>, path: &str, object: &Value) -> Result<()> {
    match call(server, "POST", path, object).await? {
        (201, _) => return Ok(()),
        (409, _) => {}
        (_, answer) => return Err(refused(path, &answer)),
    }
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    match call(server, "PUT", &format!("{path}/{name}"), object).await? {
        (200, _) => Ok(()),
        (_, answer) => Err(refused(path, &answer)),
    }
}

fn refused(path: &str, answer: &str) -> Error {
    Error::internal(format!("could not put the first objects into {path}")).because(answer.to_owned())
}

async fn call(server: &Arc<Server>, method: &str, path: &str, object: &Value) -> Result<(u16, String)> {
    let request = Request::builder().method(method).uri(path).body(Bytes::from(object.to_string()));
    let request = request.map_err(|error| Error::internal("could not make a request").because(error))?;
    let response: respond::Response = server.handle(Some(&User::server()), request).await;
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.map_err(|error| Error::internal("could not read an answer").because(error))?;
    Ok((code, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
}
