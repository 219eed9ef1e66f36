//! Hosts as the engine sees them: one resource of kind `host` per machine, named like it.
//!
//! Spec: `{role, revision, nodeName}`. Outputs: `{nodeName, address}`. A request carries names, public host keys and the revision;
//! keys and configuration are made when it is executed, so no secret is ever in the journal.

use super::install::{self, Program};
use super::plan;
use super::spec::{HostSpec, Marker};
use crate::engine::{Action, Cluster, Door, Id, Inputs, Observed, Phase, Progress, Request, Resource, Verb};
use crate::error::{Context, Error, Kind, Result};
use crate::remote::{Side, Ssh, Target};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub const HOST: &str = "host";
/// The provider's kind that a host is installed on.
const MACHINE: &str = "machine";

/// A machine that its provider has just made answers within its boot time.
const BOOT: Duration = Duration::from_secs(300);
/// One that was installed before answers at once, or it is down; whoever waits longer than this tries again.
const LIVES: Duration = Duration::from_secs(20);
/// Looking is not worth a long wait: a silent host is reported as broken, with its reason.
const GLANCE: Duration = Duration::from_secs(6);

/// Spec of kind `host`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostWish {
    pub role: String,
    /// From [`super::spec::revision`]: everything known before the machine exists.
    pub revision: String,
    pub node_name: String,
}

impl HostWish {
    /// The host on the machine of the same name. `needs` beside the machine: what its configuration refers to (filesystems).
    pub fn resource(&self, machine: &str, needs: Vec<Id>) -> Resource {
        let mut all = vec![Id::new(MACHINE, machine)];
        all.extend(needs);
        Resource {
            id: Id::new(HOST, machine),
            spec: serde_json::to_value(self).expect("three strings always serialise"),
            needs: all,
            replace_on: Vec::new(),
            summary: format!("kprov {} as node {}", self.role, self.node_name),
        }
    }
}

/// Says what a host should be, when it is about to be installed: implemented where rooms meet. `inputs` are the outputs that existed
/// when the action was planned.
#[async_trait]
pub trait HostSource: Send + Sync {
    async fn host(&self, machine: &str, wish: &HostWish, inputs: &Inputs) -> Result<HostSpec>;

    /// Whether [`HostSource::host`] reads this input for this machine: what it does not read is not journalled, or every host's request
    /// would hold the whole cluster.
    fn reads(&self, machine: &str, input: &Observed) -> bool;

    /// Fails with `Kind::Conflict` when the writer of this epoch was overtaken: a host itself knows of no epochs.
    async fn fence(&self, epoch: u64) -> Result<()>;
}

/// Sees hosts: over SSH, or through the cluster's own Node objects.
#[async_trait]
pub trait HostObserver: Send + Sync {
    /// `known` holds the machines.
    async fn observe(&self, known: &[Observed]) -> Result<Vec<Observed>>;
}

/// Takes a node out of the cluster before its machine goes: cordon, evict, wait (unless its pods are lost with it), delete the Node. A
/// node that does not exist is drained.
#[async_trait]
pub trait Drain: Send + Sync {
    async fn drain(&self, node_name: &str, moves_pods: bool, progress: Progress<'_>) -> Result<()>;
}

/// See the module text.
pub struct HostDoor {
    pub cluster: Cluster,
    pub ssh: Ssh,
    /// From where the machines are reached.
    pub side: Side,
    pub program: Arc<Program>,
    pub source: Arc<dyn HostSource>,
    pub observer: Arc<dyn HostObserver>,
    pub drain: Arc<dyn Drain>,
}

/// What is journalled for an installation.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    wish: HostWish,
    target: Target,
    /// Observed resources the configuration is made from.
    inputs: Vec<Observed>,
}

#[async_trait]
impl Door for HostDoor {
    fn kinds(&self) -> &'static [&'static str] {
        &[HOST]
    }

    /// Each waits for its own machine most of the time; handshakes and uploads are bounded where they are made.
    fn at_once(&self) -> usize {
        128
    }

    async fn observe(&self, known: &[Observed]) -> Result<Vec<Observed>> {
        self.observer.observe(known).await
    }

    fn render(&self, action: &Action, inputs: &Inputs) -> Result<Request> {
        let body = if action.verb == Verb::Delete {
            json!({"nodeName": action.id.name, "drain": action.spec["drain"]})
        } else {
            install_body(action, inputs, self.side, |input| self.source.reads(&action.id.name, input))?
        };
        Ok(Request::of(&self.cluster, action, body))
    }

    async fn execute(&self, request: &Request, progress: Progress<'_>) -> Result<Option<Observed>> {
        let damaged = || format!("could not understand the request for {}", request.id);
        if request.verb == Verb::Delete {
            self.source.fence(request.epoch).await?;
            let name = request.body["nodeName"].as_str().ok_or_else(|| Error::internal(damaged()))?;
            // Nobody on a machine that is dead could tell that its pods have ended.
            self.drain.drain(name, request.body["drain"] != false, progress).await?;
            self.ssh.forget(name);
            return Ok(None);
        }
        let body: Body = serde_json::from_value(request.body.clone()).or_fail(Kind::Internal, damaged)?;
        let inputs: Inputs = body.inputs.into_iter().map(|input| (input.id.clone(), input)).collect();
        let mut spec = self.source.host(&request.id.name, &body.wish, &inputs).await?;
        spec.revision = body.wish.revision.clone();
        spec.generation = request.generation;
        progress("waiting for sshd");
        let connection = self.ssh.connect(&body.target, if request.verb == Verb::Create { BOOT } else { LIVES }).await?;
        // The wait may have been long.
        self.source.fence(request.epoch).await?;
        let marker = install::ensure(&connection, &spec, &self.program, progress).await.inspect_err(|error| {
            if error.kind == Kind::Transient {
                self.ssh.forget(&request.id.name);
            }
        })?;
        Ok(Some(observed(&body.target, &marker, Phase::Ready)))
    }
}

fn install_body(action: &Action, inputs: &Inputs, side: Side, reads: impl Fn(&Observed) -> bool) -> Result<Value> {
    let machine = Id::new(MACHINE, &action.id.name);
    let failed = || format!("could not install {}", action.id.name);
    let wish = serde_json::from_value(action.spec.clone()).or_fail(Kind::Internal, failed)?;
    let target = Target::of(inputs.get(&machine).ok_or_else(|| Error::internal(format!("{}: its machine is not there", failed())))?, side)?;
    let body = Body { wish, target, inputs: inputs.values().filter(|input| reads(input)).cloned().collect() };
    serde_json::to_value(body).or_fail(Kind::Internal, failed)
}

fn observed(target: &Target, marker: &Marker, phase: Phase) -> Observed {
    let wish = HostWish { role: marker.role.clone(), revision: marker.revision.clone(), node_name: marker.node_name.clone() };
    Observed {
        id: Id::new(HOST, &target.machine),
        handle: target.machine.clone(),
        generation: marker.generation,
        phase,
        spec: serde_json::to_value(wish).expect("three strings always serialise"),
        outputs: json!({"nodeName": marker.node_name, "address": target.address}),
        needs: vec![Id::new(MACHINE, &target.machine)],
    }
}

/// Looks at every machine by itself, all at once: exact, and works with the cluster's API down.
pub struct SshObserver {
    pub cluster: Cluster,
    pub ssh: Ssh,
}

#[async_trait]
impl HostObserver for SshObserver {
    async fn observe(&self, known: &[Observed]) -> Result<Vec<Observed>> {
        let looks = known.iter().filter(|seen| seen.id.kind == MACHINE).map(|machine| self.look(machine));
        let found = futures::future::try_join_all(looks).await?;
        Ok(found.into_iter().flatten().collect())
    }
}

impl SshObserver {
    async fn look(&self, machine: &Observed) -> Result<Option<Observed>> {
        match &machine.phase {
            Phase::Ready => self.ask(machine).await,
            // Nobody answers there now. What was installed is most likely still on its disk, and looked at once the machine is mended.
            Phase::Broken(_) => Ok(Some(unreachable(machine, "its machine comes first".into()))),
            Phase::Pending | Phase::Deleting => Ok(None),
        }
    }

    async fn ask(&self, machine: &Observed) -> Result<Option<Observed>> {
        let target = Target::of(machine, Side::Outside)?;
        let facts = async {
            let connection = self.ssh.connect(&target, GLANCE).await?;
            install::probe(&connection).await
        };
        match facts.await {
            Ok((facts, _)) => Ok(judge(&self.cluster, &target, &facts, SystemTime::now())),
            // Whether it is installed cannot be known: "broken" asks for a repair, which looks again with more patience.
            Err(error) => {
                self.ssh.forget(&target.machine);
                Ok(Some(unreachable(machine, error.chain())))
            }
        }
    }
}

/// Pure: facts to what the engine compares. A host of another cluster is not ours to see.
fn judge(cluster: &Cluster, target: &Target, facts: &super::facts::Facts, now: SystemTime) -> Option<Observed> {
    let marker = facts.marker.as_ref().filter(|marker| marker.cluster_uid == cluster.uid)?;
    let phase = plan::ailment(facts, now).map_or(Phase::Ready, Phase::Broken);
    Some(observed(target, marker, phase))
}

/// Nothing is known of it but that it should answer: no spec, so nothing is compared.
fn unreachable(machine: &Observed, why: String) -> Observed {
    let name = &machine.id.name;
    Observed {
        id: Id::new(HOST, name),
        handle: name.clone(),
        generation: machine.generation,
        phase: Phase::Broken(why),
        spec: json!({}),
        outputs: json!({"nodeName": name, "address": machine.outputs["address"]}),
        needs: vec![machine.id.clone()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap::facts::{Facts, tests as samples};

    fn machine() -> Observed {
        Observed {
            id: Id::new(MACHINE, "worker-1"),
            handle: "i-1".into(),
            generation: 1,
            phase: Phase::Ready,
            spec: json!({}),
            outputs: json!({"address": "10.0.0.5", "hostKeys": ["ssh-ed25519 AAAA"]}),
            needs: Vec::new(),
        }
    }

    fn wish() -> HostWish {
        HostWish { role: "worker".into(), revision: "r1".into(), node_name: "worker-1".into() }
    }

    fn check(name: &str, probe: &str, cluster: &str, expected: Option<Phase>) {
        let cluster = Cluster { name: "shop".into(), uid: cluster.into() };
        let facts = Facts::parse(probe).unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let seen = judge(&cluster, &Target::of(&machine(), Side::Outside).unwrap(), &facts, now);
        if let Some(seen) = &seen {
            assert_eq!(seen.spec, wish().resource("worker-1", Vec::new()).spec, "{name}: an installed host equals its wish");
        }
        assert_eq!(seen.map(|seen| seen.phase), expected, "{name}");
    }

    #[test]
    fn a_host_is_what_its_marker_and_its_services_say() {
        let all = ["containerd", "kprov-agent"];
        check("installed", &samples::installed("r1", &all), "u1", Some(Phase::Ready));
        check("fresh", samples::FRESH, "u1", None);
        check("another cluster's", &samples::installed("r1", &all), "u2", None);
        let broken = Some(Phase::Broken("not running: kprov-agent".into()));
        check("agent dead", &samples::installed("r1", &["containerd"]), "u1", broken);
    }

    #[test]
    fn a_request_holds_what_a_replay_needs_and_nothing_else() {
        let resource = wish().resource("worker-1", Vec::new());
        let action = Action {
            verb: Verb::Create,
            id: resource.id,
            generation: 2,
            spec: resource.spec,
            handle: None,
            after: Vec::new(),
            reason: "not there".into(),
            summary: String::new(),
        };
        let other = Observed { id: Id::new(MACHINE, "worker-2"), ..machine() };
        let inputs = Inputs::from([machine(), other].map(|input| (input.id.clone(), input)));
        let own = |input: &Observed| input.id == machine().id;
        let body = install_body(&action, &inputs, Side::Outside, own).unwrap();
        let again: Body = serde_json::from_value(body).unwrap();
        assert_eq!(again.target, Target::of(&machine(), Side::Outside).unwrap());
        assert_eq!(again.inputs, [machine()]);
        assert!(install_body(&action, &Inputs::new(), Side::Outside, own).is_err(), "without its machine there is nothing to install");
    }
}
