//! This very program as a file: what is uploaded to machines and packed into the image.

use crate::error::{Context, Kind, Result};
use aws_lc_rs::digest;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The running executable. Its file may be replaced or deleted while we run: `/proc/self/exe` still opens the one that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executable {
    pub path: PathBuf,
    pub size: u64,
    pub sha256: String,
    /// As `uname -m` prints it.
    pub arch: String,
}

impl Executable {
    /// Reads the running program once (40 MB: some 30 ms).
    pub fn current() -> Result<Executable> {
        Self::at(Path::new("/proc/self/exe"))
    }

    pub fn at(path: &Path) -> Result<Executable> {
        let failed = || format!("could not read the program {}", path.display());
        let mut file = File::open(path).or_fail(Kind::Host, failed)?;
        let mut header = [0; 20];
        file.read_exact(&mut header).or_fail(Kind::Host, failed)?;
        let (sha256, size) = sha256_from(&header, &mut file).or_fail(Kind::Host, failed)?;
        let arch = elf_machine(&header).unwrap_or(std::env::consts::ARCH).to_string();
        Ok(Executable { path: path.to_path_buf(), size, sha256, arch })
    }
}

/// Lower-case hexadecimal SHA-256. The C library's assembly, because `sha2` in a debug build takes seconds for a program this size.
pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

/// The same over a stream, with its length.
pub fn sha256_of(reader: &mut impl Read) -> io::Result<(String, u64)> {
    sha256_from(&[], reader)
}

fn sha256_from(start: &[u8], reader: &mut impl Read) -> io::Result<(String, u64)> {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(start);
    let mut size = start.len() as u64;
    let mut buffer = vec![0; 256 << 10];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok((hex::encode(context.finish()), size)),
            count => {
                context.update(&buffer[..count]);
                size += count as u64;
            }
        }
    }
}

/// `e_machine` of the ELF header (elf(5)), for the machines Linux clouds offer.
fn elf_machine(header: &[u8; 20]) -> Option<&'static str> {
    match (&header[..4], u16::from_le_bytes([header[18], header[19]])) {
        (b"\x7fELF", 62) => Some("x86_64"),
        (b"\x7fELF", 183) => Some("aarch64"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_program_knows_itself() {
        let program = Executable::current().unwrap();
        assert_eq!(program.arch, std::env::consts::ARCH);
        assert_eq!(program.size, std::fs::metadata("/proc/self/exe").unwrap().len());
        assert_eq!(sha256(&std::fs::read("/proc/self/exe").unwrap()), program.sha256);
    }

    #[test]
    fn sha256_is_the_one_of_the_standard() {
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
