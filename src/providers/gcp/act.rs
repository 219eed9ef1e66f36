//! Carrying a request out: insert and adopt, change in place, start again, delete what is ours. Every step may be repeated by anybody.

use super::Gcp;
use super::api::{Answer, collection, typed};
use super::failure::{Cause, Failure};
use super::names;
use super::request::{Body, handle, of_handle};
use super::resources::*;
use super::retry;
use crate::engine::{Observed, Phase, Progress, Request, Verb};
use crate::error::{Context as _, Kind, Result};
use crate::providers::resources::{FILESYSTEM, LOAD_BALANCER, MACHINE, NETWORK};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

/// Between looks at a machine that boots; the engine's deadline ends the waiting.
const FIRST_LOOK: Duration = Duration::from_millis(250);
const LONGEST_LOOK: Duration = Duration::from_secs(1);

/// Failed tries of one generation that Google may remember: it forgets them after an hour.
const MOST_FAILED_BEFORE: u32 = 8;

impl Gcp {
    pub(super) async fn carry_out(&self, request: &Request, progress: Progress<'_>) -> Result<Option<Observed>> {
        let could_not = || format!("could not {} {}", request.verb, request.id);
        let body: Body = serde_json::from_value(request.body.clone()).or_fail(Kind::Internal, could_not)?;
        let handle = request.handle.as_deref().unwrap_or_default();
        let end = match request.verb {
            Verb::Create => self.create(request, &body, progress).await,
            Verb::Update => self.update(request, &body, handle).await,
            Verb::Repair => self.repair(request, handle, progress).await,
            Verb::Delete => self.delete(request, handle).await.map(|()| None),
            Verb::Await => self.settled(request, handle, progress).await,
        };
        end.map_err(|failure| self.error(failure, could_not()))
    }

    async fn create(&self, request: &Request, body: &Body, progress: Progress<'_>) -> Answer<Option<Observed>> {
        let id = &request.id;
        if id.kind == LOAD_BALANCER {
            self.set_rules(request, body).await?;
            return self.look_at(id, &body.name).await;
        }
        progress("asking Google Cloud");
        let inserted = match id.kind.as_str() {
            FILESYSTEM => self.insert_share(body).await,
            kind => self.insert(kind, &body.zone, &body.resource, &request.token).await,
        };
        let there = handle(&body.zone, &body.name);
        match inserted {
            Ok(()) => {}
            // From a call whose reply was lost, in this process or another: what is there says whether it is ours.
            Err(failure) if failure.cause == Cause::AlreadyExists => self.is_this_generation(request, &there).await?,
            Err(failure) => return Err(failure),
        }
        if id.kind == INSTANCE_GROUP && self.raw(&id.kind, &there).await?.is_some() {
            self.set_members(&there, body).await?;
        }
        self.settled(request, &there, progress).await
    }

    /// Google answers a request id that it knows with the operation of the first time, also when that failed: then, and only then, the
    /// next id in a row that every process goes through in the same order.
    async fn insert(&self, kind: &str, zone: &str, resource: &Value, token: &str) -> Answer<()> {
        let collection = collection(&self.api, kind).ok_or_else(|| Failure::new(Cause::Refused, format!("kind {kind} is not Google's")))?;
        let mut request_id = names::request_id(&[token]);
        for _ in 1..MOST_FAILED_BEFORE {
            let operation = collection.insert(self.place(zone), resource, &request_id).await?;
            let failed_before = operation["status"] == "DONE" && Failure::of_operation(&operation).is_some();
            if !failed_before {
                return self.api.finished(&self.settings.project, operation).await;
            }
            request_id = names::request_id(&[token, operation["name"].as_str().unwrap_or_default()]);
        }
        let operation = collection.insert(self.place(zone), resource, &request_id).await?;
        self.api.finished(&self.settings.project, operation).await
    }

    /// What has our name must have our mark, too, or nothing of it is touched.
    async fn is_this_generation(&self, request: &Request, there: &str) -> Answer<()> {
        let Some(thing) = self.raw(&request.id.kind, there).await? else { return Ok(()) };
        match names::mark(&self.cluster.uid, &thing) {
            Some(mark) if mark.id == request.id && mark.generation == request.generation => Ok(()),
            Some(mark) => Err(Failure::new(Cause::NotReady, format!("generation {} of {} is still there", mark.generation, mark.id))),
            None => Err(Failure::new(Cause::Refused, format!("{there} exists and is not this cluster's"))),
        }
    }

    /// Looks until it is ready, or as it will stay, or gone.
    async fn settled(&self, request: &Request, handle: &str, progress: Progress<'_>) -> Answer<Option<Observed>> {
        let mut pause = FIRST_LOOK;
        loop {
            let seen = match request.id.kind.as_str() {
                MACHINE => self.machine_together(&request.id, handle).await?,
                _ => self.look_at(&request.id, handle).await?,
            };
            match seen {
                // It boots, and nobody will ever learn its keys: waiting would not end.
                Some(thing) if thing.outputs["hostKeysRefused"].is_string() => {
                    let why = thing.outputs["hostKeysRefused"].as_str().unwrap_or_default();
                    return Err(Failure::new(Cause::Denied, format!("could not read the guest attributes of {handle}: {why}")));
                }
                Some(thing) if matches!(thing.phase, Phase::Pending | Phase::Deleting) => {
                    progress(match (&thing.phase, request.id.kind.as_str()) {
                        (Phase::Deleting, _) => "going",
                        (_, MACHINE) => "booting; waiting for its host keys",
                        _ => "waiting until it is ready",
                    });
                }
                other => return Ok(other),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_LOOK);
        }
    }

    async fn update(&self, request: &Request, body: &Body, handle: &str) -> Answer<Option<Observed>> {
        self.is_ours(request, handle).await?;
        let (zone, name) = of_handle(handle);
        let place = self.place(zone);
        let once = names::request_id(&[&uuid::Uuid::new_v4().to_string()]);
        let operation = match request.id.kind.as_str() {
            LOAD_BALANCER => {
                self.set_rules(request, body).await?;
                None
            }
            INSTANCE_GROUP => {
                self.set_members(handle, body).await?;
                None
            }
            FILESYSTEM => {
                self.grow_share(handle, body).await?;
                None
            }
            MACHINE => {
                self.set_keys(handle, |_| Ok(key_lines(body))).await?;
                None
            }
            FIREWALL => {
                let mut rule = body.resource.clone();
                rule["disabled"] = json!(false);
                let call = self.api.firewalls.patch().set_project(place.project).set_firewall(name);
                Some(retry::repeatable(call.set_request_id(once).set_body::<Firewall>(typed(&rule)?)).send().await?)
            }
            HEALTH_CHECK => {
                let call = self.api.health_checks.patch().set_project(place.project).set_region(place.region).set_health_check(name);
                Some(retry::repeatable(call.set_request_id(once).set_body::<HealthCheck>(typed(&body.resource)?)).send().await?)
            }
            BACKEND_SERVICE => {
                let mut service = body.resource.clone();
                let now = self.raw(&request.id.kind, handle).await?.unwrap_or_default();
                service["fingerprint"] = now["fingerprint"].clone();
                let call = self.api.backend_services.patch().set_project(place.project).set_region(place.region).set_backend_service(name);
                Some(retry::repeatable(call.set_request_id(once).set_body::<BackendService>(typed(&service)?)).send().await?)
            }
            // Nothing of the others can change.
            _ => None,
        };
        if let Some(operation) = operation {
            self.api.finished(place.project, super::api::plain(operation)?).await?;
        }
        self.look_at(&request.id, handle).await
    }

    /// Read again right before it is touched: under a handle there may be somebody else's by now.
    async fn is_ours(&self, request: &Request, handle: &str) -> Answer<bool> {
        if request.id.kind == LOAD_BALANCER {
            return Ok(self.look_at(&request.id, handle).await?.is_some());
        }
        let Some(thing) = self.raw(&request.id.kind, handle).await? else { return Ok(false) };
        match names::mark(&self.cluster.uid, &thing) {
            Some(mark) if mark.id == request.id => Ok(true),
            _ => Err(Failure::new(Cause::Refused, format!("{handle} is not this cluster's {}", request.id))),
        }
    }

    async fn repair(&self, request: &Request, handle: &str, progress: Progress<'_>) -> Answer<Option<Observed>> {
        if request.id.kind == MACHINE && self.is_ours(request, handle).await? {
            let (zone, name) = of_handle(handle);
            let once = uuid::Uuid::new_v4().to_string();
            let (project, instances) = (&self.settings.project, &self.api.instances);
            let operation = if self.raw(MACHINE, handle).await?.is_some_and(|machine| machine["status"] == "SUSPENDED") {
                let call = instances.resume().set_project(project).set_zone(zone).set_instance(name);
                retry::repeatable(call.set_request_id(once)).send().await?
            } else {
                let call = instances.start().set_project(project).set_zone(zone).set_instance(name);
                retry::repeatable(call.set_request_id(once)).send().await?
            };
            progress("starting");
            self.api.finished(project, super::api::plain(operation)?).await?;
        }
        self.settled(request, handle, progress).await
    }

    async fn delete(&self, request: &Request, handle: &str) -> Answer<()> {
        if request.id.kind == LOAD_BALANCER {
            return self.delete_rules(request, handle, &BTreeSet::new()).await;
        }
        if !self.is_ours(request, handle).await? {
            return Ok(());
        }
        let ended = match request.id.kind.as_str() {
            FILESYSTEM => self.delete_share(handle).await,
            kind => self.remove(kind, handle).await,
        };
        match ended {
            Err(failure) if failure.cause == Cause::NotFound => Ok(()),
            // Filestore takes its peering out of the network a while after its last instance.
            Err(failure) if failure.cause == Cause::InUse && request.id.kind == NETWORK && failure.text.contains("peering") => {
                Err(Failure::new(Cause::NotReady, failure.text))
            }
            Err(failure) => Err(failure),
            Ok(()) => match self.raw(&request.id.kind, handle).await? {
                None => Ok(()),
                Some(_) => Err(Failure::new(Cause::NotReady, "it is still there after its deletion ended")),
            },
        }
    }

    /// A request id of this very call: a repeat of a later deletion must not be taken for it.
    async fn remove(&self, kind: &str, handle: &str) -> Answer<()> {
        let (zone, name) = of_handle(handle);
        let collection = collection(&self.api, kind).ok_or_else(|| Failure::new(Cause::Refused, format!("kind {kind} is not Google's")))?;
        let operation = collection.delete(self.place(zone), name, &uuid::Uuid::new_v4().to_string()).await?;
        self.api.finished(&self.settings.project, operation).await
    }

    /// The wished rules and no others; a rule that stands is not touched.
    async fn set_rules(&self, request: &Request, body: &Body) -> Answer<()> {
        let wished: BTreeSet<&str> = body.rules.iter().filter_map(|rule| rule["name"].as_str()).collect();
        self.delete_rules(request, &body.name, &wished).await?;
        for rule in &body.rules {
            let name = rule["name"].as_str().unwrap_or_default();
            if self.raw(LOAD_BALANCER, name).await?.is_some_and(|there| names::mark(&self.cluster.uid, &there).is_some()) {
                continue;
            }
            // A change there and back must not be taken for a repeat of the first: no token of the resource's, but one of this call.
            match self.insert(LOAD_BALANCER, "", rule, &uuid::Uuid::new_v4().to_string()).await {
                Err(failure) if failure.cause == Cause::AlreadyExists => self.is_this_generation(request, name).await?,
                other => other?,
            }
        }
        Ok(())
    }

    async fn delete_rules(&self, request: &Request, handle: &str, keep: &BTreeSet<&str>) -> Answer<()> {
        for rule in self.list(LOAD_BALANCER).await? {
            let name = rule["name"].as_str().unwrap_or_default();
            let ours = names::mark(&self.cluster.uid, &rule).is_some_and(|mark| mark.id == request.id);
            if !ours || keep.contains(name) || names::name(&self.cluster, &request.id) != handle {
                continue;
            }
            match self.remove(LOAD_BALANCER, name).await {
                Err(failure) if failure.cause == Cause::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Adds who is missing and removes who is too many: both without effect when repeated.
    async fn set_members(&self, handle: &str, body: &Body) -> Answer<()> {
        let (zone, name) = of_handle(handle);
        let now = self.member_urls(handle).await?;
        let short = |url: &String| super::operations::last(url).to_string();
        let (are, should): (BTreeSet<String>, BTreeSet<String>) =
            (now.iter().map(short).collect(), body.members.iter().map(short).collect());
        let listed = |which: Vec<&String>| {
            let path = |name: &String| json!({"instance": format!("projects/{}/zones/{zone}/instances/{name}", self.settings.project)});
            json!({"instances": which.into_iter().map(path).collect::<Vec<Value>>()})
        };
        let (missing, spare): (Vec<_>, Vec<_>) = (should.difference(&are).collect(), are.difference(&should).collect());
        let groups = &self.api.instance_groups;
        if !missing.is_empty() {
            let call = groups.add_instances().set_project(&self.settings.project).set_zone(zone).set_instance_group(name);
            let call = call.set_request_id(uuid::Uuid::new_v4().to_string()).set_body::<AddInstances>(typed(&listed(missing))?);
            self.api.finished(&self.settings.project, super::api::plain(retry::repeatable(call).send().await?)?).await?;
        }
        if !spare.is_empty() {
            let call = groups.remove_instances().set_project(&self.settings.project).set_zone(zone).set_instance_group(name);
            let call = call.set_request_id(uuid::Uuid::new_v4().to_string()).set_body::<RemoveInstances>(typed(&listed(spare))?);
            self.api.finished(&self.settings.project, super::api::plain(retry::repeatable(call).send().await?)?).await?;
        }
        Ok(())
    }

    /// Replaces an instance's `ssh-keys` in one step: its fingerprint makes somebody else's change meanwhile an error, and no loss.
    pub(super) async fn set_keys(&self, handle: &str, change: impl Fn(&str) -> Answer<String>) -> Answer<()> {
        let (zone, name) = of_handle(handle);
        let missing = || Failure::new(Cause::NotFound, format!("{handle} is not there"));
        let instance = self.raw(MACHINE, handle).await?.ok_or_else(missing)?;
        let mut metadata = json!({"fingerprint": instance["metadata"]["fingerprint"], "items": instance["metadata"]["items"]});
        let items = metadata["items"].as_array_mut().ok_or_else(missing)?;
        match items.iter_mut().find(|item| item["key"] == "ssh-keys") {
            Some(item) => item["value"] = json!(change(item["value"].as_str().unwrap_or_default())?),
            None => items.push(json!({"key": "ssh-keys", "value": change("")?})),
        }
        let call = self.api.instances.set_metadata().set_project(&self.settings.project).set_zone(zone).set_instance(name);
        let call = call.set_request_id(uuid::Uuid::new_v4().to_string()).set_body::<Metadata>(typed(&metadata)?);
        let operation = retry::repeatable(call).send().await?;
        self.api.finished(&self.settings.project, super::api::plain(operation)?).await
    }
}

type Firewall = google_cloud_compute_v1::model::Firewall;
type HealthCheck = google_cloud_compute_v1::model::HealthCheck;
type BackendService = google_cloud_compute_v1::model::BackendService;
type Metadata = google_cloud_compute_v1::model::Metadata;
type AddInstances = google_cloud_compute_v1::model::InstanceGroupsAddInstancesRequest;
type RemoveInstances = google_cloud_compute_v1::model::InstanceGroupsRemoveInstancesRequest;

/// The `ssh-keys` of a wished instance.
fn key_lines(body: &Body) -> String {
    let items = body.resource["metadata"]["items"].as_array().into_iter().flatten();
    items.filter(|item| item["key"] == "ssh-keys").filter_map(|item| item["value"].as_str()).collect()
}
