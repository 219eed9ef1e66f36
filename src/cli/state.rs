//! The operator's folder for one cluster: a cache, the journal and keys. Truth is in the provider; losing this folder costs one look-up.
//!
//! ```text
//! $KPROV_HOME/clusters/<name>/cluster.json    name, uid, provider             0600
//!                            /journal         intent before effect
//!                            /pki/            the cluster's authority         0700
//!                            /ssh/            key, known_hosts, ssh_config    0700
//!                            /kubeconfig      admin                           0600
//!                            /lock            one `kprov up` or `down` at a time on this host
//! $KPROV_HOME/log/<command>-<name>.log         the full log of the last runs
//! ```

use crate::blueprint::ProviderName;
use crate::engine::Cluster;
use crate::error::{Context, Error, Kind, Result};
use crate::sys::{files, paths};
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    pub cluster: Cluster,
    pub provider: ProviderName,
}

/// One cluster's folder, locked against a second command on this host while it lives.
#[derive(Debug)]
pub struct State {
    pub folder: PathBuf,
    _lock: files::Lock,
}

impl State {
    /// Makes the folder when it is not there. Fails at once when another command holds it.
    pub fn open(name: &str) -> Result<State> {
        let folder = paths::cluster(name);
        private_folder(&folder)?;
        let lock = files::Lock::try_take(&folder.join("lock"))
            .or_fail(Kind::Host, || format!("could not lock {}", folder.display()))?
            .ok_or_else(|| {
                Error::conflict(format!("another kprov command is working on cluster {name}"))
                    .hint("wait for it to end, then run this again")
            })?;
        Ok(State { folder, _lock: lock })
    }

    pub fn save(&self, record: &Record) -> Result<()> {
        let text = serde_json::to_vec_pretty(record).or_fail(Kind::Internal, || "could not encode the cluster's record")?;
        files::write_atomic(&self.folder.join("cluster.json"), &text, 0o600)
            .or_fail(Kind::Host, || format!("could not write {}", self.folder.display()))
    }

    /// After `down` has proved that nothing is left: the cache goes as well.
    pub fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.folder).or_fail(Kind::Host, || format!("could not remove {}", self.folder.display()))
    }
}

/// Reads a cluster's record without locking; a file that cannot be read as one is treated as lost, since the provider knows better.
pub fn record(folder: &Path) -> Result<Option<Record>> {
    match fs::read(folder.join("cluster.json")) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::host(format!("could not read {}", folder.join("cluster.json").display())).because(error)),
    }
}

/// Names of the clusters that this operator has state of.
pub fn names() -> Vec<String> {
    let entries = fs::read_dir(paths::home().join("clusters")).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// 0700 from its first moment.
pub fn private_folder(folder: &Path) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).or_fail(Kind::Host, || format!("could not make {}", folder.display()))
}
