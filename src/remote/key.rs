//! The cluster's SSH key pair.
//!
//! Made by `ssh-keygen`: it comes in the same package as the `ssh` that every connection runs through, so it is always there, and
//! no second implementation of OpenSSH's private key format enters the tree.

use crate::error::{Context, Error, Kind, Result};
use crate::sys::files::write_atomic;
use std::process::{Command, Stdio};

/// An ed25519 pair in OpenSSH's own formats.
#[derive(Clone, PartialEq, Eq)]
pub struct SshKey {
    /// `-----BEGIN OPENSSH PRIVATE KEY-----`, with its final newline (ssh refuses the file without).
    pub private: String,
    /// One line, `ssh-ed25519 AAAA... kprov-shop`, without newline.
    pub public: String,
}

impl std::fmt::Debug for SshKey {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "SshKey({})", self.public)
    }
}

impl SshKey {
    /// From the private half alone, as a provider may keep it.
    pub fn of(private: String) -> Result<SshKey> {
        let failed = || "could not read the cluster's SSH key";
        let folder = crate::sys::random::private_folder().or_fail(Kind::Host, failed)?;
        let path = folder.path().join("key");
        write_atomic(&path, private.as_bytes(), 0o600).or_fail(Kind::Host, failed)?;
        let public = keygen(Command::new("ssh-keygen").arg("-y").arg("-f").arg(&path), failed())?;
        Ok(SshKey { private, public: public.trim_end().to_string() })
    }
}

/// A new pair with the cluster's name in its comment.
pub fn generate(cluster: &str) -> Result<SshKey> {
    let failed = || "could not make the cluster's SSH key";
    let folder = crate::sys::random::private_folder().or_fail(Kind::Host, failed)?;
    let path = folder.path().join("key");
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-C"]).arg(format!("kprov-{cluster}")).arg("-f").arg(&path);
    keygen(&mut command, failed())?;
    let read = |path: &std::path::Path| std::fs::read_to_string(path).or_fail(Kind::Host, failed);
    Ok(SshKey { private: read(&path)?, public: read(&path.with_extension("pub"))?.trim_end().to_string() })
}

/// What it prints.
fn keygen(command: &mut Command, failed: &str) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Error::host(failed).because(error).hint("install openssh-client (it brings ssh and ssh-keygen)"))?;
    if !output.status.success() {
        return Err(Error::host(failed).because(String::from_utf8_lossy(&output.stderr).trim().to_string()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_half_is_read_from_the_private_one() {
        let made = generate("shop").expect("a pair");
        assert_eq!(SshKey::of(made.private.clone()).expect("the same pair"), made);
        assert!(made.public.ends_with(" kprov-shop") && SshKey::of("nonsense".into()).is_err());
    }
}
