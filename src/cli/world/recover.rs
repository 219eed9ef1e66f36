//! The cluster's keys, read back from a control plane by an operator whose state folder is lost, or whose `up` was not the first.

use super::blueprint_door::is_control_plane;
use crate::bootstrap::install;
use crate::bootstrap::trust::Trust;
use crate::engine::{Cluster, Observed, Phase};
use crate::error::Result;
use crate::providers::Provider;
use crate::remote::key::{self, SshKey};
use crate::remote::{Side, Ssh, Target};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// A machine that runs answers at once; longer means that it is not well, and another may be asked.
const PATIENCE: Duration = Duration::from_secs(20);

/// `None` when there is nothing to take over: no control plane has been installed yet, and the provider keeps no key (or the one of
/// `ours`, the keys that this operator has). Where it keeps the cluster's SSH key, that is the way in, and stays the key of what is
/// made from here on; else ours is, or a throw-away key is let in for this one login.
pub async fn trust(
    cluster: &Cluster,
    provider: &dyn Provider,
    observed: &[Observed],
    state: &Path,
    ours: Option<&Trust>,
) -> Result<Option<Trust>> {
    let kept = provider.kept_key().await?.map(SshKey::of).transpose()?;
    let ours = ours.map(|trust| &trust.ssh);
    let controls = observed.iter().filter(|thing| is_control_plane(thing));
    for machine in controls.filter(|machine| machine.phase == Phase::Ready) {
        let key = match kept.as_ref().or(ours.filter(|ours| machine.spec["sshPublicKey"] == ours.public.as_str())) {
            Some(key) => key.clone(),
            None => admitted(cluster, provider, machine).await?,
        };
        let ssh = Ssh::open(state, &key)?;
        let connection = ssh.connect(&Target::of(machine, Side::Outside)?, PATIENCE).await?;
        if let Some(trust) = install::keys(&connection).await?.filter(|trust| trust.cluster.uid == cluster.uid) {
            return Ok(Some(trust));
        }
    }
    // Machines that are not installed yet know this key already.
    let kept = kept.filter(|kept| ours.is_none_or(|ours| ours.private != kept.private));
    kept.map(|ssh| Ok(Trust { ssh, ..Trust::create(cluster, SystemTime::now())? })).transpose()
}

async fn admitted(cluster: &Cluster, provider: &dyn Provider, machine: &Observed) -> Result<SshKey> {
    let key = key::generate(&cluster.name)?;
    provider.admit_key(machine, &key.public).await?;
    Ok(key)
}
