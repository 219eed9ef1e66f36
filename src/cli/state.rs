//! The operator's folder for one cluster: a cache, the journal and keys. Truth is in the provider; losing this folder costs one look-up.
//!
//! ```text
//! $KPROV_HOME/clusters/<provider>/<name>/cluster.json    name, uid, settings, place  0600
//!                                       /journal         intent before effect
//!                                       /pki/            the cluster's authority         0700
//!                                       /ssh/            key, known_hosts, ssh_config    0700
//!                                       /kubeconfig      admin                           0600
//!                                       /lock            one `kprov up` or `down` at a time on this host
//! $KPROV_HOME/log/<command>-<name>.log         the full log of the last runs
//! ```

use crate::blueprint::ProviderName;
use crate::engine::Cluster;
use crate::error::{Context, Error, Kind, Result};
use crate::providers::{self, Settings};
use crate::sys::{files, paths};
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    pub cluster: Cluster,
    pub settings: Settings,
    /// What the provider called its place.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub place: String,
}

/// One cluster's folder, locked against a second command on this host while it lives.
#[derive(Debug)]
pub struct State {
    pub folder: PathBuf,
    _lock: files::Lock,
}

/// A command that was killed while it started another process: that one holds the lock, too, until it has become what it is to be.
const LAST_BREATH: Duration = Duration::from_millis(500);

impl State {
    /// Makes the folder when it is not there. Fails when another command holds it.
    pub fn open(provider: ProviderName, name: &str) -> Result<State> {
        let folder = folder(provider, name);
        private_folder(&folder)?;
        let end = Instant::now() + LAST_BREATH;
        loop {
            match files::Lock::try_take(&folder.join("lock")).or_fail(Kind::Host, || format!("could not lock {}", folder.display()))? {
                Some(lock) => return Ok(State { folder, _lock: lock }),
                None if Instant::now() < end => std::thread::sleep(Duration::from_millis(10)),
                None => {
                    return Err(Error::conflict(format!("another kprov command is working on cluster {name}"))
                        .hint("wait for it to end, then run this again"));
                }
            }
        }
    }

    pub fn save(&self, record: &Record) -> Result<()> {
        let text = serde_json::to_vec_pretty(record).or_fail(Kind::Internal, || "could not encode the cluster's record")?;
        files::write_atomic(&record_file(&self.folder), &text, 0o600)
            .or_fail(Kind::Host, || format!("could not write {}", self.folder.display()))
    }

    /// After `down` has proved that nothing is left: the cache goes as well.
    pub fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.folder).or_fail(Kind::Host, || format!("could not remove {}", self.folder.display()))
    }
}

/// After a look, or when nobody agreed to a plan: a folder that holds no record was made for the lock only.
impl Drop for State {
    fn drop(&mut self) {
        if !record_file(&self.folder).exists() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// Reads a cluster's record without locking; a file that cannot be read as one is treated as lost, since the provider knows better.
pub fn record(folder: &Path) -> Result<Option<Record>> {
    match fs::read(record_file(folder)) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::host(format!("could not read {}", record_file(folder).display())).because(error)),
    }
}

fn record_file(folder: &Path) -> PathBuf {
    folder.join("cluster.json")
}

/// The folder of one cluster.
pub fn folder(provider: ProviderName, name: &str) -> PathBuf {
    paths::cluster(&provider.to_string(), name)
}

/// Every cluster that this operator has state of, by name.
pub fn all() -> Vec<Record> {
    let folders = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let records = folders(paths::clusters()).flat_map(folders).filter_map(|folder| record(&folder).ok().flatten());
    let mut records: Vec<Record> = records.collect();
    records.sort_by(|a, b| (&a.cluster.name, a.settings.provider).cmp(&(&b.cluster.name, b.settings.provider)));
    records
}

/// Which cluster a command means that is given a name, and a provider where a name alone is not enough.
#[derive(Debug, Clone, clap::Args)]
pub struct Named {
    /// The cluster
    pub name: String,
    /// Its provider, where clusters of this name are on several
    #[arg(long, value_parser = provider_name)]
    pub provider: Option<ProviderName>,
}

pub fn provider_name(text: &str) -> std::result::Result<ProviderName, String> {
    let known = ProviderName::ALL.into_iter().find(|provider| provider.to_string() == text);
    known.ok_or_else(|| format!("one of {}", ProviderName::ALL.map(|provider| provider.to_string()).join(", ")))
}

impl Named {
    /// The operator's record of it, else what the provider's own tags say: of this host, or of the account that `--provider` names (one is
    /// not looked through unasked).
    pub async fn find(&self) -> Result<Record> {
        if let Some(record) = self.recorded()? {
            return Ok(record);
        }
        let settings = Settings::plain(self.provider.unwrap_or(ProviderName::Local));
        let cluster = providers::find(&settings, &self.name).await?.ok_or_else(|| {
            Error::input(format!("could not find cluster {}", self.name))
                .hint("kprov list shows the clusters; --provider, or kprov up FILE, finds one whose state is lost")
        })?;
        Ok(Record { cluster, settings, place: String::new() })
    }

    fn recorded(&self) -> Result<Option<Record>> {
        let meant = |record: &Record| record.cluster.name == self.name && self.provider.is_none_or(|one| one == record.settings.provider);
        let mut found: Vec<Record> = all().into_iter().filter(meant).collect();
        if found.len() > 1 {
            let providers: Vec<String> = found.iter().map(|record| record.settings.provider.to_string()).collect();
            return Err(Error::input(format!("clusters called {} are on several providers", self.name))
                .hint(format!("say which one: --provider {}", providers.join(" or --provider "))));
        }
        Ok(found.pop())
    }
}

/// 0700 from its first moment.
pub fn private_folder(folder: &Path) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.or_fail(Kind::Host, || format!("could not make {}", folder.display()))
        .map_err(|error| error.hint("KPROV_HOME names the folder for kprov's state: one that you may write"))
}
