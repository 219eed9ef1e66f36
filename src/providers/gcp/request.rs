//! Action -> what is sent: the body of Google's insert or patch call, from the wish and names alone. Pure.

use super::names;
use super::operations::last;
use super::resources::*;
use super::settings::Settings;
use super::sizes;
use crate::engine::{Action, Cluster, Id, Inputs, Pace, Request, Verb};
use crate::error::{Context as _, Error, Kind, Result};
use crate::providers::ownership::Mark;
use crate::providers::resources::{FILESYSTEM, LOAD_BALANCER, ListenerSpec, MACHINE, NETWORK};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A request's body: everything that a retry in another process needs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Body {
    /// Empty but for what is in one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub zone: String,
    pub name: String,
    /// As in the REST reference.
    pub resource: Value,
    /// Of an instance group: the instances that should be in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<String>,
    /// Of a load balancer: its forwarding rules.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Value>,
}

/// Machines that boot, above all: one list serves all that wait.
pub const AT_ONCE: usize = 256;

/// Compute Engine allows 1,500 requests of a kind per project and minute ("Compute Engine rate quotas"); one request makes two or three.
pub fn pace(request: &Request) -> Option<Pace> {
    (request.verb != Verb::Await).then_some(Pace { bucket: "mutations", burst: 20, per_second: 8.0 })
}

/// For Delete, Repair and Await the handle says it all.
pub fn render(settings: &Settings, cluster: &Cluster, action: &Action, inputs: &Inputs) -> Result<Request> {
    let body = match action.verb {
        Verb::Create | Verb::Update => {
            let body = Writer { settings, cluster, action }.body(inputs)?;
            serde_json::to_value(body).or_fail(Kind::Internal, || format!("could not write the request for {}", action.id))?
        }
        Verb::Repair | Verb::Delete | Verb::Await => json!({}),
    };
    Ok(Request::of(cluster, action, body))
}

struct Writer<'a> {
    settings: &'a Settings,
    cluster: &'a Cluster,
    action: &'a Action,
}

impl Writer<'_> {
    fn body(&self, inputs: &Inputs) -> Result<Body> {
        let spec = &self.action.spec;
        let id = &self.action.id;
        let zone = match id.kind.as_str() {
            MACHINE | FILESYSTEM => text(&spec["zone"]),
            INSTANCE_GROUP => id.name.clone(),
            _ => String::new(),
        };
        let mut body = Body { zone, name: names::name(self.cluster, id), ..Body::default() };
        body.resource = match id.kind.as_str() {
            NETWORK => json!({"autoCreateSubnetworks": false, "routingConfig": {"routingMode": "REGIONAL"}}),
            SUBNETWORK => json!({"network": self.network(), "ipCidrRange": spec["range"], "privateIpGoogleAccess": true}),
            FIREWALL => self.firewall(),
            MACHINE => self.instance(),
            FILESYSTEM => self.share(),
            INSTANCE_GROUP => {
                body.members = self.members(&body.zone, inputs);
                json!({"network": self.network()})
            }
            ADDRESS => json!({"addressType": "EXTERNAL", "networkTier": "PREMIUM"}),
            HEALTH_CHECK => self.health_check(),
            BACKEND_SERVICE => self.backend_service(),
            LOAD_BALANCER => {
                body.rules = self.rules()?;
                Value::Null
            }
            other => return Err(Error::internal(format!("could not write a request: kind {other} is not Google's"))),
        };
        if !body.resource.is_null() {
            body.resource["description"] = json!(names::description(&self.mark(), &self.more()));
        }
        // Filestore's name is part of its path.
        if !matches!(id.kind.as_str(), LOAD_BALANCER | FILESYSTEM) {
            body.resource["name"] = json!(body.name);
        }
        // Addresses and forwarding rules take labels only after they were made: they are found by name and description.
        if matches!(id.kind.as_str(), MACHINE | FILESYSTEM) {
            body.resource["labels"] = json!(self.mark().labels());
        }
        Ok(body)
    }

    fn mark(&self) -> Mark {
        Mark::new(self.cluster, &self.action.id, self.action.generation)
    }

    /// What is read back from the description alone.
    fn more(&self) -> Vec<(&str, &str)> {
        let spec = |field: &'static str| (field, self.action.spec[field].as_str().unwrap_or_default());
        match self.action.id.kind.as_str() {
            MACHINE => vec![spec("role"), spec("group")],
            NETWORK => vec![(names::REGION, self.settings.region.as_str())],
            _ => Vec::new(),
        }
    }

    fn project_path(&self, rest: &str) -> String {
        format!("projects/{}/{rest}", self.settings.project)
    }

    fn region_path(&self, collection: &str, name: &str) -> String {
        self.project_path(&format!("regions/{}/{collection}/{name}", self.settings.region))
    }

    fn network(&self) -> String {
        self.project_path(&format!("global/networks/{}", names::of_cluster(self.cluster, NETWORK)))
    }

    fn sibling(&self, kind: &str) -> String {
        names::name(self.cluster, &Id::new(kind, &self.action.id.name))
    }

    fn firewall(&self) -> Value {
        let spec = &self.action.spec;
        let mut allowed = json!({"IPProtocol": spec["protocol"]});
        if spec["ports"].as_array().is_some_and(|ports| !ports.is_empty()) {
            allowed["ports"] = spec["ports"].clone();
        }
        let tag = names::tag(&self.cluster.uid);
        let mut rule = json!({"network": self.network(), "direction": "INGRESS", "targetTags": [tag], "allowed": [allowed]});
        match spec["ranges"].as_array().is_some_and(|ranges| !ranges.is_empty()) {
            true => rule["sourceRanges"] = spec["ranges"].clone(),
            false => rule["sourceTags"] = json!([tag]),
        }
        rule
    }

    fn instance(&self) -> Value {
        let spec = &self.action.spec;
        let zone = text(&spec["zone"]);
        let zone_path = self.project_path(&format!("zones/{zone}"));
        let image = text(&spec["image"]);
        let (image_project, family) = image.split_once('/').unwrap_or(("debian-cloud", image.as_str()));
        let gib = spec["diskBytes"].as_u64().unwrap_or_default() >> 30;
        let mut instance = json!({
            "machineType": format!("{zone_path}/machineTypes/{}", text(&spec["machineType"])),
            "tags": {"items": [names::tag(&self.cluster.uid)]},
            "disks": [{
                "boot": true,
                "autoDelete": true,
                "initializeParams": {
                    "sourceImage": format!("projects/{image_project}/global/images/family/{family}"),
                    "diskSizeGb": gib.to_string(),
                    "diskType": format!("{zone_path}/diskTypes/{}", sizes::disk_type(&text(&spec["machineType"]))),
                    "labels": self.mark().labels(),
                },
            }],
            "networkInterfaces": [{
                "network": self.network(),
                "subnetwork": self.region_path("subnetworks", &names::of_cluster(self.cluster, SUBNETWORK)),
                "accessConfigs": [{"name": "external", "type": "ONE_TO_ONE_NAT", "networkTier": "PREMIUM"}],
            }],
            // Keys of the project's users stay outside; the guest publishes its host keys where only the account's owner reads them.
            "metadata": {"items": metadata(&text(&spec["sshPublicKey"]))},
            "scheduling": {"automaticRestart": true, "onHostMaintenance": "MIGRATE"},
        });
        if let Some(account) = spec["serviceAccount"].as_str() {
            instance["serviceAccounts"] = json!([{"email": account, "scopes": ["https://www.googleapis.com/auth/cloud-platform"]}]);
        }
        instance
    }

    fn share(&self) -> Value {
        let gib = self.action.spec["sizeBytes"].as_u64().unwrap_or_default() >> 30;
        json!({
            "tier": "BASIC_HDD",
            "fileShares": [{"name": SHARE, "capacityGb": gib.to_string()}],
            "networks": [{
                "network": names::of_cluster(self.cluster, NETWORK),
                "modes": ["MODE_IPV4"],
                "reservedIpRange": self.action.spec["range"],
            }],
        })
    }

    /// Only those that are in the group's zone: a group takes no others.
    fn members(&self, zone: &str, inputs: &Inputs) -> Vec<String> {
        let machines = self.action.spec["machines"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let handles = machines.filter_map(|name| inputs.get(&Id::new(MACHINE, name))).map(|machine| machine.handle.as_str());
        let here = handles.filter_map(|handle| handle.split_once('/')).filter(|(place, _)| *place == zone);
        here.map(|(_, name)| self.project_path(&format!("zones/{zone}/instances/{name}"))).collect()
    }

    fn health_check(&self) -> Value {
        json!({
            "type": "HTTP",
            "httpHealthCheck": {"port": self.action.spec["port"], "requestPath": self.action.spec["path"]},
            "checkIntervalSec": 3, "timeoutSec": 3, "healthyThreshold": 1, "unhealthyThreshold": 2,
        })
    }

    fn backend_service(&self) -> Value {
        let zones = self.action.spec["zones"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let group = |zone: &str| {
            let name = names::name(self.cluster, &Id::new(INSTANCE_GROUP, zone));
            json!({"group": self.project_path(&format!("zones/{zone}/instanceGroups/{name}")), "balancingMode": "CONNECTION"})
        };
        json!({
            // Any protocol: one backend service serves TCP and UDP listeners.
            "protocol": "UNSPECIFIED",
            "loadBalancingScheme": "EXTERNAL",
            "healthChecks": [self.region_path("healthChecks", &self.sibling(HEALTH_CHECK))],
            "backends": zones.map(group).collect::<Vec<Value>>(),
        })
    }

    /// One per listener: a rule's ports cannot change, and so one listener's change disturbs no other.
    fn rules(&self) -> Result<Vec<Value>> {
        let listeners: Vec<ListenerSpec> = serde_json::from_value(self.action.spec["listeners"].clone())
            .or_fail(Kind::Internal, || format!("could not read the listeners of {}", self.action.id))?;
        Ok(listeners.iter().map(|listener| self.rule(listener)).collect())
    }

    fn rule(&self, listener: &ListenerSpec) -> Value {
        let rest = format!("{}-{}-{}-{}", LOAD_BALANCER, self.action.id.name, listener.protocol.to_ascii_lowercase(), listener.port);
        json!({
            "name": names::named(&self.cluster.uid, &rest),
            "description": names::description(&self.mark(), &[]),
            "loadBalancingScheme": "EXTERNAL",
            "networkTier": "PREMIUM",
            "IPAddress": self.region_path("addresses", &self.sibling(ADDRESS)),
            "IPProtocol": listener.protocol,
            "ports": [listener.port.to_string()],
            "backendService": self.region_path("backendServices", &self.sibling(BACKEND_SERVICE)),
        })
    }
}

/// The share's name inside a Filestore instance.
pub const SHARE: &str = "share";

/// What an instance is told about itself.
pub fn metadata(public_key: &str) -> Vec<Value> {
    let item = |key: &str, value: &str| json!({"key": key, "value": value});
    vec![
        item("ssh-keys", &ssh_key_line(public_key)),
        item("block-project-ssh-keys", "TRUE"),
        item("enable-oslogin", "FALSE"),
        item("enable-guest-attributes", "TRUE"),
    ]
}

/// `zone/name` for what is in a zone, `name` for the rest.
pub fn handle(zone: &str, name: &str) -> String {
    if zone.is_empty() { name.into() } else { format!("{zone}/{name}") }
}

/// The zone and the name of a handle.
pub fn of_handle(handle: &str) -> (&str, &str) {
    handle.split_once('/').unwrap_or(("", handle))
}

/// The handle of a thing as the API shows it.
pub fn handle_of(thing: &Value) -> String {
    handle(thing["zone"].as_str().map_or("", last), thing["name"].as_str().unwrap_or_default())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Observed, Phase};
    use std::collections::BTreeMap;

    fn cluster() -> Cluster {
        Cluster { name: "shop".into(), uid: "3f2a9c11-d0e4-4b6f-9a51-0c1d2e3f4a5b".into() }
    }

    fn settings() -> Settings {
        Settings {
            project: "p".into(),
            region: "europe-west1".into(),
            endpoint: None,
            file_endpoint: None,
            image: "debian-cloud/debian-12".into(),
            machine_types: BTreeMap::new(),
            service_account: "default".into(),
        }
    }

    fn rendered(id: Id, spec: Value, inputs: &Inputs) -> Body {
        let action = Action {
            verb: Verb::Create,
            id,
            generation: 1,
            spec,
            handle: None,
            after: vec![],
            reason: String::new(),
            summary: String::new(),
        };
        serde_json::from_value(render(&settings(), &cluster(), &action, inputs).expect("it renders").body).expect("a body")
    }

    fn machine_spec(role: &str) -> Value {
        json!({
            "role": role, "group": "g", "machineType": "e2-medium", "zone": "europe-west1-b", "image": "debian-cloud/debian-12",
            "diskBytes": 20u64 << 30, "sshPublicKey": "ssh-ed25519 AAAA",
            "serviceAccount": if role == "control-plane" { json!("default") } else { Value::Null },
        })
    }

    #[test]
    fn an_instance_carries_our_mark_our_key_and_an_account_only_where_the_loop_runs() {
        let body = rendered(Id::new(MACHINE, "worker-1"), machine_spec("worker"), &Inputs::new());
        assert_eq!((body.zone.as_str(), body.name.as_str()), ("europe-west1-b", "kprov-3f2a9c11d0e4-machine-worker-1"));
        assert_eq!(body.resource["labels"]["kprov-cluster-uid"], cluster().uid);
        assert_eq!(body.resource["metadata"]["items"][0], json!({"key": "ssh-keys", "value": "kprov:ssh-ed25519 AAAA"}));
        assert_eq!(body.resource["disks"][0]["initializeParams"]["diskSizeGb"], "20");
        assert_eq!(body.resource["serviceAccounts"], Value::Null);
        let body = rendered(Id::new(MACHINE, "control-1"), machine_spec("control-plane"), &Inputs::new());
        assert_eq!(body.resource["serviceAccounts"][0]["email"], "default");
    }

    #[test]
    fn a_group_takes_the_machines_that_are_in_its_zone() {
        let machine = |name: &str, zone: &str| Observed {
            id: Id::new(MACHINE, name),
            handle: format!("{zone}/kprov-x-machine-{name}"),
            generation: 1,
            phase: Phase::Ready,
            spec: Value::Null,
            outputs: Value::Null,
            needs: vec![],
        };
        let machines = [machine("a", "z-b"), machine("b", "z-c"), machine("c", "z-b")];
        let inputs: Inputs = machines.into_iter().map(|one| (one.id.clone(), one)).collect();
        let body = rendered(Id::new(INSTANCE_GROUP, "z-b"), json!({"machines": ["a", "b"]}), &inputs);
        assert_eq!(body.members, ["projects/p/zones/z-b/instances/kprov-x-machine-a"]);
    }

    #[test]
    fn every_listener_has_a_rule_of_its_own() {
        let listeners = json!([{"port": 80, "protocol": "TCP", "nodePort": 32000}, {"port": 53, "protocol": "UDP", "nodePort": 32001}]);
        let body = rendered(Id::new(LOAD_BALANCER, "web"), json!({"name": "web", "listeners": listeners, "machines": []}), &Inputs::new());
        let names: Vec<&Value> = body.rules.iter().map(|rule| &rule["name"]).collect();
        assert_eq!(names, ["kprov-3f2a9c11d0e4-load-balancer-web-tcp-80", "kprov-3f2a9c11d0e4-load-balancer-web-udp-53"]);
        assert_eq!((&body.rules[1]["IPProtocol"], &body.rules[1]["ports"]), (&json!("UDP"), &json!(["53"])));
    }

    #[test]
    fn nothing_secret_and_nothing_that_changes_by_itself_is_in_a_request() {
        let once = rendered(Id::new(MACHINE, "worker-1"), machine_spec("worker"), &Inputs::new());
        assert_eq!(rendered(Id::new(MACHINE, "worker-1"), machine_spec("worker"), &Inputs::new()), once);
        assert!(!serde_json::to_string(&once).expect("text").contains("PRIVATE"));
    }
}
