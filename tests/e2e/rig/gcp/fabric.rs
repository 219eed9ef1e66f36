//! What lies between clients and the machines on emulated Google: load balancers that pass packets on as they are, probes at the load
//! balancers' own addresses, and the firewall's rules.

use super::cloud::{Cloud, ROOT};
use crate::rig::http;
use crate::rig::namespace::{BRIDGE, HOME, Namespace};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

/// Between two rounds of probes, and how long one may take.
const PROBE: Duration = Duration::from_millis(200);

/// Behind one load balancer's address.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pool {
    /// Private addresses of the running machines.
    pub machines: BTreeSet<Ipv4Addr>,
    pub port: u16,
    pub path: String,
}

/// By a load balancer's address.
pub type Pools = BTreeMap<Ipv4Addr, Pool>;

/// (load balancer, machine) pairs that answer as the health check wants it.
type Healthy = BTreeSet<(Ipv4Addr, Ipv4Addr)>;

#[derive(Clone)]
pub struct Fabric {
    namespace: Namespace,
    pools: Arc<Mutex<Pools>>,
    healthy: Arc<Mutex<Healthy>>,
    routes: Arc<Mutex<BTreeMap<Ipv4Addr, BTreeSet<Ipv4Addr>>>>,
    firewall: Arc<Mutex<String>>,
}

impl Fabric {
    /// Probes as long as nobody says stop.
    pub fn start(namespace: &Namespace, stop: Arc<AtomicBool>) -> (Fabric, std::thread::JoinHandle<()>) {
        // Packets that nobody translates keep the operator's own address.
        namespace.script(&format!("ip route replace default dev {BRIDGE} src {HOME}"));
        let fabric = Fabric {
            namespace: namespace.clone(),
            pools: Arc::default(),
            healthy: Arc::default(),
            routes: Arc::default(),
            firewall: Arc::default(),
        };
        let probing = fabric.clone();
        let thread = namespace.thread(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            while !stop.load(Ordering::Relaxed) {
                runtime.block_on(probing.probe_all());
                std::thread::sleep(PROBE);
            }
        });
        (fabric, thread)
    }

    /// The machines that a load balancer's health check finds well.
    pub fn healthy(&self, balancer: Ipv4Addr) -> BTreeSet<Ipv4Addr> {
        self.healthy.lock().expect("health").iter().filter(|(address, _)| *address == balancer).map(|(_, machine)| *machine).collect()
    }

    /// Packets go to the machines that are well; to all of them where none is, as Google does it.
    pub fn carry(&self, wished: Pools) {
        let mut routes = self.routes.lock().expect("routes");
        for (address, pool) in &wished {
            let well = self.healthy(*address);
            let chosen: BTreeSet<Ipv4Addr> = pool.machines.intersection(&well).copied().collect();
            let chosen = if chosen.is_empty() { pool.machines.clone() } else { chosen };
            if routes.get(address) != Some(&chosen) && !chosen.is_empty() {
                let hops: String = chosen.iter().map(|machine| format!(" nexthop via {machine} dev {BRIDGE}")).collect();
                self.namespace.script(&format!("ip route replace {address}/32 src {HOME}{hops}"));
                routes.insert(*address, chosen);
            }
        }
        let gone: Vec<Ipv4Addr> = routes.keys().filter(|address| !wished.contains_key(address)).copied().collect();
        for address in gone {
            self.namespace.script(&format!("ip route del {address}/32 || true"));
            routes.remove(&address);
        }
        drop(routes);
        *self.pools.lock().expect("pools") = wished;
    }

    /// What reaches machines from outside; among each other they are one network here.
    pub fn guard(&self, rules: &[String]) {
        let script = format!(
            "add table ip guard\ndelete table ip guard\ntable ip guard {{ chain out {{ type filter hook output priority 10; policy accept;
             oifname != {BRIDGE} accept\nct state established,related accept\n{}\nip daddr 10.128.0.0/20 drop\nip daddr 203.0.113.0/24 drop
}}
}}
",
            rules.join("\n")
        );
        let mut held = self.firewall.lock().expect("the firewall");
        if *held != script {
            self.namespace.feed("nft", &["-f", "-"], &script);
            *held = script;
        }
    }

    async fn probe_all(&self) {
        let pools = self.pools.lock().expect("pools").clone();
        let pairs = pools.iter().flat_map(|(address, pool)| pool.machines.iter().map(move |machine| (*address, *machine, pool)));
        let probes = pairs.map(|(address, machine, pool)| async move {
            self.lead(machine);
            let answered = tokio::time::timeout(PROBE, probe(address, machine, pool)).await;
            matches!(answered, Ok(Ok(200))).then_some((address, machine))
        });
        let well: Healthy = futures::future::join_all(probes).await.into_iter().flatten().collect();
        *self.healthy.lock().expect("health") = well;
    }

    /// Probes of one machine have a source of their own, by which they find it whatever their destination.
    fn lead(&self, machine: Ipv4Addr) {
        let (source, table) = (prober(machine), 1000 + (machine.to_bits() & 0xffff));
        self.namespace.script(&format!(
            "ip address show dev lo | grep -q '{source}/' && exit 0
             ip address add {source}/32 dev lo
             ip rule add from {source} lookup {table}
             ip route replace default via {machine} dev {BRIDGE} table {table}"
        ));
    }
}

/// In Google's range for probes.
fn prober(machine: Ipv4Addr) -> Ipv4Addr {
    let [_, _, third, fourth] = machine.octets();
    Ipv4Addr::new(35, 191, third, fourth)
}

async fn probe(address: Ipv4Addr, machine: Ipv4Addr, pool: &Pool) -> std::io::Result<u16> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((prober(machine), 0)))?;
    let mut stream = socket.connect(SocketAddr::from((address, pool.port))).await?;
    stream.write_all(format!("GET {} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n", pool.path).as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(http::status(&answer))
}

impl Cloud {
    pub fn pools(&self) -> Pools {
        let rules = self.things.iter().filter(|(path, thing)| path.contains("/forwardingRules/") && !thing.is_hidden);
        let pool = |rule: &Value| Some((rule["IPAddress"].as_str()?.parse().ok()?, self.behind(rule)?));
        rules.filter_map(|(_, thing)| pool(&thing.body)).collect()
    }

    /// The running machines behind a forwarding rule, and what they are asked for.
    fn behind(&self, rule: &Value) -> Option<Pool> {
        let path = |value: &Value| value.as_str().unwrap_or_default().trim_start_matches(ROOT).to_string();
        let service = self.things.get(&path(&rule["backendService"]))?;
        let asked = &self.things.get(&path(&service.body["healthChecks"][0]))?.body["httpHealthCheck"];
        let groups = service.body["backends"].as_array().into_iter().flatten().map(|backend| path(&backend["group"]));
        let members = groups.flat_map(|group| self.members.get(&group).cloned().unwrap_or_default());
        let bodies = members.filter_map(|member| self.things.get(&member)).map(|thing| &thing.body);
        let running = bodies.filter(|body| body["status"] == "RUNNING");
        let machines = running.filter_map(|body| body["networkInterfaces"][0]["networkIP"].as_str()?.parse().ok()).collect();
        Some(Pool { machines, port: asked["port"].as_u64()? as u16, path: asked["requestPath"].as_str()?.into() })
    }

    /// The firewall's rules in nftables' words, in the order of their names; they hold for all machines, as kprov's tag is on all.
    pub fn guards(&self) -> Vec<String> {
        let rules = self.things.iter().filter(|(path, thing)| path.contains("/firewalls/") && !thing.is_hidden);
        let is_real = |body: &Value| body["network"].is_string() && body["disabled"] != true;
        rules.filter(|(_, thing)| is_real(&thing.body)).filter_map(|(_, thing)| guard(&thing.body)).collect()
    }
}

fn guard(body: &Value) -> Option<String> {
    let texts = |value: &Value| value.as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>().join(", ");
    let (ranges, allowed) = (texts(&body["sourceRanges"]), &body["allowed"][0]);
    let ports = texts(&allowed["ports"]);
    let from = if ranges.is_empty() { return None } else { format!("ip saddr {{ {ranges} }}") };
    match allowed["IPProtocol"].as_str()? {
        protocol @ ("tcp" | "udp") if !ports.is_empty() => Some(format!("{from} {protocol} dport {{ {ports} }} accept")),
        _ => None,
    }
}
