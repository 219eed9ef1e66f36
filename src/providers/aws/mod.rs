//! Amazon Web Services: machines and networks of EC2, network load balancers, filesystems of EFS, an identity for the loop.
//!
//! Decisions are pure: `settings`, `sizes`, `images`, `given` (a network that was there before), `zones`, `names`, `resources` (blueprint to wishes), `request` (action to body), `machines` (what an
//! instance says), `consoles` (when it is asked), `failure` (refusal to cause), `iam` (policies). Doors are thin: `clients`, `catalog`, `look`, `act`, `families`, `epoch`.

mod act;
mod catalog;
mod check;
mod clients;
mod clusters;
mod consoles;
mod epoch;
mod failure;
mod families;
pub(super) mod given;
pub mod iam;
pub(super) mod images;
mod look;
mod machines;
pub(super) mod names;
pub(super) mod request;
pub(super) mod resources;
pub(super) mod settings;
mod sizes;
pub(super) mod zones;

use self::clients::Clients;
use self::consoles::Consoles;
use self::failure::{OrFailure, failure};
use self::names::{GATEWAY, GROUP, KEY_PAIR, MOUNT, PROFILE, ROLE, ROUTES, SECRET, SUBNET, TARGETS};
use self::resources::Catalog;
use self::settings::Settings;
use crate::blueprint::Blueprint;
use crate::engine::handoff::EpochStore;
use crate::engine::{Action, Cluster, Door, Id, Inputs, Observed, Pace, Progress, Request, Resource};
use crate::error::{Context as _, Kind, Result};
use crate::providers::resources::{FILESYSTEM, LOAD_BALANCER, MACHINE, NETWORK};
use crate::providers::{self, Context, Fabric, Provider};
use async_trait::async_trait;
use aws_sdk_ec2::error::ProvideErrorMetadata;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashMap;
use std::time::Duration;

/// EC2's reads lag behind its writes by seconds.
const SETTLE: Duration = Duration::from_secs(6);

/// One cluster in one region of one account.
pub struct Aws {
    cluster: Cluster,
    settings: Settings,
    clients: Clients,
    /// The cluster's SSH key, for the account's owner to keep.
    key: Mutex<Option<String>>,
    consoles: Mutex<Consoles>,
    /// By what the blueprint asks for.
    catalogs: Mutex<HashMap<String, Catalog>>,
    /// By kind: the last look that waiting requests have shared.
    looks: Mutex<HashMap<String, act::SharedLook>>,
}

/// What the loop inside is given: nothing secret, its machine's role is its identity.
#[derive(Serialize, Deserialize)]
struct Credentials {
    cluster: Cluster,
    settings: Settings,
}

pub async fn connect(settings: &providers::Settings, cluster: &Cluster) -> Result<Aws> {
    open(settings::read(settings)?, cluster.clone()).await
}

pub async fn from_credentials(credentials: &Value) -> Result<Aws> {
    let Credentials { cluster, settings } =
        Credentials::deserialize(credentials).or_fail(Kind::Input, || "could not read the credentials for AWS")?;
    open(settings, cluster).await
}

async fn open(settings: Settings, cluster: Cluster) -> Result<Aws> {
    let clients = Clients::connect(&settings).await?;
    // Written down, so that the loop and a later run look in the same place whatever their environment says.
    let settings = Settings { region: Some(clients.region.clone()), endpoints: clients.endpoints.clone() };
    Ok(Aws {
        cluster,
        settings,
        clients,
        key: Mutex::default(),
        consoles: Mutex::default(),
        catalogs: Mutex::default(),
        looks: Mutex::default(),
    })
}

/// The region that is said, if any: the environment is not asked.
pub fn region(settings: &providers::Settings) -> Result<Option<String>> {
    Ok(settings::read(settings)?.region)
}

/// Every cluster of the account's region, also one of which only little is left.
pub async fn clusters(settings: &providers::Settings) -> Result<Vec<Cluster>> {
    clusters::all(&Clients::connect(&settings::read(settings)?).await?).await
}

#[async_trait]
impl Door for Aws {
    fn kinds(&self) -> &'static [&'static str] {
        &[NETWORK, SUBNET, GATEWAY, ROUTES, GROUP, KEY_PAIR, SECRET, ROLE, PROFILE, FILESYSTEM, MOUNT, MACHINE, TARGETS, LOAD_BALANCER]
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
        request::render(&self.cluster, action, inputs)
    }

    async fn execute(&self, request: &Request, progress: Progress<'_>) -> Result<Option<Observed>> {
        self.carry_out(request, progress).await
    }
}

#[async_trait]
impl Provider for Aws {
    fn name(&self) -> &'static str {
        "aws"
    }

    async fn place(&self) -> Result<String> {
        let who = self.clients.sts.get_caller_identity().send().await.or_failure("sign in to AWS")?;
        Ok(format!("region {} of account {}", self.clients.region, who.account().unwrap_or_default()))
    }

    async fn resources(&self, blueprint: &Blueprint, context: &Context) -> Result<Vec<Resource>> {
        let catalog = self.catalog(blueprint).await?;
        resources::expand(blueprint, context, &self.clients.region, &catalog)
    }

    async fn check(&self, resources: &[Resource]) -> Result<()> {
        self.check_all(resources).await
    }

    /// The loop inside has its machine's role, and must not be able to give itself more.
    async fn prepare(&self, resources: &[Resource]) -> Result<()> {
        let Some(wish) = resources.iter().find(|wish| wish.id.kind == ROLE) else { return Ok(()) };
        match self.look(ROLE).await?.first() {
            Some(role) if role.spec["policy"] != wish.spec["policy"] => self.write_policy(&role.handle, &wish.spec).await,
            _ => Ok(()),
        }
    }

    fn epochs(&self) -> &dyn EpochStore {
        self
    }

    async fn loop_credentials(&self) -> Result<Value> {
        let credentials = Credentials { cluster: self.cluster.clone(), settings: self.settings.clone() };
        serde_json::to_value(credentials).or_fail(Kind::Internal, || "could not write credentials")
    }

    fn fabric(&self) -> Fabric {
        Fabric::Routed
    }

    fn hold_key(&self, private_key: &str) {
        *self.key.lock() = Some(private_key.into());
    }

    async fn kept_key(&self) -> Result<Option<String>> {
        let name = format!("{}/ssh-key", names::parameters(&self.cluster));
        match self.clients.ssm.get_parameter().name(name).with_decryption(true).send().await {
            Ok(answer) => Ok(answer.parameter().and_then(|one| one.value()).map(String::from)),
            Err(error) if error.code() == Some("ParameterNotFound") => Ok(None),
            Err(error) => Err(failure("read the kept SSH key", &error)),
        }
    }

    fn price(&self, id: &Id, spec: &Value) -> Option<f64> {
        match id.kind.as_str() {
            MACHINE => sizes::machine_price(spec["instanceType"].as_str()?, sizes::disk_of(spec)),
            LOAD_BALANCER => Some(sizes::BALANCER_PRICE),
            _ => None,
        }
    }

    /// The records of writers go last, when nothing is left to write about.
    async fn leftovers(&self) -> Vec<String> {
        match self.look_at_all().await {
            Ok(left) if left.is_empty() => {}
            Ok(_) => return Vec::new(),
            Err(error) => return vec![format!("unknown: {}", error.chain())],
        }
        let volumes = match self.volumes_that_stay().await {
            Ok(volumes) => volumes,
            Err(error) => return vec![format!("volumes, perhaps: {}", error.chain())],
        };
        if !volumes.is_empty() {
            return volumes.iter().map(|volume| format!("a machine's disk (aws ec2 delete-volume --volume-id {volume})")).collect();
        }
        match self.forget_epochs(u64::MAX).await {
            Ok(()) => Vec::new(),
            Err(error) => vec![format!("the writers' records: {}", error.chain())],
        }
    }
}
