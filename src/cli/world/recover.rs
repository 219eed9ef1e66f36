//! The cluster's keys, read back from a control plane by an operator whose state folder is lost.

use super::blueprint_door::is_control_plane;
use crate::bootstrap::install;
use crate::bootstrap::trust::Trust;
use crate::engine::{Cluster, Observed, Phase};
use crate::error::Result;
use crate::providers::Provider;
use crate::remote::{Side, Ssh, Target, key};
use std::path::Path;
use std::time::Duration;

/// A machine that runs answers at once; longer means that it is not well, and another may be asked.
const PATIENCE: Duration = Duration::from_secs(20);

/// `None` when no control plane has been installed yet: then there is nothing to lose, and new keys are made. The provider lets a
/// throw-away key in for this one login.
pub async fn trust(cluster: &Cluster, provider: &dyn Provider, observed: &[Observed], state: &Path) -> Result<Option<Trust>> {
    let controls = observed.iter().filter(|thing| is_control_plane(thing));
    for machine in controls.filter(|machine| machine.phase == Phase::Ready) {
        let key = key::generate(&cluster.name)?;
        provider.admit_key(machine, &key.public).await?;
        let ssh = Ssh::open(state, &key)?;
        let connection = ssh.connect(&Target::of(machine, Side::Outside)?, PATIENCE).await?;
        if let Some(trust) = install::keys(&connection).await? {
            return Ok(Some(trust));
        }
    }
    Ok(None)
}
