//! Services as nftables rules of this node: from the API's objects to the kernel, with nothing in between to fall over.
//!
//! Written in atomic transactions by `nft -f -`; only what changed, except at the start, after a failure, and when somebody else took the
//! table away. While the API is away, and while the agent is down, the rules in the kernel go on serving.

pub mod endpoints;
mod health;
pub mod ruleset;
#[cfg(test)]
pub mod tests;
mod watch;

use super::client::backoff::Backoff;
use super::client::informer::Informer;
use super::config::AgentConfig;
use crate::error::{Context, Error, Kind, Result};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use ruleset::{Network, Ruleset};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use watch::Watch;

/// A roll-out changes many slices at once; one transaction takes them together.
const SETTLE: Duration = Duration::from_millis(5);
/// In a large cluster changes come faster than transactions end. So many times what the last one took passes before the next, which takes
/// together what came meanwhile and leaves most of a core to others.
const REST: u32 = 3;
/// A service may be this late because a machine was slow once.
const LONGEST_REST: Duration = Duration::from_secs(10);
/// 10,000 services take two seconds; ten times that is a hung program.
const NFT_TIMEOUT: Duration = Duration::from_secs(30);

/// Keeps the node's rules until cancelled. A rule set that the kernel refuses is tried again; it never ends the agent.
pub async fn run_with(
    config: Arc<AgentConfig>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    cancel: CancellationToken,
) -> Result<()> {
    let network = Network {
        pods: config.pod_cidr,
        services: config.service_cidr,
        dns: config.dns_address,
        node: config.address,
        fabric: config.fabric,
    };
    let table = || {
        let ports = endpoints::ports(&services.list(), &slices.list(), &config.node_name, config.dns_address);
        ruleset::ruleset(&ports, &network)
    };
    // Rules from half of the objects would cut off services that are well.
    tokio::select! {
        _ = cancel.cancelled() => return Ok(()),
        _ = async { services.synced().await; slices.synced().await } => {}
    }
    let in_sync = health::InSync::default();
    tokio::spawn(health::serve(in_sync.clone(), cancel.clone()));
    let (mut services_changed, mut slices_changed) = (services.changed(), slices.changed());
    let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(30), 0);
    let mut written: Option<Ruleset> = None;
    let mut retry: Option<Duration> = None;
    let mut watch = Watch::open();
    // From when on the next write may be, and when there is one to be made.
    let (mut rested, mut due) = (Instant::now(), None::<Instant>);
    loop {
        tokio::select! {
            _ = cancel.cancelled() => return Ok(()),
            _ = async { tokio::select! { () = services_changed.wait() => {} () = slices_changed.wait() => {} } }, if due.is_none() => {
                due = Some(rested.max(Instant::now() + SETTLE));
                continue;
            }
            _ = tokio::time::sleep_until(due.unwrap_or(rested)), if due.is_some() => {}
            _ = tokio::time::sleep(retry.unwrap_or_default()), if retry.is_some() => {}
            () = watch.lost(), if written.is_some() => {
                tracing::warn!("somebody took the services' rules out of the kernel; writing them again");
                written = None;
                in_sync.store(false, Ordering::Relaxed);
            }
        }
        if watch.has_lost() {
            written = None;
        }
        due = None;
        let begun = Instant::now();
        let wanted = table();
        let outcome = write(written.as_ref(), &wanted, &network).await;
        match outcome.and_then(|()| if watch.stands() { Ok(()) } else { Err(taken()) }) {
            Ok(()) => {
                written = Some(wanted);
                rested = Instant::now() + rest(begun.elapsed());
                in_sync.store(true, Ordering::Relaxed);
                retry = None;
                backoff.reset();
            }
            Err(error) => {
                // Whatever stands there now is unknown: the next try writes the whole table.
                written = None;
                in_sync.store(false, Ordering::Relaxed);
                retry = Some(backoff.next_delay());
                tracing::warn!(error = %error.chain(), "services are not in the kernel yet");
            }
        }
    }
}

/// How long after a write that `took` so long changes are only gathered.
fn rest(took: Duration) -> Duration {
    (took * REST).min(LONGEST_REST)
}

fn taken() -> Error {
    Error::host("could not keep the services' rules: another program took the table away while it was written")
        .hint("look for what runs `nft flush ruleset` on this machine")
}

/// Brings the kernel from `held` (unknown when `None`) to `wanted`.
async fn write(held: Option<&Ruleset>, wanted: &Ruleset, network: &Network) -> Result<()> {
    match held {
        None => nft(&wanted.replace(network)).await,
        Some(held) => match held.update(wanted) {
            Some(script) => nft(&script).await,
            None => Ok(()),
        },
    }
}

/// Runs one script as one transaction.
async fn nft(script: &str) -> Result<()> {
    let mut command = tokio::process::Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command
        .spawn()
        .or_fail(Kind::Host, || "could not start nft")
        .map_err(|error| error.hint("install nftables (Debian: apt-get install nftables)"))?;
    let mut stdin = child.stdin.take().expect("stdin was asked for above");
    let run = async {
        // A broken pipe means that nft gave up early; its own words say why.
        let _ = stdin.write_all(script.as_bytes()).await;
        drop(stdin);
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(NFT_TIMEOUT, run)
        .await
        .map_err(|_| Error::timeout("could not write the services' rules: nft did not finish"))?
        .or_fail(Kind::Host, || "could not run nft")?;
    if output.status.success() {
        return Ok(());
    }
    let words: String = String::from_utf8_lossy(&output.stderr).chars().take(2000).collect();
    Err(Error::host("could not write the services' rules").because(words))
}
