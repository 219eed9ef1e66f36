//! The door to the hosts: one connection each, constant commands, all hosts at once.

use super::access::{self, Access, alias};
use super::record::{Reach, Seen, lines};
use super::wish::place;
use super::world::Look;
use crate::blueprint::providers::{Ssh as Section, SshHost};
use crate::error::{Error, Kind, Result};
use crate::remote::failure::Class;
use crate::remote::{self, Connection, Ssh, Target};
use futures::future::join_all;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;

/// Where control planes serve the API.
const API_PORT: u16 = 6443;
const SCRIPT: &str = include_str!("../../../templates/host.sh");
/// A host that was silent is not asked again for this long.
const SILENT: Duration = Duration::from_secs(10);
/// A look reads a few files.
const LOOK_TIMEOUT: Duration = Duration::from_secs(20);
/// Pods get their time to end when a host is released.
const EFFECT_TIMEOUT: Duration = Duration::from_secs(300);

/// Connections to hosts, as the operator (their keys) or as the loop inside (the cluster's key).
pub struct Hosts {
    ssh: Ssh,
    way: Way,
    /// Hosts that did not answer a moment ago: a command looks several times, and each would wait again.
    silent: Mutex<HashMap<String, (Instant, Silence)>>,
    /// Free addresses that the machines announce themselves.
    pub addresses: Vec<String>,
}

enum Way {
    /// In the order of the blueprint.
    Operator(Vec<(SshHost, OnceCell<Arc<Access>>)>),
    Loop(Vec<Reach>),
}

/// One host, ready to be spoken to.
#[derive(Debug, Clone)]
pub struct Host {
    pub place: String,
    pub target: Target,
    address: Option<IpAddr>,
    pub private: Option<IpAddr>,
    labels: BTreeMap<String, String>,
}

/// Why a host did not answer.
#[derive(Debug, Clone)]
pub struct Silence {
    pub class: Class,
    pub text: String,
}

impl Silence {
    pub fn short(&self) -> String {
        let line = self.text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
        if line.is_empty() { self.class.short().into() } else { format!("{} ({line})", self.class.short()) }
    }
}

impl Hosts {
    pub fn of_operator(folder: &Path, section: Section) -> Result<Hosts> {
        let hosts = section.hosts.into_iter().map(|host| (host, OnceCell::new())).collect();
        Ok(Hosts { ssh: Ssh::without_key(folder)?, way: Way::Operator(hosts), silent: Mutex::default(), addresses: section.addresses })
    }

    pub fn of_loop(folder: &Path, hosts: Vec<Reach>, addresses: Vec<String>) -> Result<Hosts> {
        Ok(Hosts { ssh: Ssh::without_key(folder)?, way: Way::Loop(hosts), silent: Mutex::default(), addresses })
    }

    pub fn keep_key(&self, private: &str) -> Result<()> {
        self.ssh.keep_key(private)
    }

    /// Every host of the list, with a reason where it cannot even be addressed.
    pub async fn all(&self) -> Vec<(String, Result<Host, Silence>)> {
        match &self.way {
            Way::Operator(hosts) => join_all(hosts.iter().map(|(host, cell)| one(host, cell))).await,
            Way::Loop(hosts) => hosts.iter().map(|reach| (reach.place.clone(), Ok(of_reach(reach)))).collect(),
        }
    }

    /// As the operator listed them.
    pub fn listed(&self) -> Vec<SshHost> {
        match &self.way {
            Way::Operator(hosts) => hosts.iter().map(|(host, _)| host.clone()).collect(),
            Way::Loop(_) => Vec::new(),
        }
    }

    pub async fn find(&self, place: &str) -> Option<Host> {
        self.all().await.into_iter().find(|(theirs, _)| theirs == place).and_then(|(_, host)| host.ok())
    }

    /// Where records begin when there are none.
    pub fn first_keeper(&self) -> Option<String> {
        match &self.way {
            Way::Operator(_) => super::wish::first_keeper(&self.listed()).map(place),
            Way::Loop(hosts) => hosts.first().map(|reach| reach.place.clone()),
        }
    }

    pub async fn connect(&self, host: &Host) -> Result<Connection, Silence> {
        if let Some((at, silence)) = self.silent.lock().get(&host.place)
            && at.elapsed() < SILENT
        {
            return Err(silence.clone());
        }
        let connection = self.ssh.glance(&host.target).await.map_err(|(class, text)| Silence { class, text });
        match &connection {
            Ok(_) => drop(self.silent.lock().remove(&host.place)),
            Err(silence) => drop(self.silent.lock().insert(host.place.clone(), (Instant::now(), silence.clone()))),
        }
        connection
    }

    /// All at once; nobody waits for a silent one longer than for its handshake.
    pub async fn look(&self, more: &[Reach]) -> Vec<Look> {
        let mut hosts = self.all().await;
        hosts.extend(more.iter().map(|reach| (reach.place.clone(), Ok(of_reach(reach)))));
        join_all(hosts.into_iter().map(|(place, host)| self.look_at(place, host))).await
    }

    pub async fn look_at(&self, place: String, host: Result<Host, Silence>) -> Look {
        let host = match host {
            Ok(host) => host,
            Err(silence) => return Look { place, seen: Err(silence.short()), outputs: json!({}), reach: None },
        };
        match self.see(&host).await {
            Ok(seen) => {
                let mut outputs = outputs(&host, &seen);
                if host.target.jump.is_some() && seen.claim.as_ref().is_some_and(|claim| claim.spec["role"] == "control-plane") {
                    outputs["wayIn"] = json!(self.open_way(&host, &outputs).await.is_ok());
                }
                let reach = reach(&host, &seen, &outputs);
                Look { place, seen: Ok(seen), outputs, reach: Some(reach) }
            }
            Err(why) => Look { place, seen: Err(why), outputs: outputs(&host, &Seen::default()), reach: None },
        }
    }

    /// To the API behind the host that one goes through: the connection that is open anyway leads there.
    async fn open_way(&self, host: &Host, outputs: &Value) -> Result<()> {
        let address = ["address", "privateAddress"].iter().find_map(|field| outputs[*field].as_str()?.parse::<IpAddr>().ok());
        let address = address.ok_or_else(|| Error::host(format!("could not find the address of {}", host.place)))?;
        let connection = self.connect(host).await.map_err(|silence| Error::host(silence.short()))?;
        let opened = remote::forward::open(&connection, SocketAddr::new(address, API_PORT)).await;
        opened.inspect_err(|error| tracing::warn!("the API behind {} cannot be reached: {}", host.place, error.chain()))
    }

    /// Some machines are behind another host: what they serve cannot be asked for from here.
    pub async fn is_behind(&self) -> bool {
        self.all().await.iter().any(|(_, host)| host.as_ref().is_ok_and(|host| host.target.jump.is_some()))
    }

    pub async fn see(&self, host: &Host) -> Result<Seen, String> {
        let connection = self.connect(host).await.map_err(|silence| silence.short())?;
        let text = run(&connection, host, "examine", &["look", "-"], LOOK_TIMEOUT).await.map_err(|error| error.chain())?;
        let seen = Seen::parse(&text).map_err(|error| error.chain())?;
        if seen.host_keys.is_empty() && host.target.host_keys.is_empty() {
            return Err("its public host keys (/etc/ssh/ssh_host_*_key.pub) cannot be read".into());
        }
        Ok(seen)
    }

    /// One order of the script with its data; its answer's lines.
    pub async fn order(&self, host: &Host, what: &str, data: &[&str]) -> Result<Vec<(String, String)>> {
        let connection = self.connect(host).await.map_err(|silence| {
            let kind = if silence.class.may_pass() { Kind::Transient } else { Kind::Host };
            Error::new(kind, format!("could not reach host {}: {}", host.place, silence.short()))
                .hint(format!("try by hand: ssh {}@{}", host.target.ssh_user, host.target.address))
        })?;
        let text = run(&connection, host, what, data, EFFECT_TIMEOUT).await?;
        Ok(lines(&text)?.into_iter().map(|(key, value)| (key.to_string(), value.to_string())).collect())
    }
}

async fn one(host: &SshHost, cell: &OnceCell<Arc<Access>>) -> (String, Result<Host, Silence>) {
    let found = cell.get_or_try_init(|| async { access::access(host).await.map(Arc::new) }).await;
    let host_of = |access: &Arc<Access>| Host {
        place: place(host),
        target: access.target.clone(),
        address: access.address,
        private: host.private_address,
        labels: host.labels.clone(),
    };
    (place(host), found.map(host_of).map_err(|error| Silence { class: Class::Other, text: error.chain() }))
}

/// With the cluster's key.
pub fn of_reach(reach: &Reach) -> Host {
    let target = Target {
        machine: alias(&reach.place),
        address: reach.address.clone(),
        ssh_port: reach.port,
        ssh_user: reach.user.clone(),
        host_keys: reach.host_keys.clone(),
        jump: None,
        login: None,
    };
    let address = reach.address.parse().ok();
    Host { place: reach.place.clone(), target, address, private: address, labels: reach.labels.clone() }
}

/// Every line is data for the constant script.
async fn run(connection: &Connection, host: &Host, what: &str, data: &[&str], patience: Duration) -> Result<String> {
    if data.iter().any(|line| line.contains(['\n', '\r'])) {
        return Err(Error::internal(format!("could not {what} {}: a request of several lines", host.place)));
    }
    let input = format!("{}\n", data.join("\n"));
    let output = tokio::time::timeout(patience, connection.shell(SCRIPT, input.as_bytes())).await;
    let output =
        output.map_err(|_| Error::transient(format!("could not {what} {}: no answer within {} s", host.place, patience.as_secs())))??;
    remote::success(&host.place, what, output)
}

/// What every provider tells of a machine. Pure.
fn outputs(host: &Host, seen: &Seen) -> Value {
    let Target { address, ssh_port, ssh_user, host_keys, jump, .. } = &host.target;
    let own = |address: &IpAddr| seen.addresses.iter().any(|own| IpAddr::V4(*own) == *address);
    let local = seen.source.or(seen.addresses.first().copied()).map(IpAddr::V4);
    let private = host.private.or(host.address.filter(own)).or(local).or(host.address);
    let outside = host.address.or(private).map_or_else(|| address.clone(), |address| address.to_string());
    let mut keys = seen.host_keys.clone();
    keys.extend(host_keys.iter().filter(|key| !seen.host_keys.iter().any(|seen| key.starts_with(seen.as_str()))).cloned());
    let mut outputs = json!({
        "address": outside, "sshPort": ssh_port, "sshUser": ssh_user, "hostKeys": keys, "host": host.place, "labels": host.labels,
    });
    if let Some(private) = private {
        outputs["privateAddress"] = json!(private);
        if let Some(link) = seen.links.iter().find(|link| IpAddr::V4(link.addr()) == private) {
            outputs["network"] = json!(link.trunc());
        }
    }
    if let Some(jump) = jump {
        outputs["jump"] = json!(jump);
    }
    outputs
}

/// How the other machines log in: the operator's way may lead through a port that a router forwards.
fn reach(host: &Host, seen: &Seen, outputs: &Value) -> Reach {
    let text = |field: &str| outputs[field].as_str().map(str::to_string);
    let same = outputs["privateAddress"].is_null() || outputs["privateAddress"] == host.target.address.as_str();
    Reach {
        place: host.place.clone(),
        address: text("privateAddress").or_else(|| text("address")).unwrap_or_default(),
        port: seen.ssh_port.filter(|_| !same).unwrap_or(host.target.ssh_port),
        user: host.target.ssh_user.clone(),
        host_keys: serde_json::from_value(outputs["hostKeys"].clone()).unwrap_or_default(),
        network: serde_json::from_value(outputs["network"].clone()).ok(),
        labels: host.labels.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(address: &str, private: Option<&str>) -> Host {
        let reach = Reach {
            place: "web1".into(),
            address: address.into(),
            port: 22,
            user: "root".into(),
            host_keys: vec!["ssh-ed25519 BBBB comment".into()],
            network: None,
            labels: BTreeMap::new(),
        };
        Host { private: private.map(|text| text.parse().unwrap()), ..of_reach(&reach) }
    }

    #[test]
    fn the_other_machines_reach_it_where_it_is_and_not_through_the_operators_way() {
        let seen = Seen {
            addresses: vec!["10.0.0.5".parse().unwrap(), "192.168.1.5".parse().unwrap()],
            source: "192.168.1.5".parse().ok(),
            host_keys: vec!["ssh-ed25519 AAAA".into()],
            ..Seen::default()
        };
        let check = |address: &str, private: Option<&str>, expected: (&str, &str)| {
            let outputs = outputs(&host(address, private), &seen);
            assert_eq!((outputs["address"].as_str().unwrap(), outputs["privateAddress"].as_str().unwrap()), expected);
        };
        check("10.0.0.5", None, ("10.0.0.5", "10.0.0.5"));
        check("203.0.113.9", None, ("203.0.113.9", "192.168.1.5"));
        check("203.0.113.9", Some("10.0.0.5"), ("203.0.113.9", "10.0.0.5"));
        check("behind.jump", None, ("192.168.1.5", "192.168.1.5"));
        let port = |address: &str| {
            let host = Host { target: Target { ssh_port: 2201, ..host(address, None).target }, ..host(address, None) };
            let seen = Seen { ssh_port: Some(22), ..seen.clone() };
            reach(&host, &seen, &outputs(&host, &seen)).port
        };
        assert_eq!((port("10.0.0.5"), port("203.0.113.9")), (2201, 22));
        assert_eq!(outputs(&host("10.0.0.5", None), &seen)["hostKeys"], json!(["ssh-ed25519 AAAA", "ssh-ed25519 BBBB comment"]));
    }
}
