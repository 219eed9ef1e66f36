//! delete and deletecollection: at once, gracefully (pods on nodes), or when the last finalizer is gone.

use super::admission;
use super::object::{self, decode, encode, finalizers, is_terminating, key_of, meta, metadata_mut};
use super::read::{self, missing};
use super::respond::{self, Response};
use super::route::Target;
use super::server::Call;
use super::status::{self, Answer, Cause, Status};
use super::write::dry_run;
use super::{kinds::KindRow, negotiate};
use crate::orchestrator::store::{Change, Entry, Expect, Refused};
use bytes::Bytes;
use serde_json::{Value, json};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
const DEFAULT_POD_GRACE_SECONDS: i64 = 30;
const MOST_ATTEMPTS: usize = 32;

/// `DeleteOptions`, from the body or the query.
#[derive(Debug, Default, Clone)]
pub struct Options {
    pub grace_seconds: Option<i64>,
    pub uid: String,
    pub resource_version: String,
    /// `Orphan`, `Background`, `Foreground`; empty: the kind's default, which is background.
    pub propagation: String,
    pub dry_run: bool,
}

impl Options {
    pub fn read(call: &Call) -> Answer<Options> {
        let body = if call.body.is_empty() { Value::Null } else { negotiate::body(call.headers, call.body)? };
        let mut options = Options::of(&body)?;
        options.dry_run |= dry_run(call)?;
        if let Some(seconds) = call.query.number("gracePeriodSeconds")? {
            options.grace_seconds = Some(seconds.min(i64::MAX as u64) as i64);
        }
        if !call.query.text("propagationPolicy").is_empty() {
            options.propagation = call.query.text("propagationPolicy").to_owned();
        }
        if !matches!(options.propagation.as_str(), "" | "Orphan" | "Background" | "Foreground") {
            let cause = Cause::not_supported("propagationPolicy", &json!(options.propagation), &["Background", "Foreground", "Orphan"]);
            return Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", vec![cause]));
        }
        Ok(options)
    }

    pub fn of(body: &Value) -> Answer<Options> {
        let orphan = match body.get("orphanDependents").and_then(Value::as_bool) {
            Some(true) => "Orphan",
            Some(false) => "Background",
            None => "",
        };
        let propagation = body.get("propagationPolicy").and_then(Value::as_str).unwrap_or(orphan).to_owned();
        Ok(Options {
            grace_seconds: body.get("gracePeriodSeconds").and_then(Value::as_i64).map(|seconds| seconds.max(0)),
            uid: object::text(body, "preconditions", "uid").into(),
            resource_version: object::text(body, "preconditions", "resourceVersion").into(),
            propagation,
            dry_run: object::texts(body.get("dryRun")).iter().any(|value| value == "All"),
        })
    }
}

/// What became of an object.
pub enum Outcome {
    Gone(Entry),
    /// It is on its way; its present state.
    Terminating(Bytes),
}

pub async fn delete(call: &Call<'_>) -> Answer<Response> {
    let options = Options::read(call)?;
    let row = &*call.row;
    let outcome = remove(call, &call.target, &options).await?;
    match outcome {
        Outcome::Terminating(bytes) => respond::object(call, 200, &bytes),
        // Upstream returns the object for these kinds and a Status for the others.
        Outcome::Gone(entry)
            if matches!(&*row.plural, "pods" | "persistentvolumeclaims" | "persistentvolumes" | "services" | "serviceaccounts") =>
        {
            respond::entry(call, 200, &entry)
        }
        Outcome::Gone(entry) => {
            let uid = meta(object::peek(&entry), "uid");
            respond::value(call.wanted, 200, &status::deleted(&row.group, &row.plural, &call.target.name, uid))
        }
    }
}

pub async fn delete_collection(call: &Call<'_>) -> Answer<Response> {
    let options = Options::read(call)?;
    let listed = read::page(call)?;
    let mut items = Vec::new();
    for entry in &listed.entries {
        let fields = object::peek(entry);
        let target = Target { namespace: meta(fields, "namespace").into(), name: meta(fields, "name").into(), ..call.target.clone() };
        match remove(call, &target, &options).await {
            Ok(_) => items.push(respond::parsed(entry.value())?),
            Err(status) if status.code == 404 => {}
            Err(status) => return Err(status),
        }
    }
    let metadata = json!({"resourceVersion": call.server.store.revision().to_string()});
    let list = json!({"kind": call.row.list_kind, "apiVersion": call.row.api_version(), "metadata": metadata, "items": items});
    respond::value(call.wanted, 200, &list)
}

/// One object, with upstream's manners.
pub async fn remove(call: &Call<'_>, target: &Target, options: &Options) -> Answer<Outcome> {
    admission::delete(call, target)?;
    let row = &*call.row;
    for _ in 0..MOST_ATTEMPTS {
        let entry = call.server.store.get(&key_of(row, target)).ok_or_else(|| {
            if target.name == call.target.name { missing(call) } else { Status::not_found(&row.group, &row.plural, &target.name) }
        })?;
        let old = decode(&entry)?;
        check_preconditions(row, target, &old, options)?;
        let next = next_state(row, &old, options);
        let change = match &next {
            Some(new) if *new == old => return Ok(Outcome::Terminating(entry.value().clone())),
            Some(new) => Change::Put { payload: encode(row, new), expires: entry.expires() },
            None => Change::Delete,
        };
        if options.dry_run {
            return Ok(Outcome::Terminating(entry.value().clone()));
        }
        match call.server.store.write(entry.key(), Expect::Revision(entry.modified()), change).await {
            Ok(entry) => return Ok(if next.is_some() { Outcome::Terminating(entry.value().clone()) } else { Outcome::Gone(entry) }),
            Err(Refused::Failed(error)) => return Err(Status::internal(error.chain())),
            Err(Refused::Conflict(_)) => {}
        }
    }
    Err(Status::conflict(&row.group, &row.plural, &target.name, status::MODIFIED))
}

fn check_preconditions(row: &KindRow, target: &Target, old: &Value, options: &Options) -> Answer<()> {
    let differs = |what: &str, wanted: &str, found: &str| {
        let why = format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}");
        (!wanted.is_empty() && wanted != found).then(|| Status::conflict(&row.group, &row.plural, &target.name, &why))
    };
    let uid = differs("UID", &options.uid, meta(old, "uid"));
    uid.or_else(|| differs("ResourceVersion", &options.resource_version, meta(old, "resourceVersion"))).map_or(Ok(()), Err)
}

/// The object after this request, or none if nothing holds it any more. Pure but for the clock.
fn next_state(row: &KindRow, old: &Value, options: &Options) -> Option<Value> {
    let mut new = old.clone();
    let wanted = wanted_finalizers(old, options);
    let metadata = metadata_mut(&mut new);
    if wanted.is_empty() {
        drop(metadata.remove("finalizers"))
    } else {
        drop(metadata.insert("finalizers".into(), json!(wanted)))
    }
    let grace = if row.is("", "Pod") { pod_grace(old, options) } else { 0 };
    let namespace = row.plural == "namespaces";
    let held = !wanted.is_empty() || (namespace && !object::texts(old.pointer("/spec/finalizers")).is_empty());
    let former = old.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
    // Once terminating, the wait may only become shorter.
    let grace = if is_terminating(old) { grace.min(former.unwrap_or(0)) } else { grace };
    if grace == 0 && !held {
        return None;
    }
    if !is_terminating(old) || former.is_some_and(|former| grace < former) {
        let at = k8s_openapi::jiff::Timestamp::now() + k8s_openapi::jiff::SignedDuration::from_secs(grace);
        let metadata = metadata_mut(&mut new);
        metadata.insert("deletionTimestamp".into(), json!(object::time(at)));
        metadata.insert("deletionGracePeriodSeconds".into(), json!(grace));
        if let Some(generation) = metadata.get("generation").and_then(Value::as_i64) {
            metadata.insert("generation".into(), json!(generation + 1));
        }
    }
    if namespace {
        object::part_mut(&mut new, "status").insert("phase".into(), json!("Terminating"));
    }
    Some(new)
}

fn wanted_finalizers(old: &Value, options: &Options) -> Vec<String> {
    let mut wanted = finalizers(old);
    let add = match options.propagation.as_str() {
        "Orphan" => Some(ORPHAN),
        "Foreground" => Some(FOREGROUND),
        "Background" => None,
        _ => return wanted,
    };
    wanted.retain(|finalizer| finalizer != ORPHAN && finalizer != FOREGROUND);
    wanted.extend(add.map(str::to_owned));
    wanted
}

/// Nobody has to be waited for if no kubelet runs the pod.
fn pod_grace(old: &Value, options: &Options) -> i64 {
    let finished = matches!(object::text(old, "status", "phase"), "Failed" | "Succeeded");
    if object::text(old, "spec", "nodeName").is_empty() || finished {
        return 0;
    }
    let own = old.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(DEFAULT_POD_GRACE_SECONDS);
    options.grace_seconds.unwrap_or(own).max(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::api::kinds::Registry;

    fn pod(extra: Value) -> Value {
        let mut pod = json!({"metadata": {"name": "a", "uid": "1"}, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 20}});
        json_patch::merge(&mut pod, &extra);
        pod
    }

    /// The grace that is left, or none if the pod goes at once.
    fn check(pod: Value, options: Options, expected: Option<i64>) {
        let row = Registry::builtin().find("", "v1", "pods").expect("served");
        let next = next_state(row, &pod, &options);
        assert_eq!(next.map(|next| next["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(-1)), expected, "{pod} {options:?}");
    }

    #[test]
    fn pod_on_a_node_gets_its_grace_and_others_go_at_once() {
        let grace = |seconds| Options { grace_seconds: Some(seconds), ..Options::default() };
        let terminating = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 20}});
        check(pod(json!({})), Options::default(), Some(20));
        check(pod(json!({})), grace(5), Some(5));
        check(pod(json!({})), grace(0), None);
        check(pod(json!({"spec": {"nodeName": null}})), Options::default(), None);
        check(pod(json!({"status": {"phase": "Succeeded"}})), Options::default(), None);
        check(pod(terminating.clone()), grace(60), Some(20));
        check(pod(terminating.clone()), grace(3), Some(3));
        check(pod(terminating), grace(0), None);
        check(pod(json!({"metadata": {"finalizers": ["a/b"]}})), grace(0), Some(0));
    }

    #[test]
    fn propagation_policy_becomes_a_finalizer() {
        let policy = |policy: &str| Options { propagation: policy.into(), ..Options::default() };
        let object = json!({"metadata": {"finalizers": ["a/b", "orphan"]}});
        assert_eq!(wanted_finalizers(&object, &policy("")), ["a/b", "orphan"]);
        assert_eq!(wanted_finalizers(&object, &policy("Foreground")), ["a/b", "foregroundDeletion"]);
        assert_eq!(wanted_finalizers(&object, &policy("Background")), ["a/b"]);
    }
}
