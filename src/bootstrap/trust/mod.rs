//! A cluster's trust: its authority, keys and who may hold which certificate. Made once, kept in files that only root reads.

pub mod issue;
pub mod kubeconfig;
pub mod read;

pub use issue::{Authority, Pair, SERVER_NAME, ServerNames};
pub use read::{Life, due, life, not_after};

use crate::engine::Cluster;
use crate::error::{Context, Error, Kind, Result};
use crate::remote::key::{self, SshKey};
use crate::sys::files::write_atomic;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::SystemTime;

/// Bytes of the key that seals Secrets at rest.
pub const ENCRYPTION_KEY_BYTES: usize = 32;

/// Everything secret that a cluster is built on. Deliberately without `Debug` of its parts.
#[derive(Clone)]
pub struct Trust {
    pub cluster: Cluster,
    pub ca: Pair,
    /// Signs service account tokens: ECDSA P-256, PKCS#8 PEM.
    pub service_account_key: String,
    /// The same, public: SPKI PEM.
    pub service_account_public: String,
    pub encryption_key: Vec<u8>,
    /// Who the people at the command line are: CN=kprov:admin, O=system:masters.
    pub admin: Pair,
    pub ssh: SshKey,
}

impl fmt::Debug for Trust {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Trust({}, {})", self.cluster.name, self.cluster.uid)
    }
}

impl Trust {
    /// New keys and a new authority; runs `ssh-keygen` once.
    pub fn create(cluster: &Cluster, now: SystemTime) -> Result<Trust> {
        let ca = issue::authority(cluster, now)?;
        let authority = Authority::load(&ca)?;
        let (service_account_key, service_account_public) = issue::signing_key()?;
        let trust = Trust {
            cluster: cluster.clone(),
            admin: authority.admin(now)?,
            ca,
            service_account_key,
            service_account_public,
            encryption_key: crate::sys::random::bytes(ENCRYPTION_KEY_BYTES)?,
            ssh: key::generate(&cluster.name)?,
        };
        Ok(trust)
    }

    /// What is in the folder, or a new one saved there. The folder's own lock is the caller's.
    pub fn load_or_create(folder: &Path, cluster: &Cluster, now: SystemTime) -> Result<Trust> {
        if let Some(trust) = Self::load(folder, now)? {
            if trust.cluster != *cluster {
                return Err(Error::internal(format!("could not use the keys in {}: they are of another cluster", folder.display())));
            }
            return Ok(trust);
        }
        let trust = Self::create(cluster, now)?;
        trust.save(folder)?;
        Ok(trust)
    }

    /// `None` when nothing was ever saved there. `trust.json` is written last, so a crash while saving reads as "nothing", never as
    /// half of the keys. An administrator's certificate that is missing or old is issued again (in memory).
    pub fn load(folder: &Path, now: SystemTime) -> Result<Option<Trust>> {
        let mut files = BTreeMap::new();
        for name in FILES {
            match std::fs::read(folder.join(name)) {
                Ok(bytes) => drop(files.insert(name.to_string(), bytes)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(Error::host(format!("could not read {}", folder.join(name).display())).because(error));
                }
            }
        }
        Self::complete(&files, now)
    }

    /// From the files of a folder or of a control plane; `None` while the one that says "complete" is not among them.
    pub fn complete(files: &BTreeMap<String, Vec<u8>>, now: SystemTime) -> Result<Option<Trust>> {
        files.contains_key(CLUSTER_FILE).then(|| Self::from_files(files, now)).transpose()
    }

    /// From file contents by name (see [`Trust::files`]); used for the copy that a control plane keeps, too.
    pub fn from_files(files: &BTreeMap<String, Vec<u8>>, now: SystemTime) -> Result<Trust> {
        let bytes =
            |name: &str| files.get(name).ok_or_else(|| Error::host(format!("could not load the cluster's keys: {name} is missing")));
        let text = |name: &str| {
            String::from_utf8(bytes(name)?.clone()).or_fail(Kind::Host, || format!("could not load the cluster's keys: {name} is not text"))
        };
        let pair = |stem: &str| Ok::<_, Error>(Pair { certificate: text(&format!("{stem}.crt"))?, key: text(&format!("{stem}.key"))? });
        let ca = pair("ca")?;
        let authority = Authority::load(&ca)?;
        let admin = match pair("admin") {
            Ok(admin) if !due(&admin.certificate, now)? => admin,
            _ => authority.admin(now)?,
        };
        let encryption_key = bytes("encryption.key")?.clone();
        if encryption_key.len() != ENCRYPTION_KEY_BYTES {
            return Err(Error::host("could not load the cluster's keys: encryption.key does not hold 32 bytes"));
        }
        Ok(Trust {
            cluster: serde_json::from_slice(bytes(CLUSTER_FILE)?)
                .or_fail(Kind::Host, || format!("could not load the cluster's keys: {CLUSTER_FILE} is damaged"))?,
            ca,
            service_account_key: text("sa.key")?,
            service_account_public: text("sa.pub")?,
            encryption_key,
            admin,
            ssh: SshKey { private: text("ssh.key")?, public: text("ssh.pub")?.trim_end().to_string() },
        })
    }

    /// File name -> content, in the order to write them: the one that says "complete" comes last.
    pub fn files(&self) -> Vec<(&'static str, Vec<u8>)> {
        let cluster = serde_json::to_vec(&self.cluster).expect("two strings always serialise");
        let text = |text: &str| text.as_bytes().to_vec();
        let contents = [
            text(&self.ca.certificate),
            text(&self.ca.key),
            text(&self.service_account_key),
            text(&self.service_account_public),
            self.encryption_key.clone(),
            text(&self.admin.certificate),
            text(&self.admin.key),
            text(&self.ssh.private),
            format!("{}\n", self.ssh.public).into_bytes(),
            cluster,
        ];
        FILES.into_iter().zip(contents).collect()
    }

    /// Each file whole or absent, 0600, in a folder of mode 0700.
    pub fn save(&self, folder: &Path) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        let failed = || format!("could not save the cluster's keys in {}", folder.display());
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).or_fail(Kind::Host, failed)?;
        for (name, content) in self.files() {
            write_atomic(&folder.join(name), &content, 0o600).or_fail(Kind::Host, failed)?;
        }
        Ok(())
    }

    /// For issuing certificates.
    pub fn authority(&self) -> Result<Authority> {
        Authority::load(&self.ca)
    }

    /// The administrator's kubeconfig for the API at `server`, e.g. `https://10.88.0.10:6443`.
    pub fn kubeconfig(&self, server: &str) -> String {
        kubeconfig::render(&self.cluster.name, server, &self.ca.certificate, &self.admin)
    }
}

/// Names the cluster and says that the other files are complete.
const CLUSTER_FILE: &str = "trust.json";

/// The names that `kprov server` expects (orchestrator/config.rs), and ours beside them.
pub const FILES: [&str; 10] =
    ["ca.crt", "ca.key", "sa.key", "sa.pub", "encryption.key", "admin.crt", "admin.key", "ssh.key", "ssh.pub", CLUSTER_FILE];

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn cluster() -> Cluster {
        Cluster { name: "shop".into(), uid: "0b5c".into() }
    }

    #[test]
    fn what_was_saved_is_loaded_again_and_only_its_owner_can_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("pki");
        let now = SystemTime::now();
        assert!(Trust::load(&folder, now).unwrap().is_none());
        let trust = Trust::load_or_create(&folder, &cluster(), now).unwrap();
        let again = Trust::load_or_create(&folder, &cluster(), now).unwrap();
        assert_eq!(trust.files(), again.files());
        assert!(trust.ssh.public.starts_with("ssh-ed25519 AAAA"));
        for entry in std::fs::read_dir(&folder).unwrap() {
            assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o7777, 0o600);
        }
        assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o7777, 0o700);
    }

    #[test]
    fn a_crash_while_saving_reads_as_nothing_saved() {
        let folder = tempfile::tempdir().unwrap();
        let trust = Trust::create(&cluster(), SystemTime::now()).unwrap();
        trust.save(folder.path()).unwrap();
        std::fs::remove_file(folder.path().join(CLUSTER_FILE)).unwrap();
        assert!(Trust::load(folder.path(), SystemTime::now()).unwrap().is_none());
    }

    #[test]
    fn keys_of_another_cluster_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        Trust::create(&cluster(), now).unwrap().save(folder.path()).unwrap();
        let other = Cluster { name: "shop".into(), uid: "other".into() };
        assert!(Trust::load_or_create(folder.path(), &other, now).is_err());
    }

    #[test]
    fn a_short_encryption_key_is_refused() {
        let trust = Trust::create(&cluster(), SystemTime::now()).unwrap();
        let mut files: BTreeMap<String, Vec<u8>> = trust.files().into_iter().map(|(name, content)| (name.to_string(), content)).collect();
        files.insert("encryption.key".into(), Vec::new());
        assert!(Trust::from_files(&files, SystemTime::now()).is_err());
    }

    #[test]
    fn an_administrator_away_for_thirteen_months_gets_a_new_certificate() {
        let now = SystemTime::now();
        let trust = Trust::create(&cluster(), now).unwrap();
        let files: BTreeMap<String, Vec<u8>> = trust.files().into_iter().map(|(name, content)| (name.to_string(), content)).collect();
        let later = now + std::time::Duration::from_secs(13 * 30 * 86_400);
        let healed = Trust::from_files(&files, later).unwrap();
        assert_ne!(healed.admin.certificate, trust.admin.certificate);
        assert!(!due(&healed.admin.certificate, later).unwrap());
    }

    #[test]
    fn nothing_secret_shows_in_debug_output() {
        let trust = Trust::create(&cluster(), SystemTime::now()).unwrap();
        assert!(!format!("{trust:?}").contains("PRIVATE"));
    }
}
