//! The API over the in-process transport.

use super::kinds::patch::PatchType;
use super::kinds::patch::hostile_tests::{self, Case};
use super::{Server, User};
use crate::sys::fuzz::fuzz;
use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use serde_json::{Value, json};
use std::sync::Arc;

struct Api {
    server: Arc<Server>,
    user: Option<User>,
}

impl Api {
    async fn new() -> Api {
        Api { server: Server::ephemeral().await, user: Some(User::server()) }
    }
    fn of(&self, user: User) -> Api {
        Api { server: self.server.clone(), user: Some(user) }
    }
    async fn raw(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> http::Response<crate::orchestrator::client::Body> {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.server.handle(self.user.as_ref(), request.body(Bytes::from(body.to_owned())).expect("a request")).await
    }
    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, Value) {
        let response = self.raw(method, path, headers, body).await;
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (code, serde_json::from_slice(&body).unwrap_or_else(|_| json!(String::from_utf8_lossy(&body))))
    }
    async fn get(&self, path: &str) -> (u16, Value) {
        self.send("GET", path, &[], "").await
    }
    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.send("POST", path, &[], &body.to_string()).await
    }
    async fn put(&self, path: &str, body: &Value) -> (u16, Value) {
        self.send("PUT", path, &[], &body.to_string()).await
    }
    async fn merge(&self, path: &str, body: Value) -> (u16, Value) {
        self.send("PATCH", path, &[("content-type", "application/merge-patch+json")], &body.to_string()).await
    }
    async fn delete(&self, path: &str) -> (u16, Value) {
        self.send("DELETE", path, &[], "").await
    }
    /// Posts what must be accepted.
    async fn made(&self, path: &str, body: Value) -> Value {
        let (code, answer) = self.post(path, body).await;
        assert_eq!(code, 201, "{answer}");
        answer
    }
    async fn watch(&self, path: &str) -> Watch {
        let response = self.raw("GET", path, &[], "").await;
        assert_eq!(response.status(), 200);
        Watch { body: response.into_body() }
    }
    async fn with_account(self) -> Api {
        self.made("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
        self
    }
}

struct Watch {
    body: crate::orchestrator::client::Body,
}

impl Watch {
    async fn next(&mut self) -> (String, Value) {
        let frame = tokio::time::timeout(std::time::Duration::from_secs(20), self.body.frame()).await.expect("an event in time");
        let frame = frame.expect("the watch goes on").expect("no error").into_data().expect("data");
        let event: Value = serde_json::from_slice(&frame).expect("one event a frame");
        (event["type"].as_str().expect("a type").to_owned(), event["object"].clone())
    }
    /// `ADDED a`, and the next ones.
    async fn expect(&mut self, expected: &[&str]) {
        for expected in expected {
            let (kind, object) = self.next().await;
            assert_eq!(format!("{kind} {}", object["metadata"]["name"].as_str().unwrap_or("-")), *expected, "{object}");
        }
    }
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn map(name: &str, labels: Value) -> Value {
    json!({"metadata": {"name": name, "labels": labels}, "data": {"key": "value"}})
}
fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "main", "image": "image"}]}})
}
fn version(object: &Value) -> String {
    object["metadata"]["resourceVersion"].as_str().expect("a version").to_owned()
}

#[tokio::test]
async fn object_lives_from_create_to_delete() {
    let api = Api::new().await;
    let made = api.made(MAPS, map("a", json!({}))).await;
    assert_eq!(
        (&made["kind"], &made["apiVersion"], &made["metadata"]["namespace"]),
        (&json!("ConfigMap"), &json!("v1"), &json!("default"))
    );
    assert!(!made["metadata"]["uid"].as_str().expect("a uid").is_empty() && made["metadata"]["creationTimestamp"].is_string());
    let path = format!("{MAPS}/a");
    assert_eq!(api.get(&path).await, (200, made.clone()));
    let (code, again) = api.post(MAPS, map("a", json!({}))).await;
    assert_eq!((code, &again["reason"], &again["message"]), (409, &json!("AlreadyExists"), &json!("configmaps \"a\" already exists")));
    let (_, changed) = api.merge(&path, json!({"data": {"other": "x", "key": null}})).await;
    assert_eq!(changed["data"], json!({"other": "x"}));
    assert_ne!(version(&changed), version(&made));
    let (code, stale) = api.put(&path, &made).await;
    assert_eq!((code, &stale["reason"]), (409, &json!("Conflict")));
    assert!(
        stale["message"]
            .as_str()
            .expect("text")
            .starts_with("Operation cannot be fulfilled on configmaps \"a\": the object has been modified")
    );
    let (code, gone) = api.delete(&path).await;
    assert_eq!((code, &gone["status"], &gone["details"]["uid"]), (200, &json!("Success"), &made["metadata"]["uid"]));
    let (code, missing) = api.get(&path).await;
    assert_eq!((code, &missing["message"]), (404, &json!("configmaps \"a\" not found")));
}

#[tokio::test]
async fn write_that_changes_nothing_leaves_the_version_alone() {
    let api = Api::new().await;
    let made = api.made(MAPS, map("a", json!({}))).await;
    let path = format!("{MAPS}/a");
    assert_eq!(api.put(&path, &made).await, (200, made.clone()));
    assert_eq!(api.merge(&path, json!({"data": {"key": "value"}})).await, (200, made.clone()));
    let mut unconditional = made.clone();
    unconditional["metadata"] = json!({"name": "a"});
    unconditional["data"] = json!({"key": "new"});
    let (code, changed) = api.put(&path, &unconditional).await;
    assert_eq!((code, &changed["metadata"]["uid"]), (200, &made["metadata"]["uid"]));
}

#[tokio::test]
async fn dry_run_answers_and_keeps_nothing() {
    let api = Api::new().await;
    let (code, answer) = api.post(&format!("{MAPS}?dryRun=All"), map("a", json!({}))).await;
    assert_eq!((code, &answer["metadata"]["name"]), (201, &json!("a")));
    assert_eq!(api.get(&format!("{MAPS}/a")).await.0, 404);
    let made = api.made(MAPS, map("a", json!({}))).await;
    assert_eq!(api.merge(&format!("{MAPS}/a?dryRun=All"), json!({"data": {"key": "x"}})).await.1["data"]["key"], "x");
    assert_eq!(api.send("DELETE", &format!("{MAPS}/a?dryRun=All"), &[], "").await.0, 200);
    assert_eq!(api.get(&format!("{MAPS}/a")).await.1, made);
}

#[tokio::test]
async fn body_must_fit_its_address() {
    let api = Api::new().await;
    async fn check(api: &Api, path: &str, body: Value, code: u16, message: &str) {
        let (found, answer) = api.post(path, body).await;
        let text = answer["message"].as_str().unwrap_or_default();
        assert!(found == code && text.contains(message), "{found} {text}");
    }
    let other_namespace = "the namespace of the provided object does not match the namespace sent on the request";
    check(&api, MAPS, json!({"metadata": {"name": "a", "namespace": "other"}}), 400, other_namespace).await;
    check(&api, MAPS, json!({"kind": "Secret", "apiVersion": "v1"}), 400, "Secret in version \"v1\" cannot be handled as a ConfigMap")
        .await;
    check(&api, MAPS, json!({"metadata": {}}), 422, "metadata.name: Required value: name or generateName is required").await;
    check(&api, MAPS, json!([]), 400, "cannot be handled as a ConfigMap").await;
    check(&api, "/api/v1/namespaces/none/configmaps", map("a", json!({})), 404, "namespaces \"none\" not found").await;
    check(&api, "/api/v1/namespaces/default/nonsense", json!({}), 404, "the server could not find the requested resource").await;
    check(&api, "/api/v1/configmaps", map("a", json!({})), 405, "does not allow this method").await;
    let (code, _) = api.send("POST", MAPS, &[("content-type", "application/cbor")], "x").await;
    assert_eq!(code, 415);
    let (code, answer) =
        api.send("POST", MAPS, &[("content-type", "application/yaml")], "metadata:\n  name: from-yaml\ndata: {a: b}\n").await;
    assert_eq!((code, &answer["data"]["a"]), (201, &json!("b")));
    let (code, _) = api.send("POST", MAPS, &[], &" ".repeat(4 << 20)).await;
    assert_eq!(code, 413);
}

#[tokio::test]
async fn generated_names_differ() {
    let api = Api::new().await;
    let one = api.made(MAPS, json!({"metadata": {"generateName": "web-"}})).await;
    let two = api.made(MAPS, json!({"metadata": {"generateName": "web-"}})).await;
    let names = [one, two].map(|object| object["metadata"]["name"].as_str().expect("a name").to_owned());
    assert!(names[0] != names[1] && names.iter().all(|name| name.len() == 9 && name.starts_with("web-")), "{names:?}");
}

#[tokio::test]
async fn list_pages_show_one_moment_in_time() {
    let api = Api::new().await;
    for name in ["a", "b", "c", "d"] {
        api.made(MAPS, map(name, json!({"odd": (name == "a" || name == "c").to_string()}))).await;
    }
    let names = |list: &Value| {
        list["items"]
            .as_array()
            .expect("items")
            .iter()
            .map(|item| item["metadata"]["name"].as_str().expect("a name").to_owned())
            .collect::<Vec<_>>()
    };
    let (_, first) = api.get(&format!("{MAPS}?limit=2")).await;
    assert_eq!(
        (names(&first), &first["metadata"]["remainingItemCount"], &first["kind"]),
        (vec!["a".into(), "b".into()], &json!(2), &json!("ConfigMapList"))
    );
    api.delete(&format!("{MAPS}/c")).await;
    api.made(MAPS, map("e", json!({}))).await;
    let token = first["metadata"]["continue"].as_str().expect("more");
    let (_, second) = api.get(&format!("{MAPS}?limit=2&continue={token}")).await;
    assert_eq!(names(&second), ["c", "d"]);
    assert_eq!(second["metadata"], json!({"resourceVersion": version(&first)}));
    let (_, exact) = api.get(&format!("{MAPS}?resourceVersion={}&resourceVersionMatch=Exact", version(&first))).await;
    assert_eq!(names(&exact), ["a", "b", "c", "d"]);
    assert_eq!(names(&api.get(MAPS).await.1), ["a", "b", "d", "e"]);
    assert_eq!(names(&api.get(&format!("{MAPS}?labelSelector=odd%3Dtrue")).await.1), ["a"]);
    assert_eq!(names(&api.get(&format!("{MAPS}?fieldSelector=metadata.name%3Dd")).await.1), ["d"]);
    assert_eq!(names(&api.get("/api/v1/configmaps?labelSelector=odd").await.1), ["a", "b", "d"]);
    let (code, answer) = api.get(&format!("{MAPS}?resourceVersion=99999")).await;
    assert_eq!((code, &answer["details"]["causes"][0]["reason"]), (504, &json!("ResourceVersionTooLarge")));
    let (_, meta) = api.send("GET", MAPS, &[("accept", "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")], "").await;
    assert_eq!(
        (&meta["kind"], &meta["items"][0]["kind"], &meta["items"][0]["data"]),
        (&json!("PartialObjectMetadataList"), &json!("PartialObjectMetadata"), &Value::Null)
    );
}

#[tokio::test]
async fn watch_tells_what_enters_changes_and_leaves_the_selection() {
    let api = Api::new().await;
    api.made(MAPS, map("old", json!({"app": "web"}))).await;
    let start = version(&api.get(MAPS).await.1);
    let mut all = api.watch(&format!("{MAPS}?watch=true&resourceVersion={start}")).await;
    let mut web = api.watch(&format!("{MAPS}?watch=1&labelSelector=app%3Dweb")).await;
    let mut one = api.watch(&format!("{MAPS}?watch=1&resourceVersion={start}&fieldSelector=metadata.name%3Db")).await;
    web.expect(&["ADDED old"]).await;
    api.made(MAPS, map("b", json!({}))).await;
    api.merge(&format!("{MAPS}/b"), json!({"metadata": {"labels": {"app": "web"}}})).await;
    api.merge(&format!("{MAPS}/b"), json!({"data": {"key": "x"}})).await;
    let (_, left) = api.merge(&format!("{MAPS}/b"), json!({"metadata": {"labels": {"app": "db"}}})).await;
    api.delete(&format!("{MAPS}/b")).await;
    all.expect(&["ADDED b", "MODIFIED b", "MODIFIED b", "MODIFIED b", "DELETED b"]).await;
    one.expect(&["ADDED b", "MODIFIED b", "MODIFIED b", "MODIFIED b", "DELETED b"]).await;
    web.expect(&["ADDED b", "MODIFIED b"]).await;
    let (kind, object) = web.next().await;
    assert_eq!((kind.as_str(), &object["metadata"]["labels"]["app"], version(&object)), ("DELETED", &json!("web"), version(&left)));
}

#[tokio::test]
async fn bookmarks_come_when_asked_for_and_watches_end_in_time() {
    let api = Api::new().await;
    api.made(MAPS, map("a", json!({}))).await;
    let query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=90";
    let mut watch = api.watch(&format!("{MAPS}?{query}")).await;
    watch.expect(&["ADDED a"]).await;
    let (kind, bookmark) = watch.next().await;
    assert_eq!((kind.as_str(), &bookmark["metadata"]["annotations"]["k8s.io/initial-events-end"]), ("BOOKMARK", &json!("true")));
    // Something else happens: the next bookmark is ahead of the first one.
    let other = api.made("/api/v1/namespaces/default/secrets", json!({"metadata": {"name": "s"}})).await;
    // From here on the clock jumps to the next timer.
    tokio::time::pause();
    for _ in 0..2 {
        let frame = watch.body.frame().await.expect("a bookmark").expect("no error").into_data().expect("data");
        let event: Value = serde_json::from_slice(&frame).expect("JSON");
        assert_eq!((&event["type"], version(&event["object"])), (&json!("BOOKMARK"), version(&other)));
    }
    assert!(watch.body.frame().await.is_none());
    let mut quiet = api.watch(&format!("{MAPS}?watch=1&resourceVersion={}&timeoutSeconds=300", version(&other))).await;
    assert!(quiet.body.frame().await.is_none(), "no bookmark without asking");
    let (code, _) = api.get(&format!("{MAPS}?watch=1&sendInitialEvents=true")).await;
    assert_eq!(code, 422);
}

#[tokio::test]
async fn shutting_down_ends_watches() {
    let api = Api::new().await;
    let mut watch = api.watch(&format!("{MAPS}?watch=1&resourceVersion=1")).await;
    api.server.shut_down();
    assert!(watch.body.frame().await.is_none());
}

#[tokio::test]
async fn pod_gets_its_account_token_tolerations_and_goes_gracefully() {
    let api = Api::new().await;
    let (code, answer) = api.post(PODS, pod("early")).await;
    let text = "pods \"early\" is forbidden: error looking up service account default/default: serviceaccount \"default\" not found";
    assert_eq!((code, answer["message"].as_str()), (403, Some(text)));
    let api = api.with_account().await;
    let made = api.made(PODS, pod("web")).await;
    let spec = &made["spec"];
    assert_eq!((&spec["serviceAccountName"], &spec["priority"]), (&json!("default"), &json!(0)));
    let volume = &spec["volumes"][0];
    assert!(volume["name"].as_str().expect("a name").starts_with("kube-api-access-"));
    assert_eq!(volume["projected"]["sources"].as_array().map(Vec::len), Some(3));
    assert_eq!(spec["containers"][0]["volumeMounts"][0]["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount");
    assert_eq!(spec["tolerations"].as_array().map(Vec::len), Some(2));

    let bind = json!({"target": {"kind": "Node", "name": "worker-1"}});
    api.made(&format!("{PODS}/web/binding"), bind.clone()).await;
    let (code, again) = api.post(&format!("{PODS}/web/binding"), bind).await;
    assert_eq!((code, &again["reason"]), (409, &json!("Conflict")), "{again}");
    let (_, bound) = api.get(&format!("{PODS}/web")).await;
    assert_eq!((&bound["spec"]["nodeName"], &bound["status"]["conditions"][0]["type"]), (&json!("worker-1"), &json!("PodScheduled")));

    api.made(&format!("{PODS}/web/eviction"), json!({"metadata": {"name": "web"}, "deleteOptions": {"gracePeriodSeconds": 7}})).await;
    let (_, leaving) = api.get(&format!("{PODS}/web")).await;
    assert_eq!(leaving["metadata"]["deletionGracePeriodSeconds"], 7);
    let (code, _) = api
        .send("DELETE", &format!("{PODS}/web"), &[], &json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "other"}}).to_string())
        .await;
    assert_eq!(code, 409);
    let (code, _) = api.send("DELETE", &format!("{PODS}/web?gracePeriodSeconds=0"), &[], "").await;
    assert_eq!((code, api.get(&format!("{PODS}/web")).await.0), (200, 404));
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_one_is_taken_away() {
    let api = Api::new().await;
    let path = format!("{MAPS}/a");
    api.made(MAPS, json!({"metadata": {"name": "a", "finalizers": ["kprov.dev/x"]}})).await;
    let (code, held) = api.delete(&path).await;
    assert_eq!(code, 200);
    assert!(held["metadata"]["deletionTimestamp"].is_string());
    let (code, answer) = api.merge(&path, json!({"metadata": {"finalizers": ["kprov.dev/x", "kprov.dev/y"]}})).await;
    assert_eq!((code, &answer["reason"]), (422, &json!("Invalid")));
    assert_eq!(api.merge(&path, json!({"metadata": {"finalizers": null}})).await.0, 200);
    assert_eq!(api.get(&path).await.0, 404);
    api.made(MAPS, map("b", json!({}))).await;
    let (_, orphaning) = api.send("DELETE", &format!("{MAPS}/b?propagationPolicy=Orphan"), &[], "").await;
    assert_eq!(orphaning["metadata"]["finalizers"], json!(["orphan"]));
    api.made(MAPS, map("c", json!({"x": "y"}))).await;
    let (code, list) = api.send("DELETE", &format!("{MAPS}?labelSelector=x"), &[], "").await;
    assert_eq!((code, list["items"].as_array().map(Vec::len), api.get(&format!("{MAPS}/c")).await.0), (200, Some(1), 404));
}

#[tokio::test]
async fn namespace_takes_nothing_while_it_ends() {
    let api = Api::new().await;
    let made = api.made("/api/v1/namespaces", json!({"metadata": {"name": "shop"}})).await;
    assert_eq!((&made["spec"]["finalizers"], &made["status"]["phase"]), (&json!(["kubernetes"]), &json!("Active")));
    assert_eq!(made["metadata"]["labels"]["kubernetes.io/metadata.name"], "shop");
    let (code, ending) = api.delete("/api/v1/namespaces/shop").await;
    assert_eq!((code, &ending["status"]["phase"]), (200, &json!("Terminating")));
    let (code, refused) = api.post("/api/v1/namespaces/shop/configmaps", map("a", json!({}))).await;
    assert_eq!((code, &refused["details"]["causes"][0]["reason"]), (403, &json!("NamespaceTerminating")));
    let mut last = ending.clone();
    last["spec"]["finalizers"] = json!([]);
    assert_eq!(api.put("/api/v1/namespaces/shop", &last).await.1["spec"]["finalizers"], json!(["kubernetes"]), "only finalize may");
    assert_eq!(api.put("/api/v1/namespaces/shop/finalize", &last).await.0, 200);
    assert_eq!(api.get("/api/v1/namespaces/shop").await.0, 404);
    let (code, answer) = api.delete("/api/v1/namespaces/default").await;
    assert_eq!((code, &answer["message"]), (403, &json!("namespaces \"default\" is forbidden: this namespace may not be deleted")));
}

#[tokio::test]
async fn services_share_no_address_and_no_port() {
    let api = Api::new().await;
    let path = "/api/v1/namespaces/default/services";
    let (_, api_service) = api.get(&format!("{path}/kubernetes")).await;
    assert_eq!(api_service["spec"]["clusterIP"], "10.96.0.1");
    assert_eq!(api.get("/api/v1/namespaces/kube-system/services/kube-dns").await.1["spec"]["clusterIP"], "10.96.0.10");
    let service = |name: &str, spec: Value| json!({"metadata": {"name": name}, "spec": spec});
    let taken = service("x", json!({"clusterIP": "10.96.0.10", "ports": [{"port": 80}]}));
    let (code, answer) = api.post(path, taken).await;
    let text = "Service \"x\" is invalid: spec.clusterIPs: Invalid value: [\"10.96.0.10\"]: failed to allocate IP 10.96.0.10: provided IP is already allocated";
    assert_eq!((code, answer["message"].as_str()), (422, Some(text)));
    assert_eq!(api.post(path, service("x", json!({"clusterIP": "10.97.0.10", "ports": [{"port": 80}]}))).await.0, 422);
    let fixed = api.made(path, service("a", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 32000}]}))).await;
    assert_eq!(fixed["spec"]["ipFamilies"], json!(["IPv4"]));
    let (code, answer) = api.post(path, service("b", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 32000}]}))).await;
    assert_eq!((code, &answer["details"]["causes"][0]["field"]), (422, &json!("spec.ports[0].nodePort")));
    let two = api
        .made(path, service("b", json!({"type": "LoadBalancer", "ports": [{"name": "x", "port": 80}, {"name": "y", "port": 81}]})))
        .await;
    let ports: Vec<u64> =
        two["spec"]["ports"].as_array().expect("ports").iter().map(|port| port["nodePort"].as_u64().expect("a node port")).collect();
    assert!(ports[0] != ports[1] && ports.iter().all(|port| (30086..=31999).contains(port)));
    // A client that sends neither address nor node port keeps both.
    let plain = service("b", json!({"type": "LoadBalancer", "ports": [{"name": "x", "port": 80}, {"name": "y", "port": 81}]}));
    let (code, same) = api.put(&format!("{path}/b"), &plain).await;
    assert_eq!(
        (code, &same["spec"]["clusterIP"], &same["spec"]["ports"][0]["nodePort"]),
        (200, &two["spec"]["clusterIP"], &json!(ports[0])),
        "{same}"
    );
    api.delete(&format!("{path}/a")).await;
    api.made(path, service("c", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 32000}]}))).await;
    let headless = api.made(path, service("h", json!({"clusterIP": "None", "ports": [{"port": 80}]}))).await;
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
}

#[tokio::test]
async fn scale_is_a_view_of_replicas() {
    let api = Api::new().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "main", "image": "image"}]}});
    let deployment =
        json!({"metadata": {"name": "web"}, "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": template}});
    api.made(path, deployment).await;
    let (_, scale) = api.get(&format!("{path}/web/scale")).await;
    assert_eq!((&scale["kind"], &scale["spec"]["replicas"], &scale["status"]["selector"]), (&json!("Scale"), &json!(2), &json!("app=web")));
    let (code, scale) = api.merge(&format!("{path}/web/scale"), json!({"spec": {"replicas": 5}})).await;
    assert_eq!((code, &scale["spec"]["replicas"]), (200, &json!(5)));
    assert_eq!(api.get(&format!("{path}/web")).await.1["spec"]["replicas"], 5);
    let (code, _) = api.merge(&format!("{path}/web/scale"), json!({"metadata": {"resourceVersion": "1"}, "spec": {"replicas": 1}})).await;
    assert_eq!(code, 409);
}

#[tokio::test]
async fn token_is_its_pods_and_dies_with_it() {
    let api = Api::new().await.with_account().await;
    let made = api.made(PODS, pod("web")).await;
    let bound = json!({"spec": {"expirationSeconds": 600, "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "web", "uid": made["metadata"]["uid"]}}});
    let answer = api.made("/api/v1/namespaces/default/serviceaccounts/default/token", bound).await;
    let mut headers = http::HeaderMap::new();
    let header = format!("Bearer {}", answer["status"]["token"].as_str().expect("a token"));
    headers.insert("authorization", header.parse().expect("a header"));
    let user = super::authn::from_headers(&api.server, &headers).expect("valid").expect("somebody");
    assert_eq!(user.name, "system:serviceaccount:default:default");
    assert!(user.is_in("system:serviceaccounts:default"));
    let mine = api.of(user);
    assert_eq!(mine.get("/version").await.0, 200);
    let (code, refused) = mine.get(PODS).await;
    let text = "pods is forbidden: User \"system:serviceaccount:default:default\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"";
    assert_eq!((code, refused["message"].as_str()), (403, Some(text)));
    let review = json!({"spec": {"resourceAttributes": {"verb": "list", "resource": "pods", "namespace": "default"}}});
    assert_eq!(mine.made("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review).await["status"]["allowed"], false);
    let me = mine.made("/apis/authentication.k8s.io/v1/selfsubjectreviews", json!({})).await;
    assert_eq!(me["status"]["userInfo"]["extra"]["authentication.kubernetes.io/pod-name"], json!(["web"]));
    api.delete(&format!("{PODS}/web")).await;
    assert!(super::authn::from_headers(&api.server, &headers).is_err());
    headers.insert("authorization", "Bearer nonsense".parse().expect("a header"));
    assert!(super::authn::from_headers(&api.server, &headers).is_err());
}

#[test]
fn only_the_administrator_speaks_for_others() {
    use super::authn::{MASTERS, speaks_for};
    let headers = |pairs: &[(&'static str, &str)]| -> http::HeaderMap {
        pairs.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().expect("a header"))).collect()
    };
    let admin = || User::new("admin", [MASTERS.to_owned()]);
    assert_eq!(speaks_for(admin(), &headers(&[])), Ok(admin()));
    let bob = speaks_for(admin(), &headers(&[("impersonate-user", "bob"), ("impersonate-group", "dev"), ("impersonate-group", "ops")]));
    let bob = bob.expect("allowed");
    assert!(bob.name == "bob" && bob.is_in("dev") && bob.is_in("ops") && !bob.is_master(), "{bob:?}");
    assert_eq!(speaks_for(admin(), &headers(&[("impersonate-group", "dev")])).expect_err("nobody is named").code, 400);
    let refused = speaks_for(bob, &headers(&[("impersonate-user", "admin"), ("impersonate-group", MASTERS)])).expect_err("refused");
    assert_eq!((refused.code, refused.reason), (403, "Forbidden"));
}

#[tokio::test]
async fn node_reaches_only_what_its_pods_need() {
    let api = Api::new().await.with_account().await;
    let node = |name: &str| User::new(format!("system:node:{name}"), ["system:nodes".to_owned()]);
    let one = api.of(node("one"));
    for name in ["mine", "other"] {
        api.made("/api/v1/namespaces/default/secrets", json!({"metadata": {"name": name}})).await;
        let mut pod = pod(name);
        pod["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": name}}]);
        api.made(PODS, pod).await;
        let target = if name == "mine" { "one" } else { "two" };
        api.made(&format!("{PODS}/{name}/binding"), json!({"target": {"kind": "Node", "name": target}})).await;
    }
    for (path, expected) in [
        ("/api/v1/namespaces/default/secrets/mine", 200),
        ("/api/v1/namespaces/default/secrets/other", 403),
        ("/api/v1/namespaces/default/secrets", 403),
        ("/api/v1/namespaces/default/secrets?fieldSelector=metadata.name%3Dmine", 200),
        ("/api/v1/namespaces/default/pods/mine", 200),
        ("/api/v1/namespaces/default/pods/other", 403),
        ("/api/v1/pods", 403),
        ("/api/v1/pods?fieldSelector=spec.nodeName%3Done", 200),
        ("/api/v1/pods?fieldSelector=spec.nodeName%3Dtwo", 403),
        ("/api/v1/services", 200),
        ("/apis/discovery.k8s.io/v1/endpointslices", 200),
        ("/api/v1/nodes", 200),
        ("/apis/apps/v1/deployments", 403),
    ] {
        let (code, answer) = one.get(path).await;
        assert_eq!(code, expected, "{path}: {answer}");
    }
    let (_, refused) = one.get("/api/v1/namespaces/default/secrets/other").await;
    let text = "secrets \"other\" is forbidden: User \"system:node:one\" cannot get resource \"secrets\" in API group \"\" in the namespace \"default\": no relationship found between node 'one' and this secret";
    assert_eq!(refused["message"], text);
    assert_eq!(one.post("/api/v1/nodes", json!({"metadata": {"name": "two"}})).await.0, 403);
    one.made("/api/v1/nodes", json!({"metadata": {"name": "one", "labels": {"kubernetes.io/hostname": "one"}}})).await;
    assert_eq!(one.merge("/api/v1/nodes/one", json!({"metadata": {"labels": {"node-restriction.kubernetes.io/a": "b"}}})).await.0, 403);
    assert_eq!(one.merge("/api/v1/nodes/one", json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}})).await.0, 403);
    assert_eq!(one.merge("/api/v1/nodes/one/status", json!({"status": {"capacity": {"pods": "110"}}})).await.0, 200);
    let lease = json!({"metadata": {"name": "one"}, "spec": {"holderIdentity": "one"}});
    one.made("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", lease).await;
    let (code, _) = one.post("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", json!({"metadata": {"name": "two"}})).await;
    assert_eq!(code, 403);
    assert_eq!(one.merge(&format!("{PODS}/mine/status"), json!({"status": {"phase": "Running"}})).await.0, 200);
    assert_eq!(one.merge(&format!("{PODS}/other/status"), json!({"status": {"phase": "Running"}})).await.0, 403);
    let (_, mine) = one.get(&format!("{PODS}/mine")).await;
    let unbound = json!({"spec": {}});
    assert_eq!(one.post("/api/v1/namespaces/default/serviceaccounts/default/token", unbound).await.0, 403);
    let bound = json!({"spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "mine", "uid": mine["metadata"]["uid"]}}});
    one.made("/api/v1/namespaces/default/serviceaccounts/default/token", bound).await;
    api.send("DELETE", &format!("{PODS}/mine?gracePeriodSeconds=0"), &[], "").await;
    assert_eq!(one.get("/api/v1/namespaces/default/secrets/mine").await.0, 403, "the relationship ends with the pod");
}

#[tokio::test]
async fn strangers_get_health_and_nothing_else() {
    let api = Api::new().await;
    let nobody = Api { server: api.server.clone(), user: None };
    for (path, expected) in [
        ("/healthz", 200),
        ("/livez", 200),
        ("/readyz?verbose", 200),
        ("/readyz/store", 200),
        ("/version", 401),
        ("/api", 401),
        ("/api/v1/pods", 401),
    ] {
        assert_eq!(nobody.get(path).await.0, expected, "{path}");
    }
    let (_, text) = nobody.get("/readyz?verbose").await;
    assert!(text.as_str().expect("text").ends_with("readyz check passed\n"));
}

#[tokio::test]
async fn discovery_speaks_both_formats_and_knows_what_the_client_has() {
    let api = Api::new().await;
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let response = api.raw("GET", "/apis", &[("accept", accept)], "").await;
    assert_eq!(response.headers()["content-type"], "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
    let tag = response.headers()["etag"].to_str().expect("text").to_owned();
    assert_eq!(api.raw("GET", "/apis", &[("accept", accept), ("if-none-match", &tag)], "").await.status(), 304);
    assert_eq!(api.get("/apis").await.1["kind"], "APIGroupList");
    assert_eq!(api.get("/version").await.1["gitVersion"], "v1.33.0+kprov");
    assert_eq!(api.get("/nonsense").await.0, 404);
}

#[tokio::test]
async fn racing_patches_all_count() {
    let api = Api::new().await;
    api.made(MAPS, map("a", json!({}))).await;
    let patches = (0..20).map(|number| {
        let api = api.of(User::server());
        async move { api.merge(&format!("{MAPS}/a"), json!({"data": {number.to_string(): "x"}})).await.0 }
    });
    let codes = futures::future::join_all(patches).await;
    assert!(codes.iter().all(|code| *code == 200), "{codes:?}");
    assert_eq!(api.get(&format!("{MAPS}/a")).await.1["data"].as_object().map(serde_json::Map::len), Some(21));
}

/// Method, path, query, body, content type, accept: what scanners and broken clients send.
fn odd_requests() -> impl Strategy<Value = [String; 6]> {
    [
        "GET|POST|PUT|PATCH|DELETE|HEAD",
        "(/api/v1|/apis/apps/v1|/)(/namespaces/default|)(/(pods|services|deployments|namespaces|x))?(/[a-z%.]{0,4})?(/(status|scale|binding|token|log|x))?",
        "((watch|limit|continue|resourceVersion|fieldSelector|labelSelector|dryRun|includeObject)=[a-z0-9=!,%]{0,6}&){0,2}",
        "\\{\"(metadata|spec|kind|status)\":(\\{\\}|null|\\[\\]|\"a\"|\\{\"name\":(\"a\"|1|null)\\})\\}|[\\[{\"a]{0,3}",
        "application/(json|yaml|json-patch\\+json|merge-patch\\+json|strategic-merge-patch\\+json)",
        "application/(json|yaml|json;as=Table;v=v1;g=meta[.]k8s[.]io)",
    ]
    .map(|pattern| proptest::string::string_regex(pattern).expect("a pattern"))
}

/// Over the whole way of a write: the patched object is refused, or kept as the patch says.
async fn patched(api: &Api, case: &Case) -> TestCaseResult {
    let list = match case.kind {
        "Deployment" => "/apis/apps/v1/namespaces/default/deployments",
        "Service" => "/api/v1/namespaces/default/services",
        _ => PODS,
    };
    let media = match case.format {
        PatchType::Json => "application/json-patch+json",
        PatchType::Merge => "application/merge-patch+json",
        PatchType::Strategic => "application/strategic-merge-patch+json",
    };
    let made = api.made(list, case.object.clone()).await;
    let path = format!("{list}/a");
    let send = async || api.send("PATCH", &path, &[("content-type", media)], &case.patch.to_string()).await;
    let (code, new) = send().await;
    prop_assert!((200..500).contains(&code), "{code} {new}");
    let (_, kept) = api.get(&path).await;
    if code != 200 {
        prop_assert_eq!(kept, made, "refused: {}", new);
        return Ok(());
    }
    prop_assert_eq!(&kept, &new);
    if case.format == PatchType::Merge {
        for place in hostile_tests::unknown_places(&case.object).iter().filter(|place| !hostile_tests::names(&case.patch, place)) {
            prop_assert_eq!(new.pointer(place), case.object.pointer(place), "{} was not named", place);
        }
        // Whoever names a version means that one alone.
        if case.patch.pointer("/metadata/resourceVersion").is_none() {
            prop_assert_eq!(send().await, (200, new), "the same patch again changes nothing");
        }
    }
    Ok(())
}

#[test]
fn fuzz_no_request_makes_the_server_fail() {
    fuzz(&(hostile_tests::cases(false), odd_requests()), 400, |(case, [method, path, query, body, kind, accept])| {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(async {
            let api = Api::new().await.with_account().await;
            patched(&api, &case).await?;
            let response = api.raw(&method, &format!("{path}?{query}"), &[("content-type", &kind), ("accept", &accept)], &body).await;
            prop_assert_ne!(response.status().as_u16(), 500);
            Ok(())
        })
    });
}

/// `cargo test --release creates_per_second -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn creates_per_second() {
    use crate::orchestrator::store::{Redb, Store, Window};
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(Redb::open(&folder.path().join("store.redb"), &[7; 32]).expect("a file"), Window::default()).expect("a store");
    let config = Server::ephemeral().await.config.clone();
    let server = Server::with_keys(config, store, super::tokens::Keys::generate().expect("keys")).await.expect("a server");
    let api = Api { server, user: Some(User::server()) }.with_account().await;
    for writers in [1, 16, 256] {
        let each = 4096 / writers;
        let started = std::time::Instant::now();
        let tasks = (0..writers).map(|writer| {
            let api = api.of(User::server());
            tokio::spawn(async move {
                for number in 0..each {
                    api.made(PODS, pod(&format!("p-{writers}-{writer}-{number}"))).await;
                }
            })
        });
        futures::future::join_all(tasks).await;
        println!("{writers} writers: {:.0} pods/s", 4096.0 / started.elapsed().as_secs_f64());
    }
    let started = std::time::Instant::now();
    let (_, list) = api.get("/api/v1/pods?labelSelector=a%3Db").await;
    println!("list of {} with a selector, first time: {:?}", list["items"].as_array().map_or(0, Vec::len), started.elapsed());
}
