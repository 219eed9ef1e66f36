//! AWS, emulated: moto with a strict layer, real machines behind its instances.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

pub const MOTO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/rig/moto_strict.py");

/// The python that has moto; made at its first use.
pub fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/moto");
        let output = Command::new(script).output().expect("scripts/moto");
        assert!(output.status.success(), "{}", crate::harness::text(&output));
        String::from_utf8_lossy(&output.stdout).trim().into()
    })
}
