//! SSH host keys made here: a machine's key is known before the machine is, so its first contact is pinned.

use crate::error::{Context, Kind, Result};
use aws_lc_rs::encoding::{AsBigEndian, Curve25519SeedBin};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine as _;

/// An ed25519 key in OpenSSH's own file format, and the public line of it.
pub fn generate(comment: &str) -> Result<(String, String)> {
    let failed = || "could not make an SSH host key";
    let pair = Ed25519KeyPair::generate().or_fail(Kind::Internal, failed)?;
    let seed: Curve25519SeedBin<'_> = pair.seed().and_then(|seed| seed.as_be_bytes()).or_fail(Kind::Internal, failed)?;
    let check = rand::random::<u32>();
    Ok((private_file(seed.as_ref(), pair.public_key().as_ref(), check, comment), public_line(pair.public_key().as_ref())))
}

/// The public line of a key made by [`generate`].
pub fn public_of(private: &str) -> Option<String> {
    let text: String = private.lines().filter(|line| !line.starts_with('-')).collect();
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
    // The public blob follows the magic, three short strings and a count; ours always has it at the same place (see `private_file`).
    let blob = bytes.get(PUBLIC_OFFSET + 4..PUBLIC_OFFSET + 4 + 51)?;
    Some(format!("ssh-ed25519 {}", base64::engine::general_purpose::STANDARD.encode(blob)))
}

const MAGIC: &[u8] = b"openssh-key-v1\0";
/// Magic, "none", "none", "", number of keys.
const PUBLIC_OFFSET: usize = 15 + (4 + 4) + (4 + 4) + 4 + 4;

fn put(out: &mut Vec<u8>, part: &[u8]) {
    out.extend_from_slice(&(part.len() as u32).to_be_bytes());
    out.extend_from_slice(part);
}

fn public_blob(public: &[u8]) -> Vec<u8> {
    let mut blob = Vec::new();
    put(&mut blob, b"ssh-ed25519");
    put(&mut blob, public);
    blob
}

fn public_line(public: &[u8]) -> String {
    format!("ssh-ed25519 {}", base64::engine::general_purpose::STANDARD.encode(public_blob(public)))
}

/// PROTOCOL.key of OpenSSH, without encryption.
fn private_file(seed: &[u8], public: &[u8], check: u32, comment: &str) -> String {
    let mut secret = Vec::new();
    secret.extend_from_slice(&check.to_be_bytes());
    secret.extend_from_slice(&check.to_be_bytes());
    put(&mut secret, b"ssh-ed25519");
    put(&mut secret, public);
    put(&mut secret, &[seed, public].concat());
    put(&mut secret, comment.as_bytes());
    for padding in 1.. {
        if secret.len() % 8 == 0 {
            break;
        }
        secret.push(padding);
    }
    let mut out = MAGIC.to_vec();
    put(&mut out, b"none");
    put(&mut out, b"none");
    put(&mut out, b"");
    out.extend_from_slice(&1u32.to_be_bytes());
    put(&mut out, &public_blob(public));
    put(&mut out, &secret);
    let text = base64::engine::general_purpose::STANDARD.encode(out);
    let lines: Vec<&str> = text.as_bytes().chunks(70).map(|line| std::str::from_utf8(line).expect("base64 is ASCII")).collect();
    format!("-----BEGIN OPENSSH PRIVATE KEY-----\n{}\n-----END OPENSSH PRIVATE KEY-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ssh_keygen_reads_the_key_and_finds_the_same_public_line() {
        let (private, public) = generate("host").unwrap();
        assert_eq!(public_of(&private).as_ref(), Some(&public));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        crate::sys::files::write_atomic(&path, private.as_bytes(), 0o600).unwrap();
        let Ok(output) = std::process::Command::new("ssh-keygen").arg("-y").arg("-f").arg(&path).output() else {
            return; // no OpenSSH on this host
        };
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), format!("{public} host"), "{output:?}");
    }
}
