//! Tells the API a pod's status: only the latest, for as long as it takes, and then that the pod may be forgotten.

use super::sandbox::{name, namespace, uid};
use crate::error::Error;
use crate::orchestrator::client::backoff::Backoff;
use crate::orchestrator::client::{Client, Delete, Failure, Patch};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::watch;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wanted {
    pub status: Option<Value>,
    /// The pod is gone from this node: delete it from the API for good.
    pub delete: bool,
}

/// One per pod; dropping it ends the task behind it.
pub struct Publisher {
    wanted: watch::Sender<Wanted>,
    task: tokio::task::JoinHandle<()>,
}

impl Publisher {
    pub fn start(client: Client, pod: &Pod) -> Publisher {
        let (wanted, receiver) = watch::channel(Wanted::default());
        let writer = Writer { client, namespace: namespace(pod).to_owned(), name: name(pod).to_owned(), uid: uid(pod).to_owned() };
        Publisher { wanted, task: tokio::spawn(writer.run(receiver)) }
    }

    /// Does nothing when the API was told this already.
    pub fn status(&self, status: Value) {
        self.wanted.send_if_modified(|wanted| {
            let changed = wanted.status.as_ref() != Some(&status);
            wanted.status = Some(status);
            changed
        });
    }

    /// What was told last.
    pub fn last(&self) -> Option<Value> {
        self.wanted.borrow().status.clone()
    }

    /// Returns once the API has heard the last status and forgotten the pod.
    pub async fn finish(mut self) {
        self.wanted.send_modify(|wanted| wanted.delete = true);
        let _ = (&mut self.task).await;
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Writer {
    client: Client,
    namespace: String,
    name: String,
    uid: String,
}

impl Writer {
    async fn run(self, mut wanted: watch::Receiver<Wanted>) {
        // 200 ms to 7 s, as upstream's node lease: quick after a restart of the API, gentle while it is away.
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(7), rand::random());
        let mut told: Option<Value> = None;
        while wanted.changed().await.is_ok() {
            loop {
                let now = wanted.borrow_and_update().clone();
                match self.tell(&now, &mut told).await {
                    Ok(()) if now.delete => return,
                    Ok(()) => break,
                    // Somebody forgot the pod already, or another one has its name: there is nobody left to tell.
                    Err(failure) if failure.is_not_found() && now.delete => return,
                    Err(failure) if failure.is_not_found() => break,
                    Err(failure) => {
                        let invalid = failure.is_invalid();
                        tracing::warn!(pod = %self.name, error = %Error::from(failure).chain(), "could not tell the API a pod's status");
                        if invalid && !now.delete {
                            break;
                        }
                        tokio::time::sleep(backoff.next_delay()).await;
                    }
                }
            }
            backoff.reset();
        }
    }

    async fn tell(&self, wanted: &Wanted, told: &mut Option<Value>) -> Result<(), Failure> {
        if wanted.status != *told
            && let Some(status) = &wanted.status
        {
            // The uid makes sure that a new pod of the same name is not given an old one's status.
            let patch = json!({"metadata": {"uid": self.uid}, "status": status});
            match self.client.patch::<Pod>(&self.namespace, &self.name, "status", Patch::Merge, &patch).await {
                // On the way out a status that the API refuses must not keep the pod for ever.
                Err(failure) if wanted.delete && (failure.is_invalid() || failure.is_conflict()) => {}
                other => drop(other?),
            }
            *told = wanted.status.clone();
        }
        if !wanted.delete {
            return Ok(());
        }
        let delete = Delete { uid: Some(self.uid.clone()), grace_seconds: Some(0), propagation: None };
        match self.client.delete::<Pod>(&self.namespace, &self.name, &delete).await {
            // The name belongs to a new pod already.
            Err(failure) if failure.is_conflict() => Ok(()),
            other => other,
        }
    }
}
