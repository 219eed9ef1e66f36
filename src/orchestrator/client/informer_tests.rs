//! The informer against a scripted API.

use super::*;
use crate::error::Result;
use crate::orchestrator::client::{Client, Transport};
use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::StreamBody;
use hyper::body::Frame;
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};
use std::collections::VecDeque;

/// What the API does with the next request, which must contain the given text.
enum Step {
    Fail(&'static str),
    Answer(&'static str, u16, Value),
    /// Frames as they are cut on the wire; then the connection ends, or hangs for ever.
    Watch(&'static str, Vec<String>, bool),
}

struct Script {
    steps: parking_lot::Mutex<VecDeque<Step>>,
    asked: mpsc::UnboundedSender<String>,
}

#[async_trait]
impl Transport for Script {
    async fn call(&self, request: Request<Bytes>) -> Result<Response<Body>> {
        let uri = request.uri().to_string();
        let Some(step) = self.steps.lock().pop_front() else { return std::future::pending().await };
        self.asked.send(uri.clone()).ok();
        let full = |status: u16, body: String| {
            let body = http_body_util::Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync();
            Ok(Response::builder().status(status).body(body).unwrap())
        };
        match step {
            Step::Fail(part) => {
                assert!(uri.contains(part), "{uri} lacks {part}");
                Err(Error::transient("connection refused"))
            }
            Step::Answer(part, status, body) => {
                assert!(uri.contains(part), "{uri} lacks {part}");
                full(status, body.to_string())
            }
            Step::Watch(part, frames, ends) => {
                assert!(uri.contains("watch=1") && uri.contains(part), "{uri} lacks {part}");
                let frames = frames.into_iter().map(|text| Ok(Frame::data(Bytes::from(text))));
                let head = tokio_stream::iter(frames);
                let body = if ends {
                    StreamBody::new(head).boxed_unsync()
                } else {
                    StreamBody::new(tokio_stream::StreamExt::chain(head, tokio_stream::pending())).boxed_unsync()
                };
                Ok(Response::new(body))
            }
        }
    }
}

fn object(name: &str, version: u64, value: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "resourceVersion": version.to_string()}, "data": {"value": value}})
}

fn list(version: u64, items: &[Value]) -> Value {
    json!({"kind": "ConfigMapList", "metadata": {"resourceVersion": version.to_string()}, "items": items})
}

fn event(kind: &str, object: Value) -> String {
    format!("{}\n", json!({"type": kind, "object": object}))
}

/// Runs the script; returns what was asked, what changed (`+a`, `~a`, `-a`), and what is held at the end (`a=1`).
async fn play(steps: Vec<Step>) -> (Vec<String>, Vec<String>, Vec<String>) {
    let count = steps.len();
    let (asked, mut questions) = mpsc::unbounded_channel();
    let client = Client::new(Arc::new(Script { steps: parking_lot::Mutex::new(steps.into()), asked })).with_seed(7);
    let cancel = CancellationToken::new();
    let informer = Informer::<ConfigMap>::start(client, Selector::all(), &cancel);
    let mut changes = informer.changes();
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(questions.recv().await.expect("the script is played to its end"));
    }
    // Virtual time: lets everything that is ready run, and nothing more.
    tokio::time::sleep(Duration::from_millis(1)).await;
    let mut seen = Vec::new();
    while let Ok(change) = changes.try_recv() {
        let sign = match (&change.old, &change.new) {
            (None, _) => "+",
            (_, None) => "-",
            _ => "~",
        };
        seen.push(format!("{sign}{}", change.key.name));
    }
    let held = informer
        .list()
        .iter()
        .map(|map| format!("{}={}", map.metadata.name.as_deref().unwrap(), map.data.as_ref().unwrap()["value"]))
        .collect();
    cancel.cancel();
    (all, seen, held)
}

#[tokio::test(start_paused = true)]
async fn pages_and_events_cut_anywhere_arrive_once_and_in_order() {
    let mut first = list(5, &[object("a", 1, "1")]);
    first["metadata"]["continue"] = json!("t o+k");
    let stream = event("ADDED", object("c", 6, "1")) + &event("MODIFIED", object("a", 7, "2")) + &event("DELETED", object("b", 8, "1"));
    let frames = stream.as_bytes().chunks(7).map(|chunk| String::from_utf8(chunk.to_vec()).unwrap()).collect();
    let (asked, seen, held) = play(vec![
        Step::Answer("limit=500", 200, first),
        Step::Answer("continue=t%20o%2Bk", 200, list(5, &[object("b", 2, "1")])),
        Step::Watch("resourceVersion=5", frames, false),
    ])
    .await;
    assert_eq!(asked.len(), 3);
    assert_eq!(seen, ["+a", "+b", "+c", "~a", "-b"]);
    assert_eq!(held, ["a=2", "c=1"]);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_connection_goes_on_from_the_last_version_without_a_list() {
    let (_, seen, held) = play(vec![
        Step::Fail("limit=500"),
        Step::Answer("limit=500", 200, list(5, &[object("a", 1, "1")])),
        Step::Watch("resourceVersion=5", vec![event("MODIFIED", object("a", 6, "2")), "{\"type\":\"ADD".into()], true),
        Step::Fail("resourceVersion=6"),
        Step::Watch("resourceVersion=6", vec![event("BOOKMARK", json!({"metadata": {"resourceVersion": "40"}}))], true),
        Step::Watch("resourceVersion=40", vec![event("ADDED", object("b", 41, "1"))], false),
    ])
    .await;
    assert_eq!(seen, ["+a", "~a", "+b"]);
    assert_eq!(held, ["a=2", "b=1"]);
}

async fn check_relist(gone: Step) {
    let (_, seen, held) = play(vec![
        Step::Answer("limit=500", 200, list(5, &[object("a", 1, "1"), object("b", 2, "1"), object("c", 3, "1")])),
        gone,
        Step::Answer("limit=500", 200, list(90, &[object("a", 1, "1"), object("c", 80, "2"), object("d", 81, "1")])),
        Step::Watch("resourceVersion=90", vec![], false),
    ])
    .await;
    assert_eq!(seen, ["+a", "+b", "+c", "~c", "+d", "-b"]);
    assert_eq!(held, ["a=1", "c=2", "d=1"]);
}

#[tokio::test(start_paused = true)]
async fn an_expired_version_lists_again_and_finds_what_was_deleted_meanwhile() {
    let status = json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"});
    check_relist(Step::Answer("watch=1", 410, status.clone())).await;
    check_relist(Step::Watch("resourceVersion=5", vec![event("ERROR", status)], true)).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_has_not_reached_our_version_is_listed_again() {
    let message = "Timeout: Too large resource version: 5, current: 3";
    let status = json!({"kind": "Status", "code": 504, "reason": "Timeout", "message": message});
    check_relist(Step::Answer("watch=1", 504, status)).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_only_takes_too_long_is_watched_from_the_same_version() {
    let status = json!({"kind": "Status", "code": 504, "reason": "Timeout", "message": "the request timed out"});
    let (asked, ..) = play(vec![
        Step::Answer("limit=500", 200, list(5, &[])),
        Step::Answer("watch=1", 504, status),
        Step::Watch("resourceVersion=5", vec![], false),
    ])
    .await;
    assert_eq!(asked.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_given_up_and_watched_again() {
    let (asked, ..) = play(vec![
        Step::Answer("limit=500", 200, list(5, &[])),
        Step::Watch("resourceVersion=5", vec![], false),
        Step::Watch("resourceVersion=5", vec![], false),
    ])
    .await;
    assert_eq!(asked.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_object_that_does_not_fit_its_type_is_kept_as_it_was() {
    let broken = |version: u64| json!({"metadata": {"name": "a", "namespace": "shop", "resourceVersion": version.to_string()}, "data": 7});
    let gone = json!({"kind": "Status", "code": 410, "reason": "Expired"});
    let (_, seen, held) = play(vec![
        Step::Answer("limit=500", 200, list(5, &[object("a", 1, "1")])),
        Step::Watch("resourceVersion=5", vec![event("MODIFIED", broken(6)), event("ERROR", gone)], true),
        Step::Answer("limit=500", 200, list(9, &[broken(6)])),
        Step::Watch("resourceVersion=9", vec![], false),
    ])
    .await;
    assert_eq!((seen, held), (vec!["+a".to_string()], vec!["a=1".to_string()]));
}

#[tokio::test(start_paused = true)]
async fn a_stopped_informer_lets_go_of_everything() {
    let (asked, mut questions) = mpsc::unbounded_channel();
    let steps = [Step::Answer("limit=500", 200, list(5, &[object("a", 1, "1")])), Step::Watch("resourceVersion=5", vec![], false)];
    let client = Client::new(Arc::new(Script { steps: parking_lot::Mutex::new(steps.into()), asked }));
    let cancel = CancellationToken::new();
    let informer = Informer::<ConfigMap>::start(client, Selector::all(), &cancel);
    let mut changes = informer.changes();
    for _ in 0..2 {
        questions.recv().await.expect("listed, then watched");
    }
    informer.stop();
    assert_eq!(informer.len(), 1, "what is held stays readable");
    drop(informer);
    assert!(changes.recv().await.is_some_and(|change| change.new.is_some()));
    assert!(changes.recv().await.is_none(), "its readers hear of the end");
    assert!(!cancel.is_cancelled());
}

#[test]
fn an_index_follows_its_objects() {
    let informer = Informer::<ConfigMap>::detached();
    let map = |name: &str, value: &str| serde_json::from_value::<ConfigMap>(object(name, 1, value)).unwrap();
    informer.put(map("a", "x"));
    informer.add_index("value", |map: &ConfigMap| map.data.iter().flatten().map(|(_, value)| value.clone()).collect());
    informer.put(map("b", "x"));
    informer.put(map("a", "y"));
    let names = |value: &str| informer.by_index("value", value).iter().map(|map| map.metadata.name.clone().unwrap()).collect::<Vec<_>>();
    assert_eq!((names("x"), names("y")), (vec!["b".to_string()], vec!["a".to_string()]));
    informer.apply(Key::new("shop", "b"), None);
    assert!(names("x").is_empty());
}
