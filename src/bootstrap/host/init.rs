//! Who keeps services running: systemd where it is process 1, kprov's own supervisor where not.

use super::{disk, machine};
use crate::bootstrap::spec::{Ready, Service};
use crate::bootstrap::template;
use crate::error::{Context, Error, Kind, Result};
use crate::supervisor::{self, client};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Emulated machines take seconds where others take a tenth.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    Systemd,
    Supervisor,
}

impl Init {
    /// The folder is there exactly when systemd runs as process 1 (sd_booted(3)).
    pub fn detect() -> Result<Init> {
        Ok(if Path::new("/run/systemd/system").is_dir() { Init::Systemd } else { Init::Supervisor })
    }

    /// Runs as described when this returns, restarted only if it differs from what ran before. True when anything changed.
    pub fn ensure(self, service: &Service, revision: &str) -> Result<bool> {
        match self {
            Init::Systemd => ensure_unit(service, revision),
            Init::Supervisor => {
                client::ensure_supervisor()?;
                client::ensure(&supervised(service, revision))
            }
        }
    }

    /// Until somebody answers where the service should: the new process, not the one that is being stopped.
    pub fn wait_ready(self, service: &Service) -> Result<()> {
        match self {
            Init::Systemd => wait_answer(service),
            Init::Supervisor => {
                let ready = match &service.ready {
                    Some(Ready::Tcp(address)) => client::Ready::Tcp(*address),
                    Some(Ready::Unix(path)) => client::Ready::Unix(path.clone()),
                    None => client::Ready::Running,
                };
                client::wait_ready(&service.name, &ready, READY_TIMEOUT)
            }
        }
    }

    /// Those of `names` that run now.
    pub fn running(self, names: &[String]) -> Vec<String> {
        match self {
            Init::Systemd => {
                let active = |name: &&String| systemctl(&["is-active", "--quiet", name]).status().is_ok_and(|status| status.success());
                names.iter().filter(active).cloned().collect()
            }
            Init::Supervisor => {
                let running = client::status().unwrap_or_default().into_iter().filter(|status| status.state == supervisor::State::Running);
                running.map(|status| status.name).filter(|name| names.contains(name)).collect()
            }
        }
    }

    /// Stopped and forgotten.
    pub fn remove(self, name: &str) -> Result<()> {
        match self {
            Init::Systemd => {
                let unit = unit_path(name);
                if !unit.exists() {
                    return Ok(());
                }
                machine::run(&mut systemctl(&["disable", "--now", name]), &format!("could not stop {name}"))?;
                std::fs::remove_file(&unit).or_fail(Kind::Host, || format!("could not remove {}", unit.display()))?;
                machine::run(&mut systemctl(&["daemon-reload"]), "could not reload systemd").map(drop)
            }
            Init::Supervisor if client::is_running() => client::remove(name).map(drop),
            Init::Supervisor => Ok(()),
        }
    }
}

/// `systemctl restart` returns after the old process has ended, so any answer is the new one's.
fn wait_answer(service: &Service) -> Result<()> {
    let deadline = Instant::now() + READY_TIMEOUT;
    let mut pause = FIRST_LOOK;
    while !service.ready.as_ref().is_none_or(answers) {
        if Instant::now() > deadline {
            let error = Error::host(format!("could not start {}: nobody answers after {} s", service.name, READY_TIMEOUT.as_secs()));
            return Err(error.hint(format!("on the machine: journalctl -u {}", service.name)));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Ok(())
}

fn answers(ready: &Ready) -> bool {
    match ready {
        Ready::Tcp(address) => TcpStream::connect_timeout(address, Duration::from_secs(1)).is_ok(),
        Ready::Unix(path) => UnixStream::connect(path).is_ok(),
    }
}

/// The revision is part of the unit, so a crash between writing a file and restarting is noticed by the next run.
fn ensure_unit(service: &Service, revision: &str) -> Result<bool> {
    let mut service = service.clone();
    service.env.insert("KPROV_REVISION".into(), revision.into());
    let name = service.name.as_str();
    let written = disk::ensure(&unit_path(name), 0o644, template::unit(&service)?.as_bytes())?;
    let current =
        || machine::run(&mut systemctl(&["show", "--property=NeedDaemonReload,Environment", "--", name]), "could not ask systemd");
    if written || current()?.contains("NeedDaemonReload=yes") {
        machine::run(&mut systemctl(&["daemon-reload"]), "could not reload systemd")?;
    }
    let failed = format!("could not start {name}");
    let pid = || machine::run(&mut systemctl(&["show", "--property=MainPID", "--value", "--", name]), "could not ask systemd");
    // What runs may be older than the unit: only its own environment tells.
    let runs_this = |pid: &str| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let wanted = format!("KPROV_REVISION={revision}");
        environment.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes())
    };
    if runs_this(pid()?.trim()) {
        machine::run(&mut systemctl(&["enable", "--quiet", name]), &failed)?;
        return Ok(written);
    }
    machine::run(&mut systemctl(&["enable", "--quiet", name]), &failed)?;
    machine::run(&mut systemctl(&["restart", name]), &failed)?;
    Ok(true)
}

fn systemctl(arguments: &[&str]) -> std::process::Command {
    let mut command = machine::command("systemctl");
    command.args(arguments);
    command
}

fn unit_path(name: &str) -> PathBuf {
    PathBuf::from("/etc/systemd/system").join(format!("{name}.service"))
}

fn supervised(service: &Service, revision: &str) -> supervisor::Service {
    let argv: Vec<_> = service.argv.iter().map(String::as_str).collect();
    let mut supervised = supervisor::Service::new(&service.name, &argv);
    supervised.env = service.env.clone();
    supervised.after = service.after.clone();
    supervised.revision = revision.to_string();
    // Pods are killed before what looks after them.
    supervised.oom_score_adj = Some(-900);
    supervised
}
