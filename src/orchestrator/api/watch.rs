//! watch: a cursor into the store's window of events. A watcher that falls out of the window is told so and lists anew.

use super::kinds::KindRow;
use super::negotiate::{Form, JSON};
use super::object::prefix;
use super::read::{Selection, asked_revision};
use super::respond::{self, Response};
use super::server::Call;
use super::status::{Answer, Cause, Status};
use crate::orchestrator::store::{Entry, Event, Range, Revision, Store};
use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Upstream's interval: often enough that a restarted client resumes instead of listing.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// Upstream ends a watch without `timeoutSeconds` after 30 to 60 minutes, so that clients spread.
const SHORTEST_TIMEOUT_SECONDS: u64 = 1800;
/// How many events are taken from the store at once.
const BATCH: usize = 256;

struct Watcher {
    store: Arc<Store>,
    row: Arc<KindRow>,
    form: Form,
    include: super::kinds::table::IncludeObject,
    prefix: String,
    selection: Selection,
    cursor: Revision,
    changes: tokio::sync::watch::Receiver<Revision>,
    /// The state to begin with.
    initial: std::vec::IntoIter<Entry>,
    ready: VecDeque<Bytes>,
    bookmarks: bool,
    /// The bookmark that ends the initial events is still due.
    initial_end_due: bool,
    next_bookmark: Instant,
    deadline: Instant,
    stop: CancellationToken,
    ended: bool,
}

pub fn watch(call: &Call) -> Answer<Response> {
    let (query, store) = (&call.query, call.server.store.clone());
    let selection = Selection::parse(&call.row, query, &call.target.name)?;
    let prefix = prefix(&call.row, &call.target.namespace);
    let asked = asked_revision(query)?;
    let initial_events = initial_events(call, asked)?;
    let current = store.revision();
    if let Some(asked) = asked.filter(|asked| *asked > current) {
        return Err(Status::too_large_resource_version(asked, current));
    }
    let include = respond::include_object(query)?;
    // Subscribed before the state is read: nothing falls in between.
    let changes = store.changes(&prefix);
    let (initial, cursor) = if initial_events == Initial::None {
        (Vec::new(), asked.unwrap_or(current))
    } else {
        let page = store.range(&Range { prefix: &prefix, after: None, limit: 0, at: None });
        let page = page.map_err(|compacted| Status::too_old_resource_version(0, compacted.oldest))?;
        (page.entries, page.revision)
    };
    let seconds = query.number("timeoutSeconds")?.filter(|seconds| *seconds > 0);
    let seconds = seconds.unwrap_or_else(|| SHORTEST_TIMEOUT_SECONDS + rand::random_range(0..SHORTEST_TIMEOUT_SECONDS));
    let bookmarks = query.flag("allowWatchBookmarks");
    let now = Instant::now();
    let watcher = Watcher {
        store,
        row: call.row.clone(),
        form: call.wanted.form,
        include,
        prefix,
        selection,
        cursor,
        changes,
        initial: initial.into_iter(),
        ready: VecDeque::new(),
        bookmarks,
        initial_end_due: bookmarks && initial_events == Initial::Announced,
        next_bookmark: now + BOOKMARK_INTERVAL,
        deadline: now + Duration::from_secs(seconds),
        stop: call.server.stop.clone(),
        ended: false,
    };
    let frames = futures::stream::unfold(watcher, |mut watcher| async move {
        let bytes = watcher.next().await?;
        Some((Ok(Frame::data(bytes)), watcher))
    });
    Ok(respond::body(200, JSON, StreamBody::new(frames).boxed_unsync()))
}

#[derive(PartialEq)]
enum Initial {
    None,
    /// Synthetic ADDED events, as watches without a revision always had.
    Quiet,
    /// The same, and a bookmark says when they are all sent (`sendInitialEvents=true`).
    Announced,
}

fn initial_events(call: &Call, asked: Option<Revision>) -> Answer<Initial> {
    let (send, matching) = (call.query.text("sendInitialEvents"), call.query.text("resourceVersionMatch"));
    let refuse =
        |detail: &str| Err(Status::invalid("meta.k8s.io", "ListOptions", "", vec![Cause::forbidden("resourceVersionMatch", detail)]));
    match send {
        "" if !matching.is_empty() => refuse("resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"),
        "" if asked.is_some() => Ok(Initial::None),
        "" => Ok(Initial::Quiet),
        _ if matching != "NotOlderThan" => refuse("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"),
        "false" | "0" => Ok(Initial::None),
        _ => Ok(Initial::Announced),
    }
}

impl Watcher {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Some(bytes);
            }
            if let Some(bytes) = self.next_initial() {
                return Some(bytes);
            }
            if self.ended {
                return None;
            }
            match self.store.events(&self.prefix, self.cursor, BATCH) {
                Err(compacted) => {
                    let status = Status::too_old_resource_version(self.cursor, compacted.oldest);
                    self.ready.push_back(frame("ERROR", status.body().to_string().as_bytes()));
                    self.ended = true;
                }
                Ok((events, complete_to)) => {
                    self.cursor = complete_to;
                    let shown: Vec<Bytes> = events.iter().filter_map(|event| self.shown(event)).collect();
                    self.ready.extend(shown);
                    if events.is_empty() && !self.bookmark_if_due() {
                        self.wait().await;
                    }
                }
            }
        }
    }

    fn next_initial(&mut self) -> Option<Bytes> {
        while let Some(entry) = self.initial.next() {
            if self.selection.matches(&entry) {
                return Some(self.encoded("ADDED", entry.value()));
            }
        }
        if std::mem::take(&mut self.initial_end_due) {
            return Some(self.bookmark(true));
        }
        None
    }

    async fn wait(&mut self) {
        let until = if self.bookmarks { self.next_bookmark.min(self.deadline) } else { self.deadline };
        tokio::select! {
            changed = self.changes.changed() => self.ended = changed.is_err(),
            () = self.stop.cancelled() => self.ended = true,
            () = tokio::time::sleep_until(until) => {}
        }
    }

    /// Called when everything up to the cursor is sent. The last bookmark comes right before the end.
    fn bookmark_if_due(&mut self) -> bool {
        let now = Instant::now();
        self.ended |= now >= self.deadline;
        if self.bookmarks && (self.ended || now >= self.next_bookmark) {
            self.next_bookmark = now + BOOKMARK_INTERVAL;
            let bookmark = self.bookmark(false);
            self.ready.push_back(bookmark);
        }
        self.ended || !self.ready.is_empty()
    }

    /// What this watcher sees of a change: an object may enter or leave its selection.
    fn shown(&self, event: &Event) -> Option<Bytes> {
        let was = event.previous.as_ref().is_some_and(|previous| self.selection.matches(previous));
        let is = !event.deleted && self.selection.matches(&event.entry);
        let value = event.entry.value();
        let natural = self.form == Form::Object;
        match (was, is) {
            (false, false) => None,
            (true, true) if natural => Some(event.encoded(|| frame("MODIFIED", value)).clone()),
            (true, true) => Some(self.encoded("MODIFIED", value)),
            (false, true) if natural && event.previous.is_none() => Some(event.encoded(|| frame("ADDED", value)).clone()),
            (false, true) => Some(self.encoded("ADDED", value)),
            (true, false) if natural && event.deleted => Some(event.encoded(|| frame("DELETED", value)).clone()),
            (true, false) if event.deleted => Some(self.encoded("DELETED", value)),
            // It lives on outside of the selection: the last state that was seen, at the revision of its leaving.
            (true, false) => event.previous.as_ref().map(|previous| self.encoded("DELETED", &previous.payload().at(event.revision))),
        }
    }

    fn encoded(&self, kind: &str, object: &Bytes) -> Bytes {
        match self.form {
            Form::Object => frame(kind, object),
            Form::Metadata => frame(kind, &respond::metadata_only(object).unwrap_or_default()),
            Form::Table => {
                let value: Value = serde_json::from_slice(object).unwrap_or_default();
                let version = value.pointer("/metadata/resourceVersion").cloned().unwrap_or_default();
                let metadata = json!({"resourceVersion": version});
                let table = super::kinds::table::table(&self.row, &[value], k8s_openapi::jiff::Timestamp::now(), self.include, metadata);
                frame(kind, table.to_string().as_bytes())
            }
        }
    }

    fn bookmark(&self, initial_end: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": self.cursor.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.form {
            Form::Object => json!({"kind": self.row.kind, "apiVersion": self.row.api_version(), "metadata": metadata}),
            Form::Metadata => json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}),
            Form::Table => {
                json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": [], "rows": []})
            }
        };
        frame("BOOKMARK", object.to_string().as_bytes())
    }
}

fn frame(kind: &str, object: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(object.len() + 40);
    frame.extend_from_slice(format!(r#"{{"type":"{kind}","object":"#).as_bytes());
    frame.extend_from_slice(object);
    frame.extend_from_slice(b"}\n");
    frame.into()
}
