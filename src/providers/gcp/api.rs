//! Google's collections behind one small contract: insert, get, list, delete of JSON as in the REST reference. The SDK's clients sign,
//! encode and retry; everything above works on plain values.

use super::failure::Failure;
use super::retry;
use super::settings::{Settings, is_anonymous};
use crate::error::{Context as _, Error, Kind, Result};
use async_trait::async_trait;
use google_cloud_auth::credentials::{self, Credentials};
use google_cloud_compute_v1::client as compute;
use google_cloud_compute_v1::model;
use google_cloud_filestore_v1::client::CloudFilestoreManager;
use google_cloud_gax::client_builder::ClientBuilder;
use kprov_google_json::{FromJson, ToJson};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// Above the two minutes that a wait for an operation may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(150);

/// Where a thing is, as paths need it; empty where its collection has no such part.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub project: &'a str,
    pub region: &'a str,
    pub zone: &'a str,
}

pub type Answer<T> = std::result::Result<T, Failure>;

/// One collection of the Compute API. Bodies, things and operations are the API's own JSON.
#[async_trait]
pub trait Collection: Send + Sync {
    /// The started operation.
    async fn insert(&self, place: Place<'_>, body: &Value, request_id: &str) -> Answer<Value>;
    async fn get(&self, place: Place<'_>, name: &str) -> Answer<Value>;
    async fn delete(&self, place: Place<'_>, name: &str, request_id: &str) -> Answer<Value>;
    /// Of a region's collection that region's, of all others the whole project's.
    async fn list(&self, place: Place<'_>, filter: &str) -> Answer<Vec<Value>>;
}

/// The four calls of one collection, from the names that the SDK gives its parts.
macro_rules! collection {
    ($client:ident, $model:ident, $name:ident, [$($set:ident = $part:ident),*], $list:ident [$($set_list:ident = $list_part:ident),*] $items:expr) => {
        #[async_trait]
        impl Collection for compute::$client {
            async fn insert(&self, place: Place<'_>, body: &Value, request_id: &str) -> Answer<Value> {
                let body: model::$model = typed(body)?;
                let call = compute::$client::insert(self).set_project(place.project)$(.$set(place.$part))*;
                plain(retry::repeatable(call.set_request_id(request_id).set_body(body)).send().await?)
            }
            async fn get(&self, place: Place<'_>, name: &str) -> Answer<Value> {
                let call = compute::$client::get(self).set_project(place.project)$(.$set(place.$part))*;
                plain(call.$name(name).send().await?)
            }
            async fn delete(&self, place: Place<'_>, name: &str, request_id: &str) -> Answer<Value> {
                let call = compute::$client::delete(self).set_project(place.project)$(.$set(place.$part))*;
                plain(retry::repeatable(call.set_request_id(request_id).$name(name)).send().await?)
            }
            async fn list(&self, place: Place<'_>, filter: &str) -> Answer<Vec<Value>> {
                let (mut found, mut page) = (Vec::new(), None);
                loop {
                    let call = self.$list().set_project(place.project)$(.$set_list(place.$list_part))*;
                    let answer = call.set_filter(filter).set_or_clear_page_token(page).send().await?;
                    page = answer.next_page_token.clone().filter(|token| !token.is_empty());
                    let items = $items;
                    found.extend(items(answer));
                    if page.is_none() {
                        return Ok(found);
                    }
                }
            }
        }
    };
}

macro_rules! items {
    ($list:ident) => {
        |answer: model::$list| answer.items.into_iter().filter_map(|item| plain(item).ok()).collect::<Vec<_>>()
    };
    ($list:ident by place $field:ident) => {
        |answer: model::$list| {
            let things = answer.items.into_values().flat_map(|scope| scope.$field);
            things.filter_map(|item| plain(item).ok()).collect::<Vec<_>>()
        }
    };
}

collection!(Networks, Network, set_network, [], list [] items!(NetworkList));
collection!(Firewalls, Firewall, set_firewall, [], list [] items!(FirewallList));
collection!(HealthChecks, HealthCheck, set_health_check, [], list [] items!(HealthCheckList));
collection!(Subnetworks, Subnetwork, set_subnetwork, [set_region = region], list [set_region = region] items!(SubnetworkList));
collection!(Addresses, Address, set_address, [set_region = region], list [set_region = region] items!(AddressList));
collection!(RegionHealthChecks, HealthCheck, set_health_check, [set_region = region], list [set_region = region] items!(HealthCheckList));
collection!(
    RegionBackendServices, BackendService, set_backend_service, [set_region = region],
    list [set_region = region] items!(BackendServiceList)
);
collection!(
    ForwardingRules, ForwardingRule, set_forwarding_rule, [set_region = region],
    list [set_region = region] items!(ForwardingRuleList)
);
collection!(
    InstanceGroups, InstanceGroup, set_instance_group, [set_zone = zone],
    aggregated_list [] items!(InstanceGroupAggregatedList by place instance_groups)
);
collection!(
    Instances, Instance, set_instance, [set_zone = zone],
    aggregated_list [] items!(InstanceAggregatedList by place instances)
);

/// All clients of one project.
#[derive(Clone)]
pub struct Api {
    pub networks: compute::Networks,
    pub subnetworks: compute::Subnetworks,
    pub firewalls: compute::Firewalls,
    pub addresses: compute::Addresses,
    pub health_checks: compute::RegionHealthChecks,
    /// Not of the region: the writer's epochs.
    pub global_health_checks: compute::HealthChecks,
    pub backend_services: compute::RegionBackendServices,
    pub forwarding_rules: compute::ForwardingRules,
    pub instance_groups: compute::InstanceGroups,
    pub instances: compute::Instances,
    pub global_operations: compute::GlobalOperations,
    pub region_operations: compute::RegionOperations,
    pub zone_operations: compute::ZoneOperations,
    pub zones: compute::Zones,
    pub regions: compute::Regions,
    pub machine_types: compute::MachineTypes,
    pub images: compute::Images,
    pub projects: compute::Projects,
    pub filestore: CloudFilestoreManager,
}

impl Api {
    pub async fn connect(settings: &Settings) -> Result<Api> {
        let access = Access::of(settings.endpoint.as_deref())?;
        let file_access = Access::of(settings.file_endpoint.as_deref())?;
        Ok(Api {
            networks: access.client(compute::Networks::builder()).build().await.or_fail(Kind::Provider, failed)?,
            subnetworks: access.client(compute::Subnetworks::builder()).build().await.or_fail(Kind::Provider, failed)?,
            firewalls: access.client(compute::Firewalls::builder()).build().await.or_fail(Kind::Provider, failed)?,
            addresses: access.client(compute::Addresses::builder()).build().await.or_fail(Kind::Provider, failed)?,
            health_checks: access.client(compute::RegionHealthChecks::builder()).build().await.or_fail(Kind::Provider, failed)?,
            global_health_checks: access.client(compute::HealthChecks::builder()).build().await.or_fail(Kind::Provider, failed)?,
            backend_services: access.client(compute::RegionBackendServices::builder()).build().await.or_fail(Kind::Provider, failed)?,
            forwarding_rules: access.client(compute::ForwardingRules::builder()).build().await.or_fail(Kind::Provider, failed)?,
            instance_groups: access.client(compute::InstanceGroups::builder()).build().await.or_fail(Kind::Provider, failed)?,
            instances: access.client(compute::Instances::builder()).build().await.or_fail(Kind::Provider, failed)?,
            global_operations: access.client(compute::GlobalOperations::builder()).build().await.or_fail(Kind::Provider, failed)?,
            region_operations: access.client(compute::RegionOperations::builder()).build().await.or_fail(Kind::Provider, failed)?,
            zone_operations: access.client(compute::ZoneOperations::builder()).build().await.or_fail(Kind::Provider, failed)?,
            zones: access.client(compute::Zones::builder()).build().await.or_fail(Kind::Provider, failed)?,
            regions: access.client(compute::Regions::builder()).build().await.or_fail(Kind::Provider, failed)?,
            machine_types: access.client(compute::MachineTypes::builder()).build().await.or_fail(Kind::Provider, failed)?,
            images: access.client(compute::Images::builder()).build().await.or_fail(Kind::Provider, failed)?,
            projects: access.client(compute::Projects::builder()).build().await.or_fail(Kind::Provider, failed)?,
            filestore: file_access.client(CloudFilestoreManager::builder()).build().await.or_fail(Kind::Provider, failed)?,
        })
    }
}

fn failed() -> &'static str {
    "could not make a client of Google Cloud"
}

/// How every client reaches Google.
struct Access {
    endpoint: Option<String>,
    credentials: Credentials,
}

impl Access {
    fn of(endpoint: Option<&str>) -> Result<Access> {
        let anonymous = endpoint.map(is_anonymous).transpose()?.unwrap_or(false);
        let credentials = if anonymous {
            credentials::anonymous::Builder::new().build()
        } else {
            credentials::Builder::default().build().map_err(|error| {
                Error::provider("could not find credentials for Google Cloud")
                    .because(error)
                    .hint("sign in: gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS")
            })?
        };
        Ok(Access { endpoint: endpoint.map(str::to_string), credentials })
    }

    fn client<F>(&self, builder: ClientBuilder<F, Credentials>) -> ClientBuilder<F, Credentials> {
        let builder = builder
            .with_credentials(self.credentials.clone())
            .with_retry_policy(retry::policy())
            .with_backoff_policy(retry::backoff())
            .with_attempt_timeout(ATTEMPT_TIMEOUT);
        match &self.endpoint {
            Some(endpoint) => builder.with_endpoint(endpoint.clone()),
            None => builder,
        }
    }
}

/// The SDK's type of a JSON body that this provider wrote.
pub fn typed<T: FromJson>(body: &Value) -> Answer<T> {
    T::from_json(body).map_err(|error| Failure::new(super::failure::Cause::Refused, format!("not a body of the API: {error}")))
}

/// The JSON of what the SDK read.
pub fn plain(thing: impl ToJson) -> Answer<Value> {
    thing.to_json().map_err(|error| Failure::new(super::failure::Cause::Refused, format!("not an answer of the API: {error}")))
}

/// Which collection a kind of resource is in.
pub fn collection(api: &Api, kind: &str) -> Option<Arc<dyn Collection>> {
    use super::resources::*;
    use crate::providers::resources::{LOAD_BALANCER, MACHINE, NETWORK};
    Some(match kind {
        NETWORK => Arc::new(api.networks.clone()),
        SUBNETWORK => Arc::new(api.subnetworks.clone()),
        FIREWALL => Arc::new(api.firewalls.clone()),
        MACHINE => Arc::new(api.instances.clone()),
        INSTANCE_GROUP => Arc::new(api.instance_groups.clone()),
        HEALTH_CHECK => Arc::new(api.health_checks.clone()),
        BACKEND_SERVICE => Arc::new(api.backend_services.clone()),
        ADDRESS => Arc::new(api.addresses.clone()),
        LOAD_BALANCER => Arc::new(api.forwarding_rules.clone()),
        _ => return None,
    })
}
