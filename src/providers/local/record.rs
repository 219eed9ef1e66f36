//! What the local cloud remembers of each thing: one file, written before anything is made. All else is derived from it.

use super::layout::Layout;
use crate::engine::{Id, Request};
use crate::error::{Context, Error, Kind, Result};
use crate::sys::files;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs;
use std::io;
use std::net::Ipv4Addr;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    pub id: Id,
    pub generation: u32,
    /// Of the create request; the same token with another body is refused.
    pub token: String,
    pub digest: String,
    /// As last applied.
    pub spec: Value,
    pub stage: Stage,
    /// The machine's, the load balancer's, or the network's first one.
    pub address: Option<Ipv4Addr>,
    /// Of a machine: its SSH host key, made before the machine so that it is known before the first contact.
    pub host_key: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// Being made, by this daemon or the next.
    Intent,
    Made,
    /// Being removed, by this daemon or the next.
    Deleting,
}

impl Record {
    pub fn new(request: &Request) -> Result<Record> {
        let body = Body::of(request)?;
        Ok(Record {
            id: request.id.clone(),
            generation: request.generation,
            token: request.token.clone(),
            digest: digest(&request.body),
            spec: body.spec,
            stage: Stage::Intent,
            address: None,
            host_key: None,
        })
    }

    /// Durable when this returns.
    pub fn save(&self, layout: &Layout) -> Result<()> {
        let path = layout.record(&self.id);
        let failed = || format!("could not write {}", path.display());
        fs::create_dir_all(path.parent().expect("records have a folder")).or_fail(Kind::Host, failed)?;
        let text = serde_json::to_vec_pretty(self).or_fail(Kind::Internal, failed)?;
        files::write_atomic(&path, &text, 0o600).or_fail(Kind::Host, failed)
    }

    pub fn forget(&self, layout: &Layout) -> Result<()> {
        let path = layout.record(&self.id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).or_fail(Kind::Host, || format!("could not remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    pub fn load(layout: &Layout, id: &Id) -> Result<Option<Record>> {
        read(&layout.record(id))
    }

    /// The spec as its kind's type.
    pub fn spec<T: serde::de::DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_value(self.spec.clone())
            .or_fail(Kind::Input, || format!("the local cloud does not understand the spec of {}", self.id))
    }
}

/// A create or update request's body.
#[derive(Debug, Serialize, Deserialize)]
pub struct Body {
    pub spec: Value,
}

impl Body {
    pub fn of(request: &Request) -> Result<Body> {
        let failed = || format!("the local cloud does not understand the request for {}", request.id);
        serde_json::from_value(request.body.clone()).or_fail(Kind::Input, failed)
    }
}

pub fn digest(body: &Value) -> String {
    hex::encode(Sha256::digest(body.to_string()))
}

/// `None` when there is no such file.
pub fn read<T: serde::de::DeserializeOwned>(path: &std::path::Path) -> Result<Option<T>> {
    let failed = || format!("could not read {}", path.display());
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).or_fail(Kind::Host, failed),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).or_fail(Kind::Host, failed),
    }
}

/// Everything on record, in order of kind and name.
pub fn all(layout: &Layout) -> Result<Vec<Record>> {
    let list = |path: &std::path::Path| -> Result<Vec<std::path::PathBuf>> {
        let mut paths = match fs::read_dir(path) {
            Ok(entries) => entries.collect::<io::Result<Vec<_>>>().or_fail(Kind::Host, || format!("could not list {}", path.display()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).or_fail(Kind::Host, || format!("could not list {}", path.display())),
        };
        paths.sort_by_key(|entry| entry.file_name());
        Ok(paths.into_iter().map(|entry| entry.path()).collect())
    };
    let mut records = Vec::new();
    for kind in list(&layout.records())? {
        // A file without the ending is the rest of a write that a crash cut short.
        for path in list(&kind)?.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "json")) {
            records.extend(read::<Record>(&path)?);
        }
    }
    Ok(records)
}

/// Ids become file names: only DNS labels are taken.
pub fn check_name(id: &Id) -> Result<()> {
    let letter = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
    let fits = !id.name.is_empty() && id.name.len() <= 63 && id.name.chars().all(letter) && !id.name.starts_with('-');
    if fits { Ok(()) } else { Err(Error::provider(format!("{:?} cannot be a name in the local cloud", id.name))) }
}
