//! An API of one page: keeps objects, lists, watches, patches. Enough for a kubelet, and it can be switched off.

use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use kprov::error::{Error, Result};
use kprov::orchestrator::client::{Body, Transport};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::broadcast;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::BroadcastStream;

#[derive(Default)]
struct State {
    revision: u64,
    /// By path, e.g. /api/v1/namespaces/default/pods/web.
    objects: BTreeMap<String, Value>,
}

pub struct Api {
    state: Mutex<State>,
    changes: broadcast::Sender<(String, &'static str, Value)>,
    pub away: AtomicBool,
    pub tokens: std::sync::atomic::AtomicUsize,
}

impl Api {
    pub fn new() -> Api {
        Api { state: Mutex::default(), changes: broadcast::Sender::new(4096), away: AtomicBool::new(false), tokens: Default::default() }
    }

    pub fn put(&self, path: &str, mut object: Value) -> Value {
        let mut state = self.state.lock().unwrap();
        state.revision += 1;
        let kind = if state.objects.contains_key(path) { "MODIFIED" } else { "ADDED" };
        let (folder, name) = path.rsplit_once('/').unwrap();
        let meta = &mut object["metadata"];
        meta["name"] = name.into();
        meta["resourceVersion"] = state.revision.to_string().into();
        if let Some((_, after)) = folder.split_once("/namespaces/") {
            meta["namespace"] = after.split('/').next().unwrap().into();
        }
        if meta["uid"].is_null() {
            meta["uid"] = uuid::Uuid::new_v4().to_string().into();
        }
        state.objects.insert(path.to_owned(), object.clone());
        let _ = self.changes.send((path.to_owned(), kind, object.clone()));
        object
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.state.lock().unwrap().objects.get(path).cloned()
    }

    pub fn list(&self, prefix: &str) -> Vec<Value> {
        let state = self.state.lock().unwrap();
        state.objects.iter().filter(|(path, _)| path.starts_with(prefix)).map(|(_, object)| object.clone()).collect()
    }

    pub fn remove(&self, path: &str) {
        let mut state = self.state.lock().unwrap();
        if let Some(mut object) = state.objects.remove(path) {
            state.revision += 1;
            object["metadata"]["resourceVersion"] = state.revision.to_string().into();
            let _ = self.changes.send((path.to_owned(), "DELETED", object));
        }
    }

    /// As `kubectl delete`: the kubelet finishes it.
    pub fn delete_gracefully(&self, path: &str, seconds: i64) {
        let mut object = self.get(path).unwrap();
        object["metadata"]["deletionTimestamp"] = "2026-11-23T00:00:00Z".into();
        object["metadata"]["deletionGracePeriodSeconds"] = seconds.into();
        self.put(path, object);
    }
}

fn answer(code: u16, body: Value) -> Response<Body> {
    let body = Full::new(Bytes::from(body.to_string())).map_err(|never| match never {}).boxed_unsync();
    Response::builder().status(code).body(body).unwrap()
}

fn merge(target: &mut Value, patch: &Value) {
    json_patch::merge(target, patch);
}

/// Collections match in any namespace; `metadata.name=x` and `spec.nodeName=x` narrow.
fn matches(path: &str, object: &Value, collection: &str, fields: &str) -> bool {
    let (folder, _) = path.rsplit_once('/').unwrap();
    let without_namespace = match folder.split_once("/namespaces/") {
        Some((head, tail)) => format!("{head}/{}", tail.split_once('/').map_or("", |(_, kind)| kind)),
        None => folder.to_owned(),
    };
    let place = folder == collection || without_namespace == collection;
    place
        && fields.split(',').filter(|field| !field.is_empty()).all(|field| {
            let (key, value) = field.split_once('=').unwrap();
            object.pointer(&format!("/{}", key.replace('.', "/"))).and_then(Value::as_str) == Some(value)
        })
}

fn parameter(query: &str, name: &str) -> String {
    let value = query.split('&').find_map(|pair| pair.strip_prefix(&format!("{name}="))).unwrap_or_default();
    value.replace("%3D", "=").replace("%2F", "/").replace("%2C", ",")
}

#[async_trait]
impl Transport for Api {
    async fn call(&self, request: Request<Bytes>) -> Result<Response<Body>> {
        if self.away.load(Ordering::SeqCst) {
            return Err(Error::transient("could not reach the API"));
        }
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default().to_owned();
        let (object_path, sub) = match path.strip_suffix("/status") {
            Some(path) => (path.to_owned(), true),
            None => (path.clone(), false),
        };
        let body: Value = serde_json::from_slice(request.body()).unwrap_or_default();
        let not_found = || answer(404, json!({"code": 404, "reason": "NotFound", "message": format!("{path} not found")}));
        let fields = parameter(&query, "fieldSelector");
        Ok(match request.method().clone() {
            Method::GET if query.contains("watch=1") => {
                let since: u64 = parameter(&query, "resourceVersion").parse().unwrap_or(0);
                let receiver = self.changes.subscribe();
                // What was put between the list and this watch.
                let early: Vec<_> = {
                    let state = self.state.lock().unwrap();
                    state.objects.iter().map(|(path, object)| Ok((path.clone(), "MODIFIED", object.clone()))).collect()
                };
                let stream = tokio_stream::iter(early).chain(BroadcastStream::new(receiver));
                let stream = stream.filter_map(move |change| {
                    let (changed, kind, object) = change.ok()?;
                    let revision: u64 = object["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
                    let wanted = revision > since && matches(&changed, &object, &path, &fields);
                    wanted.then(|| Ok(Frame::data(Bytes::from(format!("{}\n", json!({"type": kind, "object": object}))))))
                });
                Response::new(BodyExt::boxed_unsync(StreamBody::new(stream)))
            }
            Method::GET => match self.get(&path) {
                Some(object) => answer(200, object),
                None => {
                    let state = self.state.lock().unwrap();
                    let items: Vec<Value> = state
                        .objects
                        .iter()
                        .filter(|(at, object)| matches(at, object, &path, &fields))
                        .map(|(_, object)| object.clone())
                        .collect();
                    let single = query.is_empty();
                    if single {
                        not_found()
                    } else {
                        answer(200, json!({"metadata": {"resourceVersion": state.revision.to_string()}, "items": items}))
                    }
                }
            },
            Method::POST if path.ends_with("/token") => {
                let number = self.tokens.fetch_add(1, Ordering::SeqCst);
                answer(201, json!({"status": {"token": format!("token-{number}"), "expirationTimestamp": "2099-01-01T00:00:00Z"}}))
            }
            Method::POST => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default();
                answer(201, self.put(&format!("{path}/{name}"), body.clone()))
            }
            Method::PATCH => match self.get(&object_path) {
                None => not_found(),
                Some(mut object) => {
                    let patch = if sub { json!({"status": body["status"]}) } else { body };
                    merge(&mut object, &patch);
                    answer(200, self.put(&object_path, object))
                }
            },
            Method::DELETE => {
                self.remove(&path);
                answer(200, json!({}))
            }
            _ => answer(405, json!({})),
        })
    }
}
