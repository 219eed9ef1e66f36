//! Objects whose owners are gone are deleted; `foregroundDeletion` and `orphan` finalizers are honoured.
//!
//! Metadata of every kind is kept in memory with two indexes: by uid, and by the uids of owners. That an owner is absent is never concluded
//! from the cache: it is asked for, by uid.

use super::discovery::{self, Resource};
use super::{Context, each};
use crate::error::Error;
use crate::orchestrator::client::{Client, Delete, Failure, Informer, Key, Object, Partial, Patch, Propagation, Queue, Selector};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// What is known of one owner of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    Present,
    /// Being deleted, waiting for its dependents to go first.
    Waiting,
    /// Asked for and not there.
    Absent,
}

#[derive(Debug, PartialEq)]
pub enum Verdict {
    Keep,
    /// Drop the references to these owners, by uid: others still hold the object.
    Release(Vec<String>),
    Delete(Propagation),
}

/// What becomes of an object with these owners.
pub fn decide(meta: &ObjectMeta, owners: &[(&OwnerReference, Owner)], has_dependents: bool) -> Verdict {
    if owners.is_empty() || meta.deletion_timestamp.is_some() {
        return Verdict::Keep;
    }
    let of = |wanted: Owner| owners.iter().filter(move |(_, owner)| *owner == wanted);
    let ending: Vec<String> = of(Owner::Absent).chain(of(Owner::Waiting)).map(|(reference, _)| reference.uid.clone()).collect();
    if of(Owner::Present).next().is_some() {
        return if ending.is_empty() { Verdict::Keep } else { Verdict::Release(ending) };
    }
    let finalizer = |name: &str| meta.finalizers.iter().flatten().any(|held| held == name);
    if of(Owner::Waiting).next().is_some() && has_dependents {
        return Verdict::Delete(Propagation::Foreground);
    }
    Verdict::Delete(if finalizer(ORPHAN) {
        Propagation::Orphan
    } else if finalizer(FOREGROUND) {
        Propagation::Foreground
    } else {
        Propagation::Background
    })
}

/// An object of some kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Item {
    resource: Resource,
    key: Key,
}

impl fmt::Display for Item {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.resource.plural, self.key)
    }
}

impl Item {
    fn path(&self) -> String {
        self.resource.path(&self.key.namespace, &self.key.name)
    }
}

#[derive(Clone)]
struct Collector {
    client: Client,
    kinds: Arc<Vec<(Resource, Informer<Partial>)>>,
    queue: Queue<Item>,
}

/// Kinds that never own and are never owned, and change all the time.
const LEFT_OUT: [&str; 2] = ["events", "leases"];

pub fn start(context: &Context) {
    let context = context.clone();
    super::super::client::spawn(&context.cancel.clone(), async move {
        let mut delay = Duration::from_millis(50);
        let resources = loop {
            match discovery::resources(&context.client).await {
                Ok(resources) if !resources.is_empty() => break resources,
                _ => {
                    tokio::time::sleep(delay).await;
                    delay = (delay * 2).min(Duration::from_secs(5));
                }
            }
        };
        let wanted = resources.into_iter().filter(|resource| !LEFT_OUT.contains(&resource.plural.as_str()));
        let kinds: Vec<(Resource, Informer<Partial>)> = wanted
            .map(|resource| {
                let informer = Informer::start_at(context.client.clone(), resource.path("", ""), Selector::all(), &context.cancel);
                informer.add_index("uid", |object: &Partial| vec![object.uid().to_string()]);
                informer.add_index("owner", |object: &Partial| {
                    object.metadata.owner_references.iter().flatten().map(|owner| owner.uid.clone()).collect()
                });
                (resource, informer)
            })
            .collect();
        let collector = Collector { client: context.client.clone(), kinds: Arc::new(kinds), queue: Queue::new() };
        collector.run(&context).await;
    });
}

impl Collector {
    async fn run(self, context: &Context) {
        for (_, informer) in self.kinds.iter() {
            informer.synced().await;
        }
        for (resource, informer) in self.kinds.iter() {
            let (this, resource) = (self.clone(), resource.clone());
            each(&context.cancel, informer.changes(), move |change| {
                let gone = change.new.is_none();
                let object = change.new.as_deref().or(change.old.as_deref());
                let Some(object) = object else { return };
                let finalizing = object.deleting() && (object.has_finalizer(FOREGROUND) || object.has_finalizer(ORPHAN));
                if gone || finalizing {
                    this.dependents(object.uid()).into_iter().for_each(|(item, _)| this.queue.add(item));
                }
                if gone {
                    // Owners that wait for this one.
                    object.metadata.owner_references.iter().flatten().filter_map(|owner| this.find(&owner.uid)).for_each(
                        |(item, owner)| {
                            if owner.has_finalizer(FOREGROUND) {
                                this.queue.add(item);
                            }
                        },
                    );
                } else if finalizing || object.metadata.owner_references.iter().flatten().next().is_some() {
                    this.queue.add(Item { resource: resource.clone(), key: change.key });
                }
            });
        }
        let queue = self.queue.clone();
        queue
            .run(8, move |item| {
                let this = self.clone();
                async move { this.sync(item).await.map(|()| None) }
            })
            .await;
    }

    fn find(&self, uid: &str) -> Option<(Item, Arc<Partial>)> {
        self.kinds.iter().find_map(|(resource, informer)| {
            let object = informer.by_index("uid", uid).into_iter().next()?;
            Some((Item { resource: resource.clone(), key: Key::of(&*object) }, object))
        })
    }

    fn dependents(&self, uid: &str) -> Vec<(Item, Arc<Partial>)> {
        let of_kind = |(resource, informer): &(Resource, Informer<Partial>)| {
            let resource = resource.clone();
            let objects = informer.by_index("owner", uid).into_iter();
            objects.map(move |object| (Item { resource: resource.clone(), key: Key::of(&*object) }, object)).collect::<Vec<_>>()
        };
        self.kinds.iter().flat_map(of_kind).collect()
    }

    async fn sync(&self, item: Item) -> Result<(), Error> {
        let Some((_, informer)) = self.kinds.iter().find(|(resource, _)| *resource == item.resource) else { return Ok(()) };
        let Some(object) = informer.get_key(&item.key) else { return Ok(()) };
        if object.deleting() && object.has_finalizer(ORPHAN) {
            return self.orphan(&item, &object).await;
        }
        if object.deleting() && object.has_finalizer(FOREGROUND) {
            return self.foreground(&item, &object).await;
        }
        let references = object.metadata.owner_references.clone().unwrap_or_default();
        let mut owners = Vec::new();
        for reference in &references {
            owners.push((reference, self.owner(&item, reference).await?));
        }
        match decide(&object.metadata, &owners, !self.dependents(object.uid()).is_empty()) {
            Verdict::Keep => Ok(()),
            Verdict::Release(gone) => self.release(&item, &object, &gone).await,
            Verdict::Delete(propagation) => {
                tracing::debug!(%item, "its owners are gone");
                let delete = Delete { uid: Some(object.uid().into()), grace_seconds: None, propagation: Some(propagation) };
                settle(self.client.delete_value(&item.path(), &delete).await)
            }
        }
    }

    async fn owner(&self, item: &Item, reference: &OwnerReference) -> Result<Owner, Failure> {
        if let Some((found, owner)) = self.find(&reference.uid) {
            let reachable = !found.resource.namespaced || found.key.namespace == item.key.namespace;
            if reachable {
                let waiting = owner.deleting() && owner.has_finalizer(FOREGROUND);
                return Ok(if waiting { Owner::Waiting } else { Owner::Present });
            }
        }
        let kind = |(resource, _): &&(Resource, Informer<Partial>)| {
            resource.kind == reference.kind && same_group(&resource.api_version, &reference.api_version)
        };
        // A kind we do not know: its objects may exist all the same.
        let Some((resource, _)) = self.kinds.iter().find(kind) else { return Ok(Owner::Present) };
        if resource.namespaced && item.key.namespace.is_empty() {
            return Ok(Owner::Present);
        }
        let live = self.client.get_value(&resource.path(&item.key.namespace, &reference.name)).await?;
        let present = live.is_some_and(|live| live["metadata"]["uid"] == json!(reference.uid));
        Ok(if present { Owner::Present } else { Owner::Absent })
    }

    async fn release(&self, item: &Item, object: &Partial, gone: &[String]) -> Result<(), Error> {
        let keep: Vec<&OwnerReference> =
            object.metadata.owner_references.iter().flatten().filter(|held| !gone.contains(&held.uid)).collect();
        let body = json!({"metadata": {"uid": object.uid(), "resourceVersion": object.version(), "ownerReferences": keep}});
        self.patch(item, &body).await
    }

    /// Its dependents lose their reference, then it may go.
    async fn orphan(&self, item: &Item, object: &Partial) -> Result<(), Error> {
        for (dependent, held) in self.dependents(object.uid()) {
            self.release(&dependent, &held, &[object.uid().to_string()]).await?;
        }
        self.unfinalize(item, object, ORPHAN).await
    }

    /// Goes when no dependent is left that blocks it.
    async fn foreground(&self, item: &Item, object: &Partial) -> Result<(), Error> {
        let blocks = |dependent: &Partial| {
            dependent
                .metadata
                .owner_references
                .iter()
                .flatten()
                .any(|held| held.uid == object.uid() && held.block_owner_deletion == Some(true))
        };
        let dependents = self.dependents(object.uid());
        if dependents.iter().any(|(_, dependent)| blocks(dependent)) {
            dependents.into_iter().for_each(|(dependent, _)| self.queue.add(dependent));
            return Ok(());
        }
        self.unfinalize(item, object, FOREGROUND).await
    }

    async fn unfinalize(&self, item: &Item, object: &Partial, name: &str) -> Result<(), Error> {
        let keep: Vec<&String> = object.metadata.finalizers.iter().flatten().filter(|held| *held != name).collect();
        self.patch(item, &json!({"metadata": {"uid": object.uid(), "resourceVersion": object.version(), "finalizers": keep}})).await
    }

    async fn patch(&self, item: &Item, body: &Value) -> Result<(), Error> {
        match self.client.patch_value(&item.path(), Patch::Merge, body).await {
            Err(failure) if failure.is_not_found() => Ok(()),
            outcome => Ok(outcome.map(drop)?),
        }
    }
}

/// Versions of one group are one kind.
fn same_group(left: &str, right: &str) -> bool {
    let group = |api_version: &str| api_version.split_once('/').map(|(group, _)| group.to_string()).unwrap_or_default();
    group(left) == group(right)
}

/// A conflict means another object has the name: the one we meant is gone.
fn settle(outcome: Result<(), Failure>) -> Result<(), Error> {
    match outcome {
        Err(failure) if failure.is_conflict() => Ok(()),
        outcome => Ok(outcome?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(owners: &[Owner], finalizers: &[&str], has_dependents: bool, expected: Verdict) {
        let references: Vec<OwnerReference> =
            (0..owners.len()).map(|number| OwnerReference { uid: format!("u{number}"), ..OwnerReference::default() }).collect();
        let owners: Vec<_> = references.iter().zip(owners.iter().copied()).collect();
        let meta = ObjectMeta { finalizers: Some(finalizers.iter().map(|name| name.to_string()).collect()), ..ObjectMeta::default() };
        assert_eq!(decide(&meta, &owners, has_dependents), expected);
    }

    #[test]
    fn an_object_goes_with_its_last_owner() {
        use Owner::*;
        check(&[], &[], false, Verdict::Keep);
        check(&[Present], &[], false, Verdict::Keep);
        check(&[Absent], &[], false, Verdict::Delete(Propagation::Background));
        check(&[Absent, Present], &[], false, Verdict::Release(vec!["u0".into()]));
        check(&[Waiting, Present, Absent], &[], false, Verdict::Release(vec!["u2".into(), "u0".into()]));
        check(&[Waiting], &[], true, Verdict::Delete(Propagation::Foreground));
        check(&[Waiting], &[], false, Verdict::Delete(Propagation::Background));
        check(&[Absent], &[FOREGROUND], false, Verdict::Delete(Propagation::Foreground));
        check(&[Absent], &[ORPHAN], false, Verdict::Delete(Propagation::Orphan));
    }

    #[test]
    fn an_object_on_its_way_out_is_left_alone() {
        let reference = OwnerReference { uid: "u".into(), ..OwnerReference::default() };
        let time = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time("2026-01-01T00:00:00Z".parse().unwrap());
        let meta = ObjectMeta { deletion_timestamp: Some(time), ..ObjectMeta::default() };
        assert_eq!(decide(&meta, &[(&reference, Owner::Absent)], false), Verdict::Keep);
    }
}
