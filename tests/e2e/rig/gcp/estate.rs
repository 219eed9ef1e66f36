//! Real machines behind the fake's instances: whatever the fake says exists, this makes so in a network namespace, and tells it when.
//!
//! An instance boots as a namespaced machine with its private address, its metadata's keys and a host key of its own; forwarding rules
//! and the firewall become the `fabric`; Filestore instances become folders that the mount helper finds; the proxy that lies is in front.

use super::cloud::{Cloud, Effects};
use super::fabric::Fabric;
use super::{Inner, PORT, PROJECT, schema, serve};
use crate::rig::http::{Request, answer};
use crate::rig::machines::{Machines, Spec};
use crate::rig::namespace::{HOME, Namespace};
use crate::rig::operator::Operator;
use crate::rig::proxy::{Call, Dialect, Proxy};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The user that keys are for.
const USER: &str = "kprov";
/// How often the world is held against the fake: its operations end by the clock, not by an event.
const TICK: Duration = Duration::from_millis(20);
/// Where the fake itself listens, behind the proxy.
const BEHIND: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8086);

pub struct Estate {
    pub namespace: Namespace,
    pub proxy: Proxy,
    pub machines: Arc<Machines>,
    pub fabric: Fabric,
    inner: Arc<Inner>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Estate {
    pub fn start() -> Estate {
        crate::harness::require_root();
        let namespace = Namespace::new();
        let machines = Arc::new(Machines::new(&namespace));
        let inner = Inner::new(false);
        let stop = Arc::new(AtomicBool::new(false));
        let (tell, hear) = std::sync::mpsc::channel();
        let served = inner.clone();
        let ended = stop.clone();
        let server = namespace.thread(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::bind(BEHIND).await.expect("the port is free in here");
                tell.send(()).expect("somebody waits");
                let end = async {
                    while !ended.load(Ordering::Relaxed) {
                        tokio::time::sleep(TICK).await;
                    }
                };
                tokio::select! { () = serve(listener, served) => {}, () = end => {} }
            });
        });
        hear.recv().expect("the fake listens");
        let proxy = Proxy::start(&namespace, SocketAddr::from(([0, 0, 0, 0], PORT)), BEHIND, DIALECT);
        let (fabric, prober) = Fabric::start(&namespace, stop.clone());
        let keeper = Keeper { machines: machines.clone(), inner: inner.clone(), fabric: fabric.clone() };
        let ended = stop.clone();
        let keeper = std::thread::spawn(move || keeper.run(&ended));
        Estate { namespace, proxy, machines, fabric, inner, stop, threads: vec![server, keeper, prober] }
    }

    /// Somebody of the project; where it is and what stands in for Google is in the environment alone.
    pub fn operator(&self) -> Operator {
        let (compute, file) = (format!("http://127.0.0.1:{PORT}/compute/v1/"), format!("http://127.0.0.1:{PORT}/"));
        let environment = [
            ("GOOGLE_CLOUD_PROJECT", PROJECT),
            ("CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE", compute.as_str()),
            ("CLOUDSDK_API_ENDPOINT_OVERRIDES_FILE", file.as_str()),
        ];
        Operator::new(&self.namespace, "gcp", &environment)
    }

    pub fn cloud(&self) -> parking_lot::MutexGuard<'_, Cloud> {
        self.inner.cloud()
    }

    /// Everything that exists, by path.
    pub fn dump(&self) -> BTreeMap<String, Value> {
        self.cloud().things.iter().map(|(path, thing)| (path.clone(), thing.body.clone())).collect()
    }

    /// Every change that the cloud has carried out.
    pub fn changes(&self) -> Vec<String> {
        self.cloud().ledger.clone()
    }

    /// The instance of a machine, by the machine's name: its path.
    pub fn instance(&self, machine: &str) -> Option<String> {
        self.dump().into_keys().find(|path| path.contains("/instances/kprov-") && path.ends_with(&format!("-machine-{machine}")))
    }

    /// As a person in the console would, past kprov and past the proxy.
    pub fn lose(&self, path: &str) {
        let mut cloud = self.cloud();
        cloud.things.remove(path).expect("it was there");
        super::rules::vanished(&mut cloud, path);
    }

    /// From now on these methods (by their beginning) answer so, without effect; nothing at all ends it.
    pub fn refuse(&self, standing: &[(&str, u16, &'static str)]) {
        *self.inner.standing.lock() = standing.iter().map(|(method, code, reason)| (method.to_string(), *code, *reason)).collect();
    }

    /// The same for the control planes' service account alone: what the cluster's own machines ask for.
    pub fn refuse_inside(&self, standing: &[(&str, u16, &'static str)]) {
        *self.inner.standing_inside.lock() = standing.iter().map(|(method, code, reason)| (method.to_string(), *code, *reason)).collect();
    }

    /// A hundred things of strangers in every collection, named and marked almost like a cluster's.
    pub fn decoys(&self, uid: &str, name: &str) {
        let digits: String = uid.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
        let mut other = uid.to_string();
        other.replace_range(35.., if uid.ends_with('0') { "1" } else { "0" });
        // Another cluster of the very same name would be one that is meant.
        let name = format!("{name}p");
        let near = json!({"kprov-cluster-uid": other, "kprov-cluster-name": name, "kprov-generation": "1"});
        for number in 0..100 {
            let (folder, kind) = COLLECTIONS[number % COLLECTIONS.len()];
            let mut mark = near.clone();
            mark["kprov-kind"] = json!(kind);
            mark["kprov-name"] = json!(format!("decoy-{number}"));
            let description = [mark.to_string(), format!("{name} {uid}"), format!("{{{uid}}}"), String::new()][number / 11 % 4].clone();
            let path = format!("projects/{PROJECT}/{folder}/kprov-{digits}-{kind}-decoy-{number}");
            let mut body = json!({"description": description, "labels": {"kprov-cluster-uid": other, "kprov-cluster-name": name}});
            if folder.contains("/instances") {
                body["status"] = json!("RUNNING");
            }
            if folder.contains("/addresses") {
                body["status"] = json!("RESERVED");
                body["address"] = json!(format!("192.0.2.{number}"));
            }
            self.cloud().plant(&path, body);
        }
    }

    /// Every request was one that Google takes.
    pub fn assert_fair(&self) {
        assert_eq!(self.cloud().violations, Vec::<String>::new(), "every request is one that Google takes");
    }
}

const COLLECTIONS: [(&str, &str); 11] = [
    ("global/networks", "network"),
    ("global/firewalls", "firewall"),
    ("global/healthChecks", "epoch"),
    ("regions/europe-west1/subnetworks", "subnetwork"),
    ("regions/europe-west1/addresses", "address"),
    ("regions/europe-west1/healthChecks", "health-check"),
    ("regions/europe-west1/backendServices", "backend-service"),
    ("regions/europe-west1/forwardingRules", "load-balancer"),
    ("zones/europe-west1-b/instances", "machine"),
    ("zones/europe-west1-b/instanceGroups", "instance-group"),
    ("locations/europe-west1-b/instances", "filesystem"),
];

const DIALECT: Dialect = Dialect { read: read_call, throttled };

/// By Google's own names of methods.
fn read_call(request: &Request) -> Call {
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    let known = schema::shared().call(&request.method, path, query, Value::Null);
    let (action, token) = known.map_or_else(
        || (request.path.clone(), None),
        |call| (call.method.trim_start_matches("compute.").to_string(), call.parameters.get("requestId").cloned()),
    );
    let reads = request.method == "GET" || action.ends_with("Operations.wait") || action.ends_with("listInstances");
    let identity = format!("{} {action} {}", request.method, identity(path, &request.body));
    Call { action, token, attempt: None, mutating: !reads, identity }
}

/// What a call is about. Records of writers differ by their owner; their numbers, and fingerprints, differ from run to run.
fn identity(path: &str, body: &[u8]) -> String {
    let mut body: Value = serde_json::from_slice(body).unwrap_or_default();
    body.as_object_mut().map(|fields| fields.remove("fingerprint"));
    let about = match body["name"].as_str() {
        Some(name) if body["description"].as_str().is_some_and(|text| text.contains(r#""kprov-epoch-owner":"cluster""#)) => {
            format!("{name} of the cluster")
        }
        Some(name) => name.to_string(),
        None => body.to_string(),
    };
    let is_record = |word: &str| word.rsplit_once("-epoch-").map(|(start, _)| format!("{start}-epoch"));
    let words = path.split('/').chain(about.split(' ')).map(|word| is_record(word).unwrap_or_else(|| word.to_string()));
    words.collect::<Vec<_>>().join(" ")
}

/// Compute says it with 403, Filestore with 429.
fn throttled(request: &Request) -> Vec<u8> {
    let (code, reason) = if request.path.contains("/compute/") { (403, "rateLimitExceeded") } else { (429, "RESOURCE_EXHAUSTED") };
    let (_, mut body) = super::cloud::refusal(code, reason, "Rate Limit Exceeded");
    body["error"]["status"] = json!(reason);
    answer(code, "application/json", &body.to_string())
}

impl Drop for Estate {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

struct Keeper {
    machines: Arc<Machines>,
    inner: Arc<Inner>,
    fabric: Fabric,
}

impl Keeper {
    fn run(self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let effects = self.inner.cloud().effects();
            self.machines(&effects);
            self.keys(&effects);
            self.shares(&effects);
            self.fabric.guard(&effects.guards);
            self.fabric.carry(effects.pools);
            std::thread::sleep(TICK);
        }
    }

    fn machines(&self, effects: &Effects) {
        for name in self.machines.names().iter().filter(|name| !effects.instances.contains_key(*name)) {
            self.machines.stop(name).expect("a machine stops");
        }
        let running = self.machines.names();
        let new: Vec<(&String, &Value)> =
            effects.instances.iter().filter(|(name, body)| body["status"] == "STAGING" && !running.contains(name)).collect();
        std::thread::scope(|scope| {
            for (name, body) in new {
                scope.spawn(move || self.boot(name, body));
            }
        });
    }

    fn boot(&self, name: &str, body: &Value) {
        let private: Ipv4Addr = body["networkInterfaces"][0]["networkIP"].as_str().and_then(|text| text.parse().ok()).expect("an address");
        let [_, _, third, fourth] = private.octets();
        let public = Ipv4Addr::new(198, 51, 100 + third, fourth);
        let spec = Spec {
            name: name.into(),
            hostname: name.into(),
            address: private,
            subnet: "10.128.0.0/20".parse().expect("a subnet"),
            public: Some(public),
            user: USER.into(),
            authorized_keys: keys_of(body),
            cpu_millis: 2000,
            memory_bytes: 2 << 30,
            user_data: String::new(),
        };
        let key = self.machines.start(&spec).expect("a machine starts");
        // What answers on loopback for the operator answers there for the loop inside, too.
        let forward = format!(
            "echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet
             nft 'table ip rig {{
               chain out {{ type nat hook output priority -100; ip daddr 127.0.0.1 tcp dport {PORT} dnat to {HOME}:{PORT}; }}
               chain behind {{ type nat hook postrouting priority 100; ip saddr 127.0.0.1 ip daddr {HOME} masquerade; }}
             }}'"
        );
        let output = self.machines.inside(name, &forward);
        assert!(output.status.success(), "{output:?}");
        let mut words = key.split(' ');
        let (kind, value) = (words.next().unwrap_or_default().to_string(), words.next().unwrap_or_default().to_string());
        self.inner.cloud().booted(name, public, (kind, value));
    }

    /// As the guest agent does it.
    fn keys(&self, effects: &Effects) {
        for name in self.machines.names() {
            let Some(body) = effects.instances.get(&name) else { continue };
            let file = self.machines.folder(&name).join("upper/home").join(USER).join(".ssh/authorized_keys");
            let wished: String = keys_of(body).iter().map(|key| format!("{key}\n")).collect();
            if std::fs::read_to_string(&file).is_ok_and(|now| now != wished) {
                // Written inside: a running overlay's own folders are not to be changed from outside.
                let quoted = wished.replace('\'', "");
                self.machines.inside(&name, &format!("printf %s '{quoted}' >/home/{USER}/.ssh/authorized_keys"));
            }
        }
    }

    fn shares(&self, effects: &Effects) {
        for (address, (name, share)) in &effects.shares {
            self.machines.serve_filesystem(address, name);
            self.machines.export(name, share);
        }
        for server in self.machines.filesystem_servers().iter().filter(|server| !effects.shares.contains_key(*server)) {
            self.machines.unserve_filesystem(server);
        }
    }
}

/// The keys of our user in an instance's metadata, without what Google's agent reads beside them.
fn keys_of(body: &Value) -> Vec<String> {
    let items = body["metadata"]["items"].as_array().into_iter().flatten().filter(|item| item["key"] == "ssh-keys");
    let lines = items.flat_map(|item| item["value"].as_str().unwrap_or_default().lines());
    let ours = lines.filter_map(|line| line.strip_prefix(USER)?.strip_prefix(':'));
    ours.map(|key| key.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
}

impl Cloud {
    /// What the world outside should look like.
    fn effects(&mut self) -> Effects {
        self.pass_time();
        let mut effects = Effects { pools: self.pools(), guards: self.guards(), ..Effects::default() };
        for (path, thing) in &self.things {
            let name = path.rsplit('/').next().unwrap_or_default().to_string();
            if path.contains("/zones/") && path.contains("/instances/") {
                effects.instances.insert(name, thing.body.clone());
            } else if path.contains("/locations/") {
                let address = thing.body["networks"][0]["ipAddresses"][0].as_str();
                let share = thing.body["fileShares"][0]["name"].as_str().unwrap_or_default();
                effects.shares.extend(address.map(|address| (address.to_string(), (name, share.to_string()))));
            }
        }
        effects
    }

    fn booted(&mut self, name: &str, public: Ipv4Addr, key: (String, String)) {
        let path = self.things.keys().find(|path| path.ends_with(&format!("/instances/{name}"))).cloned();
        let Some(path) = path else { return };
        if let Some(thing) = self.things.get_mut(&path).filter(|thing| thing.body["status"] == "STAGING") {
            thing.body["status"] = json!("RUNNING");
            thing.body["networkInterfaces"][0]["accessConfigs"][0]["natIP"] = json!(public.to_string());
        }
        self.guests.insert(path, vec![key]);
    }
}
