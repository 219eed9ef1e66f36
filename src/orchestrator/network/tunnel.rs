//! The tunnel device, its address, and what it must know of each other node, over netlink. Only the device of kprov's own name is touched.

use super::door::{Door, code, failed};
use super::wanted::{TUNNEL, Tunnel, hardware_address};
use crate::error::{Error, Result};
use crate::orchestrator::config::VXLAN_PORT;
use futures::{StreamExt, TryStreamExt};
use ipnet::Ipv4Net;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use rtnetlink::{LinkUnspec, LinkVxlan};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::Ordering;

/// One network for all pods: there is nothing to keep apart.
const NETWORK_ID: u32 = 1;

/// Hardware address -> the node behind it.
type Forwarding = BTreeMap<Vec<u8>, Ipv4Addr>;
/// End -> hardware address.
type Neighbours = BTreeMap<Ipv4Addr, Vec<u8>>;

impl Door {
    /// Makes the device exactly `wanted`, or takes it away with everything that leads into it.
    pub async fn ensure_tunnel(&self, wanted: Option<&Tunnel>, mtu: u32) -> Result<()> {
        let found = self.find_tunnel().await?;
        let Some(wanted) = wanted else { return self.remove_tunnel(found.as_ref()).await };
        let index = self.ensure_device(found, wanted, mtu).await?;
        self.tunnel.store(index, Ordering::Relaxed);
        let address = self.ensure_end(index, wanted.end).await;
        let neighbours = self.ensure_neighbours(index, &neighbours(wanted)).await;
        let forwarding = self.ensure_forwarding(index, &forwarding(wanted)).await;
        address.and(neighbours).and(forwarding)
    }

    /// The device of kprov's name, whoever made it.
    async fn find_tunnel(&self) -> Result<Option<LinkMessage>> {
        // Asking for one name alone is an error where nobody has it.
        let links: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(|error| failed("could not list links", error))?;
        Ok(links.into_iter().find(|link| link.attributes.contains(&LinkAttribute::IfName(TUNNEL.into()))))
    }

    async fn remove_tunnel(&self, found: Option<&LinkMessage>) -> Result<()> {
        self.tunnel.store(0, Ordering::Relaxed);
        let Some(link) = found.filter(|link| settings(link).is_some()) else { return Ok(()) };
        match self.handle.link().del(link.header.index).execute().await {
            Err(error) if code(&error) != Some(libc::ENODEV) => Err(failed(&format!("could not remove {TUNNEL}"), error)),
            _ => {
                tracing::info!("{TUNNEL} removed: the network between nodes carries pods by itself");
                Ok(())
            }
        }
    }

    /// Its index. A device that differs in what cannot be changed is made anew.
    async fn ensure_device(&self, found: Option<LinkMessage>, wanted: &Tunnel, mtu: u32) -> Result<u32> {
        let device = LinkVxlan::new(TUNNEL, NETWORK_ID).local(wanted.node).port(VXLAN_PORT).learning(false);
        let device = device.address(hardware_address(wanted.node).to_vec()).mtu(mtu).up().build();
        match found {
            Some(link) if is_ours(&link, wanted) => return self.adjust(&link, mtu).await,
            Some(link) if settings(&link).is_some() => self.remove_tunnel(Some(&link)).await?,
            Some(_) => {
                return Err(Error::host(format!("could not make {TUNNEL}: another device has this name"))
                    .hint(format!("on the machine: ip link delete {TUNNEL}")));
            }
            None => {}
        }
        self.handle.link().add(device).execute().await.map_err(|error| {
            let hint = "the kernel's vxlan module must be there, and no other program may use the same VXLAN port and network id";
            failed(&format!("could not make {TUNNEL}"), error).hint(hint)
        })?;
        tracing::info!(node = %wanted.node, end = %wanted.end, mtu, "{TUNNEL} made: pods travel in VXLAN");
        let made = self.find_tunnel().await?.ok_or_else(|| Error::transient(format!("could not find {TUNNEL} after making it")))?;
        Ok(made.header.index)
    }

    async fn adjust(&self, link: &LinkMessage, mtu: u32) -> Result<u32> {
        let index = link.header.index;
        if !link.header.flags.contains(LinkFlags::Up) || !link.attributes.contains(&LinkAttribute::Mtu(mtu)) {
            let set = self.handle.link().set(LinkUnspec::new_with_index(index).mtu(mtu).up().build());
            set.execute().await.map_err(|error| failed(&format!("could not set up {TUNNEL}"), error))?;
        }
        Ok(index)
    }

    async fn ensure_end(&self, index: u32, end: Ipv4Addr) -> Result<()> {
        let listed = |error| failed("could not list addresses", error);
        let mut addresses = self.handle.address().get().set_link_index_filter(index).execute();
        let (mut outcome, mut there) = (Ok(()), false);
        let mut stale = Vec::new();
        while let Some(address) = addresses.try_next().await.map_err(listed)? {
            match local(&address) {
                Some(found) if found == Ipv4Net::from(end) => there = true,
                Some(_) => stale.push(address),
                None => {}
            }
        }
        for address in stale {
            let removed = self.handle.address().del(address).execute().await;
            outcome = outcome.and(removed.map_err(|error| failed(&format!("could not remove an address from {TUNNEL}"), error)));
        }
        if !there {
            let added = self.handle.address().add(index, IpAddr::V4(end), 32).execute().await;
            outcome = outcome.and(added.map_err(|error| failed(&format!("could not add {end} to {TUNNEL}"), error)));
        }
        outcome
    }

    async fn ensure_neighbours(&self, index: u32, wanted: &Neighbours) -> Result<()> {
        // The kernel's own entries (multicast, failed look-ups) are not permanent.
        let mine = |entry: &NeighbourMessage| entry.header.state == NeighbourState::Permanent;
        let entries = self.entries(index, AddressFamily::Inet).await?;
        let held: Neighbours =
            entries.iter().filter(|entry| mine(entry)).filter_map(|entry| Some((target(entry)?, hardware(entry)?))).collect();
        let mut outcome = Ok(());
        for entry in entries.into_iter().filter(mine).filter(|entry| target(entry).is_none_or(|end| !wanted.contains_key(&end))) {
            outcome = outcome.and(self.forget(entry).await);
        }
        for (end, hardware) in wanted.iter().filter(|(end, hardware)| held.get(*end) != Some(*hardware)) {
            let put = self.handle.neighbours().add(index, IpAddr::V4(*end)).link_layer_address(hardware).replace().execute().await;
            outcome = outcome.and(put.map_err(|error| failed(&format!("could not tell {TUNNEL} of {end}"), error)));
        }
        outcome
    }

    async fn ensure_forwarding(&self, index: u32, wanted: &Forwarding) -> Result<()> {
        let entries = self.entries(index, AddressFamily::Bridge).await?;
        let held: Forwarding = entries.iter().filter_map(|entry| Some((hardware(entry)?, target(entry)?))).collect();
        let mut outcome = Ok(());
        for entry in entries.into_iter().filter(|entry| hardware(entry).is_none_or(|hardware| !wanted.contains_key(&hardware))) {
            outcome = outcome.and(self.forget(entry).await);
        }
        for (hardware, node) in wanted.iter().filter(|(hardware, node)| held.get(*hardware) != Some(*node)) {
            let put = self.handle.neighbours().add_bridge(index, hardware).destination(IpAddr::V4(*node)).flags(NeighbourFlags::Own);
            let put = put.replace().execute().await;
            outcome = outcome.and(put.map_err(|error| failed(&format!("could not tell {TUNNEL} of the node {node}"), error)));
        }
        outcome
    }

    async fn entries(&self, index: u32, family: AddressFamily) -> Result<Vec<NeighbourMessage>> {
        let mut found = Vec::new();
        let mut entries = self.handle.neighbours().get().set_address_family(family).execute().boxed();
        while let Some(entry) = entries.try_next().await.map_err(|error| failed("could not list neighbours", error))? {
            // The kernel lists those of every device.
            if entry.header.ifindex == index {
                found.push(entry);
            }
        }
        Ok(found)
    }

    async fn forget(&self, mut entry: NeighbourMessage) -> Result<()> {
        use NeighbourAttribute::{Destination, LinkLayerAddress};
        entry.attributes.retain(|attribute| matches!(attribute, Destination(_) | LinkLayerAddress(_)));
        match self.handle.neighbours().del(entry).execute().await {
            Err(error) if code(&error) != Some(libc::ENOENT) => Err(failed(&format!("could not make {TUNNEL} forget a node"), error)),
            _ => Ok(()),
        }
    }
}

fn neighbours(tunnel: &Tunnel) -> Neighbours {
    tunnel.peers.iter().map(|(end, node)| (*end, hardware_address(*node).to_vec())).collect()
}

fn forwarding(tunnel: &Tunnel) -> Forwarding {
    tunnel.peers.values().map(|node| (hardware_address(*node).to_vec(), *node)).collect()
}

/// Of a VXLAN device; `None` for every other kind.
fn settings(link: &LinkMessage) -> Option<&[InfoVxlan]> {
    let parts =
        link.attributes.iter().find_map(|attribute| if let LinkAttribute::LinkInfo(parts) = attribute { Some(parts) } else { None })?;
    parts.contains(&LinkInfo::Kind(InfoKind::Vxlan)).then_some(())?;
    parts.iter().find_map(|part| if let LinkInfo::Data(InfoData::Vxlan(settings)) = part { Some(settings.as_slice()) } else { None })
}

fn is_ours(link: &LinkMessage, wanted: &Tunnel) -> bool {
    let expected = [InfoVxlan::Id(NETWORK_ID), InfoVxlan::Local(wanted.node), InfoVxlan::Port(VXLAN_PORT), InfoVxlan::Learning(false)];
    let hardware = LinkAttribute::Address(hardware_address(wanted.node).to_vec());
    settings(link).is_some_and(|settings| expected.iter().all(|one| settings.contains(one))) && link.attributes.contains(&hardware)
}

fn local(address: &AddressMessage) -> Option<Ipv4Net> {
    let pick =
        |attribute: &AddressAttribute| if let AddressAttribute::Local(IpAddr::V4(address)) = attribute { Some(*address) } else { None };
    Ipv4Net::new(address.attributes.iter().find_map(pick)?, address.header.prefix_len).ok()
}

fn target(entry: &NeighbourMessage) -> Option<Ipv4Addr> {
    let pick = |attribute: &NeighbourAttribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(*address),
        // Of the forwarding table's entries the family does not say what kind of address follows.
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => <[u8; 4]>::try_from(bytes.as_slice()).ok().map(Ipv4Addr::from),
        _ => None,
    };
    entry.attributes.iter().find_map(pick)
}

fn hardware(entry: &NeighbourMessage) -> Option<Vec<u8>> {
    let pick = |attribute: &NeighbourAttribute| {
        if let NeighbourAttribute::LinkLayerAddress(bytes) = attribute { Some(bytes.clone()) } else { None }
    };
    entry.attributes.iter().find_map(pick)
}
