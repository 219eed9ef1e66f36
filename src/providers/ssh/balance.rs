//! Which address a load balancer has: one of the free addresses that the blueprint lists, else that of a machine that serves. Pure.

use super::networks::{self, Networks};
use super::world::World;
use crate::blueprint::hosts::range;
use crate::engine::{Id, MACHINE, Observed, Resource};
use crate::error::{Error, Result};
use crate::providers::resources::{LOAD_BALANCER, LoadBalancerSpec};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// Adds `address` (a free one, announced by one of the machines) or `machine` (whose own address it is) to the spec of each load
/// balancer. What a load balancer has, it keeps while it can.
pub fn place(resources: &mut [Resource], addresses: &[String], world: &World) -> Result<()> {
    let observed = &world.things;
    let machines = resources.iter().filter(|resource| resource.id.kind == MACHINE);
    let hosts: BTreeMap<String, String> =
        machines.filter_map(|machine| Some((machine.id.name.clone(), machine.spec["host"].as_str()?.into()))).collect();
    let pool: Vec<Ipv4Addr> = addresses.iter().filter_map(|text| range(text)).flatten().collect();
    let held = |id: &Id, field: &str| {
        let thing = observed.iter().find(|thing| thing.id == *id)?;
        thing.spec[field].as_str().map(str::to_string)
    };
    let balancers: Vec<usize> = (0..resources.len()).filter(|index| resources[*index].id.kind == LOAD_BALANCER).collect();
    // Those that have an address come first: nobody new takes it from them.
    let (old, new): (Vec<usize>, Vec<usize>) =
        balancers.into_iter().partition(|index| observed.iter().any(|thing| thing.id == resources[*index].id));
    let mut taken: BTreeSet<(String, u16)> = BTreeSet::new();
    let mut used: BTreeSet<Ipv4Addr> = BTreeSet::new();
    for index in old.into_iter().chain(new) {
        let resource = &mut resources[index];
        if pool.is_empty() {
            let before = held(&resource.id, "machine");
            on_a_machine(resource, before, &mut taken)?;
        } else {
            let before = held(&resource.id, "address").and_then(|text| text.parse().ok());
            let pool = within(resource, &pool, &hosts, &world.networks);
            on_a_free_address(resource, before, &pool, &mut used)?;
        }
    }
    Ok(())
}

/// The addresses that one of its machines can announce.
fn within(resource: &Resource, pool: &[Ipv4Addr], hosts: &BTreeMap<String, String>, networks: &Networks) -> Vec<Ipv4Addr> {
    let machines: Vec<String> = serde_json::from_value(resource.spec["machines"].clone()).unwrap_or_default();
    let links: Vec<_> = machines.iter().filter_map(|machine| networks.get(hosts.get(machine)?)).collect();
    pool.iter().filter(|address| networks::reaches(**address, links.iter().copied(), networks)).copied().collect()
}

fn on_a_free_address(resource: &mut Resource, before: Option<Ipv4Addr>, pool: &[Ipv4Addr], used: &mut BTreeSet<Ipv4Addr>) -> Result<()> {
    let kept = before.filter(|address| pool.contains(address) && !used.contains(address));
    let address = kept.or_else(|| pool.iter().find(|address| !used.contains(address)).copied()).ok_or_else(|| {
        let words = format!("all {} of spec.providers.ssh.addresses that its machines can announce are taken", pool.len());
        Error::input(format!("could not find an address for {}: {words}", resource.id))
            .hint("list more free addresses of the machines' network")
    })?;
    used.insert(address);
    resource.spec["address"] = json!(address);
    resource.summary = format!("{address}, {}", resource.summary);
    Ok(())
}

/// Two load balancers may share a machine as long as their ports differ.
fn on_a_machine(resource: &mut Resource, before: Option<String>, taken: &mut BTreeSet<(String, u16)>) -> Result<()> {
    let spec: LoadBalancerSpec =
        serde_json::from_value(resource.spec.clone()).map_err(|error| Error::internal("could not read a load balancer").because(error))?;
    let free = |machine: &String| spec.listeners.iter().all(|listener| !taken.contains(&(machine.clone(), listener.port)));
    let kept = before.filter(|machine| spec.machines.contains(machine) && free(machine));
    let machine = kept.or_else(|| spec.machines.iter().find(|machine| free(machine)).cloned()).ok_or_else(|| {
        Error::input(format!("could not find a machine for {}: its ports are taken on all of them", resource.id))
            .hint("list free addresses of the machines' network in spec.providers.ssh.addresses")
    })?;
    taken.extend(spec.listeners.iter().map(|listener| (machine.clone(), listener.port)));
    resource.summary = format!("at {machine}, {}", resource.summary);
    resource.spec["machine"] = json!(machine);
    Ok(())
}

/// The address that others are told: known once the machine is.
pub fn address<'a>(spec: &Value, mut machine: impl FnMut(&Id) -> Option<&'a Observed>) -> Option<String> {
    if let Some(address) = spec["address"].as_str() {
        return Some(address.into());
    }
    let outputs = &machine(&Id::new(MACHINE, spec["machine"].as_str()?))?.outputs;
    ["privateAddress", "address"].iter().find_map(|field| outputs[*field].as_str()).map(str::to_string)
}

/// A load balancer at a machine with another address outside is reached there from outside.
pub fn show_outside(things: &mut [Observed]) {
    let machines: BTreeMap<String, Value> = things
        .iter()
        .filter(|thing| thing.id.kind == MACHINE)
        .map(|thing| (thing.id.name.clone(), thing.outputs["address"].clone()))
        .collect();
    for balancer in things.iter_mut().filter(|thing| thing.id.kind == LOAD_BALANCER) {
        let outside = balancer.spec["machine"].as_str().and_then(|machine| machines.get(machine)).filter(|outside| outside.is_string());
        if let Some(outside) = outside.filter(|outside| **outside != balancer.outputs["address"]) {
            balancer.outputs["outsideAddress"] = outside.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Phase;

    #[test]
    fn who_is_outside_is_told_the_outside_address_of_its_machine() {
        let mut things = [there("web", "machine", "worker-1"), there("api", "address", "10.0.0.40"), there("", "", "")];
        things[0].outputs = json!({"address": "10.0.0.5"});
        things[1].outputs = json!({"address": "10.0.0.40"});
        things[2].id = Id::new(MACHINE, "worker-1");
        things[2].outputs = json!({"address": "203.0.113.5", "privateAddress": "10.0.0.5"});
        show_outside(&mut things);
        assert_eq!(things[0].outputs, json!({"address": "10.0.0.5", "outsideAddress": "203.0.113.5"}));
        assert_eq!(things[1].outputs, json!({"address": "10.0.0.40"}));
    }

    fn balancer(name: &str, port: u16) -> Resource {
        Resource {
            id: Id::new(LOAD_BALANCER, name),
            spec: json!({"name": name, "listeners": [{"port": port, "protocol": "TCP", "nodePort": 32000}], "machines": ["worker-1", "worker-2"]}),
            needs: vec![],
            replace_on: vec![],
            summary: String::new(),
        }
    }

    fn there(name: &str, field: &str, value: &str) -> Observed {
        Observed {
            id: Id::new(LOAD_BALANCER, name),
            handle: "h".into(),
            generation: 1,
            phase: Phase::Ready,
            spec: json!({field: value}),
            outputs: json!({}),
            needs: vec![],
        }
    }

    fn check(wanted: &[(&str, u16)], addresses: &[&str], observed: &[Observed], expected: Option<&[&str]>) {
        let mut resources: Vec<Resource> = wanted.iter().map(|(name, port)| balancer(name, *port)).collect();
        let addresses: Vec<String> = addresses.iter().map(|text| text.to_string()).collect();
        let field = if addresses.is_empty() { "machine" } else { "address" };
        let world = World { things: observed.to_vec(), ..World::default() };
        let placed = place(&mut resources, &addresses, &world);
        let found: Vec<&str> = resources.iter().filter_map(|resource| resource.spec[field].as_str()).collect();
        assert_eq!(placed.ok().map(|()| found.as_slice()), expected);
    }

    #[test]
    fn a_load_balancer_takes_the_first_free_address_and_keeps_it() {
        let pool = ["10.0.0.40-10.0.0.41"];
        check(&[("a", 80), ("b", 80)], &pool, &[], Some(&["10.0.0.40", "10.0.0.41"]));
        check(&[("a", 80), ("b", 80)], &pool, &[there("b", "address", "10.0.0.40")], Some(&["10.0.0.41", "10.0.0.40"]));
        check(&[("a", 80)], &pool, &[there("a", "address", "10.0.0.99")], Some(&["10.0.0.40"]));
        check(&[("a", 80), ("b", 80), ("c", 80)], &pool, &[], None);
    }

    #[test]
    fn an_address_is_on_the_link_of_a_machine_that_serves() {
        let machine = |name: &str, host: &str| Resource { id: Id::new(MACHINE, name), spec: json!({"host": host}), ..balancer("", 1) };
        let mut resources = [machine("control-1", "a"), machine("worker-1", "b"), balancer("web", 80)];
        let networks = [("a", "10.0.0.0/24"), ("b", "10.0.1.0/24")];
        let networks = networks.map(|(host, link)| (host.to_string(), link.parse().unwrap())).into_iter().collect();
        let world = World { networks, ..World::default() };
        place(&mut resources, &["10.0.0.40".into(), "10.0.1.40".into()], &world).unwrap();
        assert_eq!(resources[2].spec["address"], "10.0.1.40");
        assert!(place(&mut resources, &["10.0.0.40".into()], &world).is_err());
    }

    #[test]
    fn without_free_addresses_it_lives_on_a_machine_whose_port_is_free() {
        check(&[("a", 80), ("b", 443)], &[], &[], Some(&["worker-1", "worker-1"]));
        check(&[("a", 80), ("b", 80)], &[], &[], Some(&["worker-1", "worker-2"]));
        check(&[("a", 80)], &[], &[there("a", "machine", "worker-2")], Some(&["worker-2"]));
        check(&[("a", 80), ("b", 80), ("c", 80)], &[], &[], None);
    }
}
