//! Takes everything away again, for machines that stay when their cluster goes.

use super::init::Init;
use super::{Reporter, disk, machine};
use crate::bootstrap::spec::{CONTAINERD_CONFIG, CONTAINERD_SOCKET, MARKER};
use crate::error::{Context, Error, Kind, Result};
use crate::sys::paths;
use std::io::ErrorKind;
use std::path::Path;

/// Services, pods, files, data; the marker and the program last, so that an interrupted removal can be run again.
pub fn everything(reporter: &Reporter) -> Result<()> {
    let Some(marker) = disk::marker() else { return Ok(()) };
    let init = Init::detect()?;
    for name in marker.services.iter().rev().filter(|name| *name != machine::CONTAINERD) {
        reporter.step(name, || init.remove(name).map(|()| true.into()))?;
    }
    reporter.step("pods", || {
        stop_pods();
        Ok(true.into())
    })?;
    reporter.step(machine::CONTAINERD, || init.remove(machine::CONTAINERD).map(|()| true.into()))?;
    reporter.step("files", || {
        for path in marker.files.iter().map(|path| path.as_path()).chain([Path::new(CONTAINERD_CONFIG)]) {
            gone(path, std::fs::remove_file(path))?;
        }
        for folder in [paths::PKI, "/var/lib/kprov/server", "/var/lib/kprov/agent", "/var/lib/kprov/images"] {
            gone(Path::new(folder), std::fs::remove_dir_all(folder))?;
        }
        for path in ["/etc/kprov/program.sum", paths::BINARY, MARKER] {
            gone(Path::new(path), std::fs::remove_file(path))?;
        }
        Ok(true.into())
    })
}

/// Pods live on without their agent; a pod that cannot be stopped dies with its machine.
fn stop_pods() {
    let ctr = |arguments: &[&str]| {
        let mut command = machine::command("ctr");
        command.args(["--address", CONTAINERD_SOCKET, "--namespace", "k8s.io"]).args(arguments);
        machine::run(&mut command, "could not stop pods")
    };
    let containers = ctr(&["containers", "list", "--quiet"]).unwrap_or_default();
    for container in containers.lines() {
        let _ = ctr(&["tasks", "delete", "--force", container]);
        let _ = ctr(&["containers", "delete", container]);
    }
}

fn gone(path: &Path, outcome: std::io::Result<()>) -> Result<()> {
    match outcome {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        outcome => {
            outcome.map_err(|error| Error::host(error.to_string())).or_fail(Kind::Host, || format!("could not remove {}", path.display()))
        }
    }
}
