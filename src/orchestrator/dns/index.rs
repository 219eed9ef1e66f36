//! Services and EndpointSlices as names: what the answers are looked up in. Kept current one service at a time.

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

/// What stands behind `<service>.<namespace>.svc`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// One address for all.
    Cluster { addresses: Vec<IpAddr>, ports: Vec<Port> },
    /// One name for each pod, and all their addresses under the service's.
    Headless { hosts: BTreeMap<String, Host> },
    /// Another name, anywhere.
    External { target: String },
}

/// A named port: `_<name>._<protocol>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Port {
    pub name: String,
    /// In small letters.
    pub protocol: String,
    pub number: u16,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    pub addresses: BTreeSet<IpAddr>,
    pub ports: BTreeSet<Port>,
}

/// Namespace and name.
pub type Key = (String, String);

#[derive(Debug)]
pub struct Index {
    /// e.g. ["cluster", "local"]
    pub domain: Vec<String>,
    pub dns: IpAddr,
    /// Addresses that only this server can know the names of.
    pub own_ranges: Vec<IpNet>,
    /// Before the first list has arrived nobody may be told that a name does not exist.
    pub complete: bool,
    services: HashMap<Key, Entry>,
    /// How many services each namespace has.
    namespaces: HashMap<String, usize>,
    /// Names of an address, relative to `svc.<domain>`.
    names: HashMap<IpAddr, BTreeSet<Vec<String>>>,
}

impl Index {
    pub fn new(domain: &str, dns: IpAddr, own_ranges: Vec<IpNet>) -> Index {
        let domain = domain.to_lowercase().trim_matches('.').split('.').map(String::from).collect();
        let (services, namespaces, names) = Default::default();
        Index { domain, dns, own_ranges, complete: false, services, namespaces, names }
    }

    pub fn service(&self, namespace: &str, name: &str) -> Option<&Entry> {
        // A lookup costs two small allocations; hashing borrowed pairs would need a key type of its own.
        self.services.get(&(namespace.to_string(), name.to_string()))
    }
    pub fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains_key(namespace)
    }
    pub fn names(&self, address: IpAddr) -> impl Iterator<Item = &Vec<String>> {
        self.names.get(&address).into_iter().flatten()
    }

    pub fn keys(&self) -> Vec<Key> {
        self.services.keys().cloned().collect()
    }

    /// Everything, to be read again by `restore` after a restart without the control plane.
    pub fn save(&self) -> Vec<u8> {
        let all: Vec<(&Key, &Entry)> = self.services.iter().collect();
        serde_json::to_vec(&all).expect("plain data has no reason to fail")
    }
    /// Whether the bytes were what `save` wrote.
    pub fn restore(&mut self, bytes: &[u8]) -> bool {
        let Ok(all) = serde_json::from_slice::<Vec<(Key, Entry)>>(bytes) else { return false };
        for (key, entry) in all {
            self.put(key, Some(entry));
        }
        self.complete = true;
        true
    }

    /// Replaces (or with `None` removes) one service; whether that changed anything.
    pub fn put(&mut self, key: Key, entry: Option<Entry>) -> bool {
        if self.services.get(&key) == entry.as_ref() {
            return false;
        }
        if let Some(old) = self.services.remove(&key) {
            for (address, name) in reverse(&key, &old) {
                if let Some(names) = self.names.get_mut(&address) {
                    names.remove(&name);
                    if names.is_empty() {
                        self.names.remove(&address);
                    }
                }
            }
            if let Some(count) = self.namespaces.get_mut(&key.0) {
                *count -= 1;
                if *count == 0 {
                    self.namespaces.remove(&key.0);
                }
            }
        }
        if let Some(entry) = entry {
            for (address, name) in reverse(&key, &entry) {
                self.names.entry(address).or_default().insert(name);
            }
            *self.namespaces.entry(key.0.clone()).or_default() += 1;
            self.services.insert(key, entry);
        }
        true
    }
}

/// Which addresses lead back to which names.
fn reverse(key: &Key, entry: &Entry) -> Vec<(IpAddr, Vec<String>)> {
    let service = vec![key.1.clone(), key.0.clone()];
    match entry {
        Entry::Cluster { addresses, .. } => addresses.iter().map(|address| (*address, service.clone())).collect(),
        Entry::Headless { hosts } => {
            let name = |host: &String| [vec![host.clone()], service.clone()].concat();
            hosts.iter().flat_map(|(host, what)| what.addresses.iter().map(move |address| (*address, name(host)))).collect()
        }
        Entry::External { .. } => vec![],
    }
}

/// What a service is to DNS; `None` for one that has no address yet.
pub fn entry(service: &Service, slices: &[Arc<EndpointSlice>]) -> Option<Entry> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return Some(Entry::External { target: spec.external_name.clone().filter(|name| !name.is_empty())? });
    }
    if spec.cluster_ip.as_deref() == Some("None") {
        return Some(Entry::Headless { hosts: hosts(slices, spec.publish_not_ready_addresses.unwrap_or(false)) });
    }
    let addresses: BTreeSet<IpAddr> =
        spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip).filter_map(|address| address.parse().ok()).collect();
    let port = |port: &k8s_openapi::api::core::v1::ServicePort| {
        Some(Port {
            name: port.name.clone().unwrap_or_default().to_lowercase(),
            protocol: port.protocol.as_deref().unwrap_or("TCP").to_lowercase(),
            number: u16::try_from(port.port).ok()?,
        })
    };
    let ports = spec.ports.iter().flatten().filter_map(port).collect();
    (!addresses.is_empty()).then(|| Entry::Cluster { addresses: addresses.into_iter().collect(), ports })
}

fn hosts(slices: &[Arc<EndpointSlice>], all: bool) -> BTreeMap<String, Host> {
    let mut hosts: BTreeMap<String, Host> = BTreeMap::new();
    for slice in slices {
        let ports: Vec<Port> = slice
            .ports
            .iter()
            .flatten()
            .filter_map(|port| {
                let protocol = port.protocol.as_deref().unwrap_or("TCP").to_lowercase();
                Some(Port { name: port.name.clone().unwrap_or_default().to_lowercase(), protocol, number: u16::try_from(port.port?).ok()? })
            })
            .collect();
        for endpoint in &slice.endpoints {
            let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
            let Some(address) = endpoint.addresses.first().and_then(|address| address.parse::<IpAddr>().ok()).filter(|_| ready || all)
            else {
                continue;
            };
            let name = endpoint.hostname.as_ref().map_or_else(|| dashed(address), |name| name.to_lowercase());
            let host = hosts.entry(name).or_default();
            host.addresses.insert(address);
            host.ports.extend(ports.iter().cloned());
        }
    }
    hosts
}

/// 10.244.1.5 as one label: 10-244-1-5.
pub fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

/// The other way; `None` for what is no address.
pub fn undashed(label: &str) -> Option<IpAddr> {
    label.replace('-', ".").parse().ok().or_else(|| label.replace('-', ":").parse().ok())
}
