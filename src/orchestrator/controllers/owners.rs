//! Who manages what: owner references, adoption of orphans and release of strangers.

use super::write::Write;
use crate::orchestrator::client::{Client, Failure, Informer, Kind, Object};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::{Value, json};
use std::sync::Arc;

/// The reference a controller puts on what it makes.
pub fn reference<K: Kind>(owner: &impl Object) -> Value {
    json!({
        "apiVersion": K::API_VERSION, "kind": K::KIND, "name": owner.name(), "uid": owner.uid(),
        "controller": true, "blockOwnerDeletion": true,
    })
}

/// The `controller` index: the uid of what manages an object, or the namespace in which it is an orphan.
pub fn controller_index(object: &impl Object) -> Vec<String> {
    match object.controller() {
        Some(owner) => vec![owner.uid.clone()],
        None => vec![format!("orphans of {}", object.namespace())],
    }
}

/// What `claim` has to look at: the owner's own, and the orphans beside it. Other owners' objects, usually the most, are not touched.
pub fn candidates<D: Object>(all: &Informer<D>, owner: &impl Object) -> Vec<Arc<D>> {
    let mut found = all.by_index("controller", owner.uid());
    found.extend(all.by_index("controller", &format!("orphans of {}", owner.namespace())));
    found
}

pub struct Claim<D> {
    /// Managed by this owner and wanted.
    pub mine: Vec<Arc<D>>,
    /// Would be managed, once these are written.
    pub adopt: Vec<Arc<D>>,
    pub release: Vec<Arc<D>>,
}

/// Sorts candidates as upstream's ControllerRefManager does. Nothing is adopted by an owner on its way out, nor while on its own way out.
pub fn claim<D: Object>(owner: &impl Object, candidates: impl IntoIterator<Item = Arc<D>>, matches: impl Fn(&D) -> bool) -> Claim<D> {
    let mut claim = Claim { mine: Vec::new(), adopt: Vec::new(), release: Vec::new() };
    for candidate in candidates {
        match candidate.controller() {
            Some(manager) if manager.uid != owner.uid() => {}
            Some(_) if matches(&candidate) => claim.mine.push(candidate),
            Some(_) if owner.deleting() || candidate.deleting() => {}
            Some(_) => claim.release.push(candidate),
            None if owner.deleting() || candidate.deleting() || !matches(&candidate) => {}
            None => claim.adopt.push(candidate),
        }
    }
    claim
}

/// The cache may show an owner that is gone: before taking anything for it, ask.
pub async fn lives<O: Kind>(client: &Client, owner: &impl Object) -> Result<bool, Failure> {
    let live = client.get::<O>(owner.namespace(), owner.name()).await?;
    Ok(live.is_some_and(|live| live.uid() == owner.uid() && !live.deleting()))
}

pub fn adopt<O: Kind, D: Kind>(owner: &impl Object, dependent: &impl Object) -> Write {
    let mut references: Vec<Value> = dependent.meta().owner_references.iter().flatten().map(|held| json!(held)).collect();
    references.push(reference::<O>(owner));
    Write::merge_at::<D>(dependent, "", json!({"metadata": {"uid": dependent.uid(), "ownerReferences": references}}))
}

pub fn release<D: Kind>(owner: &impl Object, dependent: &impl Object) -> Write {
    let keep: Vec<&OwnerReference> = dependent.meta().owner_references.iter().flatten().filter(|held| held.uid != owner.uid()).collect();
    Write::merge_at::<D>(dependent, "", json!({"metadata": {"uid": dependent.uid(), "ownerReferences": keep}}))
}
