//! create, update and patch: body -> defaults -> admission -> validation -> compare-and-put.

use super::admission;
use super::kinds::{defaults, fields, patch as patches, strategy, validation};
use super::negotiate;
use super::object::{self, decode, encode, finalizers, is_terminating, key, key_of, meta, metadata_mut};
use super::read::missing;
use super::respond::{self, Response};
use super::server::Call;
use super::status::{self, Answer, Cause, Status};
use crate::orchestrator::store::{Change, Entry, Expect, Refused};
use serde_json::{Value, json};

/// Events are of use for an hour, as upstream.
const EVENT_TTL_SECONDS: i64 = 3600;
/// A lost race is run again this often when the client did not insist on a version.
const MOST_ATTEMPTS: usize = 32;
/// Upstream: generateName collisions are retried 7 times.
const MOST_NAMES: usize = 8;

pub async fn create(call: &Call<'_>) -> Answer<Response> {
    let raw = negotiate::body(call.headers, call.body)?;
    check_fields(call, &raw)?;
    let template = with_kind(call, raw, &call.row.kind, &call.row.api_version())?;
    let generated = meta(&template, "name").is_empty() && !meta(&template, "generateName").is_empty();
    for attempt in 1.. {
        match create_once(call, template.clone()).await {
            Err(status) if generated && status.reason == "AlreadyExists" && attempt < MOST_NAMES => {}
            answer => return answer,
        }
    }
    unreachable!("the loop ends with an answer")
}

async fn create_once(call: &Call<'_>, mut object: Value) -> Answer<Response> {
    begin_metadata(call, &mut object)?;
    let row = &*call.row;
    defaults::defaults(row, &mut object);
    strategy::prepare_create(row, &mut object);
    let services = admission::services::lock(call).await;
    admission::create(call, &mut object, services.as_deref())?;
    refuse(call, meta(&object, "name"), validation::validate(row, &object, None, ""))?;
    let name = meta(&object, "name").to_owned();
    let payload = encode(row, &object);
    if dry_run(call)? {
        return if call.server.store.get(&key(row, &call.target.namespace, &name)).is_some() {
            Err(Status::already_exists(&row.group, &row.plural, &name))
        } else {
            respond::object(call, 201, &without_revision(&object))
        };
    }
    let change = Change::Put { payload, expires: expires(call) };
    match call.server.store.write(&key(row, &call.target.namespace, &name), Expect::Absent, change).await {
        Ok(entry) => respond::entry(call, 201, &entry),
        Err(Refused::Conflict(_)) => Err(Status::already_exists(&row.group, &row.plural, &name)),
        Err(Refused::Failed(error)) => Err(Status::internal(error.chain())),
    }
}

/// What the system alone says about a new object.
fn begin_metadata(call: &Call, object: &mut Value) -> Answer<()> {
    if !meta(object, "resourceVersion").is_empty() {
        return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
    }
    check_namespace(call, object)?;
    let metadata = metadata_mut(object);
    for field in ["selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "managedFields", "generation", "resourceVersion"] {
        metadata.remove(field);
    }
    if call.row.namespaced {
        metadata.insert("namespace".into(), json!(call.target.namespace));
    }
    metadata.insert("uid".into(), json!(uuid::Uuid::new_v4().to_string()));
    metadata.insert("creationTimestamp".into(), json!(object::time(k8s_openapi::jiff::Timestamp::now())));
    let base = metadata.get("generateName").and_then(Value::as_str).unwrap_or_default().to_owned();
    if meta(object, "name").is_empty() {
        if base.is_empty() {
            let cause = Cause::required("metadata.name", "name or generateName is required");
            return Err(Status::invalid(&call.row.group, &call.row.kind, "", vec![cause]));
        }
        let mut end = base.len().min(63 - 5);
        while !base.is_char_boundary(end) {
            end -= 1;
        }
        metadata_mut(object).insert("name".into(), json!(format!("{}{}", &base[..end], object::random_suffix())));
    }
    if meta(object, "name").contains('/') {
        let cause = Cause::invalid("metadata.name", &json!(meta(object, "name")), "may not contain '/'");
        return Err(Status::invalid(&call.row.group, &call.row.kind, meta(object, "name"), vec![cause]));
    }
    Ok(())
}

fn check_namespace(call: &Call, object: &Value) -> Answer<()> {
    let given = meta(object, "namespace");
    if !call.row.namespaced && !given.is_empty() {
        return Err(Status::bad_request("namespace is not allowed for this type"));
    }
    if !given.is_empty() && given != call.target.namespace {
        return Err(Status::bad_request("the namespace of the provided object does not match the namespace sent on the request"));
    }
    Ok(())
}

/// The body must be of the kind this address takes; a missing kind is filled in, as upstream.
pub fn with_kind(call: &Call, mut body: Value, kind: &str, api_version: &str) -> Answer<Value> {
    let Some(map) = body.as_object_mut() else {
        return Err(Status::bad_request("couldn't get version/kind; json parse error: the body is no JSON object"));
    };
    let given_kind = map.get("kind").and_then(Value::as_str).unwrap_or(kind).to_owned();
    let given_version = map.get("apiVersion").and_then(Value::as_str).unwrap_or(api_version).to_owned();
    if given_kind != kind {
        let version = given_version.rsplit('/').next().unwrap_or_default();
        return Err(Status::bad_request(format!("{given_kind} in version {version:?} cannot be handled as a {kind}")));
    }
    if given_version != api_version {
        let text = format!("the API version in the data ({given_version}) does not match the expected API version ({api_version})");
        return Err(Status::bad_request(text));
    }
    map.insert("kind".into(), json!(kind));
    map.insert("apiVersion".into(), json!(api_version));
    if map.get("metadata").is_some_and(|metadata| !metadata.is_object() && !metadata.is_null()) {
        return Err(Status::bad_request(format!(
            "{kind} in version {:?} cannot be handled as a {kind}: metadata is no object",
            call.row.version
        )));
    }
    Ok(body)
}

/// `fieldValidation`: unknown, doubled and mistyped fields.
fn check_fields(call: &Call, raw: &Value) -> Answer<()> {
    if let Some(message) = fields::decode_error(&call.row, raw) {
        return Err(Status::bad_request(message));
    }
    let json = matches!(negotiate::media_type(call.headers).as_str(), "" | negotiate::JSON);
    let duplicates = if json { fields::duplicate_fields(call.body) } else { Vec::new() };
    let warnings = field_warnings(call, raw, duplicates)?;
    if warnings.is_empty() { Ok(()) } else { Err(Status::bad_request(fields::strict_message(&call.row, &warnings))) }
}

/// The problems that make a strict request fail; those of other requests are noted as warnings.
fn field_warnings(call: &Call, object: &Value, duplicates: Vec<String>) -> Answer<Vec<String>> {
    let problems = || {
        let unknown = fields::unknown_fields(&call.row, object);
        let duplicates = duplicates.iter().map(|path| fields::duplicate_warning(path));
        duplicates.chain(unknown.iter().map(|path| fields::unknown_warning(path))).collect::<Vec<_>>()
    };
    match call.query.text("fieldValidation") {
        "Strict" => Ok(problems()),
        "" | "Warn" => {
            call.warnings.lock().extend(problems());
            Ok(Vec::new())
        }
        "Ignore" => Ok(Vec::new()),
        other => {
            let cause = Cause::not_supported("fieldValidation", &json!(other), &["", "Ignore", "Strict", "Warn"]);
            Err(Status::invalid("meta.k8s.io", "CreateOptions", "", vec![cause]))
        }
    }
}

pub async fn update(call: &Call<'_>) -> Answer<Response> {
    let raw = negotiate::body(call.headers, call.body)?;
    check_fields(call, &raw)?;
    let body = with_kind(call, raw, &call.row.kind, &call.row.api_version())?;
    let (name, given) = (&call.target.name, meta(&body, "name"));
    if !given.is_empty() && given != name {
        return Err(Status::bad_request(format!("the name of the object ({given}) does not match the name on the URL ({name})")));
    }
    check_namespace(call, &body)?;
    let entry = change(call, |_| Ok(body.clone())).await?;
    respond::object(call, 200, &entry)
}

pub async fn patch(call: &Call<'_>) -> Answer<Response> {
    let kind = negotiate::patch_type(call.headers)?;
    let duplicates = fields::duplicate_fields(call.body);
    let entry = change(call, |current| {
        let patched = patches::apply(&call.row, kind, current, call.body);
        let patched = patched.map_err(|refused| Status::new(refused.code, refused.reason, refused.message))?;
        if let Some(message) = fields::decode_error(&call.row, &patched) {
            return Err(invalid_patch(&message));
        }
        call.warnings.lock().clear();
        let strict = field_warnings(call, &patched, duplicates.clone())?;
        if !strict.is_empty() {
            return Err(invalid_patch(&format!("strict decoding error: {}", strict.join(", "))));
        }
        Ok(patched)
    });
    respond::object(call, 200, &entry.await?)
}

fn invalid_patch(detail: &str) -> Status {
    let cause = Cause { reason: "FieldValueInvalid", message: format!("Invalid value: {detail}"), field: "patch".into() };
    Status::invalid("", "", "", vec![cause])
}

/// Read, change, compare-and-put; again if somebody else was quicker and the change does not name a version.
async fn change(call: &Call<'_>, make: impl Fn(&Value) -> Answer<Value>) -> Answer<bytes::Bytes> {
    for _ in 0..MOST_ATTEMPTS {
        let services = admission::services::lock(call).await;
        let entry = call.server.store.get(&key_of(&call.row, &call.target)).ok_or_else(|| missing(call))?;
        let old = decode(&entry)?;
        let new = make(&old)?;
        check_preconditions(call, &old, &new)?;
        let new = prepared(call, &old, new, services.as_deref())?;
        if old == new {
            return Ok(entry.value().clone());
        }
        if dry_run(call)? {
            return Ok(encode(&call.row, &new).at(entry.modified()));
        }
        match put(call, &entry, &new).await {
            Ok(entry) => return Ok(entry.value().clone()),
            Err(Refused::Failed(error)) => return Err(Status::internal(error.chain())),
            // Lost a race. If the change names a version, the next round refuses it.
            Err(Refused::Conflict(_)) => {}
        }
    }
    Err(conflict(call, status::MODIFIED))
}

/// The system's own change of one object, run again when somebody was quicker.
pub async fn modify(call: &Call<'_>, key: &str, make: impl Fn(&Value) -> Answer<Value>) -> Answer<Entry> {
    for _ in 0..MOST_ATTEMPTS {
        let entry = call.server.store.get(key).ok_or_else(|| missing(call))?;
        let old = decode(&entry)?;
        let new = make(&old)?;
        if old == new || dry_run(call)? {
            return Ok(entry);
        }
        let change = Change::Put { payload: encode(&call.row, &new), expires: entry.expires() };
        match call.server.store.write(key, Expect::Revision(entry.modified()), change).await {
            Ok(entry) => return Ok(entry),
            Err(Refused::Failed(error)) => return Err(Status::internal(error.chain())),
            Err(Refused::Conflict(_)) => {}
        }
    }
    Err(conflict(call, status::MODIFIED))
}

/// A terminating object that has nothing left to wait for is removed by the write that took the last finalizer away.
async fn put(call: &Call<'_>, old: &Entry, new: &Value) -> Result<Entry, Refused> {
    let grace = new.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_u64).unwrap_or(0);
    let held = call.row.plural == "namespaces" && !object::texts(new.pointer("/spec/finalizers")).is_empty();
    let payload = encode(&call.row, new);
    let change = if is_terminating(new) && finalizers(new).is_empty() && grace == 0 && !held {
        Change::Delete
    } else {
        Change::Put { payload, expires: expires(call) }
    };
    call.server.store.write(old.key(), Expect::Revision(old.modified()), change).await
}

fn check_preconditions(call: &Call, old: &Value, new: &Value) -> Answer<()> {
    let (uid, old_uid) = (meta(new, "uid"), meta(old, "uid"));
    if !uid.is_empty() && uid != old_uid {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {old_uid}");
        return Err(conflict(call, &why));
    }
    let version = meta(new, "resourceVersion");
    if !version.is_empty() && version != "0" && version != meta(old, "resourceVersion") {
        return Err(conflict(call, status::MODIFIED));
    }
    Ok(())
}

fn conflict(call: &Call, why: &str) -> Status {
    Status::conflict(&call.row.group, &call.row.plural, &call.target.name, why)
}

/// The new object as it will be kept.
fn prepared(call: &Call, old: &Value, mut new: Value, services: Option<&admission::services::ServiceIndex>) -> Answer<Value> {
    let (row, subresource) = (&*call.row, call.target.subresource.as_str());
    keep_metadata(old, &mut new);
    defaults::defaults(row, &mut new);
    if subresource == "finalize" {
        new = finalize(old, &new);
    }
    strategy::prepare_update(row, &mut new, old, subresource);
    admission::update(call, old, &mut new, services)?;
    let name = call.target.name.as_str();
    let added: Vec<String> = finalizers(&new).into_iter().filter(|finalizer| !finalizers(old).contains(finalizer)).collect();
    if is_terminating(old) && !added.is_empty() {
        let detail = format!("no new finalizers can be added if the object is being deleted, found new finalizers {added:?}");
        refuse(call, name, vec![Cause::forbidden("metadata.finalizers", &detail)])?;
    }
    refuse(call, name, validation::validate(row, &new, Some(old), subresource))?;
    Ok(new)
}

/// The address decides the name and the store the version; the rest of the system's fields are `strategy`'s to keep.
fn keep_metadata(old: &Value, new: &mut Value) {
    let metadata = metadata_mut(new);
    for field in ["name", "namespace", "resourceVersion"] {
        match old.get("metadata").and_then(|metadata| metadata.get(field)) {
            Some(value) => metadata.insert(field.into(), value.clone()),
            None => metadata.remove(field),
        };
    }
    metadata.remove("managedFields");
}

/// `namespaces/finalize` changes `spec.finalizers` alone.
fn finalize(old: &Value, new: &Value) -> Value {
    let mut result = old.clone();
    let finalizers = new.pointer("/spec/finalizers").cloned().unwrap_or_else(|| json!([]));
    object::part_mut(&mut result, "spec").insert("finalizers".into(), finalizers);
    result
}

pub fn refuse(call: &Call, name: &str, causes: Vec<Cause>) -> Answer<()> {
    if causes.is_empty() { Ok(()) } else { Err(Status::invalid(&call.row.group, &call.row.kind, name, causes)) }
}

pub fn dry_run(call: &Call) -> Answer<bool> {
    let asked: Vec<&str> = call.query.all("dryRun").filter(|value| !value.is_empty()).collect();
    match asked.as_slice() {
        [] => Ok(false),
        ["All"] => Ok(true),
        other => {
            let cause = Cause::not_supported("dryRun", &json!(other), &["All"]);
            Err(Status::invalid("meta.k8s.io", "CreateOptions", "", vec![cause]))
        }
    }
}

fn expires(call: &Call) -> u64 {
    if call.row.is("", "Event") { (k8s_openapi::jiff::Timestamp::now().as_second() + EVENT_TTL_SECONDS).unsigned_abs() } else { 0 }
}

fn without_revision(object: &Value) -> bytes::Bytes {
    let mut object = object.clone();
    metadata_mut(&mut object).remove("resourceVersion");
    object.to_string().into()
}
