//! The kernel's routes, addresses and switches, over netlink. Touches only routes that carry kprov's own protocol number, and the
//! tunnel device of kprov's own name.

use super::wanted::{Hop, Routes};
use crate::error::{Context, Error, Kind, Result};
use futures::{StreamExt, TryStreamExt};
use ipnet::Ipv4Net;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressScope};
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::watch;

const GROUPS: [MulticastGroup; 4] = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv4Route, MulticastGroup::Neigh];
/// "k" in ASCII; free in the kernel's list and in iproute2's rt_protos.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(107);

pub struct Door {
    pub(super) handle: Handle,
    loopback: u32,
    /// The tunnel's index; 0 while there is none.
    pub(super) tunnel: Arc<AtomicU32>,
    /// Counts changes of links, addresses and routes that anybody made.
    changes: watch::Receiver<u64>,
}

impl Door {
    /// Speaks to the network namespace of the calling thread.
    pub async fn open() -> Result<Door> {
        let (connection, handle, mut messages) =
            rtnetlink::new_multicast_connection(&GROUPS).or_fail(Kind::Host, || "could not open a netlink socket")?;
        tokio::spawn(connection);
        let (sender, changes) = watch::channel(0);
        let tunnel = Arc::new(AtomicU32::new(0));
        let watched = tunnel.clone();
        tokio::spawn(async move {
            while let Some((message, _)) = messages.next().await {
                if matters(&message.payload, watched.load(Ordering::Relaxed)) {
                    sender.send_modify(|count| *count += 1);
                }
            }
        });
        let mut links = handle.link().get().match_name("lo").execute();
        let link = links.try_next().await.map_err(|error| failed("could not find the loopback device", error))?;
        let loopback = link.ok_or_else(|| Error::host("could not find the loopback device"))?.header.index;
        drop(links);
        handle
            .link()
            .set(rtnetlink::LinkUnspec::new_with_index(loopback).up().build())
            .execute()
            .await
            .map_err(|error| failed("could not bring up the loopback device", error))?;
        Ok(Door { handle, loopback, tunnel, changes })
    }

    /// Returns after the next change of links, addresses or routes.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// What happened so far is about to be looked at.
    pub fn forget_changes(&mut self) {
        self.changes.mark_unchanged();
    }

    /// The routes that kprov made.
    async fn routes(&self) -> Result<Routes> {
        let mut stream = self.handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
        let mut routes = Routes::new();
        while let Some(route) = stream.try_next().await.map_err(|error| failed("could not list routes", error))? {
            if let Some((range, hop)) = self.own(&route) {
                routes.insert(range, hop);
            }
        }
        Ok(routes)
    }

    fn own(&self, route: &RouteMessage) -> Option<(Ipv4Net, Hop)> {
        if route.header.protocol != PROTOCOL || route.header.table != RouteHeader::RT_TABLE_MAIN {
            return None;
        }
        let find = |pick: fn(&RouteAttribute) -> Option<Ipv4Addr>| route.attributes.iter().find_map(pick);
        let destination =
            find(|attribute| if let RouteAttribute::Destination(RouteAddress::Inet(address)) = attribute { Some(*address) } else { None })?;
        let gateway =
            find(|attribute| if let RouteAttribute::Gateway(RouteAddress::Inet(address)) = attribute { Some(*address) } else { None });
        let source =
            find(|attribute| if let RouteAttribute::PrefSource(RouteAddress::Inet(address)) = attribute { Some(*address) } else { None });
        let tunnel = self.tunnel.load(Ordering::Relaxed);
        let tunnelled = tunnel != 0 && route.attributes.contains(&RouteAttribute::Oif(tunnel));
        let hop = match gateway {
            Some(gateway) if tunnelled => Hop::Tunnel(gateway),
            Some(gateway) => Hop::Via(gateway),
            None => Hop::Loopback(source.unwrap_or(Ipv4Addr::UNSPECIFIED)),
        };
        Some((Ipv4Net::new(destination, route.header.destination_prefix_length).ok()?, hop))
    }

    /// Makes kprov's routes exactly `wanted`. Every route is tried; the first failure is returned.
    pub async fn ensure_routes(&self, wanted: &Routes) -> Result<()> {
        let held = self.routes().await?;
        let mut outcome = Ok(());
        for (range, hop) in held.iter().filter(|(range, _)| !wanted.contains_key(range)) {
            outcome = outcome.and(self.delete(*range, *hop).await);
        }
        for (range, hop) in wanted.iter().filter(|(range, hop)| held.get(range) != Some(hop)) {
            outcome = outcome.and(self.put(*range, *hop, held.get(range)).await);
        }
        outcome
    }

    async fn put(&self, range: Ipv4Net, hop: Hop, held: Option<&Hop>) -> Result<()> {
        let mut request = self.handle.route().add(self.message(range, hop));
        if held.is_some() {
            request = request.replace();
        }
        match request.execute().await {
            Ok(()) => {
                tracing::debug!(%range, ?hop, "route set");
                Ok(())
            }
            // Somebody else's route leads there already (a cloud's own router, an administrator): theirs stands.
            Err(error) if code(&error) == Some(libc::EEXIST) => Ok(()),
            Err(error) => Err(failed(&format!("could not set the route to {range}"), error)),
        }
    }

    async fn delete(&self, range: Ipv4Net, hop: Hop) -> Result<()> {
        match self.handle.route().del(self.message(range, hop)).execute().await {
            Ok(()) => {
                tracing::debug!(%range, ?hop, "route removed");
                Ok(())
            }
            Err(error) if code(&error) == Some(libc::ESRCH) => Ok(()),
            Err(error) => Err(failed(&format!("could not remove the route to {range}"), error)),
        }
    }

    fn message(&self, range: Ipv4Net, hop: Hop) -> RouteMessage {
        let builder = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(range.addr(), range.prefix_len()).protocol(PROTOCOL);
        match hop {
            Hop::Via(gateway) => builder.gateway(gateway).build(),
            // No address of this node shares a network with the gateway: the device alone says that it is there.
            Hop::Tunnel(gateway) => builder.output_interface(self.tunnel.load(Ordering::Relaxed)).gateway(gateway).onlink().build(),
            Hop::Loopback(source) => builder.output_interface(self.loopback).scope(RouteScope::Link).pref_source(source).build(),
        }
    }

    /// The largest packet of the link that has `address`; 1500 when none has it.
    pub async fn mtu(&self, address: IpAddr) -> Result<u32> {
        let mut addresses = self.handle.address().get().set_address_filter(address).execute();
        let found = addresses.try_next().await.map_err(|error| failed("could not list addresses", error))?;
        drop(addresses);
        let Some(found) = found else { return Ok(1500) };
        let mut links = self.handle.link().get().match_index(found.header.index).execute();
        let link = links.try_next().await.map_err(|error| failed("could not read a link", error))?;
        let attributes = link.map(|link| link.attributes).unwrap_or_default();
        let mtu = attributes.into_iter().find_map(|attribute| if let LinkAttribute::Mtu(mtu) = attribute { Some(mtu) } else { None });
        // The loopback device's 65536 would be a machine that is its own whole cluster: pods still talk as if over Ethernet.
        Ok(mtu.unwrap_or(1500).min(9000))
    }

    /// Gives the loopback device an address of this node alone; there already is fine.
    pub async fn ensure_loopback_address(&self, address: Ipv4Addr) -> Result<()> {
        let mut request = self.handle.address().add(self.loopback, IpAddr::V4(address), 32);
        // Host scope: it is never picked as the source of packets that leave.
        request.message_mut().header.scope = AddressScope::Host;
        request.message_mut().attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Broadcast(_)));
        match request.execute().await {
            Ok(()) => Ok(()),
            Err(error) if code(&error) == Some(libc::EEXIST) => Ok(()),
            Err(error) => Err(failed(&format!("could not add {address} to the loopback device"), error)),
        }
    }
}

/// Packets between pods pass through this node. A switch that cannot be set (a read-only /proc) is the host's business; it is logged.
pub fn enable_forwarding() {
    let path = "/proc/sys/net/ipv4/ip_forward";
    if std::fs::read_to_string(path).is_ok_and(|value| value.trim() == "1") {
        return;
    }
    if let Err(error) = std::fs::write(path, "1") {
        tracing::warn!(%error, "could not turn on net.ipv4.ip_forward: pods will not reach other machines");
    }
}

/// Neighbours come and go all the time; only the tunnel's own are kprov's.
fn matters(notice: &NetlinkPayload<RouteNetlinkMessage>, tunnel: u32) -> bool {
    use RouteNetlinkMessage::{DelNeighbour, NewNeighbour};
    match notice {
        NetlinkPayload::InnerMessage(NewNeighbour(neighbour) | DelNeighbour(neighbour)) => neighbour.header.ifindex == tunnel,
        _ => true,
    }
}

pub(super) fn code(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(-message.raw_code()),
        _ => None,
    }
}

pub(super) fn failed(what: &str, error: rtnetlink::Error) -> Error {
    let kind = if code(&error) == Some(libc::EPERM) { Kind::Host } else { Kind::Transient };
    Error::new(kind, what).because(error)
}
