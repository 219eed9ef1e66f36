//! The API's client: one interface over two transports (in-process for the server's own controllers, TLS for agents and the CLI).
//! Reads decode into `k8s-openapi` types; writes are JSON values or patches, so fields a type does not know survive.

pub mod backoff;
pub mod blueprint;
pub mod events;
pub mod failure;
pub mod https;
pub mod informer;
pub mod queue;
pub mod selector;
pub mod time;

pub use failure::{Failure, Status};
pub use informer::{Change, Informer, Key, Notify};
pub use queue::Queue;
pub use selector::Selector;

use crate::error::{Error, Result};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use http::{Method, Request, Response, header};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Body as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::{ClusterResourceScope, Metadata, NamespaceResourceScope, Resource, ResourceScope};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// A streaming body: watches and logs arrive frame by frame.
pub type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// One way to reach the API.
#[async_trait]
pub trait Transport: Send + Sync {
    /// The request's URI holds path and query only. An error is a transport failure; HTTP statuses are answers.
    async fn call(&self, request: Request<Bytes>) -> Result<Response<Body>>;
}

/// Anything with Kubernetes metadata that JSON decodes into: what an informer can hold.
pub trait Object: DeserializeOwned + Send + Sync + 'static {
    fn meta(&self) -> &ObjectMeta;

    fn name(&self) -> &str {
        self.meta().name.as_deref().unwrap_or_default()
    }
    /// Empty for cluster-scoped kinds.
    fn namespace(&self) -> &str {
        self.meta().namespace.as_deref().unwrap_or_default()
    }
    fn uid(&self) -> &str {
        self.meta().uid.as_deref().unwrap_or_default()
    }
    fn version(&self) -> &str {
        self.meta().resource_version.as_deref().unwrap_or_default()
    }
    fn deleting(&self) -> bool {
        self.meta().deletion_timestamp.is_some()
    }
    fn label(&self, key: &str) -> Option<&str> {
        self.meta().labels.as_ref()?.get(key).map(String::as_str)
    }
    fn annotation(&self, key: &str) -> Option<&str> {
        self.meta().annotations.as_ref()?.get(key).map(String::as_str)
    }
    fn has_finalizer(&self, name: &str) -> bool {
        self.meta().finalizers.iter().flatten().any(|held| held == name)
    }
    /// The one owner that manages this object.
    fn controller(&self) -> Option<&OwnerReference> {
        self.meta().owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
    }
}
impl<K: Metadata<Ty = ObjectMeta> + DeserializeOwned + Send + Sync + 'static> Object for K {
    fn meta(&self) -> &ObjectMeta {
        self.metadata()
    }
}

/// The metadata of any kind that says who it is and who holds it: what the garbage collector keeps in memory. Labels, annotations and
/// managed fields, the bulk of it, are not kept.
#[derive(Debug, Clone, Default)]
pub struct Partial {
    pub metadata: ObjectMeta,
}
impl<'de> Deserialize<'de> for Partial {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Wire {
            #[serde(default)]
            metadata: ObjectMeta,
        }
        let mut metadata = Wire::deserialize(deserializer)?.metadata;
        (metadata.labels, metadata.annotations, metadata.managed_fields) = (None, None, None);
        Ok(Partial { metadata })
    }
}
impl Object for Partial {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

/// A typed object and the JSON it came from: for kinds whose parts are copied on (pod templates), so that no field is lost.
pub struct WithRaw<K> {
    pub typed: K,
    raw: Box<serde_json::value::RawValue>,
}
impl<K> WithRaw<K> {
    pub fn value(&self) -> Value {
        serde_json::from_str(self.raw.get()).expect("it was read from this JSON")
    }
}
impl<K> std::ops::Deref for WithRaw<K> {
    type Target = K;
    fn deref(&self) -> &K {
        &self.typed
    }
}
impl<'de, K: DeserializeOwned> Deserialize<'de> for WithRaw<K> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<serde_json::value::RawValue>::deserialize(deserializer)?;
        let typed = serde_json::from_str(raw.get()).map_err(serde::de::Error::custom)?;
        Ok(WithRaw { typed, raw })
    }
}
impl<K: Kind> Object for WithRaw<K> {
    fn meta(&self) -> &ObjectMeta {
        self.typed.metadata()
    }
}

/// A kind that the client can read: any k8s-openapi type, and `BlueprintObject`.
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

/// The patch formats of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patch {
    Json,
    Merge,
    Strategic,
}

impl Patch {
    pub fn content_type(self) -> &'static str {
        match self {
            Patch::Json => "application/json-patch+json",
            Patch::Merge => "application/merge-patch+json",
            Patch::Strategic => "application/strategic-merge-patch+json",
        }
    }
}

/// What happens to the dependents of a deleted object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// `DeleteOptions`: nothing set means the API's defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delete {
    /// Delete only this very object, not a later one of the same name.
    pub uid: Option<String>,
    pub grace_seconds: Option<i64>,
    pub propagation: Option<Propagation>,
}

impl Delete {
    pub fn uid(uid: impl Into<String>) -> Self {
        Delete { uid: Some(uid.into()), ..Delete::default() }
    }
    fn body(&self) -> Value {
        let mut body = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
        if let Some(uid) = &self.uid {
            body["preconditions"] = json!({ "uid": uid });
        }
        if let Some(seconds) = self.grace_seconds {
            body["gracePeriodSeconds"] = json!(seconds);
        }
        if let Some(propagation) = self.propagation {
            body["propagationPolicy"] = json!(format!("{propagation:?}"));
        }
        body
    }
}

/// A page-less list: all items, and the version they were read at.
#[derive(Debug, Clone)]
pub struct List<K> {
    pub items: Vec<K>,
    pub resource_version: String,
}

/// One answer's largest body. A page of 500 objects of the largest allowed size is below it.
const BODY_LIMIT_BYTES: usize = 1 << 30;
/// Upstream's own page size: large enough to be quick, small enough not to stall other requests.
const PAGE: usize = 500;

/// Cheap to clone.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    seed: u64,
}

impl Client {
    pub fn new(transport: Arc<dyn Transport>) -> Self {
        Client { transport, seed: rand::random() }
    }
    /// Back-off jitter becomes reproducible.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// `None` where there is no such object.
    pub async fn get<K: Kind>(&self, namespace: &str, name: &str) -> Result<Option<K>, Failure> {
        match self.request(Method::GET, &path::<K>(namespace, name, ""), None, "").await {
            Ok(bytes) => Ok(Some(decode(&bytes)?)),
            Err(failure) if failure.is_not_found() => Ok(None),
            Err(failure) => Err(failure),
        }
    }
    /// All pages. An expired continue token starts again from the first page.
    pub async fn list<K: Kind>(&self, namespace: &str, selector: &Selector) -> Result<List<K>, Failure> {
        let path = path::<K>(namespace, "", "");
        let mut restarts = 0;
        loop {
            match self.list_pages(&path, selector, decode_item::<K>).await {
                Err(failure) if failure.is_expired() && restarts < 3 => restarts += 1,
                other => return other,
            }
        }
    }
    pub async fn create<K: Kind>(&self, namespace: &str, object: &Value) -> Result<K, Failure> {
        decode(&self.request(Method::POST, &path::<K>(namespace, "", ""), Some(object), "application/json").await?)
    }
    pub async fn replace<K: Kind>(&self, namespace: &str, name: &str, subresource: &str, object: &Value) -> Result<K, Failure> {
        decode(&self.request(Method::PUT, &path::<K>(namespace, name, subresource), Some(object), "application/json").await?)
    }
    pub async fn patch<K: Kind>(&self, namespace: &str, name: &str, subresource: &str, kind: Patch, patch: &Value) -> Result<K, Failure> {
        decode(&self.request(Method::PATCH, &path::<K>(namespace, name, subresource), Some(patch), kind.content_type()).await?)
    }
    /// An object that is not there is deleted already.
    pub async fn delete<K: Kind>(&self, namespace: &str, name: &str, delete: &Delete) -> Result<(), Failure> {
        self.delete_value(&path::<K>(namespace, name, ""), delete).await
    }
    /// POST to any path: bindings, evictions, tokens, objects without a type.
    pub async fn create_sub(&self, path: &str, object: &Value) -> Result<Value, Failure> {
        decode(&self.request(Method::POST, path, Some(object), "application/json").await?)
    }
    pub async fn create_value(&self, path: &str, object: &Value) -> Result<Value, Failure> {
        self.create_sub(path, object).await
    }
    /// Any GET that answers JSON: an object, a list (one page), discovery.
    pub async fn get_value(&self, path: &str) -> Result<Option<Value>, Failure> {
        match self.request(Method::GET, path, None, "").await {
            Ok(bytes) => Ok(Some(decode(&bytes)?)),
            Err(failure) if failure.is_not_found() => Ok(None),
            Err(failure) => Err(failure),
        }
    }
    /// All pages of the collection at `path`.
    pub async fn list_values(&self, path: &str, selector: &Selector) -> Result<List<Value>, Failure> {
        self.list_pages(path, selector, decode_item::<Value>).await
    }
    pub async fn replace_value(&self, path: &str, object: &Value) -> Result<Value, Failure> {
        decode(&self.request(Method::PUT, path, Some(object), "application/json").await?)
    }
    pub async fn patch_value(&self, path: &str, kind: Patch, patch: &Value) -> Result<Value, Failure> {
        decode(&self.request(Method::PATCH, path, Some(patch), kind.content_type()).await?)
    }
    pub async fn delete_value(&self, path: &str, delete: &Delete) -> Result<(), Failure> {
        match self.request(Method::DELETE, path, Some(&delete.body()), "application/json").await {
            Err(failure) if !failure.is_not_found() => Err(failure),
            _ => Ok(()),
        }
    }
    /// The request as it is; the answer whatever its status.
    pub async fn raw(&self, request: Request<Bytes>) -> Result<Response<Body>> {
        self.transport.call(request).await
    }

    /// Sends, and turns every status of 400 and above into a `Failure::Status`.
    pub(crate) async fn open(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        content_type: &str,
    ) -> Result<Response<Body>, Failure> {
        let bytes = body.map(|value| Bytes::from(value.to_string())).unwrap_or_default();
        let mut request = Request::builder().method(method).uri(path).header(header::ACCEPT, "application/json");
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        let request =
            request.body(bytes).map_err(|error| Error::internal(format!("could not build a request for {path}")).because(error))?;
        let response = self.transport.call(request).await?;
        if response.status().as_u16() < 400 {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let bytes = collect(response.into_body()).await.unwrap_or_default();
        Err(Failure::Status(Status::from_body(code, &bytes)))
    }

    async fn request(&self, method: Method, path: &str, body: Option<&Value>, content_type: &str) -> Result<Bytes, Failure> {
        let response = self.open(method, path, body, content_type).await?;
        Ok(collect(response.into_body()).await?)
    }

    /// Reads page after page, handing each item's raw JSON to `item`.
    pub(crate) async fn list_pages<T>(
        &self,
        path: &str,
        selector: &Selector,
        item: fn(&serde_json::value::RawValue) -> Result<T, Failure>,
    ) -> Result<List<T>, Failure> {
        let mut items = Vec::new();
        let mut query = vec![("limit".to_string(), PAGE.to_string())];
        loop {
            let bytes = self.request(Method::GET, &selector.path_with(path, &query), None, "").await?;
            let page: Page = serde_json::from_slice(&bytes).map_err(decode_failure)?;
            for raw in page.items.unwrap_or_default() {
                items.push(item(raw)?);
            }
            match page.metadata.cursor {
                Some(token) if !token.is_empty() => {
                    query.truncate(1);
                    query.push(("continue".into(), token));
                }
                _ => return Ok(List { items, resource_version: page.metadata.resource_version }),
            }
        }
    }
}

/// A background task that ends with the token. When it panics, it cancels the token: without this part the others would go on as if all
/// were well, and be wrong. Whoever supervises the process starts the whole again. So the token is the process's own, not a child of it.
pub fn spawn(cancel: &CancellationToken, task: impl Future<Output = ()> + Send + 'static) -> tokio::task::JoinHandle<()> {
    let cancel = cancel.clone();
    tokio::spawn(async move {
        // What it leaves behind half changed serves only until the end that follows.
        let outcome = cancel.run_until_cancelled(AssertUnwindSafe(task).catch_unwind()).await;
        if let Some(Err(panic)) = outcome {
            let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
            tracing::error!(panic = text.unwrap_or_default(), "a background task of kprov panicked; everything ends, to be started again");
            cancel.cancel();
        }
    })
}

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(default)]
    metadata: PageMeta,
    #[serde(borrow, default)]
    items: Option<Vec<&'a serde_json::value::RawValue>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PageMeta {
    #[serde(rename = "resourceVersion")]
    resource_version: String,
    #[serde(rename = "continue")]
    cursor: Option<String>,
}

/// Reads a body to its end. By hand: `Limited` makes every future around it hard to prove `Send`.
pub(crate) async fn collect(mut body: Body) -> Result<Bytes> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Error::transient("could not read the API's answer").because(error))?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.is_empty() && body.is_end_stream() {
            return Ok(data);
        }
        if whole.len() + data.len() > BODY_LIMIT_BYTES {
            return Err(Error::transient("could not read the API's answer: it is too large"));
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(decode_failure)
}

fn decode_item<T: DeserializeOwned>(item: &serde_json::value::RawValue) -> Result<T, Failure> {
    serde_json::from_str(item.get()).map_err(decode_failure)
}

fn decode_failure(error: serde_json::Error) -> Failure {
    Failure::Transport(Error::internal("could not understand the API's answer").because(error))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_the_end_of_all() {
        let cancel = CancellationToken::new();
        spawn(&cancel, async {}).await.expect("it ends");
        assert!(!cancel.is_cancelled(), "one that ends by itself is done");
        let other = spawn(&cancel, std::future::pending());
        spawn(&cancel, async { panic!("on purpose") }).await.expect("the panic goes no further");
        assert!(cancel.is_cancelled());
        other.await.expect("it ends with the token");
    }
}
