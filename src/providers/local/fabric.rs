//! The cluster's network on this host: one pinned namespace with a bridge, one link to the host, one link per machine.
//!
//! The host's firewall, forwarding and kernel settings stay as they are: the host only gets one more directly connected network.

use super::layout::{self, BRIDGE, Layout, UPLINK};
use crate::error::{Context, Error, Kind, Result};
use crate::sys::paths::LOCAL_CLOUD;
use futures::TryStreamExt;
use ipnet::Ipv4Net;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::Path;

const PREFIX: u8 = 24;

/// Chooses a subnet and calls `record` with it while no other cluster on this host can choose.
pub fn choose_subnet(record: impl FnOnce(Ipv4Addr) -> Result<()>) -> Result<Ipv4Addr> {
    let failed = || "could not choose a subnet";
    // A folder can be locked like a file, and it needs no lock file that would stay behind.
    let folder = File::open(LOCAL_CLOUD).or_fail(Kind::Host, failed)?;
    folder.lock().or_fail(Kind::Host, failed)?;
    let mut used = host_networks()?;
    for cluster in fs::read_dir(LOCAL_CLOUD).or_fail(Kind::Host, failed)?.flatten() {
        let others = super::record::all(&Layout::new(&cluster.file_name().to_string_lossy())).unwrap_or_default();
        let subnets =
            others.iter().filter(|record| record.id.kind == crate::providers::resources::NETWORK).filter_map(|record| record.address);
        used.extend(subnets.map(|subnet| Ipv4Net::new_assert(subnet, PREFIX)));
    }
    let subnet = layout::free_subnet(&used).ok_or_else(|| {
        Error::host("could not find a free subnet: this host has routes to all private networks the local cloud can use")
            .hint("see `ip route`")
    })?;
    record(subnet)?;
    Ok(subnet)
}

/// Every network this host has a route to, but for the default.
pub fn host_networks() -> Result<Vec<Ipv4Net>> {
    netlink(None, async |handle| {
        let routes: Vec<_> = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute().try_collect().await?;
        let network = |route: &rtnetlink::packet_route::route::RouteMessage| {
            let prefix = route.header.destination_prefix_length;
            route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) if prefix > 0 => Ipv4Net::new(*address, prefix).ok(),
                _ => None,
            })
        };
        Ok(routes.iter().filter_map(network).collect())
    })
    .map_err(|error| Error::host("could not read this host's routes").because(error))
}

/// Makes what is missing; all of it is derived from the cluster's uid and its subnet.
pub fn ensure(layout: &Layout, subnet: Ipv4Addr) -> Result<()> {
    let failed = || format!("could not make the network {}", layout.link());
    pin_namespace(&layout.namespace()).or_fail(Kind::Host, failed)?;
    let host = File::open("/proc/thread-self/ns/net").or_fail(Kind::Host, failed)?;
    let link = layout.link();
    let on_host = Path::new("/sys/class/net").join(&link).exists();
    netlink(Some(&layout.namespace()), async |handle| {
        let loopback = index(handle, "lo").await?.unwrap_or(1);
        handle.link().set(LinkUnspec::new_with_index(loopback).up().build()).execute().await?;
        if index(handle, BRIDGE).await?.is_none() {
            handle.link().add(LinkBridge::new(BRIDGE).address(layout.mac(BRIDGE).to_vec()).build()).execute().await?;
        }
        let bridge = require(handle, BRIDGE).await?;
        handle.address().add(bridge, layout::address(subnet, layout::GATEWAY).into(), PREFIX).replace().execute().await?;
        handle.link().set(LinkUnspec::new_with_index(bridge).up().build()).execute().await?;
        if let (Some(uplink), false) = (index(handle, UPLINK).await?, on_host) {
            handle.link().del(uplink).execute().await?;
        }
        if index(handle, UPLINK).await?.is_none() {
            let peer = peer(&link, layout.mac("host"), LinkAttribute::NetNsFd(host.as_raw_fd()));
            handle.link().add(LinkVeth::new(UPLINK, &link).set_info_data(peer).build()).execute().await?;
        }
        let uplink = require(handle, UPLINK).await?;
        handle.link().set(LinkUnspec::new_with_index(uplink).controller(bridge).up().build()).execute().await
    })
    .or_fail(Kind::Host, failed)?;
    netlink(None, async |handle| {
        let link = require(handle, &link).await?;
        handle.address().add(link, layout::address(subnet, layout::HOST).into(), PREFIX).replace().execute().await?;
        handle.link().set(LinkUnspec::new_with_index(link).up().build()).execute().await
    })
    .or_fail(Kind::Host, failed)
}

/// Removes the namespace with all in it, and the host's link.
pub fn remove(layout: &Layout) -> Result<()> {
    let failed = || format!("could not remove the network {}", layout.link());
    netlink(None, async |handle| match index(handle, &layout.link()).await? {
        Some(link) => ignore_missing(handle.link().del(link).execute().await),
        None => Ok(()),
    })
    .or_fail(Kind::Host, failed)?;
    let namespace = layout.namespace();
    while is_pinned(&namespace) {
        umount2(&namespace, MntFlags::MNT_DETACH).or_fail(Kind::Host, failed)?;
    }
    match fs::remove_file(&namespace) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).or_fail(Kind::Host, failed),
        _ => {}
    }
    // Only when they are empty: other clusters have theirs there.
    for folder in namespace.ancestors().skip(1).take(2) {
        let _ = fs::remove_dir(folder);
    }
    Ok(())
}

/// Gives a machine, whose first process is `pid`, its interface `eth0`, address and loopback.
pub fn attach(layout: &Layout, machine: &str, pid: i32, address: Ipv4Addr) -> Result<()> {
    let failed = || format!("could not connect {machine} to the network {}", layout.link());
    let link = layout.machine_link(machine);
    netlink(Some(&layout.namespace()), async |handle| {
        if let Some(old) = index(handle, &link).await? {
            handle.link().del(old).execute().await?;
        }
        let peer = peer("eth0", layout.mac(&address.to_string()), LinkAttribute::NetNsPid(pid as u32));
        let bridge = require(handle, BRIDGE).await?;
        handle.link().add(LinkVeth::new(&link, "eth0").controller(bridge).up().set_info_data(peer).build()).execute().await
    })
    .or_fail(Kind::Host, failed)?;
    netlink(Some(Path::new(&format!("/proc/{pid}/ns/net"))), async |handle| {
        let loopback = require(handle, "lo").await?;
        handle.link().set(LinkUnspec::new_with_index(loopback).up().build()).execute().await?;
        let interface = require(handle, "eth0").await?;
        handle.address().add(interface, address.into(), PREFIX).execute().await?;
        handle.link().set(LinkUnspec::new_with_index(interface).up().build()).execute().await
    })
    .or_fail(Kind::Host, failed)
}

/// The link goes with the machine's namespace, unless something outside keeps that alive.
pub fn detach(layout: &Layout, machine: &str) -> Result<()> {
    if !is_pinned(&layout.namespace()) {
        return Ok(());
    }
    netlink(Some(&layout.namespace()), async |handle| match index(handle, &layout.machine_link(machine)).await? {
        Some(link) => ignore_missing(handle.link().del(link).execute().await),
        None => Ok(()),
    })
    .or_fail(Kind::Host, || format!("could not disconnect {machine}"))
}

/// A load balancer's own address, on the bridge.
pub fn add_address(layout: &Layout, address: Ipv4Addr) -> Result<()> {
    netlink(Some(&layout.namespace()), async |handle| {
        let bridge = require(handle, BRIDGE).await?;
        handle.address().add(bridge, address.into(), 32).replace().execute().await
    })
    .or_fail(Kind::Host, || format!("could not add the address {address}"))
}

pub fn remove_address(layout: &Layout, address: Ipv4Addr) -> Result<()> {
    if !is_pinned(&layout.namespace()) {
        return Ok(());
    }
    netlink(Some(&layout.namespace()), async |handle| {
        let bridge = require(handle, BRIDGE).await?;
        let all: Vec<_> = handle.address().get().set_address_filter(address.into()).execute().try_collect().await?;
        for found in all.into_iter().filter(|found| found.header.index == bridge) {
            ignore_missing(handle.address().del(found).execute().await)?;
        }
        Ok(())
    })
    .or_fail(Kind::Host, || format!("could not remove the address {address}"))
}

/// For a thread of its own that from now on makes sockets in the cluster's network.
pub fn enter(namespace: &Path) -> std::io::Result<()> {
    setns(File::open(namespace)?, CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from)
}

/// Whether a namespace is mounted there (an empty file is left when a creation was cut short).
pub fn is_pinned(namespace: &Path) -> bool {
    nix::sys::statfs::statfs(namespace).is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
}

fn pin_namespace(namespace: &Path) -> std::io::Result<()> {
    if is_pinned(namespace) {
        return Ok(());
    }
    fs::create_dir_all(namespace.parent().expect("namespaces have a folder"))?;
    File::create(namespace)?;
    on_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Ok(mount(Some("/proc/thread-self/ns/net"), namespace, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
    })
}

/// The other end of a new link, placed where `place` says.
fn peer(name: &str, mac: [u8; 6], place: LinkAttribute) -> InfoData {
    let message = LinkMessageBuilder::<LinkUnspec>::new().name(name).address(mac.to_vec()).append_extra_attribute(place).build();
    InfoData::Veth(InfoVeth::Peer(message))
}

/// A netlink conversation in a namespace (`None`: this process's own), on a thread that ends with it.
fn netlink<T: Send>(
    namespace: Option<&Path>,
    talk: impl AsyncFnOnce(&Handle) -> Result<T, rtnetlink::Error> + Send,
) -> Result<T, Box<dyn std::error::Error + Send + Sync>> {
    std::thread::scope(|scope| {
        let work = || {
            if let Some(namespace) = namespace {
                enter(namespace)?;
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection()?;
                tokio::spawn(connection);
                Ok(talk(&handle).await?)
            })
        };
        scope.spawn(work).join().unwrap_or_else(|_| Err("the netlink thread died".into()))
    })
}

fn on_thread<T: Send>(work: impl FnOnce() -> std::io::Result<T> + Send) -> std::io::Result<T> {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|_| Err(std::io::Error::other("the namespace's thread died"))))
}

async fn index(handle: &Handle, name: &str) -> Result<Option<u32>, rtnetlink::Error> {
    let found: Result<Option<LinkMessage>, _> = handle.link().get().match_name(name).execute().try_next().await;
    match found {
        Ok(link) => Ok(link.map(|link| link.header.index)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn require(handle: &Handle, name: &str) -> Result<u32, rtnetlink::Error> {
    index(handle, name).await?.ok_or(rtnetlink::Error::RequestFailed)
}

fn is_missing(error: &rtnetlink::Error) -> bool {
    let rtnetlink::Error::NetlinkError(message) = error else { return false };
    matches!(message.raw_code().abs(), libc::ENODEV | libc::ENOENT | libc::EADDRNOTAVAIL)
}

fn ignore_missing(result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match result {
        Err(error) if is_missing(&error) => Ok(()),
        other => other,
    }
}
