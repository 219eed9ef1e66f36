//! What a decision asks for: writes as data, printable, carried out in one place.

use crate::orchestrator::client::{Client, Delete, Failure, Kind, Object, Patch, path};
use serde_json::{Value, json};

#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    Create { path: String, body: Value },
    Patch { path: String, kind: Patch, body: Value },
    Delete { path: String, delete: Delete },
}

impl Write {
    pub fn create<K: Kind>(namespace: &str, body: Value) -> Self {
        Write::Create { path: path::<K>(namespace, "", ""), body }
    }
    /// A merge patch that holds only for the version this decision was made on.
    pub fn merge_at<K: Kind>(object: &impl Object, subresource: &str, mut body: Value) -> Self {
        body["metadata"]["resourceVersion"] = json!(object.version());
        Self::merge::<K>(object, subresource, body)
    }
    /// A merge patch that holds whatever the version is: for fields with one writer.
    pub fn merge<K: Kind>(object: &impl Object, subresource: &str, body: Value) -> Self {
        Write::Patch { path: path::<K>(object.namespace(), object.name(), subresource), kind: Patch::Merge, body }
    }
    /// Deletes this very object, not a later one of its name.
    pub fn delete<K: Kind>(object: &impl Object) -> Self {
        Write::Delete { path: path::<K>(object.namespace(), object.name(), ""), delete: Delete::uid(object.uid()) }
    }

    pub async fn apply(&self, client: &Client) -> Result<(), Failure> {
        match self {
            Write::Create { path, body } => client.create_value(path, body).await.map(drop),
            Write::Patch { path, kind, body } => client.patch_value(path, *kind, body).await.map(drop),
            Write::Delete { path, delete } => client.delete_value(path, delete).await,
        }
    }
}

/// In order; stops at the first that fails. What exists already counts as created: names are deterministic.
pub async fn apply_all(client: &Client, writes: &[Write]) -> Result<(), Failure> {
    for write in writes {
        match write.apply(client).await {
            Err(failure) if failure.is_already_exists() => {}
            // The next watch event says so anyway; a missing object needs no patch.
            Err(failure) if failure.is_not_found() && matches!(write, Write::Patch { .. }) => {}
            other => other?,
        }
    }
    Ok(())
}
