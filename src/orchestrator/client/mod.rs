//! The API's client: one interface over two transports (in-process for the server's own controllers, TLS for agents and the CLI).
//! Reads decode into `k8s-openapi` types; writes are JSON values or patches, so fields a type does not know survive.

pub mod https;
pub mod informer;
pub mod queue;

use crate::error::Result;
use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{ClusterResourceScope, Metadata, NamespaceResourceScope, Resource, ResourceScope};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::sync::Arc;

/// A streaming body: watches and logs arrive frame by frame.
pub type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// One way to reach the API.
#[async_trait]
pub trait Transport: Send + Sync {
    /// The request's URI holds path and query only. An error is a transport failure; HTTP statuses are answers.
    async fn call(&self, request: http::Request<Bytes>) -> Result<http::Response<Body>>;
}

/// A kind that the client can read: any k8s-openapi type, and `Blueprint`.
pub trait Kind: Resource + Metadata<Ty = ObjectMeta> + DeserializeOwned + Send + Sync + 'static {
    const NAMESPACED: bool;
}
impl<K> Kind for K
where
    K: Resource + Metadata<Ty = ObjectMeta> + DeserializeOwned + Send + Sync + 'static,
    K::Scope: Scope,
{
    const NAMESPACED: bool = <K::Scope as Scope>::NAMESPACED;
}
pub trait Scope: ResourceScope {
    const NAMESPACED: bool;
}
impl Scope for NamespaceResourceScope {
    const NAMESPACED: bool = true;
}
impl Scope for ClusterResourceScope {
    const NAMESPACED: bool = false;
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
}

/// What the API answered instead of an object: a Kubernetes `Status`.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    pub code: u16,
    /// `NotFound`, `AlreadyExists`, `Conflict`, `Forbidden`, `Invalid`, `Expired`, ...
    pub reason: String,
    pub message: String,
}

/// The patch formats of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patch {
    Json,
    Merge,
    Strategic,
}

impl Client {
    pub fn new(transport: Arc<dyn Transport>) -> Self {
        Client { transport }
    }
}

/// `/api/v1/namespaces/shop/pods/web-1/status` and the like; empty `namespace` means all (or a cluster-scoped kind), empty `name` the
/// collection, empty `subresource` the object itself.
pub fn path<K: Kind>(namespace: &str, name: &str, subresource: &str) -> String {
    let mut path = if K::GROUP.is_empty() { format!("/api/{}", K::VERSION) } else { format!("/apis/{}/{}", K::GROUP, K::VERSION) };
    if K::NAMESPACED && !namespace.is_empty() {
        path.push_str("/namespaces/");
        path.push_str(namespace);
    }
    for part in [K::URL_PATH_SEGMENT, name, subresource] {
        if part.is_empty() {
            break;
        }
        path.push('/');
        path.push_str(part);
    }
    path
}

#[allow(dead_code)]
fn _unused(_: &Value) {}
