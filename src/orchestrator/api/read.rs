//! get and list: from memory, exact at a revision, in pages.

use super::kinds::KindRow;
use super::kinds::selector::{FieldSelector, LabelSelector};
use super::negotiate::{Form, JSON};
use super::object::{self, key_of, peek, prefix};
use super::respond::{self, Response};
use super::server::{Call, Query};
use super::status::{Answer, Cause, Status};
use crate::orchestrator::store::{Entry, Range, Revision};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

pub fn get(call: &Call) -> Answer<Response> {
    let entry = call.server.store.get(&key_of(&call.row, &call.target)).ok_or_else(|| missing(call))?;
    respond::entry(call, 200, &entry)
}

pub fn missing(call: &Call) -> Status {
    Status::not_found(&call.row.group, &call.row.plural, &call.target.name)
}

/// Label and field selectors of one request.
pub struct Selection {
    labels: LabelSelector,
    fields: FieldSelector,
}

impl Selection {
    /// `name`: the one object that is looked at, if the path names one.
    pub fn parse(row: &KindRow, query: &Query, name: &str) -> Answer<Selection> {
        let labels = LabelSelector::parse(query.text("labelSelector"));
        let labels = labels.map_err(|error| Status::bad_request(format!("unable to parse requirement: {error}")))?;
        let fields = FieldSelector::parse(row, query.text("fieldSelector")).map_err(Status::bad_request)?;
        let fields = if name.is_empty() { fields } else { FieldSelector::name(name) };
        Ok(Selection { labels, fields })
    }
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }
    pub fn matches(&self, entry: &Entry) -> bool {
        if self.is_empty() {
            return true;
        }
        let fields = peek(entry);
        (self.labels.is_empty() || self.labels.matches_object(fields)) && self.fields.matches(fields)
    }
}

/// The one name a collection request asks for (`fieldSelector=metadata.name=x`), which is what it is authorised for. Empty: none.
pub fn selected_name(row: &KindRow, query: &Query) -> String {
    let fields = FieldSelector::parse(row, query.text("fieldSelector")).ok();
    fields.and_then(|fields| fields.required("metadata.name").map(str::to_owned)).unwrap_or_default()
}

/// `resourceVersion` as a number; none if it is not given or 0 ("any").
pub fn asked_revision(query: &Query) -> Answer<Option<Revision>> {
    let text = query.text("resourceVersion");
    let revision = if text.is_empty() { Ok(0) } else { text.parse() };
    let invalid = |_| {
        let cause = Cause::invalid("resourceVersion", &json!(text), "strconv.ParseUint: parsing invalid syntax");
        Status::invalid("", "ListOptions", "", vec![cause])
    };
    revision.map(|revision: u64| (revision > 0).then_some(revision)).map_err(invalid)
}

/// Where the next page starts. `rv` -1: at whatever is current (the snapshot is gone).
#[derive(Serialize, Deserialize)]
struct Continue {
    v: String,
    rv: i64,
    start: String,
}

impl Continue {
    fn encode(revision: i64, start: &str) -> String {
        let token = Continue { v: "meta.k8s.io/v1".into(), rv: revision, start: start.into() };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).expect("plain text and numbers can be written"))
    }
    fn decode(text: &str) -> Answer<Continue> {
        let invalid = || Status::bad_request("continue key is not valid");
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| invalid())?;
        serde_json::from_slice(&bytes).map_err(|_| invalid())
    }
}

/// A page of a list.
pub struct Listed {
    pub entries: Vec<Entry>,
    pub revision: Revision,
    next: Option<String>,
    remaining: Option<usize>,
}

pub fn list(call: &Call) -> Answer<Response> {
    let listed = page(call)?;
    let mut metadata = json!({"resourceVersion": listed.revision.to_string()});
    if let Some(next) = &listed.next {
        metadata["continue"] = json!(next);
    }
    if let Some(remaining) = listed.remaining {
        metadata["remainingItemCount"] = json!(remaining);
    }
    if call.wanted.form == Form::Table {
        let objects = listed.entries.iter().map(object::decode).collect::<Answer<Vec<Value>>>()?;
        return respond::value(call.wanted, 200, &respond::table_of(call, &objects, metadata)?);
    }
    let (kind, version) = match call.wanted.form {
        Form::Metadata => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned()),
        _ => (call.row.list_kind.to_string(), call.row.api_version()),
    };
    let head = format!(r#"{{"kind":"{kind}","apiVersion":"{version}","metadata":{metadata},"items":["#);
    let items = match call.wanted.form {
        Form::Metadata => listed.entries.iter().map(|entry| respond::metadata_only(entry.value())).collect::<Answer<_>>()?,
        _ => listed.entries.iter().map(|entry| entry.value().clone()).collect(),
    };
    let body = ListBody::new(head.into(), items);
    if call.wanted.yaml {
        return respond::value(call.wanted, 200, &respond::parsed(&body.whole())?);
    }
    Ok(respond::body(200, JSON, body.map_err(|never| match never {}).boxed_unsync()))
}

pub fn page(call: &Call) -> Answer<Listed> {
    let (query, store) = (&call.query, &call.server.store);
    let selection = Selection::parse(&call.row, query, "")?;
    let limit = query.number("limit")?.unwrap_or(0) as usize;
    let asked = asked_revision(query)?;
    let (at, start) = match query.text("continue") {
        "" => (start_revision(call, asked)?, None),
        _ if asked.is_some() => return Err(Status::bad_request("specifying resource version is not allowed when using continue")),
        token => {
            let token = Continue::decode(token)?;
            (u64::try_from(token.rv).ok(), Some(token.start))
        }
    };
    let prefix = prefix(&call.row, &call.target.namespace);
    let after = start.as_ref().map(|start| format!("{prefix}{start}"));
    let fetch = if selection.is_empty() { limit } else { 0 };
    let range = Range { prefix: &prefix, after: after.as_deref(), limit: fetch, at };
    let mut page = store.range(&range).map_err(|_| gone(start.as_deref()))?;
    let next = |entry: &Entry| Continue::encode(page.revision as i64, &entry.key()[prefix.len()..]);
    if selection.is_empty() {
        let more = page.remaining > 0;
        let next = page.entries.last().filter(|_| more).map(next);
        return Ok(Listed { entries: page.entries, revision: page.revision, next, remaining: more.then_some(page.remaining) });
    }
    let most = if limit == 0 { usize::MAX } else { limit };
    let last = page.entries.last().cloned();
    let entries: Vec<Entry> = page.entries.drain(..).filter(|entry| selection.matches(entry)).take(most).collect();
    let full = entries.len() == most && entries.last().map(Entry::key) != last.as_ref().map(Entry::key);
    let next = entries.last().filter(|_| full).map(next);
    Ok(Listed { entries, revision: page.revision, next, remaining: None })
}

/// "Not older than" is met by the present; only "exactly" asks for the past.
fn start_revision(call: &Call, asked: Option<Revision>) -> Answer<Option<Revision>> {
    let current = call.server.store.revision();
    if let Some(asked) = asked.filter(|asked| *asked > current) {
        return Err(Status::too_large_resource_version(asked, current));
    }
    match call.query.text("resourceVersionMatch") {
        "" | "NotOlderThan" => Ok(None),
        "Exact" if asked.is_some() => Ok(asked),
        other => {
            let cause = Cause::forbidden("resourceVersionMatch", "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"");
            let unknown = Cause::not_supported("resourceVersionMatch", &json!(other), &["Exact", "NotOlderThan", ""]);
            Err(Status::invalid("meta.k8s.io", "ListOptions", "", vec![if other == "Exact" { cause } else { unknown }]))
        }
    }
}

/// Upstream's 410, with a token that goes on inconsistently for clients that do not mind.
fn gone(start: Option<&str>) -> Status {
    let Some(start) = start else {
        return Status::expired("The resourceVersion for the provided list is too old.");
    };
    let mut status = Status::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue \
         parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided \
         token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was \
         returned and now may show up in the list.",
    );
    status.continue_token = Some(Continue::encode(-1, start).into());
    status
}

/// A list's JSON, put together block by block as the client reads: a long list is never in memory twice.
struct ListBody {
    head: Bytes,
    items: std::vec::IntoIter<Bytes>,
    first: bool,
    ended: bool,
}

const BLOCK_BYTES: usize = 64 << 10;

impl ListBody {
    fn new(head: Bytes, items: Vec<Bytes>) -> ListBody {
        ListBody { head, items: items.into_iter(), first: true, ended: false }
    }
    fn block(&mut self, most: usize) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut block = BytesMut::with_capacity(BLOCK_BYTES.min(most));
        block.extend_from_slice(&std::mem::take(&mut self.head));
        for item in self.items.by_ref() {
            if !std::mem::take(&mut self.first) {
                block.extend_from_slice(b",");
            }
            block.extend_from_slice(&item);
            if block.len() >= most {
                return Some(block.freeze());
            }
        }
        self.ended = true;
        block.extend_from_slice(b"]}");
        Some(block.freeze())
    }
    fn whole(mut self) -> Bytes {
        self.block(usize::MAX).unwrap_or_default()
    }
}

impl hyper::body::Body for ListBody {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<hyper::body::Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.block(BLOCK_BYTES).map(|block| Ok(hyper::body::Frame::data(block))))
    }
    fn is_end_stream(&self) -> bool {
        self.ended
    }
    fn size_hint(&self) -> hyper::body::SizeHint {
        let items = self.items.as_slice();
        let commas = items.len() - usize::from(self.first && !items.is_empty());
        let bytes = self.head.len() + items.iter().map(Bytes::len).sum::<usize>() + commas + 2;
        hyper::body::SizeHint::with_exact(if self.ended { 0 } else { bytes as u64 })
    }
}
