//! What exists of a cluster: every collection asked at once, by labels where there are some, by name and mark where not.

use super::Gcp;
use super::api::{Answer, collection, plain, typed};
use super::failure::{Cause, Failure};
use super::names;
use super::operations::last;
use super::read::{self, Beside};
use super::request::{handle_of, of_handle};
use super::resources::*;
use super::retry;
use crate::engine::{Id, Observed};
use crate::error::Result;
use crate::providers::resources::{FILESYSTEM, LOAD_BALANCER, MACHINE, NETWORK};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Questions about single machines at once: far below Google's rate, and 500 machines are read within seconds.
const AT_ONCE: usize = 16;

/// Compute kinds that are found by name and mark.
const BY_NAME: [&str; 7] = [NETWORK, SUBNETWORK, FIREWALL, ADDRESS, HEALTH_CHECK, BACKEND_SERVICE, INSTANCE_GROUP];

/// Between two lists of all machines, however many are waited for: Compute Engine allows 1,500 a minute.
const APART: Duration = Duration::from_millis(250);

/// Between two questions about single machines: with the lists of all, below the 1,500 reads a minute. The first so many are free.
const BETWEEN_GUESTS: Duration = Duration::from_millis(80);
const GUESTS_AT_ONCE: u32 = 50;

/// When a list of all machines began, and what it said.
pub type SharedList = tokio::sync::Mutex<Option<(Instant, Arc<Vec<Value>>)>>;

impl Gcp {
    pub(super) async fn look_at_all(&self) -> Result<Vec<Observed>> {
        let looked = async {
            let (things, instances, rules, shares) =
                futures::try_join!(self.things_by_name(), self.instances(), self.list(LOAD_BALANCER), self.shares())?;
            let names = logical_names(&self.cluster.uid, &instances);
            let machine = |instance: Value| async move { self.machine(&instance).await };
            let thing = |thing: Value| self.thing(thing, &names);
            let machines = stream::iter(instances).map(machine).buffered(AT_ONCE).try_collect::<Vec<_>>();
            let others = stream::iter(things).map(thing).buffered(AT_ONCE).try_collect::<Vec<_>>();
            let (machines, others) = futures::try_join!(machines, others)?;
            let mut all: Vec<Observed> = machines.into_iter().chain(others).flatten().collect();
            all.extend(read::balancers(&self.cluster.uid, &rules, &serving(&all)));
            all.extend(shares.iter().filter_map(|share| read::observed(&self.cluster.uid, share, &Beside::default())));
            Ok(all)
        };
        looked.await.map_err(|failure: Failure| self.error(failure, "could not look at what exists in Google Cloud"))
    }

    /// One thing of ours under its handle; `None` when nothing of ours is there.
    pub(super) async fn look_at(&self, id: &Id, handle: &str) -> Answer<Option<Observed>> {
        match id.kind.as_str() {
            LOAD_BALANCER => {
                let (groups, instances, rules) = futures::try_join!(self.list(INSTANCE_GROUP), self.instances(), self.list(LOAD_BALANCER))?;
                let names = logical_names(&self.cluster.uid, &instances);
                let mut all = Vec::new();
                for group in groups {
                    all.extend(self.thing(group, &names).await?);
                }
                let balancers = read::balancers(&self.cluster.uid, &rules, &serving(&all));
                Ok(balancers.into_iter().find(|balancer| balancer.id == *id && balancer.handle == handle))
            }
            _ => {
                let Some(thing) = self.raw(&id.kind, handle).await? else { return Ok(None) };
                match id.kind.as_str() {
                    MACHINE => self.machine(&thing).await,
                    INSTANCE_GROUP => self.thing(thing, &logical_names(&self.cluster.uid, &self.instances().await?)).await,
                    _ => Ok(read::observed(&self.cluster.uid, &thing, &Beside::default())),
                }
            }
        }
    }

    /// The API's own words about what is under a handle, whoever owns it.
    pub(super) async fn raw(&self, kind: &str, handle: &str) -> Answer<Option<Value>> {
        let (zone, name) = of_handle(handle);
        let answer = match (kind, collection(&self.api, kind)) {
            // A zone that a handle lacks would be an empty part of a path.
            (MACHINE | INSTANCE_GROUP | FILESYSTEM, _) if zone.is_empty() => return Ok(None),
            (FILESYSTEM, _) => self.share(handle).await,
            (_, Some(collection)) => collection.get(self.place(zone), name).await,
            (kind, None) => Err(Failure::new(Cause::Refused, format!("kind {kind} is not Google's"))),
        };
        match answer {
            Ok(thing) => Ok(Some(thing)),
            Err(failure) if failure.cause == Cause::NotFound => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Everything of a kind that may be ours.
    pub(super) async fn list(&self, kind: &str) -> Answer<Vec<Value>> {
        let Some(collection) = collection(&self.api, kind) else { return Ok(Vec::new()) };
        collection.list(self.place(""), &names::name_filter(&self.cluster.uid)).await
    }

    async fn things_by_name(&self) -> Answer<Vec<Value>> {
        let lists = futures::future::try_join_all(BY_NAME.iter().map(|kind| self.list(kind))).await?;
        Ok(lists.into_iter().flatten().collect())
    }

    /// By their labels: one question for all zones.
    pub(super) async fn instances(&self) -> Answer<Vec<Value>> {
        let Some(instances) = collection(&self.api, MACHINE) else { return Ok(Vec::new()) };
        instances.list(self.place(""), &names::label_filter(&self.cluster.uid)).await
    }

    /// One list for all that wait for machines: it begins after each of them asked, and serves them together.
    pub(super) async fn machine_together(&self, id: &Id, handle: &str) -> Answer<Option<Observed>> {
        let asked = Instant::now();
        let instances = {
            let mut last = self.machines.lock().await;
            if last.as_ref().is_none_or(|(began, _)| *began < asked) {
                if let Some((began, _)) = &*last {
                    tokio::time::sleep_until(*began + APART).await;
                }
                *last = Some((Instant::now(), Arc::new(self.instances().await?)));
            }
            last.as_ref().map(|(_, instances)| instances.clone()).unwrap_or_default()
        };
        match instances.iter().find(|instance| handle_of(instance) == handle) {
            Some(instance) => self.machine(instance).await,
            // A list may lag; what is asked for by name does not.
            None => self.look_at(id, handle).await,
        }
    }

    async fn machine(&self, instance: &Value) -> Answer<Option<Observed>> {
        let mut beside = Beside::default();
        if instance["status"] == "RUNNING" {
            match self.host_keys(instance).await {
                Ok(keys) => beside.host_keys = keys,
                // Looks must go on where a policy or a missing permission hides the keys: `down` needs none.
                Err(failure) if is_for_good(failure.cause) => beside.refused = Some(failure.text),
                Err(failure) => return Err(failure),
            }
        }
        Ok(read::observed(&self.cluster.uid, instance, &beside))
    }

    async fn thing(&self, thing: Value, names: &BTreeMap<String, String>) -> Answer<Option<Observed>> {
        let is_group = names::mark(&self.cluster.uid, &thing).is_some_and(|mark| mark.id.kind == INSTANCE_GROUP);
        let members = if is_group { self.members(&thing, names).await? } else { Vec::new() };
        Ok(read::observed(&self.cluster.uid, &thing, &Beside { members, ..Beside::default() }))
    }

    /// What the guest has published. Kept by the instance's number: another instance of this name has other keys.
    async fn host_keys(&self, instance: &Value) -> Answer<Vec<String>> {
        let number = instance["id"].to_string();
        if let Some(known) = self.host_keys.lock().get(&number) {
            return Ok(known.clone());
        }
        let turn = turn(Instant::now(), &mut self.asked_guests.lock());
        tokio::time::sleep_until(turn).await;
        let handle = handle_of(instance);
        let (zone, name) = of_handle(&handle);
        let call = self.api.instances.get_guest_attributes().set_project(&self.settings.project).set_zone(zone).set_instance(name);
        let keys = match call.set_query_path("hostkeys/").send().await.map_err(Failure::from) {
            Ok(attributes) => read::host_keys(&plain(attributes)?),
            // Nothing is published before the guest has booted.
            Err(failure) if failure.cause == Cause::NotFound => Vec::new(),
            Err(failure) => return Err(failure),
        };
        if !keys.is_empty() {
            self.host_keys.lock().insert(number, keys.clone());
        }
        Ok(keys)
    }

    /// The machines in a group, by name. A member that is no machine of ours keeps its own name, and so shows as a difference.
    async fn members(&self, group: &Value, names: &BTreeMap<String, String>) -> Answer<Vec<String>> {
        let urls = self.member_urls(&handle_of(group)).await?;
        let name = |url: &String| names.get(last(url)).cloned().unwrap_or_else(|| last(url).to_string());
        let mut members: Vec<String> = urls.iter().map(name).collect();
        members.sort();
        Ok(members)
    }

    pub(super) async fn member_urls(&self, handle: &str) -> Answer<Vec<String>> {
        let (zone, name) = of_handle(handle);
        let (mut found, mut page) = (Vec::new(), None);
        loop {
            let body = typed(&json!({"instanceState": "ALL"}))?;
            let call =
                self.api.instance_groups.list_instances().set_project(&self.settings.project).set_zone(zone).set_instance_group(name);
            let call = retry::repeatable(call.set_body::<google_cloud_compute_v1::model::InstanceGroupsListInstancesRequest>(body));
            let answer = match call.set_or_clear_page_token(page).send().await.map_err(Failure::from) {
                Ok(answer) => answer,
                // Deleted since it was listed.
                Err(failure) if failure.cause == Cause::NotFound => return Ok(found),
                Err(failure) => return Err(failure),
            };
            page = answer.next_page_token.clone().filter(|token| !token.is_empty());
            found.extend(answer.items.into_iter().filter_map(|item| item.instance));
            if page.is_none() {
                return Ok(found);
            }
        }
    }
}

/// When the next question about a single machine may be asked: at once while few are, and in a row that grows with those that wait. `last`
/// is where the row ends.
fn turn(now: Instant, last: &mut Option<Instant>) -> Instant {
    let quiet = now - BETWEEN_GUESTS * (GUESTS_AT_ONCE - 1);
    let free = last.map_or(quiet, |last| quiet.max(last + BETWEEN_GUESTS));
    *last = Some(free);
    free.max(now)
}

/// Another try would be refused, too. What is outdated (412) says of guest attributes that a policy forbids them.
fn is_for_good(cause: Cause) -> bool {
    matches!(cause, Cause::Denied | Cause::Refused | Cause::Changed)
}

/// Instance name to machine name.
pub(super) fn logical_names(uid: &str, instances: &[Value]) -> BTreeMap<String, String> {
    let named = instances.iter().filter_map(|instance| Some((instance["name"].as_str()?.to_string(), names::mark(uid, instance)?.id.name)));
    named.collect()
}

/// The machines in any group.
fn serving(all: &[Observed]) -> Vec<String> {
    let groups = all.iter().filter(|thing| thing.id.kind == INSTANCE_GROUP);
    let members = groups.flat_map(|group| group.spec["machines"].as_array().into_iter().flatten().filter_map(Value::as_str));
    members.map(str::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn few_machines_are_asked_at_once_and_many_stay_below_the_rate_limit() {
        let (start, mut last) = (Instant::now(), None);
        // As many that boot as wait in a large cluster, each asking every second for five minutes.
        let asked: Vec<Duration> = (0..5 * 60 * 500).map(|_| turn(start, &mut last) - start).collect();
        assert_eq!(asked[GUESTS_AT_ONCE as usize - 1], Duration::ZERO, "a small cluster never waits");
        let first_minute = asked.iter().filter(|when| **when < Duration::from_secs(60)).count();
        let lists = Duration::from_secs(60).as_millis() / APART.as_millis();
        assert!((700..1500 - lists as usize).contains(&first_minute), "{first_minute}");
        // After a quiet while the first are free again.
        let later = start + Duration::from_secs(5 * 60 * 500);
        assert_eq!((0..GUESTS_AT_ONCE).map(|_| turn(later, &mut last)).max(), Some(later));
    }
}
