//! Real machines behind the fake's instances: whatever the fake says exists, this makes so in a network namespace, and tells it when.
//!
//! An instance boots as a namespaced machine with its private address, its metadata's keys and a host key of its own; forwarding rules
//! become routes that leave packets as they are; Filestore instances become folders that the mount helper finds.

use super::cloud::{Cloud, Effects, ROOT};
use super::{Inner, PORT, serve};
use crate::rig::machines::{Machines, Spec};
use crate::rig::namespace::{BRIDGE, HOME, Namespace};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The user that keys are for.
const USER: &str = "kprov";
/// How often the world is held against the fake: its operations end by the clock, not by an event.
const TICK: Duration = Duration::from_millis(20);

pub struct Estate {
    pub namespace: Namespace,
    pub inner: Arc<Inner>,
    machines: Arc<Machines>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Estate {
    pub fn start() -> Estate {
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
                let listener = tokio::net::TcpListener::bind(("0.0.0.0", PORT)).await.expect("the port is free in here");
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
        let keeper = Keeper { namespace: namespace.clone(), machines: machines.clone(), inner: inner.clone(), routes: BTreeMap::new() };
        let ended = stop.clone();
        let keeper = std::thread::spawn(move || keeper.run(&ended));
        Estate { namespace, inner, machines, stop, threads: vec![server, keeper] }
    }

    pub fn machines(&self) -> Vec<String> {
        self.machines.names()
    }

    pub fn paths(&self) -> Vec<String> {
        self.inner.cloud().things.keys().cloned().collect()
    }
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
    namespace: Namespace,
    machines: Arc<Machines>,
    inner: Arc<Inner>,
    /// By load balancer address: the machines that packets go to.
    routes: BTreeMap<String, BTreeSet<String>>,
}

impl Keeper {
    fn run(mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let effects = self.inner.cloud().effects();
            self.machines(&effects);
            self.keys(&effects);
            self.shares(&effects);
            self.balancers(effects.routes);
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
        for (address, name) in &effects.shares {
            self.machines.serve_filesystem(address, name);
        }
        for server in self.machines.filesystem_servers().iter().filter(|server| !effects.shares.contains_key(*server)) {
            self.machines.unserve_filesystem(server);
        }
    }

    /// A passthrough load balancer: packets come to a machine as they were sent.
    fn balancers(&mut self, wished: BTreeMap<String, BTreeSet<String>>) {
        for (address, machines) in &wished {
            if self.routes.get(address) != Some(machines) && !machines.is_empty() {
                let hops: String = machines.iter().map(|machine| format!(" nexthop via {machine} dev {BRIDGE}")).collect();
                self.namespace.script(&format!("ip route replace {address}/32{hops}"));
            }
        }
        for address in self.routes.keys().filter(|address| !wished.contains_key(*address)) {
            self.namespace.script(&format!("ip route del {address}/32 || true"));
        }
        self.routes = wished;
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
        let mut effects = Effects::default();
        for (path, thing) in &self.things {
            let name = path.rsplit('/').next().unwrap_or_default().to_string();
            if path.contains("/zones/") && path.contains("/instances/") {
                effects.instances.insert(name, thing.body.clone());
            } else if path.contains("/locations/") {
                let address = thing.body["networks"][0]["ipAddresses"][0].as_str().unwrap_or_default();
                effects.shares.insert(address.into(), name);
            } else if path.contains("/forwardingRules/") && !thing.is_hidden {
                let address = thing.body["IPAddress"].as_str().unwrap_or_default();
                effects.routes.insert(address.into(), self.behind(&thing.body));
            }
        }
        effects
    }

    /// The private addresses of the running machines behind a forwarding rule.
    fn behind(&self, rule: &Value) -> BTreeSet<String> {
        let path = |value: &Value| value.as_str().unwrap_or_default().trim_start_matches(ROOT).to_string();
        let Some(service) = self.things.get(&path(&rule["backendService"])) else { return BTreeSet::new() };
        let groups = service.body["backends"].as_array().into_iter().flatten().map(|backend| path(&backend["group"]));
        let members = groups.flat_map(|group| self.members.get(&group).cloned().unwrap_or_default());
        let bodies = members.filter_map(|member| self.things.get(&member)).map(|thing| &thing.body);
        let running = bodies.filter(|body| body["status"] == "RUNNING");
        running.filter_map(|body| body["networkInterfaces"][0]["networkIP"].as_str().map(str::to_string)).collect()
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
