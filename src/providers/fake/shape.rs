//! Whose cloud it is: each provider's own kinds, dependencies, calls, names and times, so that the engine meets them without a network.
//!
//! What a blueprint becomes and what a request refers to come from the providers' own pure functions, with a catalog as the clouds
//! answer it; what those cannot say (which call makes what, how long it takes, what keeps what from being deleted) is a table here.

use super::Manners;
use crate::blueprint::Blueprint;
use crate::blueprint::providers::SshHost;
use crate::engine::{Action, Cluster, HOST, Id, Inputs, MACHINE, Observed, Pace, Request, Resource, Verb};
use crate::error::Result;
use crate::providers::resources::{self as neutral, FILESYSTEM, LOAD_BALANCER, NETWORK};
use crate::providers::{Context, aws, gcp, ssh};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

/// The Blueprint object inside the cluster: the last thing that the command line writes.
pub const BLUEPRINT: &str = "blueprint";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shape {
    /// No provider's: the neutral kinds, one call each.
    Neutral,
    Local,
    Ssh,
    Aws,
    Gcp,
}

impl fmt::Display for Shape {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", format!("{self:?}").to_lowercase())
    }
}

/// What keeps two creates of one thing apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Once {
    /// The receiver remembers the token for ever.
    Token,
    /// Two things of one name cannot be; the first is found again by its name and tag.
    Name,
    /// Only what the door sees when it looks before it sends.
    Look,
}

/// Zones of the recorded region; three are used.
const ZONES: [&str; 3] = ["a", "b", "c"];

impl Shape {
    pub const PROVIDERS: [Shape; 4] = [Shape::Local, Shape::Ssh, Shape::Aws, Shape::Gcp];

    /// Local and ssh read what they wrote; EC2's reads lag by seconds, Google's lists for calls that outlive their caller.
    pub fn manners(self) -> Manners {
        let plain = Manners { shape: self, ..Manners::strict() };
        match self {
            Shape::Neutral | Shape::Local => plain,
            Shape::Ssh => Manners { door_fences: true, ..plain },
            Shape::Aws => Manners { door_fences: true, looks_first: true, settle: Duration::from_secs(6), quota: 2000, ..plain },
            Shape::Gcp => Manners { door_fences: true, looks_first: true, settle: Duration::from_secs(3), quota: 2000, ..plain },
        }
    }

    pub fn kinds(self) -> &'static [&'static str] {
        use aws::names::*;
        use gcp::resources::*;
        match self {
            Shape::Aws => &[
                NETWORK,
                SUBNET,
                GATEWAY,
                ROUTES,
                GROUP,
                KEY_PAIR,
                SECRET,
                ROLE,
                PROFILE,
                FILESYSTEM,
                MOUNT,
                MACHINE,
                TARGETS,
                LOAD_BALANCER,
            ],
            Shape::Gcp => {
                &[NETWORK, SUBNETWORK, FIREWALL, FILESYSTEM, MACHINE, INSTANCE_GROUP, ADDRESS, HEALTH_CHECK, BACKEND_SERVICE, LOAD_BALANCER]
            }
            _ => &[NETWORK, FILESYSTEM, MACHINE, LOAD_BALANCER],
        }
    }

    /// What the provider itself makes of the blueprint.
    pub(super) fn resources(self, blueprint: &Blueprint, context: &Context) -> Result<Vec<Resource>> {
        match self {
            Shape::Neutral => neutral::expand(blueprint, context),
            Shape::Local => local_resources(blueprint, context),
            Shape::Ssh => ssh_resources(blueprint, context),
            Shape::Aws => aws::resources::expand(blueprint, context, "eu-west-1", &aws_catalog(blueprint)?),
            Shape::Gcp => gcp::resources::expand(blueprint, context, &gcp_settings(), &gcp_catalog(blueprint)?),
        }
    }

    /// What the provider itself would send: what a retry must repeat, byte for byte.
    pub(super) fn body(self, cluster: &Cluster, action: &Action, inputs: &Inputs) -> Result<Value> {
        match self {
            _ if matches!(action.id.kind.as_str(), HOST | BLUEPRINT) => Ok(Value::Null),
            Shape::Aws => Ok(aws::request::render(cluster, action, inputs)?.body),
            Shape::Gcp => Ok(gcp::request::render(&gcp_settings(), cluster, action, inputs)?.body),
            _ => Ok(Value::Null),
        }
    }

    /// The handles of what this thing is built on, as the provider keeps them.
    pub(super) fn needs(self, cluster: &Cluster, action: &Action, body: &Value, inputs: &Inputs) -> Vec<String> {
        let mut needs: Vec<String> = match self {
            _ if action.id.kind == HOST => handle(inputs, &Id::new(MACHINE, &action.id.name)).into_iter().collect(),
            _ if action.id.kind == BLUEPRINT => control_planes(inputs).take(1).collect(),
            Shape::Aws => aws_needs(action, body, inputs),
            Shape::Gcp => gcp_needs(cluster, action).iter().filter_map(|id| handle(inputs, id)).collect(),
            _ => neutral_needs(cluster, action, inputs).iter().filter_map(|id| handle(inputs, id)).collect(),
        };
        needs.sort();
        needs.dedup();
        needs
    }

    /// The calls with an effect that one request comes to, in order; each may fail, and so is a place for a fault. What is repeated per
    /// rule, zone or listener counts once.
    pub fn calls(self, kind: &str, verb: Verb) -> &'static [&'static str] {
        match (kind, verb) {
            (_, Verb::Await) => &[],
            (HOST, Verb::Delete) => &["drain", "delete node"],
            (HOST, _) => &["upload", "files", "containerd", "images", "services", "marker"],
            (BLUEPRINT, _) => &["write blueprint"],
            _ => match self {
                Shape::Aws => aws_calls(kind, verb),
                Shape::Gcp => gcp_calls(kind, verb),
                Shape::Ssh => ssh_calls(kind, verb),
                Shape::Neutral | Shape::Local => &["execute"],
            },
        }
    }

    /// From acceptance to ready, or to gone; where several calls make a thing, of the last. What providers and users of theirs publish:
    /// EC2 machines answer SSH about half a minute after their launch, network load balancers are active after two to three minutes, EFS
    /// mount targets after up to 90 s; Compute Engine machines answer after about 20 s, its operations take seconds, basic Filestore
    /// instances three to five minutes. Local and ssh: measured on this project's machines.
    pub fn takes(self, kind: &str, verb: Verb) -> Duration {
        use aws::names::{MOUNT, TARGETS};
        let seconds = match (self, kind, verb) {
            (_, BLUEPRINT, _) => 0.05,
            (Shape::Neutral | Shape::Local, HOST, _) => 1.0,
            (_, HOST, Verb::Delete) => 2.0,
            (_, HOST, _) => 12.0,
            (Shape::Neutral | Shape::Local, MACHINE, Verb::Delete) => 0.1,
            (Shape::Neutral | Shape::Local, MACHINE, _) => 0.2,
            (Shape::Neutral | Shape::Local, ..) => 0.05,
            (Shape::Ssh, MACHINE, Verb::Delete) => 3.0,
            (Shape::Ssh, ..) => 0.5,
            (Shape::Aws, MACHINE, Verb::Delete) => 40.0,
            (Shape::Aws, MACHINE, _) => 35.0,
            (Shape::Aws, LOAD_BALANCER, Verb::Create) => 150.0,
            (Shape::Aws, FILESYSTEM, _) => 5.0,
            (Shape::Aws, MOUNT, _) => 90.0,
            (Shape::Aws, TARGETS, _) => 0.5,
            (Shape::Aws, ..) => 1.0,
            (Shape::Gcp, FILESYSTEM, Verb::Create) => 240.0,
            (Shape::Gcp, FILESYSTEM, _) => 60.0,
            (Shape::Gcp, MACHINE, Verb::Delete) => 40.0,
            (Shape::Gcp, MACHINE, _) => 25.0,
            (Shape::Gcp, NETWORK, _) => 12.0,
            (Shape::Gcp, ..) => 6.0,
        };
        Duration::from_secs_f64(seconds)
    }

    /// What a waiting door adds: it looks again after a fifth of a second, then after twice as long each time, up to this.
    pub(super) fn longest_pause(self) -> Duration {
        if matches!(self, Shape::Aws | Shape::Gcp) { Duration::from_secs(1) } else { Duration::ZERO }
    }

    /// As the provider's own door says.
    pub fn at_once(self) -> usize {
        match self {
            Shape::Aws => aws::request::AT_ONCE,
            Shape::Gcp => gcp::request::AT_ONCE,
            _ => 16,
        }
    }

    /// As the provider's own door says.
    pub fn pace(self, request: &Request) -> Option<Pace> {
        match self {
            Shape::Aws => aws::request::pace(request),
            Shape::Gcp => gcp::request::pace(request),
            _ => None,
        }
    }

    pub(super) fn once(self, kind: &str) -> Once {
        use aws::names::*;
        match self {
            Shape::Aws => match kind {
                NETWORK | GATEWAY => Once::Look,
                MACHINE | FILESYSTEM | ROUTES => Once::Token,
                SUBNET | GROUP | KEY_PAIR | SECRET | ROLE | PROFILE | MOUNT | TARGETS | LOAD_BALANCER => Once::Name,
                _ => Once::Token,
            },
            Shape::Gcp if !matches!(kind, HOST | BLUEPRINT) => Once::Name,
            _ => Once::Token,
        }
    }

    /// Whether `other` keeps `thing` from being deleted although no request of its own refers to it: EC2 does not detach a gateway from
    /// a network in which machines have public addresses.
    pub(super) fn also_holds(self, other: &str, thing: &str) -> bool {
        self == Shape::Aws && thing == aws::names::GATEWAY && other == MACHINE
    }

    /// What a look says that a thing needs: at AWS by kind, elsewhere what it refers to.
    pub(super) fn observed_needs(self, all: &mut [Observed]) {
        if self == Shape::Aws {
            aws::names::mark_empty_twins(all);
            let needs: Vec<Vec<Id>> = all.iter().map(|thing| aws::names::needs(&thing.id, all)).collect();
            all.iter_mut().zip(needs).for_each(|(thing, needs)| thing.needs = needs);
        }
    }
}

fn handle(inputs: &Inputs, id: &Id) -> Option<String> {
    inputs.get(id).map(|thing| thing.handle.clone())
}

fn control_planes(inputs: &Inputs) -> impl Iterator<Item = String> {
    let controls = inputs.values().filter(|thing| thing.id.kind == MACHINE && thing.spec["role"] == "control-plane");
    controls.map(|thing| thing.handle.clone())
}

fn names(spec: &Value, field: &str) -> Vec<String> {
    spec[field].as_array().into_iter().flatten().filter_map(Value::as_str).map(String::from).collect()
}

/// The provider gets its needs from the action's spec alone.
fn neutral_needs(cluster: &Cluster, action: &Action, inputs: &Inputs) -> Vec<Id> {
    let network = Id::new(NETWORK, &cluster.name);
    match action.id.kind.as_str() {
        NETWORK => vec![],
        LOAD_BALANCER => names(&action.spec, "machines").iter().map(|name| Id::new(MACHINE, name)).chain([network]).collect(),
        MACHINE => inputs.keys().filter(|id| id.kind == FILESYSTEM).cloned().chain([network]).collect(),
        _ => vec![network],
    }
}

/// Every handle that the request's references name.
fn aws_needs(action: &Action, body: &Value, inputs: &Inputs) -> Vec<String> {
    let mut named = BTreeSet::new();
    gather(&body["refs"], &mut named);
    let refers = inputs.values().filter(|thing| named.contains(thing.handle.as_str()) && thing.id != action.id);
    let mut needs: Vec<String> = refers.map(|thing| thing.handle.clone()).collect();
    // Bound by name: the role of the profile has the profile's own name.
    if action.id.kind == aws::names::PROFILE {
        needs.extend(handle(inputs, &Id::new(aws::names::ROLE, aws::names::CONTROL_PLANE)));
    }
    needs
}

fn gather<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
    match value {
        Value::String(text) => drop(found.insert(text)),
        Value::Array(items) => items.iter().for_each(|item| gather(item, found)),
        Value::Object(fields) => fields.values().for_each(|field| gather(field, found)),
        _ => {}
    }
}

/// As `gcp::read` tells them of what Google answers.
fn gcp_needs(cluster: &Cluster, action: &Action) -> Vec<Id> {
    use gcp::resources::*;
    let (network, name) = (Id::new(NETWORK, &cluster.name), &action.id.name);
    match action.id.kind.as_str() {
        SUBNETWORK | FIREWALL | FILESYSTEM => vec![network],
        MACHINE => vec![network, Id::new(SUBNETWORK, &cluster.name)],
        INSTANCE_GROUP => names(&action.spec, "machines").iter().map(|name| Id::new(MACHINE, name)).chain([network]).collect(),
        BACKEND_SERVICE => {
            names(&action.spec, "zones").iter().map(|zone| Id::new(INSTANCE_GROUP, zone)).chain([Id::new(HEALTH_CHECK, name)]).collect()
        }
        LOAD_BALANCER => vec![network, Id::new(ADDRESS, name), Id::new(BACKEND_SERVICE, name)],
        _ => vec![],
    }
}

fn aws_calls(kind: &str, verb: Verb) -> &'static [&'static str] {
    use aws::names::*;
    match (kind, verb) {
        (NETWORK, Verb::Create) => &["CreateVpc", "ModifyVpcAttribute"],
        (SUBNET, Verb::Create) => &["CreateSubnet"],
        (GATEWAY, Verb::Create) => &["CreateInternetGateway", "AttachInternetGateway"],
        (ROUTES, Verb::Create) => &["CreateRouteTable", "CreateRoute", "AssociateRouteTable"],
        (GROUP, Verb::Create) => &["CreateSecurityGroup", "AuthorizeSecurityGroupIngress"],
        (KEY_PAIR, Verb::Create) => &["ImportKeyPair"],
        (SECRET, Verb::Create) => &["PutParameter"],
        (ROLE, Verb::Create) => &["CreateRole", "PutRolePolicy"],
        (PROFILE, Verb::Create) => &["CreateInstanceProfile", "AddRoleToInstanceProfile"],
        (FILESYSTEM, Verb::Create) => &["CreateFileSystem"],
        (MOUNT, Verb::Create) => &["CreateMountTarget"],
        (MACHINE, Verb::Create) => &["RunInstances"],
        (TARGETS, Verb::Create) => &["CreateTargetGroup", "RegisterTargets"],
        (LOAD_BALANCER, Verb::Create) => &["CreateLoadBalancer", "CreateListener"],
        (GROUP, Verb::Update | Verb::Repair) => &["AuthorizeSecurityGroupIngress", "RevokeSecurityGroupIngress"],
        (TARGETS, Verb::Update | Verb::Repair) => &["RegisterTargets", "DeregisterTargets"],
        (LOAD_BALANCER, Verb::Update | Verb::Repair) => &["DeleteListener", "CreateListener"],
        (ROUTES, Verb::Update | Verb::Repair) => &["CreateRoute", "AssociateRouteTable"],
        (MACHINE, Verb::Update | Verb::Repair) => &["StartInstances"],
        (_, Verb::Update | Verb::Repair) => &["ensure"],
        (GATEWAY, Verb::Delete) => &["DetachInternetGateway", "DeleteInternetGateway"],
        (ROUTES, Verb::Delete) => &["DisassociateRouteTable", "DeleteRouteTable"],
        (ROLE, Verb::Delete) => &["DeleteRolePolicy", "DeleteRole"],
        (PROFILE, Verb::Delete) => &["RemoveRoleFromInstanceProfile", "DeleteInstanceProfile"],
        (NETWORK, _) => &["DeleteVpc"],
        (SUBNET, _) => &["DeleteSubnet"],
        (GROUP, _) => &["DeleteSecurityGroup"],
        (KEY_PAIR, _) => &["DeleteKeyPair"],
        (SECRET, _) => &["DeleteParameter"],
        (FILESYSTEM, _) => &["DeleteFileSystem"],
        (MOUNT, _) => &["DeleteMountTarget"],
        (MACHINE, _) => &["TerminateInstances"],
        (TARGETS, _) => &["DeleteTargetGroup"],
        _ => &["DeleteLoadBalancer"],
    }
}

fn gcp_calls(kind: &str, verb: Verb) -> &'static [&'static str] {
    use gcp::resources::*;
    match (kind, verb) {
        (INSTANCE_GROUP, Verb::Create) => &["instanceGroups.insert", "instanceGroups.addInstances"],
        (INSTANCE_GROUP, Verb::Update | Verb::Repair) => &["instanceGroups.addInstances", "instanceGroups.removeInstances"],
        (LOAD_BALANCER, Verb::Update | Verb::Repair) => &["forwardingRules.delete", "forwardingRules.insert"],
        (MACHINE, Verb::Create) => &["instances.insert"],
        (MACHINE, Verb::Update | Verb::Repair) => &["instances.start"],
        (MACHINE, _) => &["instances.delete"],
        (FILESYSTEM, Verb::Create) => &["file.instances.create"],
        (FILESYSTEM, Verb::Update | Verb::Repair) => &["file.instances.patch"],
        (FILESYSTEM, _) => &["file.instances.delete"],
        (_, Verb::Create) => &["insert"],
        (_, Verb::Update | Verb::Repair) => &["patch"],
        _ => &["delete"],
    }
}

fn ssh_calls(kind: &str, verb: Verb) -> &'static [&'static str] {
    match (kind, verb) {
        (MACHINE, Verb::Delete) => &["release", "unput record"],
        (MACHINE, _) => &["put record", "claim"],
        (NETWORK, Verb::Delete) => &["farewell"],
        (_, Verb::Delete) => &["unput record"],
        _ => &["put record"],
    }
}

/// Limits and keys of a namespaced machine change in place; only another role makes it another machine.
fn local_resources(blueprint: &Blueprint, context: &Context) -> Result<Vec<Resource>> {
    let mut all = neutral::expand(blueprint, context)?;
    all.iter_mut().filter(|resource| resource.id.kind == MACHINE).for_each(|machine| machine.replace_on = vec!["role".into()]);
    Ok(all)
}

/// Hosts enough for everybody; each machine stays on the one that its number gives it.
fn ssh_resources(blueprint: &Blueprint, context: &Context) -> Result<Vec<Resource>> {
    let mut all = neutral::expand(blueprint, context)?;
    let machines: Vec<String> = all.iter().filter(|one| one.id.kind == MACHINE).map(|one| one.id.name.clone()).collect();
    let hosts: Vec<SshHost> = (0..machines.len()).map(ssh_host).collect();
    let places = ssh::wish::assign(blueprint, &hosts, &BTreeMap::new())?;
    for machine in all.iter_mut().filter(|resource| resource.id.kind == MACHINE) {
        machine.spec["host"] = json!(places.get(&machine.id.name));
        machine.replace_on = vec!["role".into(), "host".into()];
    }
    ssh::balance::place(&mut all, &[], &ssh::world::World::default())?;
    Ok(all)
}

fn ssh_host(number: usize) -> SshHost {
    let address = format!("192.0.{}.{}", 2 + number / 250, 1 + number % 250);
    serde_json::from_value(json!({"address": address})).expect("a host is an address")
}

fn aws_catalog(blueprint: &Blueprint) -> Result<aws::resources::Catalog> {
    let zones: Vec<String> = ZONES.iter().map(|zone| format!("eu-west-1{zone}")).collect();
    let types = aws::resources::types(blueprint)?;
    let offered = types.into_values().map(|kind| (kind, zones.iter().cloned().collect())).collect();
    let image = |word: &str| aws::images::Image {
        id: "ami-0".into(),
        name: format!("debian-12-{word}"),
        root_device: "/dev/xvda".into(),
        root_gib: 8,
        user: "admin".into(),
    };
    let images = [("x86_64".to_string(), image("amd64")), ("arm64".to_string(), image("arm64"))].into();
    Ok(aws::resources::Catalog { zones, offered, images, ..Default::default() })
}

fn gcp_settings() -> gcp::settings::Settings {
    gcp::settings::Settings {
        project: "p".into(),
        region: "europe-west1".into(),
        endpoint: None,
        file_endpoint: None,
        image: "debian-cloud/debian-12".into(),
        machine_types: BTreeMap::new(),
        service_account: "default".into(),
    }
}

fn gcp_catalog(blueprint: &Blueprint) -> Result<gcp::resources::Catalog> {
    let zones: Vec<String> = ["b", "c", "d"].map(|zone| format!("europe-west1-{zone}")).to_vec();
    let types = gcp::resources::types(blueprint, &gcp_settings())?;
    let offers = types.into_iter().map(|kind| (kind, zones.iter().cloned().collect())).collect();
    Ok(gcp::resources::Catalog { zones, offers, ..Default::default() })
}
