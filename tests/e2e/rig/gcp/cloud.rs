//! The fake's state: things, operations that take their time, request ids, and what refuses what.

use super::fabric::Pools;
use super::filter::matches;
use super::schema::Call;
use super::{rules, shares};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// What the real service answers with, and what it wants to be asked within.
pub const ROOT: &str = "https://www.googleapis.com/compute/v1/";
/// Small, so that every list has a second page.
const PAGE: usize = 3;

pub type Refusal = (u16, Value);
pub type Reply = Result<Value, Refusal>;

#[derive(Default)]
pub struct Cloud {
    /// By path: `projects/p/global/networks/n`.
    pub things: BTreeMap<String, Thing>,
    pub operations: BTreeMap<String, Operation>,
    /// Request id to operation and what was asked.
    pub requests: HashMap<String, (String, String)>,
    /// By instance path.
    pub guests: HashMap<String, Vec<(String, String)>>,
    /// Members of instance groups, by group path.
    pub members: BTreeMap<String, Vec<String>>,
    /// The most things of a collection; more is refused.
    pub quotas: BTreeMap<String, usize>,
    /// The next operation of this method ends with this error.
    pub failures: BTreeMap<String, Vec<Value>>,
    /// How long every operation takes.
    pub pace: Duration,
    /// Whether instances boot by themselves; else somebody says when.
    pub by_itself: bool,
    /// Operations of Filestore that are not over.
    pub shares: BTreeMap<String, shares::Started>,
    /// Those that ended badly, and how.
    pub failed_shares: BTreeMap<String, Value>,
    /// Locations that Filestore's lists leave out.
    pub unreachable: Vec<String>,
    pub violations: Vec<String>,
    /// Every call that changed something.
    pub ledger: Vec<String>,
    pub counter: u64,
}

#[derive(Clone, Debug)]
pub struct Thing {
    pub body: Value,
    /// Not seen before the operation that makes it ends; its name is taken all the same.
    pub is_hidden: bool,
    /// An operation on it is not finished.
    pub is_busy: bool,
}

#[derive(Clone, Debug)]
pub struct Operation {
    /// `projects/p/zones/z/operations/`, without its name.
    pub place: String,
    pub target: String,
    pub end: Instant,
    pub is_done: bool,
    pub error: Option<Value>,
    effect: Effect,
}

#[derive(Clone, Debug)]
enum Effect {
    Appear,
    Vanish,
    Change(Value),
    Nothing,
}

/// What the world outside should look like.
#[derive(Default)]
pub struct Effects {
    /// By name.
    pub instances: BTreeMap<String, Value>,
    /// By address: the filesystem's name and its share's.
    pub shares: BTreeMap<String, (String, String)>,
    pub pools: Pools,
    pub guards: Vec<String>,
}

pub fn refusal(code: u16, reason: &str, message: impl Into<String>) -> Refusal {
    let message = message.into();
    (code, json!({"error": {"code": code, "message": message, "errors": [{"message": message, "domain": "global", "reason": reason}]}}))
}

/// `projects/p/zones/z/instances/i` however the client wrote it.
pub fn relative(url: &str) -> &str {
    url.find("projects/").map_or(url, |start| &url[start..])
}

impl Cloud {
    /// Something that was there before us.
    pub fn plant(&mut self, path: &str, mut body: Value) {
        body["name"] = json!(if path.contains("/locations/") { Some(path) } else { path.rsplit('/').next() });
        body["selfLink"] = json!(format!("{ROOT}{path}"));
        self.things.insert(path.into(), Thing { body, is_hidden: false, is_busy: false });
    }

    /// Everything whose time has come, happens.
    pub fn pass_time(&mut self) {
        shares::pass_time(self);
        let now = Instant::now();
        let due: Vec<String> =
            self.operations.iter().filter(|(_, one)| !one.is_done && one.end <= now).map(|(name, _)| name.clone()).collect();
        for name in due {
            let operation = self.operations.get_mut(&name).expect("just listed");
            operation.is_done = true;
            let (target, effect, failed) = (operation.target.clone(), operation.effect.clone(), operation.error.is_some());
            self.take_effect(&target, effect, failed);
        }
    }

    fn take_effect(&mut self, target: &str, effect: Effect, failed: bool) {
        if let Some(thing) = self.things.get_mut(target) {
            thing.is_busy = false;
        }
        match effect {
            // What could not be made was never there.
            Effect::Appear if failed => drop(self.things.remove(target)),
            _ if failed => {}
            Effect::Appear => {
                if let Some(thing) = self.things.get_mut(target) {
                    thing.is_hidden = false;
                }
                rules::appeared(self, target);
            }
            Effect::Vanish => {
                self.things.remove(target);
                rules::vanished(self, target);
            }
            Effect::Change(body) => {
                if let Some(thing) = self.things.get_mut(target) {
                    thing.body = body;
                }
            }
            Effect::Nothing => {}
        }
    }

    pub fn answer(&mut self, call: &Call) -> Reply {
        self.pass_time();
        if call.method.starts_with("file.") {
            return shares::answer(self, call);
        }
        let mut words = call.method.splitn(3, '.').skip(1);
        let (collection, verb) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        match (collection, verb) {
            ("globalOperations" | "regionOperations" | "zoneOperations", _) => self.operation(call),
            ("zones" | "regions" | "machineTypes" | "images" | "projects", _) => rules::catalog(call, collection),
            (_, "insert") => self.insert(call),
            (_, "get") => self.get(&path(call)),
            (_, "list") => self.list(call),
            (_, "aggregatedList") => self.aggregated(call, collection),
            (_, "delete") => self.delete(call),
            (_, "getGuestAttributes") => self.guest(&path(call)),
            (_, "listInstances") => self.listed_members(call),
            _ => self.change(call, verb),
        }
    }

    fn get(&self, path: &str) -> Reply {
        match self.things.get(path).filter(|thing| !thing.is_hidden) {
            Some(thing) => Ok(thing.body.clone()),
            None => Err(refusal(404, "notFound", format!("The resource '{path}' was not found"))),
        }
    }

    fn visible<'a>(&'a self, call: &'a Call, inside: &'a str) -> Result<Vec<(&'a String, &'a Value)>, Refusal> {
        let filter = call.parameters.get("filter").map_or("", String::as_str);
        let mut found = Vec::new();
        for (path, thing) in self.things.iter().filter(|(path, thing)| path.contains(inside) && !thing.is_hidden) {
            if matches(filter, &thing.body).map_err(|why| refusal(400, "invalid", why))? {
                found.push((path, &thing.body));
            }
        }
        Ok(found)
    }

    fn list(&self, call: &Call) -> Reply {
        let parent = path(call);
        let all = self.visible(call, &parent)?;
        let inside = all.into_iter().filter(|(path, _)| path.rsplit_once('/').is_some_and(|(folder, _)| folder == parent));
        let items: Vec<Value> = inside.map(|(_, body)| body.clone()).collect();
        let (items, next) = page(items, call);
        Ok(json!({"items": items, "nextPageToken": next}))
    }

    fn aggregated(&self, call: &Call, collection: &str) -> Reply {
        let inside = format!("/{collection}/");
        let mut all = self.visible(call, &inside)?;
        // Filestore's paths have instances, too.
        all.retain(|(path, _)| path.contains("/zones/"));
        let (items, next) = page(all, call);
        let mut scopes: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for (path, body) in items {
            let zone = path.split('/').nth(3).unwrap_or_default();
            scopes.entry(format!("zones/{zone}")).or_default().push(body.clone());
        }
        let mut items: BTreeMap<String, Value> = scopes.into_iter().map(|(scope, things)| (scope, json!({collection: things}))).collect();
        items.insert("regions/europe-west1".into(), json!({"warning": {"code": "NO_RESULTS_ON_PAGE", "message": "nothing here"}}));
        Ok(json!({"items": items, "nextPageToken": next}))
    }

    /// The operation of an earlier request with this id, whatever came of it.
    fn repeated(&mut self, call: &Call, what: &str) -> Option<Value> {
        let id = call.parameters.get("requestId")?;
        let (operation, asked) = self.requests.get(id)?.clone();
        if asked != what {
            self.violations.push(format!("request id {id} of {asked} came again for {what}"));
        }
        Some(self.shown(&operation))
    }

    fn insert(&mut self, call: &Call) -> Reply {
        let name = call.body["name"].as_str().unwrap_or_default().to_string();
        let target = format!("{}/{name}", path(call));
        if let Some(operation) = self.repeated(call, &format!("{} {target}", call.method)) {
            return Ok(operation);
        }
        if name.is_empty() {
            return Err(refusal(400, "required", "Invalid value for field 'resource.name': ''"));
        }
        if self.things.contains_key(&target) {
            return Err(refusal(409, "alreadyExists", format!("The resource '{target}' already exists")));
        }
        rules::may_be_made(self, call, &target)?;
        let collection = call.method.split('.').nth(1).unwrap_or_default();
        let there = self.things.keys().filter(|path| path.contains(&format!("/{collection}/"))).count();
        let error = match self.quotas.get(collection) {
            Some(quota) if there >= *quota => {
                Some(json!({"errors": [{"code": "QUOTA_EXCEEDED", "message": format!("Quota '{collection}' exceeded. Limit: {quota}.0")}]}))
            }
            _ => None,
        };
        self.ledger.push(format!("insert {target}"));
        let body = rules::made(self, call, &target);
        // An instance shows from its first moment.
        let is_hidden = collection != "instances";
        self.things.insert(target.clone(), Thing { body, is_hidden, is_busy: true });
        Ok(self.start(call, &target, Effect::Appear, error))
    }

    fn delete(&mut self, call: &Call) -> Reply {
        let target = path(call);
        if let Some(operation) = self.repeated(call, &format!("{} {target}", call.method)) {
            return Ok(operation);
        }
        self.free(&target)?;
        rules::may_go(self, &target)?;
        self.ledger.push(format!("delete {target}"));
        let thing = self.things.get_mut(&target).expect("it is there");
        thing.is_busy = true;
        if target.contains("/instances/") {
            thing.body["status"] = json!("STOPPING");
        }
        Ok(self.start(call, &target, Effect::Vanish, None))
    }

    fn change(&mut self, call: &Call, verb: &str) -> Reply {
        let target = path(call);
        if let Some(operation) = self.repeated(call, &format!("{} {target} {}", call.method, call.body)) {
            return Ok(operation);
        }
        self.free(&target)?;
        let changed = rules::changed(self, call, verb, &target)?;
        self.ledger.push(format!("{verb} {target}"));
        self.things.get_mut(&target).expect("it is there").is_busy = true;
        let effect = changed.map_or(Effect::Nothing, Effect::Change);
        Ok(self.start(call, &target, effect, None))
    }

    /// There, and with no other operation at work on it.
    fn free(&self, target: &str) -> Result<(), Refusal> {
        match self.things.get(target) {
            None => Err(refusal(404, "notFound", format!("The resource '{target}' was not found"))),
            Some(thing) if thing.is_busy => Err(refusal(400, "resourceNotReady", format!("The resource '{target}' is not ready"))),
            Some(_) => Ok(()),
        }
    }

    /// What somebody wants the operation of this call to end with.
    pub fn planned_failure(&mut self, method: &str) -> Option<Value> {
        self.failures.get_mut(method).filter(|left| !left.is_empty()).map(|left| left.remove(0))
    }

    fn start(&mut self, call: &Call, target: &str, effect: Effect, error: Option<Value>) -> Value {
        self.counter += 1;
        let name = format!("operation-{:04}", self.counter);
        let (folder, _) = target.rsplit_once('/').expect("a path");
        let (place, _) = folder.rsplit_once('/').expect("a path");
        let planned = self.planned_failure(&call.method);
        let end = Instant::now() + self.pace;
        let operation = Operation {
            place: format!("{place}/operations/"),
            target: target.into(),
            end,
            is_done: false,
            error: planned.or(error),
            effect,
        };
        self.operations.insert(name.clone(), operation);
        if let Some(id) = call.parameters.get("requestId") {
            let what = match call.method.rsplit('.').next() {
                Some("insert" | "delete") => format!("{} {target}", call.method),
                _ => format!("{} {target} {}", call.method, call.body),
            };
            self.requests.insert(id.clone(), (name.clone(), what));
        }
        self.shown(&name)
    }

    /// An operation as its collection shows it.
    pub fn shown(&self, name: &str) -> Value {
        let operation = &self.operations[name];
        let status = match operation.is_done {
            true => "DONE",
            false if operation.end.saturating_duration_since(Instant::now()) > self.pace / 2 => "PENDING",
            false => "RUNNING",
        };
        let id: u64 = name.trim_start_matches("operation-").parse().unwrap_or_default();
        let mut shown = json!({
            "kind": "compute#operation", "id": id.to_string(), "name": name, "status": status,
            "targetLink": format!("{ROOT}{}", operation.target), "selfLink": format!("{ROOT}{}{name}", operation.place),
        });
        let words: Vec<&str> = operation.place.split('/').collect();
        match words[2] {
            "zones" => shown["zone"] = json!(format!("{ROOT}projects/{}/zones/{}", words[1], words[3])),
            "regions" => shown["region"] = json!(format!("{ROOT}projects/{}/regions/{}", words[1], words[3])),
            _ => {}
        }
        if let (true, Some(error)) = (operation.is_done, &operation.error) {
            shown["error"] = error.clone();
            shown["httpErrorStatusCode"] = json!(403);
            shown["httpErrorMessage"] = json!("FORBIDDEN");
        }
        shown
    }

    fn operation(&self, call: &Call) -> Reply {
        let name = &call.parameters["operation"];
        let path = path(call);
        match self.operations.get(name).filter(|operation| format!("{}{name}", operation.place) == path) {
            Some(_) => Ok(self.shown(name)),
            None => Err(refusal(404, "notFound", format!("The resource '{path}' was not found"))),
        }
    }

    /// When the operation that a wait asks for is over.
    pub fn end_of(&self, call: &Call) -> Option<Instant> {
        if !call.method.ends_with("Operations.wait") {
            return None;
        }
        self.operations.get(&call.parameters["operation"]).filter(|operation| !operation.is_done).map(|operation| operation.end)
    }

    fn guest(&self, path: &str) -> Reply {
        self.get(path)?;
        match self.guests.get(path) {
            Some(keys) => {
                let item = |(key, value): &(String, String)| json!({"namespace": "hostkeys", "key": key, "value": value});
                Ok(json!({"queryPath": "hostkeys/", "queryValue": {"items": keys.iter().map(item).collect::<Vec<_>>()}}))
            }
            None => Err(refusal(404, "notFound", format!("The resource '{path}/guestAttributes' was not found"))),
        }
    }

    fn listed_members(&self, call: &Call) -> Reply {
        let group = path(call);
        self.get(&group)?;
        let members = self.members.get(&group).cloned().unwrap_or_default();
        let items = members.iter().map(|member| json!({"instance": format!("{ROOT}{member}"), "status": "RUNNING"})).collect();
        let (items, next) = page(items, call);
        Ok(json!({"items": items, "nextPageToken": next}))
    }
}

/// One page of many, and the token of the next.
fn page<T>(items: Vec<T>, call: &Call) -> (Vec<T>, Option<String>) {
    let start: usize = call.parameters.get("pageToken").and_then(|token| token.parse().ok()).unwrap_or(0);
    let next = (start + PAGE < items.len()).then(|| (start + PAGE).to_string());
    (items.into_iter().skip(start).take(PAGE).collect(), next)
}

/// The thing or the folder that a call is about, as its path.
pub fn path(call: &Call) -> String {
    let known = |name: &str| call.parameters.get(name).cloned().unwrap_or_default();
    let project = known("project");
    let mut words = call.method.split('.').skip(1);
    let (collection, verb) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let place = match (call.parameters.get("zone"), call.parameters.get("region")) {
        (Some(zone), _) => format!("zones/{zone}"),
        (None, Some(region)) => format!("regions/{region}"),
        _ => "global".into(),
    };
    let (folder, singular) = match collection {
        "regionHealthChecks" | "healthChecks" => ("healthChecks", "healthCheck"),
        "regionBackendServices" => ("backendServices", "backendService"),
        "addresses" => ("addresses", "address"),
        "globalOperations" | "regionOperations" | "zoneOperations" => ("operations", "operation"),
        other => (other, other.trim_end_matches('s')),
    };
    let parent = format!("projects/{project}/{place}/{folder}");
    if matches!(verb, "insert" | "list") { parent } else { format!("{parent}/{}", known(singular)) }
}
