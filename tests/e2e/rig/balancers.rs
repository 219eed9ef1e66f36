//! Load balancers of an emulated cloud: connections to their own addresses reach machines that answer, and the cloud is told who does.

use super::namespace::{BRIDGE, Namespace};
use kprov::lb::{Backend, Balancer, Listener};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tokio::runtime::Runtime;

/// One target of one listener, by the name under which its health is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    pub name: String,
    pub address: SocketAddr,
}

/// A listening address and whom it leads to.
#[derive(Debug, Clone, PartialEq)]
pub struct Wish {
    pub address: SocketAddr,
    pub targets: Vec<Target>,
}

pub struct Balancers {
    namespace: Namespace,
    /// Made inside: its sockets belong there.
    runtime: Option<Runtime>,
    balancer: Arc<Balancer>,
    addresses: BTreeSet<Ipv4Addr>,
}

impl Balancers {
    pub fn new(namespace: &Namespace) -> Balancers {
        let inside = namespace.clone();
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().on_thread_start(move || inside.enter()).build().expect("a runtime");
        Balancers { namespace: namespace.clone(), runtime: Some(runtime), balancer: Arc::default(), addresses: BTreeSet::new() }
    }

    /// Serves exactly this from now on.
    pub fn set(&mut self, wishes: &[Wish]) {
        let version_4 = |wish: &Wish| match wish.address {
            SocketAddr::V4(address) => Some(*address.ip()),
            SocketAddr::V6(_) => None,
        };
        let wanted: BTreeSet<Ipv4Addr> = wishes.iter().filter_map(version_4).collect();
        for new in wanted.difference(&self.addresses) {
            self.namespace.script(&format!("ip address replace {new}/32 dev {BRIDGE}"));
        }
        let listeners: Vec<Listener> = wishes.iter().map(Wish::listener).collect();
        let (balancer, runtime) = (self.balancer.clone(), self.runtime.as_ref().expect("until it is dropped"));
        let applied = runtime.block_on(runtime.spawn(async move { balancer.apply(&listeners) }));
        applied.expect("the balancer's task").expect("its addresses are free");
        for old in self.addresses.difference(&wanted) {
            self.namespace.script(&format!("ip address del {old}/32 dev {BRIDGE}"));
        }
        self.addresses = wanted;
    }

    /// Target's name, and whether it answers.
    pub fn health(&self) -> Vec<(SocketAddr, String, bool)> {
        self.balancer.health()
    }
}

impl Wish {
    fn listener(&self) -> Listener {
        let backends = self.targets.iter().map(|target| Backend { name: target.name.clone(), address: target.address });
        Listener { address: self.address, backends: backends.collect() }
    }
}

impl Drop for Balancers {
    fn drop(&mut self) {
        self.runtime.take().expect("once").shutdown_background();
    }
}
