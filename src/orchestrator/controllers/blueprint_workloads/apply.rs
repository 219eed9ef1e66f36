//! One object of a blueprint into the cluster: made, or merged when it changed since we applied it last, or left alone.

use super::three_way;
use crate::orchestrator::api::kinds::{KindRow, Registry};
use crate::orchestrator::client::{Client, Failure, Patch};
use serde_json::{Value, json};

/// What we applied last, as JSON, kept on the object itself.
pub const LAST_APPLIED: &str = "kprov.dev/last-applied";

/// Where an object lives.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    order: u8,
    pub kind: String,
    pub namespace: String,
    pub name: String,
    collection: String,
}

impl Place {
    pub fn path(&self) -> String {
        format!("{}/{}", self.collection, self.name)
    }
    pub fn shown(&self) -> String {
        let kind = self.kind.to_lowercase();
        if self.namespace.is_empty() { format!("{kind}/{}", self.name) } else { format!("{kind}/{}/{}", self.namespace, self.name) }
    }
}

/// What holds others comes before them.
fn order(kind: &str) -> u8 {
    match kind {
        "Namespace" => 0,
        "StorageClass" | "ServiceAccount" | "ConfigMap" | "Secret" | "PersistentVolume" => 1,
        "PersistentVolumeClaim" | "Service" => 2,
        _ => 3,
    }
}

pub fn row(object: &Value) -> Option<&'static KindRow> {
    let (group, version) = match object["apiVersion"].as_str()?.split_once('/') {
        Some(parts) => parts,
        None => ("", object["apiVersion"].as_str()?),
    };
    Registry::builtin().find_kind(group, version, object["kind"].as_str()?).map(|row| &**row)
}

/// Where this object belongs, or why it belongs nowhere.
pub fn place(object: &Value) -> Result<(Place, &'static KindRow), String> {
    let kind = object["kind"].as_str().unwrap_or_default().to_string();
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_string();
    let row = row(object)
        .ok_or_else(|| format!("{kind} {name}: this cluster does not serve {} {kind}", object["apiVersion"].as_str().unwrap_or("?")))?;
    if name.is_empty() {
        return Err(format!("a {kind} without a name"));
    }
    let namespace = if row.namespaced { object["metadata"]["namespace"].as_str().unwrap_or("default").to_string() } else { String::new() };
    let root = if row.group.is_empty() { format!("/api/{}", row.version) } else { format!("/apis/{}/{}", row.group, row.version) };
    let collection =
        if namespace.is_empty() { format!("{root}/{}", row.plural) } else { format!("{root}/namespaces/{namespace}/{}", row.plural) };
    Ok((Place { order: order(&kind), kind, namespace, name, collection }, row))
}

/// What must be done with the object that is there (or not): `None` when it was applied just so before, whatever others did to it since.
pub fn decide(row: &KindRow, wanted: &Value, there: Option<&Value>) -> Option<Step> {
    let note = wanted.to_string();
    let Some(there) = there else {
        let mut body = wanted.clone();
        body["metadata"]["annotations"][LAST_APPLIED] = json!(note);
        return Some(Step::Create(body));
    };
    let applied = there["metadata"]["annotations"][LAST_APPLIED].as_str();
    let applied: Option<Value> = applied.and_then(|text| serde_json::from_str(text).ok());
    if applied.as_ref() == Some(wanted) {
        return None;
    }
    let (format, mut body) = three_way::patch(row, applied.as_ref(), wanted);
    body["metadata"]["annotations"][LAST_APPLIED] = json!(note);
    Some(Step::Patch(format, body))
}

#[derive(Debug, PartialEq)]
pub enum Step {
    Create(Value),
    Patch(Patch, Value),
}

pub async fn apply(client: &Client, wanted: &Value, place: &Place, row: &KindRow) -> Result<(), Failure> {
    let there = client.get_value(&place.path()).await?;
    match decide(row, wanted, there.as_ref()) {
        None => Ok(()),
        Some(Step::Create(body)) => match client.create_value(&place.collection, &body).await {
            // Made by somebody in between: the next turn merges into it.
            Err(failure) if failure.is_already_exists() => {
                Err(Failure::Transport(crate::error::Error::conflict("it was made by another in between")))
            }
            outcome => outcome.map(drop),
        },
        Some(Step::Patch(format, body)) => client.patch_value(&place.path(), format, &body).await.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(replicas: i32) -> Value {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "shop"}, "spec": {"replicas": replicas}})
    }

    #[test]
    fn scaling_by_hand_is_not_undone_until_the_workload_changes() {
        let row = row(&deployment(2)).unwrap();
        let Some(Step::Create(mut there)) = decide(row, &deployment(2), None) else { panic!("no create") };
        there["spec"]["replicas"] = json!(7);
        assert_eq!(decide(row, &deployment(2), Some(&there)), None);
        assert!(
            matches!(decide(row, &deployment(3), Some(&there)), Some(Step::Patch(Patch::Strategic, body)) if body["spec"]["replicas"] == 3)
        );
    }

    #[test]
    fn an_object_made_by_others_is_taken_over() {
        let row = row(&deployment(2)).unwrap();
        let there = json!({"metadata": {"name": "web"}, "spec": {"replicas": 1}});
        assert!(matches!(decide(row, &deployment(2), Some(&there)), Some(Step::Patch(..))));
    }

    #[test]
    fn namespaces_come_first_and_paths_follow_the_registry() {
        let path = |object: Value| place(&object).map(|(place, _)| (place.order, place.path()));
        assert_eq!(path(deployment(1)), Ok((3, "/apis/apps/v1/namespaces/shop/deployments/web".into())));
        assert_eq!(
            path(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})),
            Ok((0, "/api/v1/namespaces/shop".into()))
        );
        assert_eq!(
            path(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}})),
            Ok((1, "/api/v1/namespaces/default/configmaps/a".into()))
        );
        assert!(path(json!({"apiVersion": "x/v1", "kind": "Thing", "metadata": {"name": "a"}})).unwrap_err().contains("does not serve"));
    }
}
