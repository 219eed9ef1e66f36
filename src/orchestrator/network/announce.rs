//! A load balancer's address where no cloud keeps one: it lives on one node at a time, is announced by ARP, and moves when its node
//! falls silent.
//!
//! Which node is said by a Lease per address. A node that cannot reach the API keeps the address (nobody else can take it then) but
//! announces it no more: if the others can, they take it, and the network follows who announced last.

use crate::blueprint::hosts::range;
use crate::error::{Context, Error, Kind, Result};
use crate::orchestrator::client::informer::Informer;
use crate::orchestrator::client::{Client, Failure, time};
use crate::orchestrator::config::AgentConfig;
use crate::orchestrator::network::wanted::internal_address;
use futures::TryStreamExt;
use futures::future::join_all;
use ipnet::Ipv4Net;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Service};
use parking_lot::Mutex;
use rtnetlink::Handle;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "kube-node-lease";
/// With a dot, which no machine's name has: nodes may write leases that begin so.
pub const PREFIX: &str = "address.";
const RENEW: Duration = Duration::from_secs(1);
/// Three renewals that did not come; nobody's clock is compared with anybody's.
const SILENCE: Duration = Duration::from_secs(3);
/// So many of the nodes stand by for an address: a thousand would only ask for it all the time.
const STAND_BY: usize = 3;

/// What a node does about one address.
#[derive(Debug, PartialEq, Eq)]
enum Move {
    /// It is ours: say so again.
    Hold,
    Take,
    Nothing,
}

/// Pure. `stale`: its holder has been silent for too long.
fn decide(holder: Option<&str>, me: &str, stale: bool, stands_by: bool) -> Move {
    match holder {
        Some(holder) if holder == me => Move::Hold,
        Some(holder) if !holder.is_empty() && !stale => Move::Nothing,
        _ if stands_by => Move::Take,
        _ => Move::Nothing,
    }
}

/// The addresses of `ranges` that services have. Pure.
fn wanted(services: &[Arc<Service>], ranges: &BTreeSet<Ipv4Addr>) -> BTreeSet<Ipv4Addr> {
    let addresses = services.iter().flat_map(|service| {
        let ingress = service.status.as_ref().and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
        let given = ingress.into_iter().flatten().filter_map(|ingress| ingress.ip.clone());
        let external = service.spec.as_ref().and_then(|spec| spec.external_ips.clone()).unwrap_or_default();
        given.chain(external).collect::<Vec<_>>()
    });
    addresses.filter_map(|text| text.parse().ok()).filter(|address| ranges.contains(address)).collect()
}

/// A ready node: what the choice of those that stand by depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    name: String,
    address: Option<Ipv4Addr>,
    is_worker: bool,
}

/// Pure.
fn candidates(nodes: &[Arc<Node>]) -> Vec<Candidate> {
    let is_ready = |node: &&Arc<Node>| {
        let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    let is_tainted =
        |node: &Node| node.spec.as_ref().is_some_and(|spec| spec.taints.iter().flatten().any(|taint| taint.key.contains("control-plane")));
    let candidate = |node: &Arc<Node>| {
        Some(Candidate { name: node.metadata.name.clone()?, address: internal_address(node), is_worker: !is_tainted(node) })
    };
    nodes.iter().filter(is_ready).filter_map(candidate).collect()
}

/// The nodes that stand by for an address: workers (everybody, where there are none), each address in an order of its own. Where it
/// belongs to a link, only nodes on it: nobody else hears its ARP. Pure.
fn stand_by(candidates: &[Candidate], address: Ipv4Addr, link: Option<Ipv4Net>) -> Vec<&str> {
    let link = link.filter(|link| link.contains(&address));
    let is_near = |node: &&Candidate| link.is_none_or(|link| node.address.is_some_and(|own| link.contains(&own)));
    let near: Vec<&Candidate> = candidates.iter().filter(is_near).collect();
    let any_worker = near.iter().any(|node| node.is_worker);
    let mut names: Vec<&str> = near.into_iter().filter(|node| node.is_worker || !any_worker).map(|node| node.name.as_str()).collect();
    names.sort_by_cached_key(|name| <[u8; 32]>::from(Sha256::digest(format!("{address} {name}"))));
    names.truncate(STAND_BY);
    names
}

/// The addresses that this node stands by for, and what they were worked out from: nodes and addresses change seldom, and every node of
/// the cluster asks once a second.
#[derive(Default)]
struct Standing {
    candidates: Vec<Candidate>,
    wanted: BTreeSet<Ipv4Addr>,
    own: BTreeSet<Ipv4Addr>,
}

impl Standing {
    fn renew(&mut self, candidates: Vec<Candidate>, wanted: &BTreeSet<Ipv4Addr>, me: &str, link: Option<Ipv4Net>) {
        if self.candidates == candidates && self.wanted == *wanted {
            return;
        }
        let own = wanted.iter().copied().filter(|address| stand_by(&candidates, *address, link).contains(&me)).collect();
        *self = Standing { candidates, wanted: wanted.clone(), own };
    }
}

/// Keeps this node's part of the addresses until cancelled, and gives them away then.
pub async fn run(
    config: Arc<AgentConfig>,
    client: Client,
    services: Informer<Service>,
    nodes: Informer<Node>,
    cancel: CancellationToken,
) -> Result<()> {
    let link = match Link::of(config.address).await {
        Ok(link) => link,
        // Others may stand by for the addresses; the rest of this node works.
        Err(error) => {
            tracing::warn!(error = %error.chain(), "this node announces no addresses");
            cancel.cancelled().await;
            return Ok(());
        }
    };
    let ranges: BTreeSet<Ipv4Addr> = config.announce.iter().filter_map(|text| range(text)).flatten().collect();
    let mut announcer = Announcer {
        link,
        client,
        me: config.node_name.clone(),
        seen: Mutex::default(),
        held: BTreeSet::new(),
        standing: Standing::default(),
    };
    // Left by an agent that was killed.
    for address in announcer.link.addresses().await?.intersection(&ranges) {
        announcer.link.drop(*address).await;
    }
    tokio::select! {
        _ = cancel.cancelled() => return Ok(()),
        _ = async { services.synced().await; nodes.synced().await } => {}
    }
    loop {
        let wanted = wanted(&services.list(), &ranges);
        announcer.round(&wanted, &nodes.list()).await;
        if cancel.run_until_cancelled(tokio::time::sleep(RENEW)).await.is_none() {
            announcer.leave().await;
            return Ok(());
        }
    }
}

struct Announcer {
    link: Link,
    client: Client,
    me: String,
    /// The last renewal of each lease that was seen, and when.
    seen: Mutex<BTreeMap<Ipv4Addr, (String, Instant)>>,
    held: BTreeSet<Ipv4Addr>,
    standing: Standing,
}

impl Announcer {
    /// All addresses at once: a lease is silent soon, and with many addresses their requests one after another would take longer.
    async fn round(&mut self, wanted: &BTreeSet<Ipv4Addr>, nodes: &[Arc<Node>]) {
        join_all(self.held.difference(wanted).map(|address| self.give_up(*address))).await;
        self.held.retain(|address| wanted.contains(address));
        self.standing.renew(candidates(nodes), wanted, &self.me, self.link.network);
        let ours: Vec<Ipv4Addr> = self.held.union(&self.standing.own).copied().collect();
        let kept = join_all(ours.iter().map(|address| self.keep(*address))).await;
        for (address, outcome) in ours.into_iter().zip(kept) {
            match outcome {
                Ok(true) => drop(self.held.insert(address)),
                Ok(false) => drop(self.held.remove(&address)),
                Err(failure) => {
                    let error = Error::from(failure);
                    tracing::debug!(%address, "a load balancer's address could not be looked after: {}", error.chain());
                }
            }
        }
    }

    /// Whether this node has the address now.
    async fn keep(&self, address: Ipv4Addr) -> Result<bool, Failure> {
        let name = format!("{PREFIX}{address}");
        let lease = self.client.get::<Lease>(NAMESPACE, &name).await?;
        let spec = lease.as_ref().and_then(|lease| lease.spec.as_ref());
        let renewed = spec.and_then(|spec| spec.renew_time.as_ref()).map(|at| time::micro_text(at.0)).unwrap_or_default();
        let holder = spec.and_then(|spec| spec.holder_identity.as_deref());
        match decide(holder, &self.me, self.is_stale(address, renewed), true) {
            Move::Nothing => {
                if self.held.contains(&address) {
                    self.link.drop(address).await;
                }
                Ok(false)
            }
            Move::Hold | Move::Take => {
                self.write(&name, lease.as_ref(), &self.me).await?;
                self.show(address).await;
                Ok(true)
            }
        }
    }

    /// Whether the lease, now `renewed`, has said the same for too long.
    fn is_stale(&self, address: Ipv4Addr, renewed: String) -> bool {
        let mut seen = self.seen.lock();
        let (last, since) = seen.entry(address).or_insert_with(|| (renewed.clone(), Instant::now()));
        if *last != renewed {
            (*last, *since) = (renewed, Instant::now());
        }
        since.elapsed() > SILENCE
    }

    /// Only over what was read: two nodes cannot both take it.
    async fn write(&self, name: &str, lease: Option<&Lease>, holder: &str) -> Result<(), Failure> {
        let spec = json!({"holderIdentity": holder, "leaseDurationSeconds": SILENCE.as_secs(), "renewTime": time::micro_text(time::now())});
        let mut metadata = json!({"name": name, "namespace": NAMESPACE});
        let mut object = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": spec});
        let Some(lease) = lease else {
            object["metadata"] = metadata;
            return self.client.create::<Lease>(NAMESPACE, &object).await.map(drop);
        };
        metadata["resourceVersion"] = json!(lease.metadata.resource_version);
        object["metadata"] = metadata;
        self.client.replace::<Lease>(NAMESPACE, name, "", &object).await.map(drop)
    }

    async fn show(&self, address: Ipv4Addr) {
        if !self.held.contains(&address) {
            tracing::info!(%address, "this node has a load balancer's address now");
        }
        if let Err(error) = self.link.add(address).await.and_then(|()| self.link.announce(address)) {
            tracing::warn!(%address, "a load balancer's address could not be announced: {}", error.chain());
        }
    }

    async fn give_up(&self, address: Ipv4Addr) {
        self.link.drop(address).await;
        let name = format!("{PREFIX}{address}");
        if let Ok(Some(lease)) = self.client.get::<Lease>(NAMESPACE, &name).await
            && lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()) == Some(&self.me)
        {
            let _ = self.write(&name, Some(&lease), "").await;
        }
    }

    async fn leave(&self) {
        // Without an API nobody can be told: then only the addresses go.
        for address in &self.held {
            self.link.drop(*address).await;
        }
        let told = join_all(self.held.iter().map(|address| self.give_up(*address)));
        let _ = tokio::time::timeout(Duration::from_secs(2), told).await;
    }
}

/// The network interface that has the node's own address.
struct Link {
    handle: Handle,
    index: u32,
    mac: [u8; 6],
    /// That of the node's own address.
    network: Option<Ipv4Net>,
}

impl Link {
    async fn of(address: IpAddr) -> Result<Link> {
        let failed = || format!("could not find the network interface of {address}");
        let (connection, handle, _) = rtnetlink::new_connection().or_fail(Kind::Host, failed)?;
        tokio::spawn(connection);
        let mut found = handle.address().get().set_address_filter(address).execute();
        let message = found.try_next().await.or_fail(Kind::Host, failed)?.ok_or_else(|| Error::host(failed()))?;
        drop(found);
        let index = message.header.index;
        let network = address_of(&message).and_then(|own| Ipv4Net::new(own, message.header.prefix_len).ok()).map(|net| net.trunc());
        let mut links = handle.link().get().match_index(index).execute();
        let link = links.try_next().await.or_fail(Kind::Host, failed)?.ok_or_else(|| Error::host(failed()))?;
        drop(links);
        use rtnetlink::packet_route::link::LinkAttribute;
        let mac = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Address(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok(),
            _ => None,
        });
        Ok(Link { handle, index, network, mac: mac.ok_or_else(|| Error::host(failed()).because("it has no Ethernet address"))? })
    }

    async fn messages(&self) -> Result<Vec<AddressMessage>> {
        let list = self.handle.address().get().set_link_index_filter(self.index).execute();
        list.try_collect().await.or_fail(Kind::Host, || "could not list addresses")
    }

    /// Single addresses: those with a network are the machine's own.
    async fn addresses(&self) -> Result<BTreeSet<Ipv4Addr>> {
        Ok(self.messages().await?.iter().filter(|message| message.header.prefix_len == 32).filter_map(address_of).collect())
    }

    async fn add(&self, address: Ipv4Addr) -> Result<()> {
        match self.handle.address().add(self.index, IpAddr::V4(address), 32).execute().await {
            Err(rtnetlink::Error::NetlinkError(message)) if -message.raw_code() == libc::EEXIST => Ok(()),
            outcome => outcome.or_fail(Kind::Host, || format!("could not add {address}")),
        }
    }

    async fn drop(&self, address: Ipv4Addr) {
        let messages = self.messages().await.unwrap_or_default();
        for message in messages.into_iter().filter(|message| message.header.prefix_len == 32 && address_of(message) == Some(address)) {
            let _ = self.handle.address().del(message).execute().await;
        }
    }

    /// Everybody on the wire learns where the address is now.
    fn announce(&self, address: Ipv4Addr) -> Result<()> {
        let failed = || format!("could not announce {address}");
        let packet = gratuitous(self.mac, address);
        let protocol = (libc::ETH_P_ARP as u16).to_be();
        // SAFETY: plain system call; the descriptor is owned from here on.
        let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, i32::from(protocol)) };
        if socket < 0 {
            return Err(Error::host(failed()).because(std::io::Error::last_os_error()));
        }
        // SAFETY: just opened, and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        let mut everybody = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: protocol,
            sll_ifindex: self.index as i32,
            sll_hatype: 1,
            sll_pkttype: 0,
            sll_halen: 6,
            sll_addr: [0; 8],
        };
        everybody.sll_addr[..6].fill(0xff);
        let length = size_of::<libc::sockaddr_ll>() as u32;
        // SAFETY: both buffers live through the call and have the lengths that are told.
        let sent =
            unsafe { libc::sendto(socket.as_raw_fd(), packet.as_ptr().cast(), packet.len(), 0, (&raw const everybody).cast(), length) };
        if sent < 0 { Err(Error::host(failed()).because(std::io::Error::last_os_error())) } else { Ok(()) }
    }
}

fn address_of(message: &AddressMessage) -> Option<Ipv4Addr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    })
}

/// RFC 5227, section 3: an ARP request from the address for itself.
fn gratuitous(mac: [u8; 6], address: Ipv4Addr) -> [u8; 28] {
    let mut packet = [0; 28];
    // Ethernet, IPv4, their lengths, request.
    packet[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    packet[8..14].copy_from_slice(&mac);
    packet[14..18].copy_from_slice(&address.octets());
    packet[24..28].copy_from_slice(&address.octets());
    packet
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::network::testing::{in_own_namespace, sh};
    use serde_json::Value;

    #[test]
    fn an_address_is_taken_only_when_its_holder_is_silent() {
        let check = |holder, stale, stands_by, expected| assert_eq!(decide(holder, "a", stale, stands_by), expected);
        check(None, false, true, Move::Take);
        check(Some(""), false, true, Move::Take);
        check(Some("b"), false, true, Move::Nothing);
        check(Some("b"), true, true, Move::Take);
        check(Some("b"), true, false, Move::Nothing);
        check(Some("a"), true, false, Move::Hold);
    }

    #[test]
    fn only_addresses_of_the_list_are_announced() {
        let service = |spec: Value, status: Value| Arc::new(serde_json::from_value(json!({"spec": spec, "status": status})).unwrap());
        let services = [
            service(json!({"externalIPs": ["10.0.0.40", "10.0.0.1"]}), json!({})),
            service(json!({}), json!({"loadBalancer": {"ingress": [{"ip": "10.0.0.41"}, {"hostname": "x"}]}})),
        ];
        let ranges = range("10.0.0.40-10.0.0.49").unwrap().into_iter().collect();
        assert_eq!(wanted(&services, &ranges), ["10.0.0.40", "10.0.0.41"].map(|text| text.parse().unwrap()).into());
    }

    #[test]
    fn a_few_ready_workers_stand_by() {
        let node = |name: &str, ready: &str, taints: Value| {
            let status = json!({"conditions": [{"type": "Ready", "status": ready}]});
            Arc::new(
                serde_json::from_value::<Node>(json!({"metadata": {"name": name}, "spec": {"taints": taints}, "status": status})).unwrap(),
            )
        };
        let control = node("control-1", "True", json!([{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}]));
        let mut nodes = vec![control.clone(), node("gone", "Unknown", json!([]))];
        let address = Ipv4Addr::new(10, 0, 0, 40);
        let chosen = |nodes: &[Arc<Node>], address, link| -> Vec<String> {
            stand_by(&candidates(nodes), address, link).into_iter().map(String::from).collect()
        };
        assert_eq!(chosen(&nodes, address, None), ["control-1"], "without workers, everybody serves");
        nodes.extend((1..=9).map(|number| node(&format!("worker-{number}"), "True", json!([]))));
        let some = chosen(&nodes, address, None);
        assert_eq!(some.len(), STAND_BY);
        assert!(some.iter().all(|name| name.starts_with("worker-")), "{some:?}");
        assert_ne!(some, chosen(&nodes, Ipv4Addr::new(10, 0, 0, 41), None), "another address, another order");
        let at = |node: &Arc<Node>, address: &str| {
            let mut node = serde_json::to_value(&**node).unwrap();
            node["status"]["addresses"] = json!([{"type": "InternalIP", "address": address}]);
            Arc::new(serde_json::from_value::<Node>(node).unwrap())
        };
        let apart = [at(&control, "10.0.0.1"), at(&nodes[2], "10.0.0.2"), at(&nodes[3], "10.0.1.3")];
        let link = "10.0.0.0/24".parse().ok();
        assert_eq!(chosen(&apart, address, link), ["worker-1"], "nobody beyond a router");
        assert_eq!(chosen(&apart[..1], address, link), ["control-1"], "where no worker is near, everybody who is");
    }

    #[test]
    fn who_stands_by_is_worked_out_anew_only_when_nodes_or_addresses_change() {
        let candidate = |name: &str| Candidate { name: name.into(), address: None, is_worker: true };
        let [first, second] = [40, 41].map(|last| Ipv4Addr::new(10, 0, 0, last));
        let mut standing = Standing::default();
        let mut renew = |nodes: &[&str], wanted: &[Ipv4Addr]| {
            standing.renew(nodes.iter().map(|name| candidate(name)).collect(), &wanted.iter().copied().collect(), "a", None);
            std::mem::take(&mut standing.own)
        };
        assert_eq!(renew(&["a", "b"], &[first]), [first].into());
        assert!(renew(&["a", "b"], &[first]).is_empty(), "what was taken out above stays out");
        assert_eq!(renew(&["a", "b"], &[first, second]), [first, second].into());
        assert!(renew(&["b"], &[first, second]).is_empty());
        assert_eq!(renew(&["b", "a"], &[second]), [second].into());
    }

    #[test]
    fn the_neighbours_learn_the_new_place_of_an_address() {
        in_own_namespace(async {
            sh("ip link add v0 address 02:00:00:00:00:07 type veth peer name v1");
            sh("ip netns add kprov-announce-test");
            sh("ip link set v1 netns kprov-announce-test");
            sh("ip -n kprov-announce-test addr add 10.88.0.1/24 dev v1");
            sh("ip -n kprov-announce-test link set v1 up");
            sh("ip address add 10.88.0.11/24 dev v0");
            sh("ip link set v0 up");
            sh("ip -n kprov-announce-test neigh replace 10.88.0.40 lladdr 02:00:00:00:00:99 dev v1 nud stale");
            let link = Link::of("10.88.0.11".parse().unwrap()).await.expect("the link");
            let address = Ipv4Addr::new(10, 88, 0, 40);
            link.add(address).await.expect("added");
            link.add(address).await.expect("twice is once");
            assert_eq!(link.addresses().await.expect("listed"), [address].into());
            link.announce(address).expect("sent");
            let mut shown = String::new();
            for _ in 0..100 {
                shown = sh("ip -n kprov-announce-test neigh show 10.88.0.40");
                if shown.contains("02:00:00:00:00:07") {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            sh("ip netns delete kprov-announce-test");
            assert!(shown.contains("02:00:00:00:00:07"), "{shown}");
            link.drop(address).await;
            assert!(link.addresses().await.expect("listed").is_empty());
        });
    }
}
