//! The workloads of the blueprint, kept in the cluster: applied when they change, made again when they vanish, pruned when they are dropped.

mod apply;
mod derived;
mod three_way;

use super::discovery;
use super::{Context, Informers, each, work};
use crate::blueprint::counted;
use crate::error::Error;
use crate::orchestrator::api::kinds::KindRow;
use crate::orchestrator::client::blueprint::BlueprintObject;
use crate::orchestrator::client::events::{Recorder, Subject};
use crate::orchestrator::client::{Change, Client, Delete, Key, Object, Patch, Queue, Selector, path};
use apply::Place;
use derived::{BLUEPRINT, LOAD_BALANCER, node_ports, outdated, storage_class};
use k8s_openapi::api::core::v1::Service;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// How long after an object went it is made again: whoever deletes one (kubectl, with a list and then a watch) gets to see that it is gone.
const REMAKE: Duration = Duration::from_secs(1);

struct Workloads {
    client: Client,
    informers: Informers,
    recorder: Recorder,
    /// The generation (and uid) that was applied whole and pruned after; gone as soon as one of its objects vanishes.
    done: Mutex<HashMap<String, (String, i64)>>,
}

pub fn start(context: &Context, informers: &Informers, recorder: Recorder) {
    let queue: Queue<Key> = Queue::new();
    let this = Workloads { client: context.client.clone(), informers: informers.clone(), recorder, done: Mutex::default() };
    let this = Arc::new(this);
    {
        let queue = queue.clone();
        each(&context.cancel, informers.blueprints.changes(), move |change| queue.add(change.key));
    }
    {
        // Listeners follow their service's selector and ports.
        let (queue, this) = (queue.clone(), this.clone());
        each(&context.cancel, informers.services.changes(), move |change| {
            this.vanished(&queue, "Service", &change);
            let spec = |service: &Option<Arc<_>>| service.as_ref().map(|service: &Arc<Service>| service.spec.clone());
            if spec(&change.old) != spec(&change.new) {
                let pause = if change.new.is_none() { REMAKE } else { Duration::ZERO };
                this.informers.blueprints.list().iter().for_each(|blueprint| queue.add_after(Key::of(&**blueprint), pause));
            }
        });
    }
    watch(context, &this, &queue, "Namespace", informers.namespaces.changes());
    watch(context, &this, &queue, "Deployment", informers.deployments.changes());
    watch(context, &this, &queue, "DaemonSet", informers.daemon_sets.changes());
    watch(context, &this, &queue, "PersistentVolumeClaim", informers.claims.changes());
    watch(context, &this, &queue, "StorageClass", informers.storage_classes.changes());
    work(context, informers, queue, 1, move |key| {
        let this = this.clone();
        async move { this.sync(key).await }
    });
}

fn watch<K: Object>(
    context: &Context,
    this: &Arc<Workloads>,
    queue: &Queue<Key>,
    kind: &'static str,
    changes: tokio::sync::mpsc::UnboundedReceiver<Change<K>>,
) {
    let (this, queue) = (this.clone(), queue.clone());
    each(&context.cancel, changes, move |change| this.vanished(&queue, kind, &change));
}

impl Workloads {
    /// An object of a blueprint is gone, or no longer marked as its: look at that blueprint's workloads afresh.
    fn vanished<K: Object>(&self, queue: &Queue<Key>, kind: &str, change: &Change<K>) {
        let Some(old) = &change.old else { return };
        let mark = |object: &K| object.label(BLUEPRINT).map(str::to_string);
        let marked = mark(old).filter(|mark_before| change.new.as_ref().and_then(|new| mark(new)).as_ref() != Some(mark_before));
        // Somebody may have taken the mark away before the object went.
        let named = |blueprint: &Arc<BlueprintObject>| {
            let named = change.new.is_none() && blueprint.spec.workloads.iter().any(|wanted| is_wish_for(wanted, kind, &**old));
            named.then(|| blueprint.name().to_string())
        };
        for owner in marked.into_iter().chain(self.informers.blueprints.list().iter().filter_map(named)) {
            self.done.lock().remove(&owner);
            queue.add_after(Key::new("", owner), REMAKE);
        }
    }

    async fn sync(&self, key: Key) -> Result<Option<Duration>, Error> {
        let Some(blueprint) = self.informers.blueprints.get_key(&key).filter(|blueprint| !blueprint.deleting()) else { return Ok(None) };
        let mark = (blueprint.uid().to_string(), blueprint.metadata.generation.unwrap_or(0));
        let services = &self.informers.services;
        let (ports, missing) =
            node_ports(&key.name, &blueprint.spec, &delivered(&blueprint), |namespace, name| services.get(namespace, name));
        let whole = !missing.is_empty() || self.done.lock().get(&key.name) != Some(&mark);
        for service in outdated(&key.name, &blueprint.spec, &services.list()) {
            self.remove(&path::<Service>(service.namespace(), service.name(), ""), service.uid()).await?;
        }
        // What the API refuses stays refused until somebody changes it; everything else may pass.
        let (mut refused, mut troubles) = (Vec::new(), Vec::new());
        let mut objects: BTreeMap<Place, (Value, &'static KindRow)> = BTreeMap::new();
        let classes = blueprint.spec.filesystems.iter().map(|filesystem| storage_class(&key.name, &filesystem.name));
        let workloads = blueprint.spec.workloads.iter().filter(|_| whole).map(|object| labelled(object, &key.name));
        for object in classes.chain(workloads).chain(ports) {
            match apply::place(&object) {
                Ok((place, row)) => drop(objects.insert(place, (object, row))),
                Err(trouble) => refused.push(trouble),
            }
        }
        for (place, (object, row)) in &objects {
            if let Err(failure) = apply::apply(&self.client, object, place, row).await {
                // What is derived is nobody's manifest to change.
                let for_good = failure.is_invalid() && object["metadata"]["labels"][LOAD_BALANCER].is_null();
                let told = if for_good { &mut refused } else { &mut troubles };
                told.push(format!("{}: {failure}", place.shown()));
            }
        }
        let retry = !troubles.is_empty();
        if whole && !retry && refused.is_empty() && missing.is_empty() {
            let wanted = objects.keys().map(Place::path).collect();
            self.prune(&key.name, &wanted).await?;
            self.done.lock().insert(key.name.clone(), mark.clone());
        }
        for trouble in refused.iter().chain(&troubles) {
            self.recorder.warning(Subject::of(&*blueprint), "ApplyFailed", trouble.clone());
        }
        troubles.extend(missing);
        self.tell(&blueprint, mark.1, &refused, &troubles).await?;
        if retry {
            return Err(Error::transient(format!("could not apply all workloads of {key}: {}", troubles.join("; "))));
        }
        Ok(None)
    }

    /// Objects that carry this blueprint's label and are no longer in it. What a controller made from them goes with its owner.
    async fn prune(&self, blueprint: &str, wanted: &HashSet<String>) -> Result<(), Error> {
        let selector = Selector::labels(format!("{BLUEPRINT}={blueprint}"));
        for resource in discovery::resources(&self.client).await? {
            for object in self.client.list_values(&resource.path("", ""), &selector).await?.items {
                let metadata = &object["metadata"];
                let (Some(name), Some(uid)) = (metadata["name"].as_str(), metadata["uid"].as_str()) else { continue };
                let path = resource.path(metadata["namespace"].as_str().unwrap_or_default(), name);
                let owned = metadata["ownerReferences"].as_array().is_some_and(|owners| !owners.is_empty());
                if owned || wanted.contains(&path) || !metadata["deletionTimestamp"].is_null() {
                    continue;
                }
                tracing::info!(%path, blueprint, "no longer in the blueprint: removed");
                self.remove(&path, uid).await?;
            }
        }
        Ok(())
    }

    /// This very object; another that has its name by now stays.
    async fn remove(&self, path: &str, uid: &str) -> Result<(), Error> {
        match self.client.delete_value(path, &Delete::uid(uid)).await {
            Err(failure) if !failure.is_conflict() => Err(failure.into()),
            _ => Ok(()),
        }
    }

    /// `status.workloads` of the Blueprint: the infrastructure loop writes the rest of the status.
    async fn tell(&self, blueprint: &BlueprintObject, generation: i64, refused: &[String], troubles: &[String]) -> Result<(), Error> {
        let all = [refused, troubles].concat();
        let message = if all.is_empty() { counted(blueprint.spec.workloads.len(), "workload") } else { all.join("; ") };
        let wanted = json!({"observedGeneration": generation, "applied": all.is_empty(), "refused": refused, "message": message});
        if blueprint.status.as_ref().is_some_and(|status| status["workloads"] == wanted) {
            return Ok(());
        }
        let body = json!({"status": {"workloads": wanted}});
        match self.client.patch::<BlueprintObject>("", blueprint.name(), "status", Patch::Merge, &body).await {
            Err(failure) if failure.is_not_found() => Ok(()),
            outcome => Ok(outcome.map(drop)?),
        }
    }
}

/// Whether the blueprint's wish is for this object of this kind.
fn is_wish_for(wanted: &Value, kind: &str, object: &impl Object) -> bool {
    let (name, namespace) = (&wanted["metadata"]["name"], wanted["metadata"]["namespace"].as_str().unwrap_or("default"));
    wanted["kind"] == kind && name == object.name() && (object.namespace().is_empty() || namespace == object.namespace())
}

/// What the infrastructure loop says of load balancers whose packets keep their address on the way.
fn delivered(blueprint: &BlueprintObject) -> BTreeMap<String, String> {
    let told = blueprint.status.as_ref().and_then(|status| status["loadBalancers"].as_array());
    let one = |balancer: &Value| Some((balancer["name"].as_str()?.to_string(), balancer["address"].as_str()?.to_string()));
    told.into_iter().flatten().filter_map(one).collect()
}

/// The object with the label by which it is found again, and the namespace it goes to.
fn labelled(object: &Value, blueprint: &str) -> Value {
    let mut object = object.clone();
    if object["metadata"].is_object() {
        object["metadata"]["labels"][BLUEPRINT] = json!(blueprint);
    }
    object
}
