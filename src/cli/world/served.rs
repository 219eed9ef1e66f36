//! Waiting until a cluster does what its blueprint says: nodes ready, workloads available, load balancers and names answering.

use super::waiting::{Objects, Refusal, Waiting, keeping, refused, refused_inside, waiting};
use crate::blueprint::Blueprint;
use crate::engine::{MACHINE, Observed};
use crate::error::{Error, Result};
use crate::orchestrator::client::blueprint::BlueprintObject;
use crate::orchestrator::client::{Client, Informer, Notify, Selector};
use crate::remote::{Side, Ssh, Target};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How long a load balancer's connection must stay open to count as answered: one without a backend closes it at once.
const HOLD: Duration = Duration::from_millis(30);
/// A load balancer is the provider's: nothing tells us when it begins to answer, so it is asked again after this pause.
const ASK_AGAIN: Duration = Duration::from_millis(25);

/// A new load balancer's name appears after a while, and resolvers remember that it was not there.
const RESOLVE_AGAIN: Duration = Duration::from_secs(1);

/// What the provider refuses the loop may be granted already: the loop looks again within half a minute, and a role that was given a moment
/// ago is not known everywhere. What is still refused after this stays so until somebody changes something.
const SECOND_CHANCE: Duration = Duration::from_secs(45);

/// Informers over everything that the judgement reads; dropped with it.
pub struct Watch {
    blueprints: Informer<BlueprintObject>,
    nodes: Informer<Node>,
    deployments: Informer<Deployment>,
    replica_sets: Informer<ReplicaSet>,
    daemon_sets: Informer<DaemonSet>,
    claims: Informer<PersistentVolumeClaim>,
    pods: Informer<Pod>,
    _stop: tokio_util::sync::DropGuard,
}

impl Watch {
    pub fn start(client: &Client) -> Watch {
        let cancel = CancellationToken::new();
        Watch {
            blueprints: Informer::start(client.clone(), Selector::all(), &cancel),
            nodes: Informer::start(client.clone(), Selector::all(), &cancel),
            deployments: Informer::start(client.clone(), Selector::all(), &cancel),
            replica_sets: Informer::start(client.clone(), Selector::all(), &cancel),
            daemon_sets: Informer::start(client.clone(), Selector::all(), &cancel),
            claims: Informer::start(client.clone(), Selector::all(), &cancel),
            pods: Informer::start(client.clone(), Selector::all(), &cancel),
            _stop: cancel.drop_guard(),
        }
    }

    pub async fn synced(&self) {
        tokio::join!(
            self.blueprints.synced(),
            self.nodes.synced(),
            self.deployments.synced(),
            self.replica_sets.synced(),
            self.daemon_sets.synced(),
            self.claims.synced(),
            self.pods.synced()
        );
    }

    pub fn objects(&self) -> Objects {
        Objects {
            nodes: self.nodes.list(),
            deployments: self.deployments.list(),
            replica_sets: self.replica_sets.list(),
            daemon_sets: self.daemon_sets.list(),
            claims: self.claims.list(),
            pods: self.pods.list(),
        }
    }

    fn changes(&self) -> [Notify; 7] {
        [
            self.blueprints.changed(),
            self.nodes.changed(),
            self.deployments.changed(),
            self.replica_sets.changed(),
            self.daemon_sets.changed(),
            self.claims.changed(),
            self.pods.changed(),
        ]
    }
}

/// Returns when nothing is waited for any more; says what it waits for each time that changes. At the deadline, the error says it too; at
/// once where waiting is in vain.
pub async fn until_served(
    watch: &Watch,
    blueprint: &Blueprint,
    machines: &[String],
    deadline: Instant,
    say: &(dyn Fn(&str) + Send + Sync),
) -> Result<()> {
    let synced = tokio::time::timeout_at(deadline, watch.synced()).await;
    synced.map_err(|_| late(&[Waiting { what: "the cluster's API".into(), why: "it does not answer".into() }]))?;
    let [mut blueprints, mut nodes, mut deployments, mut replica_sets, mut daemon_sets, mut claims, mut pods] = watch.changes();
    let mut said = String::new();
    let mut refused_since = None;
    loop {
        let object = watch.blueprints.get("", &blueprint.metadata.name);
        if let Some(refused) = object.as_ref().map(|object| refused(object)).filter(|refused| !refused.is_empty()) {
            return Err(in_vain(&refused));
        }
        let refusals = object.as_ref().map(|object| refused_inside(object)).unwrap_or_default();
        refused_since = (!refusals.is_empty()).then(|| refused_since.unwrap_or_else(Instant::now));
        let chance = refused_since.map_or(deadline, |since| since + SECOND_CHANCE);
        let mut left = waiting(machines, &blueprint.spec.workloads, &watch.objects());
        left.extend(object.iter().flat_map(|object| keeping(object)));
        let Some(first) = left.first() else { return Ok(()) };
        let line = if left.len() == 1 { first.to_string() } else { format!("{first} (and {} more)", left.len() - 1) };
        if line != said {
            say(&format!("waiting for {line}"));
            said = line;
        }
        tokio::select! {
            () = blueprints.wait() => {}
            () = nodes.wait() => {}
            () = deployments.wait() => {}
            () = replica_sets.wait() => {}
            () = daemon_sets.wait() => {}
            () = claims.wait() => {}
            () = pods.wait() => {}
            () = tokio::time::sleep_until(deadline) => return Err(late(&left)),
            () = tokio::time::sleep_until(chance), if !refusals.is_empty() => return Err(in_vain_inside(&refusals)),
        }
    }
}

fn in_vain(refused: &[&str]) -> Error {
    Error::input(format!("could not apply all workloads; the API refuses:\n  {}", refused.join("\n  ")))
        .hint("change these manifests and run kprov up again; the cluster and everything else in the blueprint stay as they are")
}

fn in_vain_inside(refusals: &[Refusal]) -> Error {
    let lines: Vec<&str> = refusals.iter().map(|refusal| refusal.why.as_str()).collect();
    let error =
        Error::provider(format!("could not see everything served; the provider refuses the loop inside:\n  {}", lines.join("\n  ")));
    let hints: BTreeSet<&String> = refusals.iter().flat_map(|refusal| &refusal.hints).collect();
    let error = hints.into_iter().fold(error, |error, hint| error.hint(hint));
    error.hint("the loop tries it again by itself; kprov up waits for it again")
}

fn late(left: &[Waiting]) -> Error {
    let lines: Vec<String> = left.iter().map(Waiting::to_string).collect();
    Error::timeout(format!("could not see everything served in time; still waiting for:\n  {}", lines.join("\n  ")))
        .hint("kprov status shows what it waits for; the cluster goes on by itself, and kprov up waits again")
}

/// Returns when the address answers: a connection that a backend holds open or talks on.
pub async fn until_answering(host: &str, port: u16, deadline: Instant) -> Result<()> {
    loop {
        let (pause, why) = match tokio::net::lookup_host((host, port)).await {
            Ok(addresses) => match any_answers(addresses).await {
                true => return Ok(()),
                false => (ASK_AGAIN, None),
            },
            Err(error) => (RESOLVE_AGAIN, Some(error)),
        };
        if Instant::now() + pause > deadline {
            let late = Error::timeout(format!("could not get an answer from the load balancer at {host}:{port} in time"));
            return Err(match why {
                Some(error) => late.because(error).hint(format!("look whether {host} resolves from here")),
                None => late,
            });
        }
        sleep(pause).await;
    }
}

/// A name may have an address per zone, and one that answers is enough.
async fn any_answers(addresses: impl Iterator<Item = SocketAddr>) -> bool {
    for address in addresses {
        if answers(address).await {
            return true;
        }
    }
    false
}

async fn answers(address: SocketAddr) -> bool {
    let Ok(Ok(mut stream)) = timeout(Duration::from_secs(1), TcpStream::connect(address)).await else { return false };
    let mut byte = [0];
    match timeout(HOLD, stream.read(&mut byte)).await {
        Ok(Ok(read)) => read > 0,
        Ok(Err(_)) => false,
        Err(_) => true,
    }
}

/// Asks every machine's own DNS for a name that every cluster has; over SSH, since only nodes can ask.
pub async fn until_resolving(ssh: &Ssh, machines: &[Observed], deadline: Instant) -> Result<()> {
    let asked = machines.iter().filter(|thing| thing.id.kind == MACHINE).map(|machine| async move {
        let connection = ssh.connect(&Target::of(machine, Side::Outside)?, DNS_PATIENCE).await?;
        let output = connection.shell(RESOLVE, &[]).await?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
        Err(Error::timeout(format!("could not get an answer from the cluster's DNS on {}", machine.id)).because(said))
    });
    let answered = tokio::time::timeout_at(deadline, futures::future::try_join_all(asked)).await;
    answered.map_err(|_| Error::timeout("could not get an answer from the cluster's DNS in time"))?.map(drop)
}

const DNS_PATIENCE: Duration = Duration::from_secs(20);
const RESOLVE: &str = "exec /usr/local/bin/kprov resolve kubernetes.default.svc.cluster.local.";

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_load_balancer_may_be_called_by_name_or_by_address() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                held.push(stream);
            }
        });
        let deadline = Instant::now() + Duration::from_secs(20);
        until_answering("localhost", port, deadline).await.unwrap();
        until_answering("127.0.0.1", port, deadline).await.unwrap();
        served.abort();
        let error = until_answering("no-such-name.invalid", port, Instant::now()).await.unwrap_err();
        assert!(error.to_string().contains("no-such-name.invalid"), "{error}");
    }
}
