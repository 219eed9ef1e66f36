//! The server: one door for requests of any transport, with their limits.

use super::admission::services::ServiceIndex;
use super::authz::{self, Attributes, PodIndex};
use super::kinds::{KindRow, Registry};
use super::negotiate::{self, Wanted};
use super::respond::{self, Response};
use super::route::{self, Route, Target};
use super::status::{Answer, Status};
use super::tokens::Keys;
use super::{User, delete, documents, logs, read, reviews, seed, streams, subresources, watch, write};
use crate::error::{Context, Error, Kind, Result};
use crate::orchestrator::client::{Body, Transport};
use crate::orchestrator::config::ServerConfig;
use crate::orchestrator::store::{Redb, Store, Window};
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use hyper::upgrade::OnUpgrade;
use parking_lot::Mutex;
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Upstream's limit of a request's body.
pub const MOST_BODY_BYTES: usize = 3 << 20;
/// Upstream's `--request-timeout`; watches and logs have their own ends.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Requests worked on at once (upstream: 400 reading and 200 writing). More wait, for at most `QUEUE_TIMEOUT`.
const MOST_IN_FLIGHT: usize = 600;
const QUEUE_TIMEOUT: Duration = Duration::from_secs(10);

pub struct Server {
    pub(super) config: ServerConfig,
    pub(super) store: Arc<Store>,
    pub(super) registry: &'static Registry,
    pub(super) keys: Keys,
    /// Held from allocation to write, so that no address is given twice.
    pub(super) services: tokio::sync::Mutex<ServiceIndex>,
    pub(super) pods: Mutex<PodIndex>,
    pub(super) stop: CancellationToken,
    in_flight: Semaphore,
}

/// One request on a resource, on its way.
pub(super) struct Call<'a> {
    pub server: &'a Arc<Server>,
    pub user: &'a User,
    pub row: Arc<KindRow>,
    pub target: Target,
    pub query: Query,
    pub headers: &'a HeaderMap,
    pub body: &'a Bytes,
    pub wanted: Wanted,
    /// The connection, where the client would go on with it in another protocol.
    pub upgrade: Option<OnUpgrade>,
    pub warnings: Mutex<Vec<String>>,
}

impl<'a> Call<'a> {
    /// The same request, to be aimed at another object.
    pub fn again(&self) -> Call<'a> {
        Call {
            server: self.server,
            user: self.user,
            row: self.row.clone(),
            target: self.target.clone(),
            query: self.query.clone(),
            headers: self.headers,
            body: self.body,
            wanted: self.wanted,
            upgrade: None,
            warnings: Mutex::default(),
        }
    }
}

/// Decoded query parameters.
#[derive(Clone)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(query: &str) -> Query {
        Query(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }
    /// Empty if it is not given.
    pub fn text(&self, name: &str) -> &str {
        self.all(name).next().unwrap_or_default()
    }
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }
    /// Those of these names that are given, encoded again.
    pub fn only(&self, names: &[&str]) -> String {
        let given = self.0.iter().filter(|(name, value)| names.contains(&name.as_str()) && !value.is_empty());
        form_urlencoded::Serializer::new(String::new()).extend_pairs(given).finish()
    }
    pub fn flag(&self, name: &str) -> bool {
        self.all(name).next().is_some_and(|value| !matches!(value, "false" | "0"))
    }
    pub fn number(&self, name: &str) -> Answer<Option<u64>> {
        match self.text(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| Status::bad_request(format!("Invalid value: {text:?}: {name} must be a number"))),
        }
    }
}

impl Server {
    /// Reads the keys, then puts in what every cluster has: namespaces, the API's own service, the DNS service.
    pub async fn new(config: ServerConfig, store: Arc<Store>) -> Result<Arc<Server>> {
        let keys = Keys::read(&config.pki)?;
        Self::with_keys(config, store, keys).await
    }

    /// The same over the store in the configuration's data folder, which is made if it is missing.
    pub async fn open(config: ServerConfig) -> Result<Arc<Server>> {
        let failed = || format!("could not make {}", config.data.display());
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.data).or_fail(Kind::Host, failed)?;
        let path = config.pki.join("encryption.key");
        let key = std::fs::read(&path).or_fail(Kind::Host, || format!("could not read {}", path.display()))?;
        let store = Store::open(Redb::open(&config.data.join("store.redb"), &key)?, Window::default())?;
        Self::new(config, store).await
    }

    /// A whole API with nothing on disk, for tests of all rooms.
    pub async fn ephemeral() -> Arc<Server> {
        let config = serde_json::json!({"clusterName": "test", "clusterUid": "00000000-0000-0000-0000-000000000000", "bind": "127.0.0.1", "port": 6443,
            "advertise": "127.0.0.1", "data": "/nonexistent", "pki": "/nonexistent", "serviceCidr": "10.96.0.0/16", "podCidr": "10.244.0.0/16",
            "dnsAddress": "10.96.0.10", "clusterDomain": "cluster.local"});
        let config = serde_json::from_value(config).expect("the text is right");
        let keys = Keys::generate().expect("a key pair can be made");
        Self::with_keys(config, Store::in_memory(), keys).await.expect("an empty store takes the first objects")
    }

    pub(super) async fn with_keys(config: ServerConfig, store: Arc<Store>, keys: Keys) -> Result<Arc<Server>> {
        let server = Arc::new(Server {
            config,
            store,
            registry: Registry::builtin(),
            keys,
            services: tokio::sync::Mutex::default(),
            pods: Mutex::default(),
            stop: CancellationToken::new(),
            in_flight: Semaphore::new(MOST_IN_FLIGHT),
        });
        seed::put_in(&server).await?;
        Ok(server)
    }

    /// Ends watches and makes `serve` return once requests in flight have finished.
    pub fn shut_down(&self) {
        self.stop.cancel();
    }

    /// Waits until the disk refuses a write: nothing can be changed any more, so the process should end and be started again.
    pub async fn store_failed(&self) -> Error {
        let data = self.config.data.display();
        self.store
            .failed()
            .await
            .hint(format!("once {data} takes writes again, the server goes on where it stopped: it is started again by itself"))
    }

    /// Answers one request of an authenticated user. `None`: nobody in particular, who may only ask for health.
    pub async fn handle(self: &Arc<Self>, user: Option<&User>, request: Request<Bytes>) -> http::Response<Body> {
        self.answer(user, &request).await.unwrap_or_else(|status| respond::status(&status))
    }

    async fn answer(self: &Arc<Self>, user: Option<&User>, request: &Request<Bytes>) -> Answer<Response> {
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let route = route::parse(request.uri().path());
        if let (Route::Document(path), None) = (&route, user) {
            return documents::health(self, path, &query).ok_or_else(Status::unauthorized);
        }
        let user = user.ok_or_else(Status::unauthorized)?;
        match route {
            Route::Document(path) => {
                authz::authorize_path(user, request.method(), request.uri().path())?;
                documents::get(self, request, &path, &query).await
            }
            Route::Resource(target) => self.resource(user, request, target, query).await,
        }
    }

    async fn resource(self: &Arc<Self>, user: &User, request: &Request<Bytes>, target: Target, query: Query) -> Answer<Response> {
        let row = self.registry.find(&target.group, &target.version, &target.resource).cloned();
        let row = row.filter(|row| row.namespaced || target.namespace.is_empty() || row.plural == "namespaces");
        let row = row.ok_or_else(Status::no_such_resource)?;
        let verb = verb(request.method(), &target, &query).ok_or_else(Status::method_not_allowed)?;
        // However a stream is asked for, it lets commands in.
        let verb = if streams::is_stream(&target.subresource) { "create" } else { verb };
        let name = if target.name.is_empty() { read::selected_name(&row, &query) } else { target.name.clone() };
        authz::authorize(self, user, &Attributes::of(&target, verb, &name, &query))?;
        allowed(&row, &target, verb)?;
        let wanted = negotiate::wanted(request.headers())?;
        let (headers, body) = (request.headers(), request.body());
        if body.len() > MOST_BODY_BYTES {
            return Err(Status::too_large(MOST_BODY_BYTES));
        }
        let upgrade = request.extensions().get::<OnUpgrade>().cloned();
        let call = Call { server: self, user, row, target, query, headers, body, wanted, upgrade, warnings: Mutex::default() };
        if verb == "watch" {
            return watch::watch(&call);
        }
        if call.target.subresource == "log" {
            return logs::get(&call).await;
        }
        if streams::is_stream(&call.target.subresource) {
            return streams::open(&call).await;
        }
        let _permit = self.permit(user).await?;
        let late = |_| Status::timeout("request did not complete within the allotted timeout", 0);
        let mut response = tokio::time::timeout(REQUEST_TIMEOUT, dispatch(&call, verb)).await.map_err(late)??;
        respond::add_warnings(&mut response, &call.warnings.lock());
        Ok(response)
    }

    /// The server's own work is never queued behind that of others.
    async fn permit(&self, user: &User) -> Answer<Option<tokio::sync::SemaphorePermit<'_>>> {
        if user.is_master() {
            return Ok(None);
        }
        let busy = || Status::too_many_requests("Too many requests, please try again later.", 1);
        let permit = tokio::time::timeout(QUEUE_TIMEOUT, self.in_flight.acquire()).await.map_err(|_| busy())?;
        Ok(Some(permit.map_err(|_| busy())?))
    }
}

async fn dispatch(call: &Call<'_>, verb: &str) -> Answer<Response> {
    let subresource = call.target.subresource.clone();
    match (verb, subresource.as_str()) {
        ("get", "" | "status") => read::get(call),
        ("list", "") => read::list(call),
        ("create", "") if call.row.plural == "bindings" => subresources::bind(call, &call.target).await,
        ("create", "") if !call.row.stored => reviews::create(call),
        ("create", "") => write::create(call).await,
        ("update", "" | "status" | "finalize") => write::update(call).await,
        ("patch", "" | "status" | "finalize") => write::patch(call).await,
        ("delete", "") => delete::delete(call).await,
        ("deletecollection", "") => delete::delete_collection(call).await,
        (verb, subresource) => subresources::dispatch(call, verb, subresource).await,
    }
}

fn verb(method: &Method, target: &Target, query: &Query) -> Option<&'static str> {
    Some(match (method, target.name.is_empty()) {
        (&Method::GET | &Method::HEAD, true) if query.flag("watch") => "watch",
        (&Method::GET | &Method::HEAD, true) => "list",
        (&Method::GET | &Method::HEAD, false) if target.subresource.is_empty() && query.flag("watch") => "watch",
        (&Method::GET | &Method::HEAD, false) => "get",
        (&Method::POST, _) => "create",
        (&Method::PUT, false) => "update",
        (&Method::PATCH, false) => "patch",
        (&Method::DELETE, false) => "delete",
        (&Method::DELETE, true) => "deletecollection",
        _ => return None,
    })
}

/// The kind's table says which verbs there are.
fn allowed(row: &KindRow, target: &Target, verb: &str) -> Answer<()> {
    if !target.subresource.is_empty() {
        let subresource = row.subresource(&target.subresource).ok_or_else(Status::no_such_resource)?;
        return if subresource.verbs.iter().any(|allowed| allowed == verb) { Ok(()) } else { Err(Status::method_not_allowed()) };
    }
    // A body kind is created through its alias: `bindings` is `pods/binding`.
    let bodies = row.plural == "bindings" && verb == "create";
    let needs_namespace = row.namespaced && target.namespace.is_empty() && !matches!(verb, "list" | "watch");
    let create_with_name = verb == "create" && !target.name.is_empty();
    if needs_namespace || create_with_name || !(row.allows(verb) || bodies) { Err(Status::method_not_allowed()) } else { Ok(()) }
}

/// The transport of the server's own controllers.
#[derive(Clone)]
pub struct InProcess {
    pub server: Arc<Server>,
    pub user: User,
}

#[async_trait]
impl Transport for InProcess {
    async fn call(&self, request: Request<Bytes>) -> Result<http::Response<Body>> {
        Ok(self.server.handle(Some(&self.user), request).await)
    }
}
