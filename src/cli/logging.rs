//! Where the full log goes: a file for commands that people type, stderr for what machines run (their supervisor keeps it).

use crate::error::{Context, Kind, Result};
use crate::sys::paths;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tracing_subscriber::EnvFilter;

/// `KPROV_LOG` takes tracing's filter syntax.
fn filter(default: &str) -> EnvFilter {
    EnvFilter::try_from_env("KPROV_LOG").unwrap_or_else(|_| EnvFilter::new(default))
}

pub fn to_stderr() {
    let _ = tracing_subscriber::fmt().with_env_filter(filter("info")).with_writer(std::io::stderr).with_ansi(false).try_init();
}

static FILE: OnceLock<PathBuf> = OnceLock::new();

/// Where this command's full log is, if it keeps one.
pub fn file() -> Option<&'static Path> {
    FILE.get().map(PathBuf::as_path)
}

/// Appends to `$KPROV_HOME/log/<command>-<cluster>.log`; past 10 MiB the old one is kept once as `.old`.
pub fn to_file(command: &str, cluster: &str) -> Result<()> {
    let folder = paths::home().join("log");
    super::state::private_folder(&folder)?;
    let path = folder.join(format!("{command}-{cluster}.log"));
    if fs::metadata(&path).is_ok_and(|metadata| metadata.len() > 10 << 20) {
        let _ = fs::rename(&path, path.with_extension("log.old"));
    }
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .or_fail(Kind::Host, || format!("could not open the log {}", path.display()))?;
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter("kprov=debug,info"))
        .with_writer(std::sync::Mutex::new(file))
        .with_ansi(false)
        .try_init();
    let _ = FILE.set(path);
    Ok(())
}
