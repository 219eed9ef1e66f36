//! Filestore: the shared filesystems. Another API than Compute, with paths for names and long-running operations of its own.

use super::Gcp;
use super::api::{Answer, plain, typed};
use super::failure::{Cause, Failure, cause};
use super::names;
use super::operations::last;
use super::read::number;
use super::request::{Body, of_handle};
use super::retry;
use google_cloud_filestore_v1::model::{Instance, UpdateInstanceRequest};
use serde_json::{Value, json};
use std::time::Duration;

/// An instance takes minutes to make.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What operations say by gRPC's numbers.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

impl Gcp {
    /// Every instance of ours, wherever in the project.
    pub(super) async fn shares(&self) -> Answer<Vec<Value>> {
        let (mut found, mut page) = (Vec::new(), String::new());
        loop {
            let call = self.api.filestore.list_instances().set_parent(self.location("-")).set_page_token(page);
            let answer = call.set_filter(names::label_filter(&self.cluster.uid)).send().await?;
            if let Some(zone) = unseen(&answer.unreachable, &self.settings.region) {
                return Err(Failure::new(Cause::Transient, format!("Filestore cannot see into {zone} at the moment")));
            }
            found.extend(answer.instances.into_iter().filter_map(|instance| plain(instance).ok()));
            page = answer.next_page_token;
            if page.is_empty() {
                return Ok(found);
            }
        }
    }

    pub(super) async fn share(&self, handle: &str) -> Answer<Value> {
        plain(self.api.filestore.get_instance().set_name(self.share_path(handle)).send().await?)
    }

    /// Its name is all that makes a repeat harmless: the second is told that the first is there.
    pub(super) async fn insert_share(&self, body: &Body) -> Answer<()> {
        let call = self.api.filestore.create_instance().set_parent(self.location(&body.zone)).set_instance_id(&body.name);
        let started = retry::repeatable(call.set_instance::<Instance>(typed(&body.resource)?)).send().await?;
        self.share_finished(plain(started)?).await
    }

    /// Only upwards: a basic instance cannot shrink, and another one would not have the data.
    pub(super) async fn grow_share(&self, handle: &str, body: &Body) -> Answer<()> {
        let now = self.share(handle).await?;
        let capacity = |thing: &Value| number(&thing["fileShares"][0]["capacityGb"]).unwrap_or_default();
        let (is, wished) = (capacity(&now), capacity(&body.resource));
        if wished < is {
            return Err(Failure::new(
                Cause::Refused,
                format!("a Filestore instance cannot shrink: it has {is} GiB, the blueprint {wished}"),
            ));
        }
        if wished == is {
            return Ok(());
        }
        let change = json!({"name": self.share_path(handle), "fileShares": body.resource["fileShares"]});
        let change: UpdateInstanceRequest = typed(&json!({"updateMask": "fileShares", "instance": change}))?;
        let started = retry::repeatable(self.api.filestore.update_instance().with_request(change)).send().await?;
        self.share_finished(plain(started)?).await
    }

    pub(super) async fn delete_share(&self, handle: &str) -> Answer<()> {
        let started = retry::repeatable(self.api.filestore.delete_instance().set_name(self.share_path(handle))).send().await?;
        self.share_finished(plain(started)?).await
    }

    async fn share_finished(&self, mut operation: Value) -> Answer<()> {
        let mut pause = FIRST_PAUSE;
        while operation["done"] != true {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            let name = operation["name"].as_str().unwrap_or_default();
            operation = plain(self.api.filestore.get_operation().set_name(name).send().await?)?;
        }
        failure(&operation).map_or(Ok(()), Err)
    }

    fn location(&self, zone: &str) -> String {
        format!("projects/{}/locations/{zone}", self.settings.project)
    }

    fn share_path(&self, handle: &str) -> String {
        let (zone, name) = of_handle(handle);
        format!("{}/instances/{name}", self.location(zone))
    }
}

/// A location of ours that a list leaves out: what is missing in such a list may be there all the same.
fn unseen<'a>(unreachable: &'a [String], region: &str) -> Option<&'a str> {
    unreachable
        .iter()
        .map(|location| last(location))
        .find(|location| location.strip_prefix(region).is_some_and(|zone| zone.is_empty() || zone.starts_with('-')))
}

/// A finished operation's own error.
fn failure(operation: &Value) -> Option<Failure> {
    let error = operation.get("error").filter(|error| !error.is_null())?;
    let code = error["code"].as_u64().unwrap_or(2) as usize;
    let text = error["message"].as_str().unwrap_or_default();
    Some(match CODES.get(code) {
        Some(&"RESOURCE_EXHAUSTED") => Failure::new(Cause::Quota, text),
        Some(&"PERMISSION_DENIED") => Failure::new(Cause::Denied, text),
        Some(&"UNAVAILABLE" | &"INTERNAL") => Failure::new(Cause::Transient, text),
        name => Failure::new(cause(None, &[name.unwrap_or(&"UNKNOWN").to_string()], text), text),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_operation_of_filestore_is_a_failure() {
        let failed = |code: u64| failure(&json!({"done": true, "error": {"code": code, "message": "m"}})).map(|failure| failure.cause);
        assert_eq!(failed(8), Some(Cause::Quota));
        assert_eq!(failed(6), Some(Cause::AlreadyExists));
        assert_eq!(failed(5), Some(Cause::NotFound));
        assert_eq!(failed(14), Some(Cause::Transient));
        assert_eq!(failed(9), Some(Cause::Refused));
        assert_eq!(failure(&json!({"done": true, "response": {}})), None);
    }

    #[test]
    fn only_a_location_of_the_clusters_own_region_matters_when_it_is_not_seen() {
        let check = |unreachable: &str, expected: Option<&str>| assert_eq!(unseen(&[unreachable.into()], "europe-west1"), expected);
        check("projects/p/locations/europe-west1-b", Some("europe-west1-b"));
        check("europe-west1", Some("europe-west1"));
        check("projects/p/locations/europe-west10-a", None);
        check("us-east1-b", None);
    }
}
