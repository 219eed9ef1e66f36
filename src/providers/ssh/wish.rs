//! Which host becomes which machine. Pure: the same list and the same claims give the same answer.

use crate::blueprint::providers::SshHost;
use crate::blueprint::{Blueprint, Role};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};

/// The host's name in all of kprov: its address as written, with its port where that is not 22.
pub fn place(host: &SshHost) -> String {
    match host.port {
        Some(port) if port != 22 => format!("{}:{port}", host.address),
        _ => host.address.clone(),
    }
}

/// A machine to be placed.
struct Wanted<'a> {
    name: String,
    group: &'a str,
    role: Role,
}

/// A place per machine. A machine keeps the host it has; then hosts named for a group go first, those for a role next, the others last,
/// each in the order of the list.
pub fn assign(blueprint: &Blueprint, hosts: &[SshHost], held: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>> {
    let listed: BTreeSet<String> = hosts.iter().map(place).collect();
    let groups = blueprint.spec.machines.iter();
    let wanted: Vec<Wanted<'_>> = groups
        .flat_map(|group| group.machine_names().map(|name| Wanted { name, group: &group.name, role: group.role }).collect::<Vec<_>>())
        .collect();
    let mut places: BTreeMap<String, String> =
        held.iter().filter(|(_, place)| listed.contains(*place)).map(|(a, b)| (a.clone(), b.clone())).collect();
    let mut missing = Vec::new();
    for machine in &wanted {
        if places.contains_key(&machine.name) {
            continue;
        }
        let taken: BTreeSet<&String> = places.values().collect();
        let free = hosts.iter().filter(|host| !taken.contains(&place(host)));
        match free.filter_map(|host| Some((fit(host, machine)?, host))).min_by_key(|(fit, _)| *fit) {
            Some((_, host)) => drop(places.insert(machine.name.clone(), place(host))),
            None => missing.push(machine.name.as_str()),
        }
    }
    if missing.is_empty() {
        places.retain(|name, _| wanted.iter().any(|machine| machine.name == *name));
        return Ok(places);
    }
    Err(Error::input(format!("could not find a host for {}: all that may be used have a machine", missing.join(", ")))
        .hint("list more hosts in spec.providers.ssh.hosts, or lower a count"))
}

/// Lower is more to the point; `None` where the host is meant for others.
fn fit(host: &SshHost, machine: &Wanted<'_>) -> Option<u8> {
    match (&host.group, host.role) {
        (Some(group), _) if group != machine.group => None,
        (_, Some(role)) if role != machine.role => None,
        (Some(_), _) => Some(0),
        (None, Some(_)) => Some(1),
        (None, None) => Some(2),
    }
}

/// Where a cluster's records begin: the first host that a control plane may have. Once there, they stay.
pub fn first_keeper(hosts: &[SshHost]) -> Option<&SshHost> {
    let may = |role: &[Option<Role>]| hosts.iter().find(|host| role.contains(&host.role));
    may(&[Some(Role::ControlPlane)])
        .or_else(|| hosts.iter().find(|host| host.role.is_none() && host.group.is_none()))
        .or_else(|| may(&[None]))
        .or(hosts.first())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(hosts: Value, workers: u32, held: &[(&str, &str)], expected: &[(&str, &str)]) {
        let blueprint: Blueprint = serde_json::from_value(json!({
            "apiVersion": "kprov.dev/v1", "kind": "Blueprint", "metadata": {"name": "shop"},
            "spec": {
                "provider": "ssh",
                "machines": [{"name": "control", "role": "control-plane", "count": 1}, {"name": "worker", "role": "worker", "count": workers}],
                "providers": {"ssh": {"hosts": hosts}},
            },
        }))
        .unwrap();
        let held = held.iter().map(|(machine, place)| (machine.to_string(), place.to_string())).collect();
        let places = assign(&blueprint, &blueprint.spec.providers.ssh.hosts, &held).unwrap_or_default();
        assert_eq!(places.iter().map(|(machine, place)| (machine.as_str(), place.as_str())).collect::<Vec<_>>(), expected, "{hosts}");
    }

    #[test]
    fn hosts_are_given_by_group_then_role_then_order_and_kept() {
        let plain = json!([{"address": "a"}, {"address": "b"}, {"address": "c"}]);
        check(plain.clone(), 1, &[], &[("control-1", "a"), ("worker-1", "b")]);
        check(plain.clone(), 1, &[("worker-1", "a")], &[("control-1", "b"), ("worker-1", "a")]);
        check(plain.clone(), 1, &[("worker-1", "gone")], &[("control-1", "a"), ("worker-1", "b")]);
        check(plain.clone(), 0, &[("control-1", "b"), ("worker-1", "c")], &[("control-1", "b")]);
        check(plain, 3, &[], &[]);
        let named = json!([{"address": "a"}, {"address": "b", "role": "control-plane"}, {"address": "c", "group": "worker"}]);
        check(named, 2, &[], &[("control-1", "b"), ("worker-1", "c"), ("worker-2", "a")]);
        check(json!([{"address": "a", "port": 2222}]), 0, &[], &[("control-1", "a:2222")]);
    }
}
