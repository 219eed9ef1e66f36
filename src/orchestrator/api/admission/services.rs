//! Cluster addresses and node ports: given, kept and refused under one lock, from an index that follows the store.

use super::super::index::Index;
use super::super::object::{self, decode, part_mut, text};
use super::super::server::{Call, Server};
use super::super::status::{Answer, Cause, Status};
use crate::orchestrator::store::{Entry, Revision};
use ipnet::IpNet;
use rand::seq::IndexedRandom;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use tokio::sync::MutexGuard;

const NODE_PORTS: RangeInclusive<u16> = 30000..=32767;
/// Ports that are given without being asked for. Below are upstream's 86 for fixed ones, above are the blueprint's load balancers.
const GIVEN_PORTS: RangeInclusive<u16> = 30086..=31999;
/// Fixed addresses live in the first 256 (upstream's static band); others are given above as long as there is room.
const STATIC_BAND: u128 = 256;

type Port = (String, u16);

/// What each service holds.
#[derive(Default)]
pub struct ServiceIndex {
    seen: Revision,
    services: HashMap<Arc<str>, (Vec<IpAddr>, Vec<Port>)>,
    addresses: BTreeMap<IpAddr, Arc<str>>,
    ports: BTreeMap<Port, Arc<str>>,
}

/// Taken before a service is read and held until it is written; none for other kinds.
pub async fn lock<'a>(call: &Call<'a>) -> Option<MutexGuard<'a, ServiceIndex>> {
    if !call.row.is("", "Service") || !matches!(call.target.subresource.as_str(), "") {
        return None;
    }
    let server: &'a Arc<Server> = call.server;
    let mut index = server.services.lock().await;
    index.catch_up(&server.store);
    Some(index)
}

impl Index for ServiceIndex {
    const PREFIX: &'static str = "services/";

    fn seen(&mut self) -> &mut Revision {
        &mut self.seen
    }

    fn add(&mut self, entry: &Entry) {
        let (key, service) = (entry.key(), decode(entry).unwrap_or_default());
        let addresses: Vec<IpAddr> = addresses(&service).iter().filter_map(|text| text.parse().ok()).collect();
        let ports: Vec<Port> = ports(&service).filter(|port| node_port(port) > 0).map(|port| (protocol(port), node_port(port))).collect();
        self.addresses.extend(addresses.iter().map(|address| (*address, key.clone())));
        self.ports.extend(ports.iter().map(|port| (port.clone(), key.clone())));
        self.services.insert(key.clone(), (addresses, ports));
    }

    fn remove(&mut self, key: &Arc<str>) {
        let Some((addresses, ports)) = self.services.remove(key) else { return };
        self.addresses.retain(|address, owner| owner != key || !addresses.contains(address));
        self.ports.retain(|port, owner| owner != key || !ports.contains(port));
    }
}

impl ServiceIndex {
    fn free_address(&self, range: &IpNet) -> Option<IpAddr> {
        let size = size(range);
        let free = |offset: &u128| !self.addresses.contains_key(&at(range, *offset));
        // A few random tries keep a just-freed address out of use for a while; then any.
        let lower = if size > 2 * STATIC_BAND { STATIC_BAND } else { 1 };
        let random = (0..32).map(|_| rand::random_range(lower..size.max(lower + 1))).find(free);
        random.or_else(|| (lower..size - 1).chain(1..lower).take(1 << 17).find(free)).map(|offset| at(range, offset))
    }

    /// `taken`: ports the same service has just been given.
    fn free_port(&self, protocol: &str, taken: &[Port]) -> Option<u16> {
        let free = |port: &u16| {
            let port = (protocol.to_owned(), *port);
            !self.ports.contains_key(&port) && !taken.contains(&port)
        };
        let given: Vec<u16> = GIVEN_PORTS.filter(free).collect();
        given.choose(&mut rand::rng()).copied().or_else(|| NODE_PORTS.rev().find(free))
    }
}

fn size(range: &IpNet) -> u128 {
    1u128 << (range.max_prefix_len() - range.prefix_len()).min(64)
}

fn at(range: &IpNet, offset: u128) -> IpAddr {
    match range.network() {
        IpAddr::V4(base) => IpAddr::V4((u32::from(base).wrapping_add(offset as u32)).into()),
        IpAddr::V6(base) => IpAddr::V6((u128::from(base).wrapping_add(offset)).into()),
    }
}

/// `old` is null on create.
pub fn allocate(call: &Call, old: &Value, service: &mut Value, index: &ServiceIndex) -> Answer<()> {
    let name = object::meta(service, "name").to_owned();
    let own = format!("services/{}/{name}", call.target.namespace);
    let refuse = |cause: Cause| Status::invalid("", "Service", &name, vec![cause]);
    let kind = kind(service);
    if has_address(&kind) {
        let range = &call.server.config.service_cidr;
        address(range, old, service, index, &own).map_err(refuse)?;
    }
    if has_node_ports(&kind) {
        node_ports(service, index, &own).map_err(refuse)?;
    }
    Ok(())
}

fn address(range: &IpNet, old: &Value, service: &mut Value, index: &ServiceIndex, own: &str) -> Result<(), Cause> {
    let given = text(service, "spec", "clusterIP").to_owned();
    let spec = part_mut(service, "spec");
    let chosen = if given == "None" {
        given
    } else if given.is_empty() {
        let free = index.free_address(range);
        free.ok_or_else(|| Cause::invalid("spec.clusterIPs", &json!([]), "failed to allocate a serviceIP: range is full"))?.to_string()
    } else if text(old, "spec", "clusterIP") == given {
        given
    } else {
        let refuse = |why: String| Cause::invalid("spec.clusterIPs", &json!([given]), &format!("failed to allocate IP {given}: {why}"));
        let address: IpAddr = given.parse().map_err(|_| {
            Cause::invalid("spec.clusterIPs[0]", &json!(given), "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")
        })?;
        if !range.contains(&address) {
            return Err(refuse(format!("the provided IP ({given}) is not in the valid range. The range of valid IPs is {range}")));
        }
        if index.addresses.get(&address).is_some_and(|owner| **owner != *own) {
            return Err(refuse("provided IP is already allocated".into()));
        }
        given
    };
    spec.insert("clusterIPs".into(), json!([chosen]));
    spec.insert("clusterIP".into(), json!(chosen));
    let family = if range.network().is_ipv4() { "IPv4" } else { "IPv6" };
    let missing = |value: Option<&Value>| value.is_none_or(|value| value.is_null() || value == &json!([]) || value == "");
    if missing(spec.get("ipFamilies")) {
        spec.insert("ipFamilies".into(), json!([family]));
    }
    if missing(spec.get("ipFamilyPolicy")) {
        spec.insert("ipFamilyPolicy".into(), json!("SingleStack"));
    }
    Ok(())
}

fn node_ports(service: &mut Value, index: &ServiceIndex, own: &str) -> Result<(), Cause> {
    let wanted =
        text(service, "spec", "type") != "LoadBalancer" || service.pointer("/spec/allocateLoadBalancerNodePorts") != Some(&json!(false));
    let mut taken: Vec<Port> = Vec::new();
    let ports = part_mut(service, "spec").get_mut("ports").and_then(Value::as_array_mut);
    for (number, port) in ports.into_iter().flatten().enumerate() {
        let (protocol, given) = (protocol(port), node_port(port));
        let field = format!("spec.ports[{number}].nodePort");
        let chosen = if given > 0 {
            if !NODE_PORTS.contains(&given) {
                let range = format!("{}-{}", NODE_PORTS.start(), NODE_PORTS.end());
                let detail = format!("provided port is not in the valid range. The range of valid ports is {range}");
                return Err(Cause::invalid(field, &json!(given), &detail));
            }
            let key = (protocol.clone(), given);
            if index.ports.get(&key).is_some_and(|owner| **owner != *own) || taken.contains(&key) {
                return Err(Cause::invalid(field, &json!(given), "provided port is already allocated"));
            }
            given
        } else if wanted {
            let full = || Cause::invalid(field, &json!(0), "failed to allocate a nodePort: range is full");
            index.free_port(&protocol, &taken).ok_or_else(full)?
        } else {
            continue;
        };
        taken.push((protocol, chosen));
        if let Some(map) = port.as_object_mut() {
            map.insert("nodePort".into(), json!(chosen));
        }
    }
    Ok(())
}

fn kind(service: &Value) -> String {
    let kind = text(service, "spec", "type");
    if kind.is_empty() { "ClusterIP".to_owned() } else { kind.to_owned() }
}

fn has_address(kind: &str) -> bool {
    kind != "ExternalName"
}

fn has_node_ports(kind: &str) -> bool {
    matches!(kind, "NodePort" | "LoadBalancer")
}

fn addresses(service: &Value) -> Vec<String> {
    let mut all = object::texts(service.pointer("/spec/clusterIPs"));
    let first = text(service, "spec", "clusterIP").to_owned();
    if !all.contains(&first) {
        all.push(first);
    }
    all
}

fn ports(service: &Value) -> impl Iterator<Item = &Value> {
    service.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten()
}

fn number(port: &Value, field: &str) -> u16 {
    port.get(field).and_then(Value::as_u64).and_then(|number| u16::try_from(number).ok()).unwrap_or(0)
}

fn node_port(port: &Value) -> u16 {
    number(port, "nodePort")
}

fn protocol(port: &Value) -> String {
    port.get("protocol").and_then(Value::as_str).unwrap_or("TCP").to_owned()
}
