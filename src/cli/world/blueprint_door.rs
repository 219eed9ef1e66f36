//! The Blueprint object inside the cluster, as a door: the last thing `up` makes, and what the loop inside then keeps true.

use crate::blueprint::counted;
use crate::blueprint::{Blueprint, Spec};
use crate::bootstrap::trust::{SERVER_NAME, Trust};
use crate::engine::{Action, Door, HOST, Id, Inputs, MACHINE, Observed, Phase, Progress, Request, Resource};
use crate::error::{Context, Error, Kind, Result};
use crate::orchestrator::client::blueprint::BlueprintObject;
use crate::orchestrator::client::{Client, Patch, https};
use crate::orchestrator::config::API_PORT;
use crate::remote::{Side, address, forward};
use async_trait::async_trait;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

pub const BLUEPRINT: &str = "blueprint";

/// An API that does not answer a look within this time counts as not there yet; the answer itself takes milliseconds.
const LOOK: Duration = Duration::from_secs(3);

pub struct BlueprintDoor {
    trust: Arc<Trust>,
    /// What to write; `None` on the way down, when nothing is written any more.
    blueprint: Option<Blueprint>,
}

impl BlueprintDoor {
    pub fn new(trust: Arc<Trust>, blueprint: Option<Blueprint>) -> Self {
        BlueprintDoor { trust, blueprint }
    }

    fn client(&self, machine: &Observed) -> Result<Client> {
        api(&self.trust, address(machine, Side::Outside)?)
    }
}

/// The API of a cluster as its administrator.
pub fn api(trust: &Trust, address: IpAddr) -> Result<Client> {
    let server = format!("https://{}", forward::through(SocketAddr::new(address, API_PORT)));
    https::connect_named(&server, SERVER_NAME, &trust.ca.certificate, &trust.admin.certificate, &trust.admin.key)
}

/// The control plane machine that works, if there is one.
pub fn control_plane(observed: &[Observed]) -> Option<&Observed> {
    let controls = observed.iter().filter(|thing| is_control_plane(thing));
    controls.filter(|machine| machine.phase == Phase::Ready).min_by(|a, b| a.id.cmp(&b.id))
}

pub fn is_control_plane(thing: &Observed) -> bool {
    thing.id.kind == MACHINE && thing.spec["role"] == "control-plane"
}

/// The wish: the object's content by its digest; made once the first control plane answers.
pub fn resource(blueprint: &Blueprint, control: &str) -> Result<Resource> {
    Ok(Resource {
        id: Id::new(BLUEPRINT, &blueprint.metadata.name),
        spec: json!({"digest": digest(&blueprint.spec)?}),
        needs: vec![Id::new(HOST, control)],
        replace_on: Vec::new(),
        summary: counted(blueprint.spec.workloads.len(), "workload object"),
    })
}

/// Equal wishes have equal digests: maps are sorted, and what a reader leaves out is left out on both sides.
pub fn digest(spec: &Spec) -> Result<String> {
    let text = serde_json::to_vec(spec).or_fail(Kind::Internal, || "could not encode the blueprint")?;
    Ok(hex::encode(&Sha256::digest(text)[..16]))
}

#[async_trait]
impl Door for BlueprintDoor {
    fn kinds(&self) -> &'static [&'static str] {
        &[BLUEPRINT]
    }

    async fn observe(&self, known: &[Observed]) -> Result<Vec<Observed>> {
        let name = &self.trust.cluster.name;
        if let Some(machine) = control_plane(known) {
            let client = self.client(machine)?;
            if let Ok(Ok(object)) = tokio::time::timeout(LOOK, client.get::<BlueprintObject>("", name)).await {
                return object.map(|object| observed(&object, machine)).into_iter().collect();
            }
        }
        Ok(unanswered(name, known).into_iter().collect())
    }

    fn render(&self, action: &Action, inputs: &Inputs) -> Result<Request> {
        let machines: Vec<Observed> = inputs.values().cloned().collect();
        let machine = control_plane(&machines).ok_or_else(|| Error::internal("no control plane is there to take the blueprint"))?;
        Ok(Request::of(&self.trust.cluster, action, json!({"address": address(machine, Side::Outside)?, "digest": action.spec["digest"]})))
    }

    async fn execute(&self, request: &Request, progress: Progress<'_>) -> Result<Option<Observed>> {
        let Some(blueprint) = &self.blueprint else { return Ok(None) };
        let address = request.body["address"].as_str().unwrap_or_default();
        let client = api(&self.trust, address.parse().or_fail(Kind::Internal, || "could not read the control plane's address")?)?;
        progress("writing the blueprint");
        let object = write(&client, blueprint).await?;
        let spec = json!({"digest": digest(&object.spec)?});
        Ok(Some(Observed { spec, ..bare(&object) }))
    }
}

fn observed(object: &BlueprintObject, machine: &Observed) -> Result<Observed> {
    let name = machine.id.name.clone();
    Ok(Observed { spec: json!({"digest": digest(&object.spec)?}), needs: vec![Id::new(HOST, name)], ..bare(object) })
}

/// Where an API was installed but does not answer, what it keeps is most likely there, and is written again: not made anew.
fn unanswered(name: &str, known: &[Observed]) -> Option<Observed> {
    let installed = |machine: &&Observed| known.iter().any(|host| host.id == Id::new(HOST, &machine.id.name));
    let machine = known.iter().filter(|thing| is_control_plane(thing)).find(installed)?;
    Some(Observed {
        id: Id::new(BLUEPRINT, name),
        handle: name.into(),
        generation: 1,
        phase: Phase::Broken("its API does not answer".into()),
        spec: json!({}),
        outputs: json!({}),
        needs: vec![Id::new(HOST, &machine.id.name)],
    })
}

fn bare(object: &BlueprintObject) -> Observed {
    Observed {
        id: Id::new(BLUEPRINT, object.metadata.name.clone().unwrap_or_default()),
        handle: object.metadata.uid.clone().unwrap_or_default(),
        generation: 1,
        phase: Phase::Ready,
        spec: Value::Null,
        outputs: json!({}),
        needs: Vec::new(),
    }
}

/// Creates the object or replaces its spec; labels and annotations that others put on it stay.
pub async fn write(client: &Client, blueprint: &Blueprint) -> Result<BlueprintObject> {
    let name = &blueprint.metadata.name;
    let object = serde_json::to_value(blueprint).or_fail(Kind::Internal, || "could not encode the blueprint")?;
    match client.create::<BlueprintObject>("", &object).await {
        Ok(created) => return Ok(created),
        Err(error) if error.is_already_exists() => {}
        Err(error) => return Err(error.into()),
    }
    // A merge patch would keep list items' absent fields out, but also map keys that the file no longer has: replace the spec whole.
    let patch = json!([{"op": "replace", "path": "/spec", "value": object["spec"]}]);
    Ok(client.patch::<BlueprintObject>("", name, "", Patch::Json, &patch).await?)
}
