//! A node's place in the pod network: the CNI configuration for its own pods, routes to everybody else's, in a tunnel where the network
//! between nodes carries nothing but nodes.
//!
//! Driven by the Nodes of the cluster and by the kernel's own notices, so a route that somebody removed comes back. With the control
//! plane away, what is set stays.

pub mod announce;
pub mod door;
#[cfg(test)]
pub mod testing;
mod tunnel;
#[cfg(test)]
mod tunnel_tests;
pub mod wanted;

use super::client::informer::Informer;
use super::config::{AgentConfig, Fabric};
use crate::error::{Context, Kind, Result};
use crate::sys::{files, paths};
use door::Door;
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

pub const CNI_CONFIGURATION: &str = "/etc/kprov/cni/10-kprov.conflist";
/// A gateway may not be reachable yet (its machine is starting): no event will tell when it is.
const RETRY: Duration = Duration::from_secs(2);
/// Links and routes come in groups when a pod starts.
const SETTLE: Duration = Duration::from_millis(50);

/// Keeps this node's network until cancelled. Fails only where netlink cannot be used at all.
pub async fn run_with(config: Arc<AgentConfig>, nodes: Informer<Node>, cancel: CancellationToken) -> Result<()> {
    let mut door = Door::open().await?;
    door::enable_forwarding();
    tokio::select! {
        _ = cancel.cancelled() => return Ok(()),
        _ = nodes.synced() => {}
    }
    let mut changed = nodes.changed();
    let mut healthy = true;
    loop {
        tokio::select! {
            _ = cancel.cancelled() => return Ok(()),
            _ = changed.wait() => {}
            _ = door.changed() => tokio::time::sleep(SETTLE).await,
            _ = tokio::time::sleep(RETRY), if !healthy => {}
        }
        door.forget_changes();
        let outcome = settle(&config, &nodes, &door).await;
        if let Err(error) = &outcome {
            tracing::warn!(error = %error.chain(), "the node's network is not whole yet");
        }
        healthy = outcome.is_ok();
    }
}

async fn settle(config: &AgentConfig, nodes: &Informer<Node>, door: &Door) -> Result<()> {
    let own = nodes.get("", &config.node_name).as_deref().and_then(wanted::pod_cidr);
    let link = door.mtu(config.address).await?;
    let mtu = if config.fabric == Fabric::Routed { link.saturating_sub(wanted::TUNNEL_OVERHEAD) } else { link };
    let configured = own.map_or(Ok(()), |pods| write_configuration(Path::new(CNI_CONFIGURATION), pods, mtu));
    let all = nodes.list();
    carry(door, all.iter().map(Arc::as_ref), own, mtu, config).await.and(configured)
}

/// The ways to the other nodes' pods, as this configuration wants them; what another one wanted before goes.
async fn carry<'a>(
    door: &Door,
    nodes: impl Iterator<Item = &'a Node> + Clone,
    own: Option<Ipv4Net>,
    mtu: u32,
    config: &AgentConfig,
) -> Result<()> {
    // The tunnel first: routes lead into it. One that failed does not keep the services' route.
    let tunnel = door.ensure_tunnel(wanted::tunnel(nodes.clone(), own, config).as_ref(), mtu).await;
    let routes = door.ensure_routes(&wanted::routes(nodes, own, config)).await;
    tunnel.and(routes)
}

/// Written only when it differs: containerd reloads on every write.
fn write_configuration(path: &Path, pods: Ipv4Net, mtu: u32) -> Result<()> {
    // In containerd's own folder: a plugin that it does not find would fail every pod.
    let port_mapping = paths::cni_plugin_folder().is_some_and(|folder| Path::new(folder).join("portmap").is_file());
    let text = wanted::conflist(pods, mtu, port_mapping);
    if std::fs::read(path).is_ok_and(|held| held == text.as_bytes()) {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder).or_fail(Kind::Host, || format!("could not make {}", folder.display()))?;
    files::write_atomic(path, text.as_bytes(), 0o644).or_fail(Kind::Host, || format!("could not write {}", path.display()))?;
    tracing::info!(%pods, mtu, "pods of this node have their network");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::testing::{in_own_namespace, sh};
    use super::wanted::{Hop, Routes};
    use super::*;
    use std::net::Ipv4Addr;

    fn routes(list: &[(&str, Hop)]) -> Routes {
        list.iter().map(|(range, hop)| (range.parse().expect("a range"), *hop)).collect()
    }

    #[test]
    fn only_own_routes_are_touched_and_a_lost_one_is_noticed() {
        in_own_namespace(async {
            sh("ip link add v0 type veth peer name v1");
            sh("ip address add 10.88.0.11/24 dev v0");
            sh("ip link set v0 mtu 1400 up");
            sh("ip link set v1 up");
            let mut door = Door::open().await.expect("netlink");
            sh("ip route add 10.244.7.0/24 via 10.88.0.17");
            let via = |last| Hop::Via(Ipv4Addr::new(10, 88, 0, last));
            let services = ("10.96.0.0/16", Hop::Loopback(Ipv4Addr::new(10, 88, 0, 11)));
            let first = routes(&[("10.244.2.0/24", via(12)), ("10.244.3.0/24", via(13)), ("10.244.7.0/24", via(99)), services]);
            door.ensure_routes(&first).await.expect("set");
            let shown = sh("ip route show");
            for line in [
                "10.244.2.0/24 via 10.88.0.12 dev v0 proto 107",
                "10.244.7.0/24 via 10.88.0.17 dev v0",
                "10.96.0.0/16 dev lo proto 107 scope link src 10.88.0.11",
            ] {
                assert!(shown.contains(line), "{line}:\n{shown}");
            }
            let second = routes(&[("10.244.2.0/24", via(22)), services]);
            door.ensure_routes(&second).await.expect("changed");
            let shown = sh("ip route show");
            assert!(
                shown.contains("10.244.2.0/24 via 10.88.0.22")
                    && shown.contains("10.244.7.0/24 via 10.88.0.17")
                    && !shown.contains("10.244.3.0"),
                "{shown}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
            door.forget_changes();
            sh("ip route del 10.244.2.0/24");
            door.changed().await;
            door.ensure_routes(&second).await.expect("restored");
            assert!(sh("ip route show").contains("10.244.2.0/24 via 10.88.0.22"));
            let unreachable = routes(&[("10.244.2.0/24", via(22)), ("10.244.9.0/24", Hop::Via(Ipv4Addr::new(192, 0, 2, 1))), services]);
            assert!(door.ensure_routes(&unreachable).await.is_err());
            assert_eq!(door.mtu("10.88.0.11".parse().expect("an address")).await.expect("read"), 1400);
            for _ in 0..2 {
                door.ensure_loopback_address(Ipv4Addr::new(10, 96, 0, 10)).await.expect("added once");
            }
            assert!(sh("ip address show dev lo").contains("10.96.0.10/32 scope host"));
        });
    }

    #[test]
    fn an_unchanged_configuration_is_not_written_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("net.d/10-kprov.conflist");
        let pods = "10.244.1.0/24".parse().expect("a range");
        let inode = || std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&path).expect("written"));
        write_configuration(&path, pods, 1500).expect("written");
        let first = inode();
        write_configuration(&path, pods, 1500).expect("kept");
        assert_eq!(inode(), first);
        write_configuration(&path, pods, 1400).expect("written again");
        assert_ne!(inode(), first);
    }
}
