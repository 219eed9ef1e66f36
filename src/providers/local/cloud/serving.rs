//! The cluster's network on this host, and the load balancers that serve in it.

use super::lives::{FIRST_PAUSE, HEALTHY_AFTER, Life};
use super::{Cloud, blocking};
use crate::engine::Id;
use crate::error::{Context, Error, Kind, Result};
use crate::lb::{Backend, Listener};
use crate::providers::local::record::{Record, Stage};
use crate::providers::local::{fabric, layout};
use crate::providers::resources::{LOAD_BALANCER, ListenerSpec, LoadBalancerSpec, MACHINE, NETWORK};
use std::net::Ipv4Addr;
use std::sync::Arc;

impl Cloud {
    pub(super) async fn open_network(&self, record: &Record) -> Result<()> {
        let subnet = record.address.ok_or_else(|| Error::internal("the network has no subnet on record"))?;
        let layout = self.layout.clone();
        let made = blocking(move || fabric::ensure(&layout, subnet)).await;
        let opened = match made {
            Ok(()) => self.network.open((layout::address(subnet, layout::GATEWAY), layout::API_PORT).into()).await,
            failed => failed,
        };
        self.state.lock().network_trouble = opened.as_ref().err().map(Error::chain);
        self.bump();
        opened
    }

    /// What this host refused a moment ago is tried again.
    pub(super) async fn need_network(self: &Arc<Self>) -> Result<()> {
        let network = {
            let state = self.state.lock();
            let made = state.records.values().find(|record| record.id.kind == NETWORK && record.stage == Stage::Made);
            made.filter(|_| state.network_trouble.is_some()).map(|record| record.id.clone())
        };
        let Some(id) = network else { return Ok(()) };
        self.turn(&id, async |cloud| cloud.open_network(&cloud.record(&id)?).await).await
    }

    /// Until it is open, or nobody wants it any more. Load balancers follow; machines have their own ways to be started again.
    pub(super) async fn reopen_network(self: Arc<Self>) {
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(HEALTHY_AFTER);
            match self.need_network().await {
                Ok(()) => return self.refresh_balancers().await,
                Err(error) => tracing::warn!("{}", error.chain()),
            }
        }
    }

    /// Serves what the record says, from now on and without a dropped connection.
    pub(super) async fn serve(&self, record: &Record) -> Result<()> {
        let address = record.address.ok_or_else(|| Error::internal(format!("{} has no address on record", record.id)))?;
        let layout = self.layout.clone();
        blocking(move || fabric::add_address(&layout, address)).await?;
        let spec: LoadBalancerSpec = record.spec()?;
        let balancer = self.state.lock().balancers.get(&record.id.name).cloned().unwrap_or_default();
        let listeners = self.listeners(address, &spec);
        let applied = balancer.clone();
        self.network
            .run(async move { applied.apply(&listeners) })
            .await?
            .or_fail(Kind::Host, || format!("could not serve {}", record.id))?;
        self.state.lock().balancers.insert(record.id.name.clone(), balancer);
        Ok(())
    }

    fn listeners(&self, address: Ipv4Addr, spec: &LoadBalancerSpec) -> Vec<Listener> {
        let state = self.state.lock();
        let machine = |name: &String| Some((name.clone(), state.records.get(&Id::new(MACHINE, name))?.address?));
        let mut machines: Vec<(String, Ipv4Addr)> = spec.machines.iter().filter_map(machine).collect();
        // What is known to be off need not be found out by a client's timeout.
        machines.retain(|(name, _)| matches!(state.machines.get(name), Some(Life::Running { .. })));
        let listener = |listener: &ListenerSpec| Listener {
            address: (address, listener.port).into(),
            backends: machines
                .iter()
                .map(|(name, address)| Backend { name: name.clone(), address: (*address, listener.node_port).into() })
                .collect(),
        };
        spec.listeners.iter().map(listener).collect()
    }

    /// After machines came, went, or changed their lives.
    pub(super) async fn refresh_balancers(self: &Arc<Self>) {
        let balancers: Vec<Id> = self.state.lock().records.keys().filter(|id| id.kind == LOAD_BALANCER).cloned().collect();
        for id in balancers {
            let work = async |cloud: &Arc<Cloud>| match cloud.record(&id) {
                Ok(record) if record.stage == Stage::Made => cloud.serve(&record).await,
                _ => Ok(()),
            };
            if let Err(error) = self.turn(&id, work).await {
                tracing::warn!("{}", error.chain());
            }
        }
    }
}
