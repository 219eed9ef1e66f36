//! What is checked and filled in beyond a kind's own rules, because it depends on other objects or on who asks.

mod nodes;
mod pods;
pub mod services;

use super::object::{self, is_terminating, meta};
use super::route::Target;
use super::server::Call;
use super::status::{Answer, Cause, Status};
use super::tokens::find;
use serde_json::Value;
use services::ServiceIndex;

/// Namespaces without which a cluster is none.
const LASTING: &[&str] = &["default", "kube-system", "kube-public"];

pub fn create(call: &Call, object: &mut Value, services: Option<&ServiceIndex>) -> Answer<()> {
    namespace_is_open(call, meta(object, "name"))?;
    nodes::create(call, object)?;
    match (&*call.row.group, &*call.row.plural) {
        ("", "pods") => pods::create(call, object),
        ("", "services") => match services {
            Some(index) => services::allocate(call, &Value::Null, object, index),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

pub fn update(call: &Call, old: &Value, new: &mut Value, services: Option<&ServiceIndex>) -> Answer<()> {
    nodes::update(call, old, new)?;
    match (&*call.row.group, &*call.row.plural, call.target.subresource.as_str()) {
        ("", "services", "") => match services {
            Some(index) => services::allocate(call, old, new, index),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

pub fn delete(call: &Call, target: &Target) -> Answer<()> {
    nodes::delete(call, target)?;
    if call.row.is("", "Namespace") && LASTING.contains(&target.name.as_str()) {
        return Err(Status::forbidden("", "namespaces", &target.name, "this namespace may not be deleted"));
    }
    Ok(())
}

/// Upstream's NamespaceLifecycle.
fn namespace_is_open(call: &Call, name: &str) -> Answer<()> {
    if !call.row.namespaced {
        return Ok(());
    }
    let namespace = call.target.namespace.as_str();
    let entry = find(call.server, "namespaces", "", namespace).ok_or_else(|| Status::not_found("", "namespaces", namespace))?;
    if !is_terminating(object::peek(&entry)) {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
    let message = format!("namespace {namespace} is being terminated");
    let cause = Cause { reason: "NamespaceTerminating", message, field: "metadata.namespace".into() };
    Err(Status::forbidden_causes(&call.row.group, &call.row.plural, name, &why, vec![cause]))
}
