//! The host door as each side uses it: outside it looks through the API where there is one and over SSH where there is none yet;
//! inside, the Nodes say enough.

use super::blueprint_door::{api, control_plane};
use super::hosts::Hosts;
use super::nodes;
use crate::bootstrap::door::{Drain, HostDoor, HostObserver, SshObserver};
use crate::bootstrap::trust::Trust;
use crate::engine::{Door, MACHINE, Observed, Progress};
use crate::error::{Error, Result};
use crate::orchestrator::client::{Client, Selector};
use crate::providers::Provider;
use crate::remote::{self, Side, Ssh};
use async_trait::async_trait;
use k8s_openapi::api::core::v1::Node;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// An API that takes longer than this to list a few nodes counts as not there; SSH then tells.
const LOOK: Duration = Duration::from_secs(3);

/// For `up` and `plan`.
pub fn outside(ssh: Ssh, hosts: Hosts) -> Arc<dyn Door> {
    let trust = hosts.trust.clone();
    let over_ssh = SshObserver { cluster: trust.cluster.clone(), ssh: ssh.clone() };
    Arc::new(HostDoor {
        cluster: trust.cluster.clone(),
        ssh,
        side: Side::Outside,
        program: hosts.program.clone(),
        observer: Arc::new(OutsideObserver { trust: trust.clone(), over_ssh }),
        drain: Arc::new(OutsideDrain { trust, provider: hosts.provider.clone() }),
        source: Arc::new(hosts),
    })
}

/// For the loop inside the cluster.
pub fn inside(ssh: Ssh, hosts: Hosts, client: Client) -> Arc<dyn Door> {
    Arc::new(HostDoor {
        cluster: hosts.trust.cluster.clone(),
        ssh,
        side: Side::Inside,
        program: hosts.program.clone(),
        observer: Arc::new(InsideObserver(client.clone())),
        drain: Arc::new(InsideDrain(client)),
        source: Arc::new(hosts),
    })
}

struct OutsideObserver {
    trust: Arc<Trust>,
    over_ssh: SshObserver,
}

#[async_trait]
impl HostObserver for OutsideObserver {
    async fn observe(&self, known: &[Observed]) -> Result<Vec<Observed>> {
        let joined = self.through_api(known).await;
        let rest: Vec<Observed> = known
            .iter()
            .filter(|thing| thing.id.kind != MACHINE || !joined.iter().any(|host| host.id.name == thing.id.name))
            .cloned()
            .collect();
        let mut all = self.over_ssh.observe(&rest).await?;
        all.extend(joined);
        Ok(all)
    }
}

impl OutsideObserver {
    /// Hosts whose Node is ready; whatever is not clear from here is looked at by SSH.
    async fn through_api(&self, known: &[Observed]) -> Vec<Observed> {
        let look = async {
            let address = remote::address(control_plane(known)?, Side::Outside).ok()?;
            let nodes = api(&self.trust, address).ok()?.list::<Node>("", &Selector::all()).await.ok()?;
            Some(nodes::observed(&nodes.items, known, SystemTime::now()))
        };
        let hosts = tokio::time::timeout(LOOK, look).await.ok().flatten().unwrap_or_default();
        hosts.into_iter().filter(|host| host.phase == crate::engine::Phase::Ready).collect()
    }
}

struct OutsideDrain {
    trust: Arc<Trust>,
    provider: Arc<dyn Provider>,
}

#[async_trait]
impl Drain for OutsideDrain {
    async fn drain(&self, node_name: &str, moves_pods: bool, progress: Progress<'_>) -> Result<()> {
        let observed = self.provider.observe(&[]).await?;
        // Without a control plane there is no cluster to take the node out of.
        let Some(machine) = control_plane(&observed) else { return Ok(()) };
        nodes::drain(&api(&self.trust, remote::address(machine, Side::Outside)?)?, node_name, moves_pods, progress).await
    }
}

struct InsideObserver(Client);

#[async_trait]
impl HostObserver for InsideObserver {
    async fn observe(&self, known: &[Observed]) -> Result<Vec<Observed>> {
        let nodes = self.0.list::<Node>("", &Selector::all()).await.map_err(Error::from)?;
        Ok(nodes::observed(&nodes.items, known, SystemTime::now()))
    }
}

struct InsideDrain(Client);

#[async_trait]
impl Drain for InsideDrain {
    async fn drain(&self, node_name: &str, moves_pods: bool, progress: Progress<'_>) -> Result<()> {
        nodes::drain(&self.0, node_name, moves_pods, progress).await
    }
}
