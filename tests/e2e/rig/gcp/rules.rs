//! What each kind needs, gives and refuses: the part of Compute Engine's manners that no document states in a form a program can read.

use super::cloud::{Cloud, ROOT, Refusal, Reply, refusal, relative};
use super::schema::Call;
use base64::Engine as _;
use serde_json::{Value, json};

pub const ZONES: [&str; 4] = ["europe-west1-b", "europe-west1-c", "europe-west1-d", "us-east1-b"];
const TYPES: [&str; 6] = ["e2-micro", "e2-small", "e2-medium", "e2-standard-2", "e2-highcpu-2", "n4-standard-2"];
/// In no list, but there for whoever asks for it.
const CUSTOM: &str = "e2-custom-4-8192";

/// What instances act as that name no other account.
pub const ACCOUNT: &str = "123456789-compute@developer.gserviceaccount.com";

/// Fields that name other things.
const REFERENCES: [&str; 4] = ["network", "subnetwork", "backendService", "group"];

fn references(body: &Value, found: &mut Vec<String>) {
    match body {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_str() {
                    Some(text) if REFERENCES.contains(&name.as_str()) => found.push(relative(text).to_string()),
                    Some(text) if name == "IPAddress" && text.contains('/') => found.push(relative(text).to_string()),
                    _ if name == "healthChecks" => {
                        found.extend(
                            value.as_array().into_iter().flatten().filter_map(|one| one.as_str().map(|text| relative(text).to_string())),
                        );
                    }
                    _ => references(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

pub fn may_be_made(cloud: &Cloud, call: &Call, target: &str) -> Result<(), Refusal> {
    let mut named = Vec::new();
    references(&call.body, &mut named);
    for other in named {
        match cloud.things.get(&other) {
            None => return Err(refusal(404, "notFound", format!("The resource '{other}' was not found"))),
            Some(thing) if thing.is_hidden || thing.is_busy => {
                return Err(refusal(400, "resourceNotReady", format!("The resource '{other}' is not ready")));
            }
            Some(_) => {}
        }
    }
    if target.contains("/instances/") {
        instance_may_be_made(call, target)?;
    }
    if target.contains("/forwardingRules/") {
        rule_may_be_made(cloud, call)?;
    }
    Ok(())
}

fn instance_may_be_made(call: &Call, target: &str) -> Result<(), Refusal> {
    let zone = target.split('/').nth(3).unwrap_or_default();
    let invalid = |what: &str| Err(refusal(400, "invalid", format!("Invalid value for field 'resource.{what}'")));
    let kind = call.body["machineType"].as_str().unwrap_or_default();
    if !ZONES.contains(&zone)
        || !kind.contains(&format!("zones/{zone}/machineTypes/"))
        || !TYPES.iter().chain([&CUSTOM]).any(|one| kind.ends_with(&format!("/{one}")))
    {
        return invalid("machineType");
    }
    let disk = &call.body["disks"][0];
    let is_hyperdisk = disk["initializeParams"]["diskType"].as_str().is_some_and(|kind| kind.ends_with("/hyperdisk-balanced"));
    if kind.contains("/n4-") != is_hyperdisk {
        return invalid("disks[0].initializeParams.diskType: this machine type does not take it");
    }
    let image = disk["initializeParams"]["sourceImage"].as_str().unwrap_or_default();
    if disk["boot"] != true || !image.starts_with("projects/debian-cloud/global/images/family/debian-12") {
        return invalid("disks[0].initializeParams.sourceImage");
    }
    if call.body["networkInterfaces"][0]["subnetwork"].is_null() {
        return invalid("networkInterfaces[0].subnetwork: the network has no automatic subnets");
    }
    Ok(())
}

fn rule_may_be_made(cloud: &Cloud, call: &Call) -> Result<(), Refusal> {
    let address =
        call.body["IPAddress"].as_str().map(relative).and_then(|path| cloud.things.get(path)).map(|thing| thing.body["address"].clone());
    let same = |other: &Value| {
        Some(&other["IPAddress"]) == address.as_ref()
            && other["IPProtocol"] == call.body["IPProtocol"]
            && other["ports"] == call.body["ports"]
    };
    let taken = cloud.things.iter().any(|(path, thing)| path.contains("/forwardingRules/") && same(&thing.body));
    // An address that nobody reserved was refused before; labels come only after the rule.
    if taken {
        return Err(refusal(400, "invalid", "Specified IP address is in-use and would result in a conflict"));
    }
    if !call.body["labels"].is_null() {
        return Err(refusal(400, "invalid", "Labels are invalid in ForwardingRule.insert"));
    }
    Ok(())
}

/// The thing as its collection shows it.
pub fn made(cloud: &mut Cloud, call: &Call, target: &str) -> Value {
    cloud.counter += 1;
    let number = cloud.counter;
    let mut body = call.body.clone();
    absolute(&mut body);
    body["id"] = json!((7_000_000_000_000_000_000u64 + number).to_string());
    body["selfLink"] = json!(format!("{ROOT}{target}"));
    body["creationTimestamp"] = json!("2026-11-24T00:00:00.000-08:00");
    let words: Vec<&str> = target.split('/').collect();
    match words[2] {
        "zones" => body["zone"] = json!(format!("{ROOT}projects/{}/zones/{}", words[1], words[3])),
        "regions" => body["region"] = json!(format!("{ROOT}projects/{}/regions/{}", words[1], words[3])),
        _ => {}
    }
    if target.contains("/instances/") {
        body["status"] = json!("PROVISIONING");
        let size = body["disks"][0]["initializeParams"]["diskSizeGb"].clone();
        body["disks"] = json!([{"boot": true, "autoDelete": true, "diskSizeGb": size, "index": 0}]);
        body["metadata"]["fingerprint"] = json!(fresh(number));
        body["networkInterfaces"][0]["networkIP"] = json!(private_address(cloud));
    }
    if target.contains("/backendServices/") {
        body["fingerprint"] = json!(fresh(number));
    }
    if target.contains("/addresses/") {
        body["address"] = json!(format!("203.0.113.{}", 1 + number % 250));
        body["status"] = json!("RESERVED");
    }
    if target.contains("/forwardingRules/")
        && let Some(address) = call.body["IPAddress"].as_str().map(relative).and_then(|path| cloud.things.get_mut(path))
    {
        address.body["status"] = json!("IN_USE");
        body["IPAddress"] = address.body["address"].clone();
    }
    body
}

/// The lowest address of the range that no instance has.
fn private_address(cloud: &Cloud) -> String {
    let taken = |address: &str| cloud.things.values().any(|thing| thing.body["networkInterfaces"][0]["networkIP"] == address);
    let all = (2..4000u32).map(|number| format!("10.128.{}.{}", number / 256, number % 256));
    all.into_iter().find(|address| !taken(address)).expect("the range has room")
}

/// Answers name things by whole addresses.
fn absolute(body: &mut Value) {
    match body {
        Value::String(text) if text.starts_with("projects/") => *text = format!("{ROOT}{text}"),
        Value::Object(fields) => fields.values_mut().for_each(absolute),
        Value::Array(items) => items.iter_mut().for_each(absolute),
        _ => {}
    }
}

pub fn appeared(cloud: &mut Cloud, target: &str) {
    if !target.contains("/instances/") {
        return;
    }
    let number = cloud.counter;
    let by_itself = cloud.by_itself;
    let Some(thing) = cloud.things.get_mut(target) else { return };
    thing.body["status"] = json!(if by_itself { "RUNNING" } else { "STAGING" });
    if by_itself {
        thing.body["networkInterfaces"][0]["accessConfigs"][0]["natIP"] = json!(format!("198.51.100.{}", 1 + number % 250));
        cloud.guests.insert(target.into(), vec![("ssh-ed25519".into(), format!("AAAAhostkey{number}"))]);
    }
}

pub fn vanished(cloud: &mut Cloud, target: &str) {
    cloud.guests.remove(target);
    cloud.members.remove(target);
    for members in cloud.members.values_mut() {
        members.retain(|member| member != target);
    }
    if target.contains("/forwardingRules/") {
        free_addresses(cloud);
    }
}

fn free_addresses(cloud: &mut Cloud) {
    let used: Vec<Value> =
        cloud.things.iter().filter(|(path, _)| path.contains("/forwardingRules/")).map(|(_, one)| one.body["IPAddress"].clone()).collect();
    for (_, address) in cloud.things.iter_mut().filter(|(path, _)| path.contains("/addresses/")) {
        address.body["status"] = json!(if used.contains(&address.body["address"]) { "IN_USE" } else { "RESERVED" });
    }
}

/// Nothing that something else needs can go.
pub fn may_go(cloud: &Cloud, target: &str) -> Result<(), Refusal> {
    let user = cloud.things.iter().find(|(path, thing)| {
        let mut named = Vec::new();
        references(&thing.body, &mut named);
        *path != target && named.iter().any(|other| other == target)
    });
    let in_use =
        |by: &str| refusal(400, "resourceInUseByAnotherResource", format!("The resource '{target}' is already being used by '{by}'"));
    if let Some((user, _)) = user {
        return Err(in_use(user));
    }
    let body = &cloud.things[target].body;
    if target.contains("/addresses/") && body["status"] == "IN_USE" {
        return Err(in_use("a forwarding rule"));
    }
    Ok(())
}

/// The changed body, or nothing where only what is beside it changes.
pub fn changed(cloud: &mut Cloud, call: &Call, verb: &str, target: &str) -> Result<Option<Value>, Refusal> {
    let body = cloud.things[target].body.clone();
    cloud.counter += 1;
    let number = cloud.counter;
    match verb {
        "setMetadata" => {
            fingerprint(&body["metadata"]["fingerprint"], &call.body["fingerprint"], true)?;
            let mut next = body;
            next["metadata"] = call.body.clone();
            next["metadata"]["fingerprint"] = json!(fresh(number));
            Ok(Some(next))
        }
        "patch" => {
            fingerprint(&body["fingerprint"], &call.body["fingerprint"], false)?;
            let mut next = body;
            let mut change = call.body.clone();
            absolute(&mut change);
            for (name, value) in change.as_object().into_iter().flatten() {
                next[name.as_str()] = value.clone();
            }
            if !next["fingerprint"].is_null() {
                next["fingerprint"] = json!(fresh(number));
            }
            Ok(Some(next))
        }
        "start" | "resume" => {
            let not_for = if verb == "start" { "SUSPENDED" } else { "TERMINATED" };
            if body["status"] == not_for {
                return Err(refusal(400, "invalid", format!("{verb}: the instance is {not_for}")));
            }
            let mut next = body;
            next["status"] = json!("RUNNING");
            Ok(Some(next))
        }
        "addInstances" | "removeInstances" => members(cloud, call, verb, target).map(|()| None),
        other => Err(refusal(501, "notImplemented", other)),
    }
}

/// Fingerprints are bytes in base64.
fn fresh(number: u64) -> String {
    base64::engine::general_purpose::STANDARD.encode(number.to_be_bytes())
}

fn fingerprint(ours: &Value, theirs: &Value, required: bool) -> Result<(), Refusal> {
    match (ours.as_str(), theirs.as_str()) {
        (Some(ours), Some(theirs)) if ours != theirs => Err(refusal(412, "conditionNotMet", "Supplied fingerprint does not match current")),
        (Some(_), None) if required => Err(refusal(412, "conditionNotMet", "A fingerprint is required")),
        _ => Ok(()),
    }
}

fn members(cloud: &mut Cloud, call: &Call, verb: &str, group: &str) -> Result<(), Refusal> {
    let named = call.body["instances"].as_array().into_iter().flatten().filter_map(|one| one["instance"].as_str());
    let zone = group.split("/instanceGroups/").next().unwrap_or_default().to_string();
    for instance in named.map(|text| relative(text).to_string()) {
        if !cloud.things.contains_key(&instance) || !instance.starts_with(&zone) {
            return Err(refusal(404, "notFound", format!("The resource '{instance}' was not found")));
        }
        let is_member = cloud.members.get(group).is_some_and(|members| members.contains(&instance));
        match (verb, is_member) {
            ("addInstances", true) => return Err(refusal(400, "memberAlreadyExists", format!("'{instance}' is already a member"))),
            ("addInstances", false) => cloud.members.entry(group.into()).or_default().push(instance),
            (_, false) => return Err(refusal(404, "memberNotFound", format!("'{instance}' is no member"))),
            (_, true) => cloud.members.entry(group.into()).or_default().retain(|member| *member != instance),
        }
    }
    Ok(())
}

/// What Google offers here.
pub fn catalog(call: &Call, collection: &str) -> Reply {
    let filter = call.parameters.get("filter").map_or("", String::as_str);
    let project = call.parameters["project"].as_str();
    let is_meant = |thing: &Value| super::filter::matches(filter, thing).map_err(|why| refusal(400, "invalid", why));
    let not_found = |what: &str| Err(refusal(404, "notFound", format!("The resource '{what}' was not found")));
    let quotas = json!([{"metric": "INSTANCES", "limit": 24.0, "usage": 0.0}, {"metric": "CPUS", "limit": 24.0, "usage": 0.0}]);
    match collection {
        "zones" => {
            let all = ZONES.iter().map(|zone| json!({"name": zone, "status": "UP"}));
            let mut items = Vec::new();
            for zone in all {
                if is_meant(&zone)? {
                    items.push(zone);
                }
            }
            Ok(json!({"items": items}))
        }
        "machineTypes" if call.method.ends_with(".get") => match call.parameters["machineType"].as_str() {
            CUSTOM if ZONES.contains(&call.parameters["zone"].as_str()) => {
                Ok(json!({"name": CUSTOM, "zone": call.parameters["zone"], "guestCpus": 4, "memoryMb": 8192}))
            }
            other => not_found(other),
        },
        "machineTypes" => {
            let mut items = serde_json::Map::new();
            for zone in ZONES {
                let mut types = Vec::new();
                for kind in TYPES.map(|name| json!({"name": name, "zone": zone, "guestCpus": 2, "memoryMb": 4096})) {
                    if is_meant(&kind)? {
                        types.push(kind);
                    }
                }
                items.insert(format!("zones/{zone}"), json!({"machineTypes": types}));
            }
            Ok(json!({"items": items}))
        }
        "regions" => match call.parameters["region"].as_str() {
            region @ ("europe-west1" | "us-east1") => Ok(json!({"name": region, "status": "UP", "quotas": quotas})),
            region => not_found(region),
        },
        "images" => match (project, call.parameters["family"].as_str()) {
            ("debian-cloud", family @ "debian-12") => {
                Ok(json!({"name": "debian-12-bookworm-v20261110", "family": family, "status": "READY", "diskSizeGb": "10"}))
            }
            (_, family) => not_found(family),
        },
        _ => Ok(json!({
            "name": project,
            "defaultServiceAccount": ACCOUNT,
            "quotas": [{"metric": "NETWORKS", "limit": 15.0, "usage": 0.0}, {"metric": "CPUS_ALL_REGIONS", "limit": 20.0, "usage": 0.0}],
        })),
    }
}
