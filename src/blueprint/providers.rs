//! What only one provider needs: a section each under `spec.providers`, ignored by the others. Nothing secret belongs here.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One section per provider; those of other providers may stay when the provider line changes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Providers {
    #[serde(skip_serializing_if = "is_default")]
    pub local: Local,
    #[serde(skip_serializing_if = "is_default")]
    pub aws: Aws,
    #[serde(skip_serializing_if = "is_default")]
    pub gcp: Gcp,
    #[serde(skip_serializing_if = "is_default")]
    pub ssh: Ssh,
}

impl Providers {
    pub fn is_empty(&self) -> bool {
        is_default(self)
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Machines on this host: nothing to say.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Local {}

/// Amazon Web Services. Credentials come from where every AWS tool finds them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Aws {
    /// e.g. eu-west-1; instead of the blueprint's location.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Instead of the size's own choice, by machine group: an instance type, e.g. m7i.large.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub instance_types: BTreeMap<String, String>,
    /// One address for all services: an emulator's, or a private endpoint's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

/// Google Cloud. Credentials come from where every Google tool finds them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Gcp {
    /// The project's id; else the environment's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// e.g. europe-west1; instead of the blueprint's location.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Instead of the size's own choice, by machine group: a machine type, e.g. n2-standard-2.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub machine_types: BTreeMap<String, String>,
    /// One address for all services: an emulator's, or a private endpoint's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

/// Machines that exist already and are reached by SSH.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Ssh {
    /// The machines that may be claimed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<SshHost>,
}

/// One machine of yours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SshHost {
    /// A name or an address that `ssh` reaches.
    #[schemars(length(min = 1, max = 253))]
    pub address: String,
}
