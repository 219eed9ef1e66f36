//! What is there, as engines see it: from records, and from what runs.

use super::lives::Life;
use super::{Cloud, State};
use crate::engine::{Id, Observed, Phase};
use crate::providers::local::api::View;
use crate::providers::local::record::{Record, Stage};
use crate::providers::local::{layout, machine};
use crate::providers::resources::{FILESYSTEM, LOAD_BALANCER, LoadBalancerSpec, MACHINE, NETWORK};
use serde_json::json;

impl Cloud {
    pub fn observe(&self) -> View {
        let state = self.state.lock();
        let resources = state.records.values().map(|record| self.observed(&state, record)).collect();
        View { resources, version: self.version() }
    }

    pub(super) fn version(&self) -> String {
        format!("{}-{}", self.instance, *self.version.borrow())
    }

    /// Returns the current version once it is another than `after`.
    pub async fn changed(&self, after: &str) -> String {
        let mut version = self.version.subscribe();
        while self.version() == after {
            if version.changed().await.is_err() {
                break;
            }
        }
        self.version()
    }

    pub(super) fn bump(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    fn observed(&self, state: &State, record: &Record) -> Observed {
        let address = record.address.map(|address| address.to_string());
        let name = &record.id.name;
        let mut phase = Phase::Ready;
        let outputs = match record.id.kind.as_str() {
            MACHINE => {
                match state.machines.get(name) {
                    Some(Life::Running { .. }) => {}
                    Some(Life::Stopped(why)) => phase = Phase::Broken(format!("stopped: {why}")),
                    // One that was made before only boots again: what is on its disk is still there.
                    Some(Life::Starting) | None => phase = Phase::Broken("it is starting again".into()),
                }
                let keys: Vec<String> = machine::host_key(record).into_iter().collect();
                json!({"address": address, "privateAddress": address, "sshPort": 22, "sshUser": "root", "hostKeys": keys})
            }
            LOAD_BALANCER => {
                if !state.balancers.contains_key(name) {
                    phase = Phase::Pending;
                }
                json!({"address": address})
            }
            FILESYSTEM => {
                let place = format!("{}/filesystems/{name}", crate::sys::paths::DATA);
                json!({"mount": {"type": "bind", "source": place}})
            }
            _ => {
                if let Some(why) = &state.network_trouble {
                    phase = Phase::Broken(why.clone());
                }
                let part = |last| record.address.map(|subnet| layout::address(subnet, last).to_string());
                let subnet = address.map(|subnet| format!("{subnet}/24"));
                json!({"subnet": subnet, "gateway": part(layout::GATEWAY), "host": part(layout::HOST)})
            }
        };
        match record.stage {
            Stage::Intent => phase = Phase::Pending,
            Stage::Deleting => phase = Phase::Deleting,
            Stage::Made => {}
        }
        let needs = needs(record, state.records.keys());
        let handle = self.handle(record);
        Observed { id: record.id.clone(), handle, generation: record.generation, phase, spec: record.spec.clone(), outputs, needs }
    }

    /// Where it is on this host: two clusters have things of the same name, never in the same place.
    pub(super) fn handle(&self, record: &Record) -> String {
        let name = &record.id.name;
        match (record.id.kind.as_str(), record.address) {
            (MACHINE, _) => self.layout.machine(name).display().to_string(),
            (FILESYSTEM, _) => self.layout.filesystems().join(name).display().to_string(),
            (LOAD_BALANCER, Some(address)) => format!("{}/{address}", self.layout.link()),
            _ => self.layout.link(),
        }
    }

    pub(super) fn observe_one(&self, id: &Id) -> Option<Observed> {
        let state = self.state.lock();
        state.records.get(id).map(|record| self.observed(&state, record))
    }
}

/// What must outlive it: the network, and of a load balancer the machines it sends to.
fn needs<'a>(record: &Record, all: impl Iterator<Item = &'a Id>) -> Vec<Id> {
    let machines = match record.id.kind.as_str() {
        LOAD_BALANCER => record.spec::<LoadBalancerSpec>().map(|spec| spec.machines).unwrap_or_default(),
        _ => Vec::new(),
    };
    let network = all.filter(|id| id.kind == NETWORK && **id != record.id).cloned();
    network.chain(machines.into_iter().map(|name| Id::new(MACHINE, name))).collect()
}
