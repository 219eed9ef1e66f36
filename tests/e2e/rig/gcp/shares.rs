//! Filestore, another API beside Compute: paths for names, its own operations, no request ids.

use super::cloud::{Cloud, Refusal, Reply, Thing};
use super::filter::matches;
use super::schema::Call;
use ipnet::Ipv4Net;
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::time::Instant;

/// What the cluster's own services and pods have, unknown to Google.
const INSIDE: [&str; 2] = ["10.96.0.0/16", "10.244.0.0/16"];

const CREATING: u64 = 1;
const READY: u64 = 2;
const DELETING: u64 = 4;

fn refusal(code: u16, status: &str, message: &str) -> Refusal {
    (code, json!({"error": {"code": code, "message": message, "status": status}}))
}

/// Once asked for: what it was, when it is over.
pub struct Started {
    path: String,
    end: Instant,
    vanishes: bool,
}

pub fn answer(cloud: &mut Cloud, call: &Call) -> Reply {
    let part = |name: &str| call.parameters.get(name).cloned().unwrap_or_default();
    let parent = format!("projects/{}/locations/{}", part("projectsId"), part("locationsId"));
    let path = format!("{parent}/instances/{}", part("instancesId"));
    let not_found = || refusal(404, "NOT_FOUND", &format!("Resource '{path}' was not found"));
    match call.method.as_str() {
        "file.projects.locations.instances.list" => list(cloud, call, &parent),
        "file.projects.locations.instances.get" => cloud.things.get(&path).map(|thing| thing.body.clone()).ok_or_else(not_found),
        "file.projects.locations.instances.create" => create(cloud, call, &parent),
        "file.projects.locations.instances.patch" => {
            let thing = cloud.things.get_mut(&path).ok_or_else(not_found)?;
            if thing.body["state"] != READY {
                return Err(refusal(409, "ABORTED", "another operation is in progress"));
            }
            thing.body["fileShares"] = call.body["fileShares"].clone();
            cloud.ledger.push(format!("patch {path}"));
            Ok(start(cloud, &parent, &path, false))
        }
        "file.projects.locations.instances.delete" => {
            let thing = cloud.things.get_mut(&path).ok_or_else(not_found)?;
            if thing.body["state"] != READY {
                return Err(refusal(409, "ABORTED", "another operation is in progress"));
            }
            thing.body["state"] = json!(DELETING);
            cloud.ledger.push(format!("delete {path}"));
            Ok(start(cloud, &parent, &path, true))
        }
        _ => {
            let name = format!("{parent}/operations/{}", part("operationsId"));
            let is_done = !cloud.shares.contains_key(&name);
            Ok(json!({"name": name, "done": is_done}))
        }
    }
}

fn list(cloud: &Cloud, call: &Call, parent: &str) -> Reply {
    let filter = call.parameters.get("filter").map_or("", String::as_str);
    let everywhere = parent.trim_end_matches('-');
    let mut instances = Vec::new();
    let is_seen = |path: &str| !cloud.unreachable.iter().any(|location| path.starts_with(location.as_str()));
    let there = |path: &str| path.starts_with(everywhere) && path.contains("/locations/") && is_seen(path);
    for (path, thing) in cloud.things.iter().filter(|(path, _)| there(path)) {
        if matches(filter, &thing.body).map_err(|why| refusal(400, "INVALID_ARGUMENT", &format!("{path}: {why}")))? {
            instances.push(thing.body.clone());
        }
    }
    Ok(json!({"instances": instances, "unreachable": cloud.unreachable}))
}

fn create(cloud: &mut Cloud, call: &Call, parent: &str) -> Reply {
    let path = format!("{parent}/instances/{}", call.parameters.get("instanceId").cloned().unwrap_or_default());
    if cloud.things.contains_key(&path) {
        return Err(refusal(409, "ALREADY_EXISTS", &format!("Resource '{path}' already exists")));
    }
    let mut body = call.body.clone();
    let network = body["networks"][0]["network"].as_str().unwrap_or_default();
    let project = path.split('/').nth(1).unwrap_or_default();
    let network = format!("projects/{project}/global/networks/{network}");
    let gib: u64 = body["fileShares"][0]["capacityGb"].as_str().and_then(|text| text.parse().ok()).unwrap_or(0);
    if !cloud.things.contains_key(&network) || gib < 1024 {
        return Err(refusal(400, "INVALID_ARGUMENT", "the network does not exist, or the capacity is below 1024"));
    }
    let address = first_address(cloud, &body["networks"][0]["reservedIpRange"])?;
    cloud.counter += 1;
    body["name"] = json!(path);
    body["state"] = json!(CREATING);
    body["networks"][0]["network"] = json!(network);
    body["networks"][0]["ipAddresses"] = json!([address.to_string()]);
    cloud.ledger.push(format!("insert {path}"));
    cloud.things.insert(path.clone(), Thing { body, is_hidden: false, is_busy: false });
    Ok(start(cloud, parent, &path, false))
}

/// Of a range that nothing else has. Without one Google takes any, perhaps the pods': that is a mistake here.
fn first_address(cloud: &Cloud, range: &Value) -> Result<Ipv4Addr, Refusal> {
    let parse = |text: &Value| text.as_str().and_then(|text| text.parse::<Ipv4Net>().ok());
    let invalid = |why: &str| refusal(400, "INVALID_ARGUMENT", &format!("reserved_ip_range {range}: {why}"));
    let range = parse(range).filter(|range| range.prefix_len() == 29).ok_or_else(|| invalid("it is no /29"))?;
    let theirs = cloud
        .things
        .values()
        .filter_map(|thing| parse(&thing.body["ipCidrRange"]).or_else(|| parse(&thing.body["networks"][0]["reservedIpRange"])));
    let inside = INSIDE.map(|text| text.parse().expect("a range"));
    match theirs.chain(inside).find(|other| other.contains(&range) || range.contains(other)) {
        Some(other) => Err(invalid(&format!("{other} is in use"))),
        None => Ok(Ipv4Addr::from_bits(range.network().to_bits() + 2)),
    }
}

fn start(cloud: &mut Cloud, parent: &str, path: &str, vanishes: bool) -> Value {
    cloud.counter += 1;
    let name = format!("{parent}/operations/operation-{}", cloud.counter);
    let end = Instant::now() + cloud.pace;
    cloud.shares.insert(name.clone(), Started { path: path.into(), end, vanishes });
    json!({"name": name, "done": false})
}

pub fn pass_time(cloud: &mut Cloud) {
    let now = Instant::now();
    let due: Vec<String> = cloud.shares.iter().filter(|(_, started)| started.end <= now).map(|(name, _)| name.clone()).collect();
    for name in due {
        let Started { path, vanishes, .. } = cloud.shares.remove(&name).expect("just listed");
        match cloud.things.get_mut(&path) {
            Some(thing) if !vanishes => thing.body["state"] = json!(READY),
            _ => drop(cloud.things.remove(&path)),
        }
    }
}
