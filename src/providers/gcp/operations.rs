//! Operations: what every change at Google starts, and what it came to. One that ended is not one that succeeded.

use super::api::{Answer, Api, plain};
use super::failure::{Cause, Failure};
use super::retry;
use serde_json::Value;
use std::time::Duration;

/// An operation may be asked for before it shows; one that stays away for so many looks was never started.
const UNSEEN: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl Api {
    /// Until the operation is done; its own error is this call's error. The engine's deadline bounds it.
    pub async fn finished(&self, project: &str, started: Value) -> Answer<()> {
        let (mut operation, mut unseen, mut pause) = (started, 0, FIRST_PAUSE);
        while operation["status"] != "DONE" {
            match self.wait(project, &operation).await {
                Ok(now) => operation = now,
                Err(failure) if failure.cause == Cause::NotFound && unseen < UNSEEN => unseen += 1,
                Err(failure) if failure.cause == Cause::NotFound => return Err(Failure::new(Cause::Transient, failure.text)),
                Err(failure) => return Err(failure),
            }
            if operation["status"] != "DONE" {
                // The wait answers when it is done, or after two minutes: a shorter answer must not become a busy loop.
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
        Failure::of_operation(&operation).map_or(Ok(()), Err)
    }

    async fn wait(&self, project: &str, operation: &Value) -> Answer<Value> {
        let name = operation["name"].as_str().unwrap_or_default();
        if let Some(zone) = operation["zone"].as_str() {
            let call = self.zone_operations.wait().set_project(project).set_zone(last(zone)).set_operation(name);
            plain(retry::repeatable(call).send().await?)
        } else if let Some(region) = operation["region"].as_str() {
            let call = self.region_operations.wait().set_project(project).set_region(last(region)).set_operation(name);
            plain(retry::repeatable(call).send().await?)
        } else {
            plain(retry::repeatable(self.global_operations.wait().set_project(project).set_operation(name)).send().await?)
        }
    }
}

/// `europe-west1-b` of `https://.../zones/europe-west1-b`.
pub fn last(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or(url)
}
