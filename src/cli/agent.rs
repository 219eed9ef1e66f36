//! `kprov agent`: one node: kubelet, pod network, service proxy and DNS over one client. A composition root. Hidden.

use super::world::hosts::ROTATE_AT;
use crate::bootstrap::trust;
use crate::error::{Context, Error, Kind, Result};
use crate::orchestrator::client::{Client, Informer, Selector, https};
use crate::orchestrator::config::AgentConfig;
use crate::orchestrator::{dns, kubelet, network, proxy};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The agent's configuration (JSON)
    #[arg(long, default_value = "/etc/kprov/agent.json")]
    config: PathBuf,
}

pub async fn run(args: &Args) -> Result<()> {
    let text = std::fs::read(&args.config).or_fail(Kind::Host, || format!("could not read {}", args.config.display()))?;
    let mut config: AgentConfig =
        serde_json::from_slice(&text).or_fail(Kind::Input, || format!("could not read {} as JSON", args.config.display()))?;
    if let Some(seconds) = rotate_at(&config.pki) {
        config.annotations.insert(ROTATE_AT.into(), seconds.to_string());
    }
    let config = Arc::new(config);
    let client = connect(&config)?;
    let cancel = super::until_terminated()?;
    let mut parts = JoinSet::new();
    // Each kind is kept in memory once, whoever reads it.
    let nodes = Informer::<Node>::start(client.clone(), Selector::all(), &cancel);
    let services = Informer::<Service>::start(client.clone(), Selector::all(), &cancel);
    let slices = Informer::<EndpointSlice>::start(client.clone(), Selector::all(), &cancel);
    // In the order of need: a pod cannot start before its node has a network.
    parts.spawn(network::run_with(config.clone(), nodes.clone(), cancel.clone()));
    if !config.announce.is_empty() {
        parts.spawn(network::announce::run(config.clone(), client.clone(), services.clone(), nodes, cancel.clone()));
    }
    parts.spawn(kubelet::run_with(config.clone(), client, services.clone(), cancel.clone()));
    parts.spawn(proxy::run_with(config.clone(), services.clone(), slices.clone(), cancel.clone()));
    parts.spawn(dns::run_with(config, services, slices, cancel.clone()));
    join(parts, cancel).await
}

/// When the first of this host's certificates is due, seconds since 1970: the loop inside reads it from the Node.
fn rotate_at(pki: &Path) -> Option<u64> {
    let certificates =
        ["node.crt", "server.crt", "kubelet-client.crt"].iter().filter_map(|name| std::fs::read_to_string(pki.join(name)).ok());
    let moments = certificates.filter_map(|text| trust::life(&text).ok()?.rotate_at().duration_since(UNIX_EPOCH).ok());
    moments.map(|moment| moment.as_secs()).min()
}

fn connect(config: &AgentConfig) -> Result<Client> {
    let read = |name: &str| {
        let path = config.pki.join(name);
        std::fs::read_to_string(&path).or_fail(Kind::Host, || format!("could not read {}", path.display()))
    };
    https::connect(&config.api, &read("ca.crt")?, &read("node.crt")?, &read("node.key")?)
}

/// One part that ends is the end of all: the supervisor starts the whole again, which is a state every part must survive anyway.
pub async fn join(mut parts: JoinSet<Result<()>>, cancel: CancellationToken) -> Result<()> {
    let mut first_failure = None;
    while let Some(ended) = parts.join_next().await {
        let result = ended.unwrap_or_else(|panic| Err(Error::internal("a part of kprov panicked").because(panic)));
        if !cancel.is_cancelled() {
            first_failure = Some(result.err().unwrap_or_else(|| Error::internal("a part of kprov ended without being told to")));
            cancel.cancel();
        }
    }
    first_failure.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Cluster;
    use std::time::{Duration, SystemTime};

    #[test]
    fn the_oldest_certificate_of_a_host_says_when_it_is_due() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(rotate_at(folder.path()), None);
        let now = SystemTime::now();
        let trust = trust::Trust::create(&Cluster { name: "shop".into(), uid: "u1".into() }, now).unwrap();
        let authority = trust.authority().unwrap();
        let address = "10.88.0.11".parse().unwrap();
        let older = authority.node("worker-1", address, now - Duration::from_secs(86_400)).unwrap().certificate;
        std::fs::write(folder.path().join("node.crt"), &older).unwrap();
        std::fs::write(folder.path().join("kubelet-client.crt"), authority.kubelet_client(now).unwrap().certificate).unwrap();
        let expected = trust::life(&older).unwrap().rotate_at().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(rotate_at(folder.path()), Some(expected));
    }
}
