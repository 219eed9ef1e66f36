//! Where batches become durable: a redb file, with Secrets sealed (AES-256-GCM, the key name as associated data) before they reach it.

use super::state::{bucket_of, restored};
use super::{Entry, Event, Revision};
use crate::error::{Context, Error, Kind, Result};
use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

/// Everything an engine knows when it is opened.
#[derive(Default)]
pub struct Stored {
    pub revision: Revision,
    pub entries: Vec<Entry>,
    /// Each bucket's last change, deletions included: watches may resume from there after a restart.
    pub buckets: BTreeMap<String, Revision>,
}

/// What makes batches durable. All of a batch or nothing of it.
pub trait Engine: Send {
    fn load(&mut self) -> Result<Stored>;
    fn commit(&mut self, events: &[Arc<Event>]) -> Result<()>;
}

/// No disk at all.
pub struct Memory;

impl Engine for Memory {
    fn load(&mut self) -> Result<Stored> {
        Ok(Stored::default())
    }
    fn commit(&mut self, _: &[Arc<Event>]) -> Result<()> {
        Ok(())
    }
}

/// key -> header and value
const OBJECTS: TableDefinition<&str, &[u8]> = TableDefinition::new("objects");
/// bucket -> revision of its last change; the empty name holds the store's revision.
const BUCKETS: TableDefinition<&str, u64> = TableDefinition::new("buckets");
/// Everything is in memory anyway, so redb's own cache (1 GiB by default) only serves the pages of the tree's upper part.
const CACHE_BYTES: usize = 8 << 20;
/// The one bucket that never reaches the disk in the clear.
const SEALED: &str = "secrets";

pub struct Redb {
    database: Database,
    key: RandomizedNonceKey,
}

impl Redb {
    /// `key`: 32 bytes.
    pub fn open(path: &Path, key: &[u8]) -> Result<Redb> {
        let wrong = || "could not use the encryption key of the store: it must have 32 bytes";
        let key = RandomizedNonceKey::new(&AES_256_GCM, key).map_err(|_| Error::host(wrong()))?;
        let failed = || format!("could not open the store {}", path.display());
        drop(OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path).or_fail(Kind::Host, failed)?);
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(path).or_fail(Kind::Host, failed)?;
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            // The file's name must be as durable as its content.
            std::fs::File::open(folder).and_then(|folder| folder.sync_all()).or_fail(Kind::Host, failed)?;
        }
        Ok(Redb { database, key })
    }

    fn read(&self) -> Result<Stored, Box<dyn std::error::Error + Send + Sync>> {
        let mut stored = Stored::default();
        let reading = self.database.begin_read()?;
        let (objects, buckets) = match (reading.open_table(OBJECTS), reading.open_table(BUCKETS)) {
            (Ok(objects), Ok(buckets)) => (objects, buckets),
            (Err(redb::TableError::TableDoesNotExist(_)), _) => return Ok(stored),
            (Err(error), _) | (_, Err(error)) => return Err(error.into()),
        };
        for row in buckets.iter()? {
            let (name, revision) = row?;
            match name.value() {
                "" => stored.revision = revision.value(),
                name => drop(stored.buckets.insert(name.to_owned(), revision.value())),
            }
        }
        for row in objects.iter()? {
            let (key, value) = row?;
            stored.entries.push(self.decode(key.value(), value.value())?);
        }
        Ok(stored)
    }

    fn write(&self, events: &[Arc<Event>]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let writing = self.database.begin_write()?;
        {
            let mut objects = writing.open_table(OBJECTS)?;
            let mut buckets = writing.open_table(BUCKETS)?;
            let mut last: BTreeMap<&str, Revision> = BTreeMap::new();
            for event in events {
                let key: &str = event.entry.key();
                if event.deleted {
                    objects.remove(key)?;
                } else {
                    objects.insert(key, self.encode(&event.entry)?.as_slice())?;
                }
                last.insert(bucket_of(key), event.revision);
                last.insert("", event.revision);
            }
            for (bucket, revision) in last {
                buckets.insert(bucket, revision)?;
            }
        }
        writing.commit()?;
        Ok(())
    }

    /// Header: created, modified, expires, place of the revision (8 bytes each, little endian).
    fn encode(&self, entry: &Entry) -> Result<Vec<u8>> {
        let mut row = Vec::with_capacity(HEADER + entry.value().len() + 32);
        for number in [entry.created(), entry.modified(), entry.expires(), entry.0.revision_at as u64] {
            row.extend_from_slice(&number.to_le_bytes());
        }
        if bucket_of(entry.key()) != SEALED {
            row.extend_from_slice(entry.value());
            return Ok(row);
        }
        let mut sealed = entry.value().to_vec();
        let aad = Aad::from(entry.key().as_bytes());
        let nonce = self.key.seal_in_place_append_tag(aad, &mut sealed).map_err(|_| Error::internal("could not encrypt a Secret"))?;
        row.extend_from_slice(nonce.as_ref());
        row.extend_from_slice(&sealed);
        Ok(row)
    }

    fn decode(&self, key: &str, row: &[u8]) -> Result<Entry> {
        let damaged = || Error::host(format!("could not read {key} from the store: the row is damaged"));
        let (header, value) = row.split_at_checked(HEADER).ok_or_else(damaged)?;
        let number = |index: usize| u64::from_le_bytes(header[index * 8..index * 8 + 8].try_into().expect("eight bytes"));
        let value = if bucket_of(key) == SEALED { self.unseal(key, value)? } else { Bytes::copy_from_slice(value) };
        let revision_at = usize::try_from(number(3)).ok().filter(|at| *at <= value.len()).ok_or_else(damaged)?;
        Ok(restored(key.into(), value, revision_at, (number(0), number(1), number(2))))
    }

    fn unseal(&self, key: &str, value: &[u8]) -> Result<Bytes> {
        let refused = || {
            Error::host(format!("could not decrypt {key}"))
                .hint("is encryption.key the one this store was written with?")
                .because("wrong key or damaged row")
        };
        let (nonce, sealed) = value.split_at_checked(aws_lc_rs::aead::NONCE_LEN).ok_or_else(refused)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| refused())?;
        let mut opened = sealed.to_vec();
        let length = self.key.open_in_place(nonce, Aad::from(key.as_bytes()), &mut opened).map_err(|_| refused())?.len();
        opened.truncate(length);
        Ok(opened.into())
    }
}

const HEADER: usize = 32;

impl Engine for Redb {
    fn load(&mut self) -> Result<Stored> {
        self.read().or_fail(Kind::Host, || "could not read the store")
    }
    fn commit(&mut self, events: &[Arc<Event>]) -> Result<()> {
        self.write(events).or_fail(Kind::Host, || "could not write to the store")
    }
}
