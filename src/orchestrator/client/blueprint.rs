//! The Blueprint as an object of the cluster, readable like any other kind.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{ClusterResourceScope, Metadata, Resource};
use serde::Deserialize;
use serde_json::Value;

/// `blueprints.kprov.dev`, cluster-scoped. Its workloads are stored inline (objects, not file names).
#[derive(Debug, Clone, Deserialize)]
pub struct BlueprintObject {
    pub metadata: ObjectMeta,
    pub spec: crate::blueprint::Spec,
    #[serde(default)]
    pub status: Option<Value>,
}

impl Resource for BlueprintObject {
    const API_VERSION: &'static str = "kprov.dev/v1";
    const GROUP: &'static str = "kprov.dev";
    const KIND: &'static str = "Blueprint";
    const VERSION: &'static str = "v1";
    const URL_PATH_SEGMENT: &'static str = "blueprints";
    type Scope = ClusterResourceScope;
}

impl Metadata for BlueprintObject {
    type Ty = ObjectMeta;
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
