//! Filestore, another API beside Compute: paths for names, its own operations, no request ids.

use super::cloud::{Cloud, Refusal, Reply, Thing};
use super::filter::matches;
use super::schema::Call;
use ipnet::Ipv4Net;
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::time::Instant;

/// What the cluster's own services and pods have, unknown to Google.
const INSIDE: [&str; 2] = ["10.96.0.0/16", "10.244.0.0/14"];

const CREATING: u64 = 1;
const READY: u64 = 2;
const DELETING: u64 = 4;

fn refusal(code: u16, status: &str, message: &str) -> Refusal {
    (code, json!({"error": {"code": code, "message": message, "status": status}}))
}

/// gRPC's numbers of what operations say: the words of a failure that is asked for.
const CODES: [(&str, u64); 5] =
    [("INVALID_ARGUMENT", 3), ("PERMISSION_DENIED", 7), ("RESOURCE_EXHAUSTED", 8), ("INTERNAL", 13), ("UNAVAILABLE", 14)];

/// Once asked for: what it was, when it is over, and how.
pub struct Started {
    path: String,
    end: Instant,
    effect: Effect,
    error: Option<Value>,
}

enum Effect {
    Appear,
    /// To these shares.
    Change(Value),
    Vanish,
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
            cloud.ledger.push(format!("patch {path}"));
            Ok(start(cloud, call, &parent, &path, Effect::Change(call.body["fileShares"].clone())))
        }
        "file.projects.locations.instances.delete" => {
            let thing = cloud.things.get_mut(&path).ok_or_else(not_found)?;
            if thing.body["state"] != READY {
                return Err(refusal(409, "ABORTED", "another operation is in progress"));
            }
            thing.body["state"] = json!(DELETING);
            cloud.ledger.push(format!("delete {path}"));
            Ok(start(cloud, call, &parent, &path, Effect::Vanish))
        }
        _ => {
            let name = format!("{parent}/operations/{}", part("operationsId"));
            Ok(shown(cloud, &name))
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
    Ok(start(cloud, call, parent, &path, Effect::Appear))
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

fn start(cloud: &mut Cloud, call: &Call, parent: &str, path: &str, effect: Effect) -> Value {
    cloud.counter += 1;
    let name = format!("{parent}/operations/operation-{}", cloud.counter);
    let end = Instant::now() + cloud.pace;
    let error = cloud.planned_failure(&call.method).map(|planned| status(&planned));
    cloud.shares.insert(name.clone(), Started { path: path.into(), end, effect, error });
    json!({"name": name, "done": false})
}

/// A failure in Compute's words, as google.rpc.Status.
fn status(planned: &Value) -> Value {
    let word = planned["errors"][0]["code"].as_str().unwrap_or_default();
    let (_, code) = CODES.iter().find(|(known, _)| *known == word).unwrap_or_else(|| panic!("Filestore does not say {word:?}"));
    json!({"code": code, "message": planned["errors"][0]["message"]})
}

/// An operation that is over is shown as it ended for as long as anybody asks.
fn shown(cloud: &Cloud, name: &str) -> Value {
    match (cloud.shares.contains_key(name), cloud.failed_shares.get(name)) {
        (true, _) => json!({"name": name, "done": false}),
        (false, None) => json!({"name": name, "done": true}),
        (false, Some(error)) => json!({"name": name, "done": true, "error": error}),
    }
}

pub fn pass_time(cloud: &mut Cloud) {
    let now = Instant::now();
    let due: Vec<String> = cloud.shares.iter().filter(|(_, started)| started.end <= now).map(|(name, _)| name.clone()).collect();
    for name in due {
        let Started { path, effect, error, .. } = cloud.shares.remove(&name).expect("just listed");
        // What could not be made was never there; what could not be changed or deleted stays as it was.
        let goes = matches!((&effect, &error), (Effect::Appear, Some(_)) | (Effect::Vanish, None));
        match cloud.things.get_mut(&path) {
            Some(thing) if !goes => {
                thing.body["state"] = json!(READY);
                if let (Effect::Change(shares), None) = (effect, &error) {
                    thing.body["fileShares"] = shares;
                }
            }
            _ => drop(cloud.things.remove(&path)),
        }
        if let Some(error) = error {
            cloud.failed_shares.insert(name, error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::schema;
    use super::*;

    const INSTANCES: &str = "projects/shop-1/locations/europe-west1-b/instances";

    fn ask(cloud: &mut Cloud, verb: &str, path: &str, query: &str, body: Value) -> Reply {
        let call = schema::shared().call(verb, &format!("/v1/{path}"), query, body).expect("a method");
        assert_eq!(call.problems, Vec::<String>::new());
        cloud.answer(&call)
    }

    /// The error of an operation that was just started; time has passed, since the cloud takes none here.
    fn end(cloud: &mut Cloud, started: Reply) -> Value {
        let name = started.expect("it is started")["name"].as_str().expect("a name").to_string();
        let ended = ask(cloud, "GET", &name, "", Value::Null).expect("it is known");
        assert_eq!(ended["done"], true);
        ended["error"]["code"].clone()
    }

    #[test]
    fn an_operation_fails_when_somebody_wants_it_to_and_changes_nothing() {
        let mut cloud = Cloud::default();
        cloud.plant("projects/shop-1/global/networks/n", json!({}));
        let fail = |cloud: &mut Cloud, verb: &str, code: &str| {
            let error = json!({"errors": [{"code": code, "message": "no more of it"}]});
            cloud.failures.insert(format!("file.projects.locations.instances.{verb}"), vec![error]);
        };
        let sized = |gib: u64| json!([{"name": "data", "capacityGb": gib.to_string()}]);
        let wish = json!({"networks": [{"network": "n", "reservedIpRange": "10.160.0.0/29"}], "fileShares": sized(1024)});
        let instance = format!("{INSTANCES}/i");
        let seen = |cloud: &mut Cloud| ask(cloud, "GET", &instance, "", Value::Null).ok();

        fail(&mut cloud, "create", "RESOURCE_EXHAUSTED");
        let started = ask(&mut cloud, "POST", INSTANCES, "instanceId=i", wish.clone());
        assert_eq!(end(&mut cloud, started), 8);
        assert_eq!(seen(&mut cloud), None);
        let started = ask(&mut cloud, "POST", INSTANCES, "instanceId=i", wish);
        assert_eq!(end(&mut cloud, started), Value::Null, "the next one is as always");

        fail(&mut cloud, "patch", "UNAVAILABLE");
        let started = ask(&mut cloud, "PATCH", &instance, "updateMask=fileShares", json!({"fileShares": sized(2048)}));
        assert_eq!(end(&mut cloud, started), 14);
        assert_eq!(seen(&mut cloud).expect("it is there")["fileShares"], sized(1024));

        fail(&mut cloud, "delete", "INTERNAL");
        let started = ask(&mut cloud, "DELETE", &instance, "", Value::Null);
        assert_eq!(end(&mut cloud, started), 13);
        assert_eq!(seen(&mut cloud).expect("it is there")["state"], READY);
        let started = ask(&mut cloud, "DELETE", &instance, "", Value::Null);
        assert_eq!(end(&mut cloud, started), Value::Null);
        assert_eq!(seen(&mut cloud), None);
    }
}
