//! Parts of objects that are requests of their own: scale, binding, eviction, tokens.

use super::delete::{self, Options};
use super::kinds::{patch as patches, strategy, validation};
use super::negotiate;
use super::object::{decode, key_of, meta, metadata_mut, part_mut, peek, text, texts};
use super::read::missing;
use super::respond::{self, Response};
use super::route::Target;
use super::server::Call;
use super::status::{self, Answer, Cause, Status};
use super::tokens::{self, Claims, Private, Reference, find};
use super::write::{dry_run, modify, refuse, with_kind};
use serde_json::{Value, json};

pub async fn dispatch(call: &Call<'_>, verb: &str, subresource: &str) -> Answer<Response> {
    match (verb, subresource) {
        ("get", "scale") => get_scale(call),
        ("update" | "patch", "scale") => set_scale(call, verb == "patch").await,
        ("create", "binding") => bind(call, &call.target).await,
        ("create", "eviction") => evict(call).await,
        ("create", "token") => token(call),
        _ => Err(Status::method_not_allowed()),
    }
}

fn get_scale(call: &Call) -> Answer<Response> {
    let entry = call.server.store.get(&key_of(&call.row, &call.target)).ok_or_else(|| missing(call))?;
    respond::value(call.wanted, 200, &scale_of(&decode(&entry)?))
}

fn scale_of(object: &Value) -> Value {
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        metadata[field] = object["metadata"][field].clone();
    }
    let labels = object.pointer("/spec/selector/matchLabels").and_then(Value::as_object);
    let selector: Vec<String> =
        labels.into_iter().flatten().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {"replicas": object.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0)},
        "status": {"replicas": object.pointer("/status/replicas").and_then(Value::as_i64).unwrap_or(0), "selector": selector.join(",")}})
}

async fn set_scale(call: &Call<'_>, patching: bool) -> Answer<Response> {
    let scales = call.server.registry.find_kind("autoscaling", "v1", "Scale").ok_or_else(Status::no_such_resource)?;
    let body = if patching { Value::Null } else { with_kind(call, negotiate::body(call.headers, call.body)?, "Scale", "autoscaling/v1")? };
    let kind = if patching { Some(negotiate::patch_type(call.headers)?) } else { None };
    let key = key_of(&call.row, &call.target);
    let entry = modify(call, &key, |old| {
        let wanted = match kind {
            Some(kind) => patches::apply(scales, kind, &scale_of(old), call.body)
                .map_err(|refused| Status::new(refused.code, refused.reason, refused.message))?,
            None => body.clone(),
        };
        let version = meta(&wanted, "resourceVersion");
        if !version.is_empty() && version != meta(old, "resourceVersion") {
            return Err(Status::conflict(&call.row.group, &call.row.plural, &call.target.name, status::MODIFIED));
        }
        let replicas = wanted.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
        if replicas < 0 {
            let cause = Cause::invalid("spec.replicas", &json!(replicas), "must be greater than or equal to 0");
            return Err(Status::invalid("autoscaling", "Scale", &call.target.name, vec![cause]));
        }
        let mut new = old.clone();
        part_mut(&mut new, "spec").insert("replicas".into(), json!(replicas));
        strategy::prepare_update(&call.row, &mut new, old, "");
        refuse(call, &call.target.name, validation::validate(&call.row, &new, Some(old), ""))?;
        Ok(new)
    });
    respond::value(call.wanted, 200, &scale_of(&decode(&entry.await?)?))
}

/// `pods/binding`, and its older form `bindings`.
pub async fn bind(call: &Call<'_>, target: &Target) -> Answer<Response> {
    let pods = call.server.registry.find("", "v1", "pods").ok_or_else(Status::no_such_resource)?;
    let binding = with_kind(call, negotiate::body(call.headers, call.body)?, "Binding", "v1")?;
    let name = if target.name.is_empty() { meta(&binding, "name") } else { &target.name };
    let (node, uid) = (text(&binding, "target", "name"), meta(&binding, "uid"));
    if node.is_empty() {
        return Err(Status::invalid("", "Binding", name, vec![Cause::required("target.name", "")]));
    }
    let lost = |why: String| Err(Status::conflict("", "pods/binding", name, &why));
    let target = Target { resource: "pods".into(), name: name.into(), subresource: String::new(), ..target.clone() };
    let pod_call = Call { row: pods.clone(), target: target.clone(), ..call.again() };
    modify(&pod_call, &key_of(pods, &target), |old| {
        let bound = text(old, "spec", "nodeName");
        if !uid.is_empty() && uid != meta(old, "uid") {
            return lost(format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", meta(old, "uid")));
        }
        if super::object::is_terminating(old) {
            return lost(format!("pod {name} is being deleted, cannot be assigned to a host"));
        }
        if !bound.is_empty() {
            return lost(format!("pod {name} is already assigned to node {bound:?}"));
        }
        Ok(bound_pod(old, node, binding.pointer("/metadata/annotations")))
    })
    .await?;
    respond::value(call.wanted, 201, &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}))
}

fn bound_pod(old: &Value, node: &str, annotations: Option<&Value>) -> Value {
    let mut new = old.clone();
    part_mut(&mut new, "spec").insert("nodeName".into(), json!(node));
    if let Some(added) = annotations.and_then(Value::as_object).filter(|added| !added.is_empty()) {
        let kept = metadata_mut(&mut new).entry("annotations").or_insert_with(|| json!({}));
        kept.as_object_mut().into_iter().for_each(|kept| kept.extend(added.clone()));
    }
    let conditions = part_mut(&mut new, "status").entry("conditions").or_insert_with(|| json!([]));
    if let Some(conditions) = conditions.as_array_mut() {
        let former = conditions.iter().position(|condition| condition["type"] == "PodScheduled");
        let since = former.map(|at| conditions.remove(at)).filter(|condition| condition["status"] == "True");
        let since = since.map_or_else(
            || json!(super::object::time(k8s_openapi::jiff::Timestamp::now())),
            |condition| condition["lastTransitionTime"].clone(),
        );
        conditions.push(json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": since}));
    }
    new
}

/// There are no disruption budgets, so an eviction is a graceful delete.
async fn evict(call: &Call<'_>) -> Answer<Response> {
    let eviction = with_kind(call, negotiate::body(call.headers, call.body)?, "Eviction", "policy/v1")?;
    let name = meta(&eviction, "name");
    if !name.is_empty() && name != call.target.name {
        let text = format!("name in URL does not match name in Eviction object: {:?} {name:?}", call.target.name);
        return Err(Status::bad_request(text));
    }
    let mut options = Options::of(&eviction["deleteOptions"])?;
    options.dry_run |= dry_run(call)?;
    let target = Target { subresource: String::new(), ..call.target.clone() };
    delete::remove(call, &target, &options).await?;
    respond::value(call.wanted, 201, &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}))
}

/// `authentication.k8s.io/v1` TokenRequest.
fn token(call: &Call) -> Answer<Response> {
    let mut request = with_kind(call, negotiate::body(call.headers, call.body)?, "TokenRequest", "authentication.k8s.io/v1")?;
    let account = call.server.store.get(&key_of(&call.row, &call.target)).ok_or_else(|| missing(call))?;
    let issuer = tokens::issuer(call.server);
    let spec = &request["spec"];
    let seconds = spec["expirationSeconds"].as_i64().unwrap_or(3600);
    let invalid = |cause: Cause| Status::invalid("authentication.k8s.io", "TokenRequest", &call.target.name, vec![cause]);
    if seconds < 600 {
        return Err(invalid(Cause::invalid("spec.expirationSeconds", &json!(seconds), "may not specify a duration less than 10 minutes")));
    }
    if seconds > 1 << 32 {
        return Err(invalid(Cause::invalid(
            "spec.expirationSeconds",
            &json!(seconds),
            "may not specify a duration larger than 2^32 seconds",
        )));
    }
    let mut audiences = texts(spec.get("audiences"));
    if audiences.is_empty() {
        audiences.push(issuer.clone());
    }
    let namespace = call.target.namespace.clone();
    let serviceaccount = Reference { name: call.target.name.clone(), uid: meta(peek(&account), "uid").into() };
    let mut private = Private { namespace, serviceaccount, ..Private::default() };
    bind_token(call, spec, &mut private)?;
    let now = k8s_openapi::jiff::Timestamp::now();
    let claims = Claims {
        aud: audiences.clone(),
        exp: now.as_second() + seconds,
        iat: now.as_second(),
        iss: issuer,
        jti: uuid::Uuid::new_v4().to_string(),
        nbf: now.as_second() - tokens::BACKDATED_SECONDS,
        sub: format!("system:serviceaccount:{}:{}", call.target.namespace, call.target.name),
        kubernetes: private,
    };
    let token = call.server.keys.sign(&claims).map_err(|error| Status::internal(error.chain()))?;
    let until = super::object::time(now + k8s_openapi::jiff::SignedDuration::from_secs(seconds));
    part_mut(&mut request, "spec").extend([("audiences".into(), json!(audiences)), ("expirationSeconds".into(), json!(seconds))]);
    request["status"] = json!({"token": token, "expirationTimestamp": until});
    respond::value(call.wanted, 201, &request)
}

/// A node may only ask for tokens that die with one of its own pods.
fn bind_token(call: &Call, spec: &Value, private: &mut Private) -> Answer<()> {
    let (kind, name, uid) =
        (text(spec, "boundObjectRef", "kind"), text(spec, "boundObjectRef", "name"), text(spec, "boundObjectRef", "uid"));
    let forbidden = |why: &str| Err(Status::forbidden("", "serviceaccounts", &call.target.name, why));
    let resource = match kind {
        "" if call.user.node().is_some() => return forbidden("node requested token not bound to a pod"),
        "" => return Ok(()),
        "Pod" => "pods",
        "Secret" => "secrets",
        _ => {
            return Err(Status::bad_request(format!(
                "cannot bind token for serviceaccount {:?} to object of kind {kind:?}",
                call.target.name
            )));
        }
    };
    let entry = find(call.server, resource, &call.target.namespace, name).ok_or_else(|| Status::not_found("", resource, name))?;
    let bound = decode(&entry)?;
    if !uid.is_empty() && uid != meta(&bound, "uid") {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Status::conflict("", resource, name, &why));
    }
    let reference = Reference { name: name.into(), uid: meta(&bound, "uid").into() };
    if resource == "secrets" {
        private.secret = Some(reference);
        return Ok(());
    }
    if text(&bound, "spec", "serviceAccountName") != call.target.name {
        let account = text(&bound, "spec", "serviceAccountName");
        let text = format!(
            "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name. (pod: {account:?})",
            call.target.name
        );
        return Err(Status::bad_request(text));
    }
    let node = text(&bound, "spec", "nodeName");
    if call.user.node().is_some_and(|own| own != node) {
        return forbidden("node requested token bound to a pod scheduled on a different node");
    }
    if let Some(entry) = find(call.server, "nodes", "", node) {
        private.node = Some(Reference { name: node.into(), uid: meta(peek(&entry), "uid").into() });
    }
    private.pod = Some(reference);
    Ok(())
}
