//! `kprov server`: store, API, scheduler, controllers and the infrastructure loop in one process. A composition root. Hidden.

use super::{agent, keeper};
use crate::error::{Context, Kind, Result};
use crate::orchestrator::api::{InProcess, Server, User, server_tls};
use crate::orchestrator::client::Client;
use crate::orchestrator::config::ServerConfig;
use crate::orchestrator::controllers;
use crate::orchestrator::scheduler::{self, Watches};
use crate::orchestrator::store::{Redb, Store, Window};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The server's configuration (JSON)
    #[arg(long, default_value = "/etc/kprov/server.json")]
    config: PathBuf,
}

pub async fn run(args: &Args) -> Result<()> {
    let text = std::fs::read(&args.config).or_fail(Kind::Host, || format!("could not read {}", args.config.display()))?;
    let config: ServerConfig =
        serde_json::from_slice(&text).or_fail(Kind::Input, || format!("could not read {} as JSON", args.config.display()))?;
    let config = Arc::new(config);
    let cancel = super::until_terminated()?;
    let server = Server::new((*config).clone(), open_store(&config)?).await?;
    let listener = TcpListener::bind((config.bind, config.port))
        .await
        .or_fail(Kind::Host, || format!("could not listen on {}:{}", config.bind, config.port))?;
    let client = Client::new(Arc::new(InProcess { server: server.clone(), user: User::server() })).with_seed(rand::random());
    let ca_pem = std::fs::read_to_string(config.pki.join("ca.crt")).or_fail(Kind::Host, || "could not read the cluster's certificate")?;
    let context = controllers::Context {
        client: client.clone(),
        config: config.clone(),
        cancel: cancel.clone(),
        ca_pem,
        clock: controllers::system_clock(),
    };
    let informers = controllers::start(&context);
    let tls = server_tls(&config.pki)?;
    let watches = Watches {
        pods: informers.pods.clone(),
        nodes: informers.nodes.clone(),
        claims: informers.claims.clone(),
        volumes: informers.volumes.clone(),
        classes: informers.storage_classes.clone(),
    };
    let mut parts = JoinSet::new();
    let serving = server.clone();
    parts.spawn(async move { serving.serve(listener, tls).await });
    parts.spawn(well(scheduler::run(client.clone(), watches, cancel.clone())));
    parts.spawn(keeper::run(client, informers, config, cancel.clone()));
    parts.spawn(end(server, cancel.clone()));
    agent::join(parts, cancel).await
}

/// Ends the server when told to, and when its store can no longer write: a control plane that only reads would deceive everybody.
async fn end(server: Arc<Server>, cancel: CancellationToken) -> Result<()> {
    let ended = tokio::select! {
        failure = server.store_failed() => Err(failure),
        () = cancel.cancelled() => Ok(()),
    };
    server.shut_down();
    ended
}

/// A part that cannot fail, only end.
async fn well(part: impl Future<Output = ()>) -> Result<()> {
    part.await;
    Ok(())
}

fn open_store(config: &ServerConfig) -> Result<Arc<Store>> {
    super::state::private_folder(&config.data)?;
    let path = config.pki.join("encryption.key");
    let key = std::fs::read(&path).or_fail(Kind::Host, || format!("could not read {}", path.display()))?;
    let engine = Redb::open(&config.data.join("store.redb"), &key)?;
    Store::open(engine, Window::default())
}
