//! Randomness that secrets may be made of, and private folders with names nobody can guess.

use crate::error::{Error, Result};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// `count` bytes from the crypto library's generator.
pub fn bytes(count: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Error::host("could not get random bytes from the kernel"))?;
    Ok(bytes)
}

/// `count` random bytes as lower-case hexadecimal text.
pub fn token(count: usize) -> Result<String> {
    Ok(hex::encode(bytes(count)?))
}

/// A folder of mode 0700 below the temporary folder, removed when dropped.
#[derive(Debug)]
pub struct PrivateFolder(PathBuf);

impl PrivateFolder {
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for PrivateFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Fails rather than use a folder that is there already, so nobody else can have prepared it.
pub fn private_folder() -> io::Result<PrivateFolder> {
    let name = token(8).map_err(|error| io::Error::other(error.to_string()))?;
    let path = std::env::temp_dir().join(format!("kprov-{name}"));
    std::fs::DirBuilder::new().mode(0o700).create(&path)?;
    Ok(PrivateFolder(path))
}
