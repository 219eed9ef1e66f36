//! The writer's epoch in the project itself: one unused global health check per epoch. Names are unique, so making one is the
//! compare-and-swap; it costs nothing and its description holds the owner.

use super::Gcp;
use super::api::{Answer, Collection};
use super::failure::{Cause, Failure};
use super::names;
use crate::engine::Id;
use crate::engine::handoff::{Epoch, EpochStore};
use crate::error::Result;
use crate::providers::ownership::Mark;
use async_trait::async_trait;
use serde_json::{Value, json};

pub const KIND: &str = "epoch";
const OWNER: &str = "kprov-epoch-owner";

#[async_trait]
impl EpochStore for Gcp {
    async fn read(&self) -> Result<Option<Epoch>> {
        let read = self.epochs_there().await.map_err(|failure| self.error(failure, "could not read who writes"))?;
        Ok(read.into_iter().max_by_key(|epoch| epoch.epoch))
    }

    async fn swap(&self, expected: Option<&Epoch>, next: &Epoch) -> Result<bool> {
        let current = EpochStore::read(self).await?;
        if current.as_ref() == Some(next) {
            return Ok(true);
        }
        if current.as_ref() != expected || expected.is_some_and(|expected| expected.epoch >= next.epoch) {
            return Ok(false);
        }
        let written = self.write_epoch(next).await;
        written.map_err(|failure| self.error(failure, "could not become the cluster's writer"))?;
        // Whoever made the same number first, or a higher one meanwhile, is the writer.
        let ours = EpochStore::read(self).await?.as_ref() == Some(next);
        if ours {
            self.forget_epochs(next.epoch).await;
        }
        Ok(ours)
    }
}

impl Gcp {
    async fn epochs_there(&self) -> Answer<Vec<Epoch>> {
        let things = Collection::list(&self.api.global_health_checks, self.place(""), &names::name_filter(&self.cluster.uid)).await?;
        Ok(things.iter().filter_map(|thing| epoch(&self.cluster.uid, thing)).collect())
    }

    async fn write_epoch(&self, next: &Epoch) -> Answer<()> {
        let id = Id::new(KIND, next.epoch.to_string());
        let mark = Mark::new(&self.cluster, &id, 1);
        let body = json!({
            "name": names::name(&self.cluster, &id),
            "description": names::description(&mark, &[(OWNER, &next.owner), (names::REGION, &self.settings.region)]),
            "type": "TCP",
            "tcpHealthCheck": {"port": 1},
        });
        // One request id per owner: another owner's try is another request, and is refused by the name.
        let request_id = names::request_id(&[&self.cluster.uid, &next.epoch.to_string(), &next.owner, &uuid::Uuid::new_v4().to_string()]);
        let made = async {
            let operation = Collection::insert(&self.api.global_health_checks, self.place(""), &body, &request_id).await?;
            self.api.finished(&self.settings.project, operation).await
        };
        match made.await {
            Err(failure) if failure.cause == Cause::AlreadyExists => Ok(()),
            end => end,
        }
    }

    /// Removes the records below `keep`; one that stays harms nobody, the next writer tries again.
    async fn forget_epochs(&self, keep: u64) -> Vec<String> {
        let mut left = Vec::new();
        for old in self.epochs_there().await.unwrap_or_default().into_iter().filter(|old| old.epoch < keep) {
            let name = names::name(&self.cluster, &Id::new(KIND, old.epoch.to_string()));
            match self.forget_epoch(&name).await {
                Err(failure) if failure.cause != Cause::NotFound => left.push(format!("health check {name}: {}", failure.text)),
                _ => {}
            }
        }
        left
    }

    async fn forget_epoch(&self, name: &str) -> Answer<()> {
        let checks = &self.api.global_health_checks;
        let operation = Collection::delete(checks, self.place(""), name, &uuid::Uuid::new_v4().to_string()).await?;
        self.api.finished(&self.settings.project, operation).await
    }

    /// After the last thing has gone nobody needs to know who wrote.
    pub(super) async fn forget_all_epochs(&self) -> Vec<String> {
        match self.epochs_there().await {
            Ok(there) if there.is_empty() => Vec::new(),
            Ok(_) => self.forget_epochs(u64::MAX).await,
            Err(Failure { text, .. }) => vec![format!("records of writers, perhaps: {text}")],
        }
    }
}

fn epoch(uid: &str, thing: &Value) -> Option<Epoch> {
    let mark = names::mark(uid, thing).filter(|mark| mark.id.kind == KIND)?;
    Some(Epoch { epoch: mark.id.name.parse().ok()?, owner: names::described(thing).remove(OWNER)? })
}
