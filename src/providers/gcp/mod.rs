//! Google Cloud: machines, networks and load balancers of Compute Engine, shared filesystems of Filestore.
//!
//! Decisions are pure and speak the API's own JSON: `settings`, `sizes`, `names`, `resources` (blueprint to wishes), `request` (action to
//! body), `read` (reply to observed), `failure` (refusal to cause). Doors are thin: `api` (the SDK's clients), `operations`, `look`, `act`,
//! `filestore`, `epoch`, `catalog`, `check`.

mod act;
mod api;
mod catalog;
mod check;
mod epoch;
mod failure;
mod filestore;
mod look;
pub(super) mod names;
mod operations;
mod read;
pub(super) mod request;
pub(super) mod resources;
mod retry;
pub(super) mod settings;
mod sizes;

use self::api::{Api, Collection, Place};
use self::failure::{Cause, Failure};
use self::resources::{ADDRESS, BACKEND_SERVICE, Catalog, FIREWALL, HEALTH_CHECK, INSTANCE_GROUP, SUBNETWORK};
use self::settings::Settings;
use crate::blueprint::Blueprint;
use crate::engine::handoff::{self, EpochStore};
use crate::engine::{Action, Cluster, Door, Id, Inputs, Observed, Pace, Progress, Request, Resource, Verb};
use crate::error::{Context as _, Error, Kind, Result};
use crate::providers::ownership::{CLUSTER_NAME, CLUSTER_UID};
use crate::providers::resources::{FILESYSTEM, LOAD_BALANCER, MACHINE, NETWORK};
use crate::providers::{self, Context, Delivery, Fabric, Provider};
use async_trait::async_trait;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

/// Lists show what a finished operation made; this is for a call that lands after its caller has gone.
const SETTLE: Duration = Duration::from_secs(3);
/// An operator who lost the state folder reads the keys back within seconds.
const ADMITTED_FOR: k8s_openapi::jiff::SignedDuration = k8s_openapi::jiff::SignedDuration::from_mins(10);

/// One cluster in one region of one project.
pub struct Gcp {
    cluster: Cluster,
    settings: Settings,
    api: Api,
    /// By the instance's number.
    host_keys: Mutex<HashMap<String, Vec<String>>>,
    offers: Mutex<BTreeMap<BTreeSet<String>, Catalog>>,
    machines: look::SharedList,
    /// Until when questions about single machines are given out.
    asked_guests: Mutex<Option<tokio::time::Instant>>,
    /// Inside the cluster: whom Google takes this process for.
    account: Option<String>,
}

/// What the loop inside is given: nothing secret, its machine's service account is its identity.
#[derive(Serialize, Deserialize)]
struct Credentials {
    cluster: Cluster,
    settings: Settings,
    /// Its whole name: inside, nobody may be allowed to ask for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    account: Option<String>,
}

pub async fn connect(settings: &providers::Settings, cluster: &Cluster) -> Result<Gcp> {
    let mut settings = settings::read(settings)?;
    let api = Api::connect(&settings).await?;
    if settings.region.is_empty() {
        settings.region = region_of(&api, &settings, cluster).await?.ok_or_else(settings::no_region)?;
    }
    Ok(Gcp::new(cluster.clone(), settings, api))
}

pub async fn from_credentials(credentials: &Value) -> Result<Gcp> {
    let Credentials { cluster, settings, account } =
        Credentials::deserialize(credentials).or_fail(Kind::Input, || "could not read the credentials for Google Cloud")?;
    let api = Api::connect(&settings).await?;
    let account = account.unwrap_or_else(|| settings.service_account.clone());
    Ok(Gcp { account: Some(account), ..Gcp::new(cluster, settings, api) })
}

/// Every cluster of the project, in all regions.
pub async fn clusters(settings: &providers::Settings) -> Result<Vec<Cluster>> {
    let settings = settings::read(settings)?;
    let api = Api::connect(&settings).await?;
    let traces = traces(&api, &settings).await?;
    let found: BTreeMap<String, Cluster> = traces.iter().filter_map(cluster_of).map(|cluster| (cluster.uid.clone(), cluster)).collect();
    Ok(found.into_values().collect())
}

/// What every cluster has, by name: its writer's record from the first moment to the last, and its network. Their descriptions decide.
async fn traces(api: &Api, settings: &Settings) -> Result<Vec<Value>> {
    let place = Place { project: &settings.project, region: "", zone: "" };
    let filter = "name eq \"kprov-.*\"";
    let found =
        futures::try_join!(Collection::list(&api.networks, place, filter), Collection::list(&api.global_health_checks, place, filter));
    let (networks, epochs) =
        found.map_err(|failure: Failure| failure.error(format!("could not look for clusters in project {}", settings.project)))?;
    Ok(networks.into_iter().chain(epochs).collect())
}

fn cluster_of(trace: &Value) -> Option<Cluster> {
    let texts = names::described(trace);
    let uid = texts.get(CLUSTER_UID)?;
    names::mark(uid, trace).filter(|mark| [NETWORK, epoch::KIND].contains(&mark.id.kind.as_str()))?;
    Some(Cluster { name: texts.get(CLUSTER_NAME)?.clone(), uid: uid.clone() })
}

/// The next step when the loop's account may not do its work: what it needs, as a line to type.
fn grants(project: &str, account: &str) -> String {
    format!(
        "the loop inside acts as {account}, the control planes' service account: grant it roles/compute.admin (gcloud projects \
         add-iam-policy-binding {project} --member serviceAccount:{account} --role roles/compute.admin), roles/file.editor where there \
         are filesystems, and roles/iam.serviceAccountUser on itself"
    )
}

/// Where a cluster is, when nothing but its own things say so.
async fn region_of(api: &Api, settings: &Settings, cluster: &Cluster) -> Result<Option<String>> {
    let traces = traces(api, settings).await?;
    let mut ours = traces.iter().filter(|trace| cluster_of(trace).is_some_and(|found| found.uid == cluster.uid));
    Ok(ours.find_map(|trace| names::described(trace).remove(names::REGION)))
}

impl Gcp {
    fn new(cluster: Cluster, settings: Settings, api: Api) -> Gcp {
        let (host_keys, offers, machines) = (Mutex::default(), Mutex::default(), look::SharedList::default());
        Gcp { cluster, settings, api, host_keys, offers, machines, asked_guests: Mutex::default(), account: None }
    }

    /// `what` reads "could not ...". What the loop inside may not do is its machine's service account's to be granted.
    fn error(&self, failure: Failure, what: impl Into<String>) -> Error {
        let is_denied = failure.cause == Cause::Denied && !failure.is_policy();
        let error = failure.error(what);
        match self.account.as_deref().filter(|_| is_denied) {
            Some(account) => error.hint(grants(&self.settings.project, account)),
            None => error,
        }
    }

    /// The loop's identity by its whole name.
    async fn loop_account(&self) -> Result<String> {
        let named = &self.settings.service_account;
        if let Some(account) = &self.account {
            return Ok(account.clone());
        }
        if named != "default" {
            return Ok(named.clone());
        }
        let project = self.api.projects.get().set_project(&self.settings.project).send().await.map_err(Failure::from);
        let project = project.map_err(|failure| failure.error(format!("could not use project {}", self.settings.project)))?;
        Ok(project.default_service_account.unwrap_or_else(|| named.clone()))
    }

    fn place<'a>(&'a self, zone: &'a str) -> Place<'a> {
        Place { project: &self.settings.project, region: &self.settings.region, zone }
    }
}

#[async_trait]
impl Door for Gcp {
    fn kinds(&self) -> &'static [&'static str] {
        &[NETWORK, SUBNETWORK, FIREWALL, FILESYSTEM, MACHINE, INSTANCE_GROUP, ADDRESS, HEALTH_CHECK, BACKEND_SERVICE, LOAD_BALANCER]
    }

    fn settle(&self) -> Duration {
        SETTLE
    }

    fn at_once(&self) -> usize {
        request::AT_ONCE
    }

    fn pace(&self, request: &Request) -> Option<Pace> {
        request::pace(request)
    }

    async fn observe(&self, _known: &[Observed]) -> Result<Vec<Observed>> {
        self.look_at_all().await
    }

    fn render(&self, action: &Action, inputs: &Inputs) -> Result<Request> {
        request::render(&self.settings, &self.cluster, action, inputs)
    }

    /// Google keeps no epochs: a writer whose epoch is over is stopped by its own look, right before each effect.
    async fn execute(&self, request: &Request, progress: Progress<'_>) -> Result<Option<Observed>> {
        if request.verb != Verb::Await {
            handoff::fence(self, request.epoch).await?;
        }
        self.carry_out(request, progress).await
    }
}

#[async_trait]
impl Provider for Gcp {
    fn name(&self) -> &'static str {
        "gcp"
    }

    async fn place(&self) -> Result<String> {
        Ok(format!("region {} of project {}", self.settings.region, self.settings.project))
    }

    async fn resources(&self, blueprint: &Blueprint, context: &Context) -> Result<Vec<Resource>> {
        let types = resources::types(blueprint, &self.settings)?;
        let catalog = self.catalog(&types).await?;
        resources::expand(blueprint, context, &self.settings, &catalog)
    }

    async fn check(&self, resources: &[Resource]) -> Result<()> {
        self.check_all(resources).await
    }

    fn epochs(&self) -> &dyn EpochStore {
        self
    }

    async fn loop_credentials(&self) -> Result<Value> {
        let account = Some(self.loop_account().await?);
        let credentials = Credentials { cluster: self.cluster.clone(), settings: self.settings.clone(), account };
        serde_json::to_value(credentials).or_fail(Kind::Internal, || "could not write credentials")
    }

    /// Beside the cluster's own key, with an end that the guest keeps by itself.
    async fn admit_key(&self, machine: &Observed, public_key: &str) -> Result<()> {
        let end = (k8s_openapi::jiff::Timestamp::now() + ADMITTED_FOR).strftime("%Y-%m-%dT%H:%M:%S+0000").to_string();
        let key: Vec<&str> = public_key.split_whitespace().take(2).collect();
        let user = names::SSH_USER;
        let line = format!("{user}:{} google-ssh {{\"userName\":\"{user}\",\"expireOn\":\"{end}\"}}", key.join(" "));
        let add = |lines: &str| match machine.id.kind.as_str() {
            MACHINE => Ok(format!("{lines}\n{line}").trim().to_string()),
            kind => Err(Failure::new(Cause::Refused, format!("a {kind} lets nobody in"))),
        };
        let set = self.set_keys(&machine.handle, add).await;
        set.map_err(|failure| self.error(failure, format!("could not get back into {}", machine.id)))
    }

    fn fabric(&self) -> Fabric {
        Fabric::Routed
    }

    fn delivery(&self) -> Delivery {
        Delivery::Address
    }

    fn price(&self, id: &Id, spec: &Value) -> Option<f64> {
        match id.kind.as_str() {
            MACHINE => sizes::machine_price(spec["machineType"].as_str()?, spec["diskBytes"].as_u64().unwrap_or_default()),
            FILESYSTEM => Some(sizes::share_price(spec["sizeBytes"].as_u64()?)),
            LOAD_BALANCER => Some(sizes::BALANCER_PRICE),
            _ => None,
        }
    }

    /// The records of writers go last, when nothing is left to write about.
    async fn leftovers(&self) -> Vec<String> {
        match self.look_at_all().await {
            Ok(left) if left.is_empty() => self.forget_all_epochs().await,
            _ => Vec::new(),
        }
    }
}
