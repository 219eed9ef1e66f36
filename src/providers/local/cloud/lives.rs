//! Machines that start, run, end and are started again.

use super::Cloud;
use crate::engine::Id;
use crate::error::{Context, Error, Kind, Result};
use crate::providers::local::machine::{self, Alive};
use crate::providers::local::record::Stage;
use crate::providers::local::shim;
use crate::providers::resources::{MACHINE, MachineSpec};
use std::fs;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

#[derive(Clone, Debug)]
pub enum Life {
    Starting,
    Running { shim: i32, since: Instant },
    Stopped(String),
}

/// The first restart is immediate; a machine that lived shorter than this waits twice as long before each next one.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(30);
pub const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Beyond the shim's own limit: only a shim that hangs gets here.
const SHIM_TIMEOUT: Duration = Duration::from_secs(45);

impl Cloud {
    /// At the daemon's start: whether the machine runs, and its end seen if it does.
    pub(super) fn find_machine(self: &Arc<Self>, name: &str) {
        let why = || shim::last_exit(&self.layout, name).map_or("its host went down".into(), |exit| exit.why);
        match machine::alive(&self.layout, name) {
            Ok(Alive::Running(running)) => self.adopt(name, running.shim),
            Ok(Alive::Starting) => self.set_life(name, Life::Starting),
            Ok(Alive::No) => self.set_life(name, Life::Stopped(why())),
            Err(error) => self.set_life(name, Life::Stopped(error.chain())),
        }
    }

    fn adopt(self: &Arc<Self>, name: &str, shim: i32) {
        self.set_life(name, Life::Running { shim, since: Instant::now() });
        self.watch(name, shim);
    }

    pub(super) async fn start(self: &Arc<Self>, name: &str) -> Result<()> {
        self.set_life(name, Life::Starting);
        let begun = match self.need_network().await {
            Ok(()) => self.settle(name).await,
            Err(error) => Err(error),
        };
        let outcome = match begun {
            Ok(None) => self.run_shim(name).await,
            Ok(Some(shim)) => Ok(shim),
            Err(error) => Err(error),
        };
        match &outcome {
            Ok(shim) => self.adopt(name, *shim),
            Err(error) => self.set_life(name, Life::Stopped(error.chain())),
        }
        self.refresh_balancers().await;
        outcome.map(drop)
    }

    /// Waits for a start that an earlier daemon began.
    async fn settle(&self, name: &str) -> Result<Option<i32>> {
        let deadline = Instant::now() + SHIM_TIMEOUT;
        loop {
            match machine::alive(&self.layout, name)? {
                Alive::Running(running) => return Ok(Some(running.shim)),
                Alive::No => return Ok(None),
                Alive::Starting if Instant::now() > deadline => {
                    return Err(Error::timeout(format!("could not start machine {name}: it neither starts nor ends")));
                }
                Alive::Starting => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    pub(super) fn set_life(&self, name: &str, life: Life) {
        self.state.lock().machines.insert(name.into(), life);
        self.bump();
    }

    async fn run_shim(&self, name: &str) -> Result<i32> {
        let failed = || format!("could not start machine {name}");
        fs::create_dir_all(self.layout.machine(name)).or_fail(Kind::Host, failed)?;
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.layout.machine(name).join("shim.log"))
            .or_fail(Kind::Host, failed)?;
        let mut command = tokio::process::Command::new("/proc/self/exe");
        command
            .arg0("kprov")
            .args(["local", "shim", &self.layout.uid, name])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .current_dir("/");
        // SAFETY: setsid is a plain system call.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                Ok(())
            });
        }
        let mut shim = command.spawn().or_fail(Kind::Host, failed)?;
        let pid = shim.id().ok_or_else(|| Error::internal(failed()))? as i32;
        let mut line = String::new();
        if let Some(stdout) = shim.stdout.take() {
            // Bounded: an error is a sentence.
            let read = async { BufReader::new(stdout.take(16 << 10)).read_line(&mut line).await };
            let _ = tokio::time::timeout(SHIM_TIMEOUT, read).await;
        }
        let ready = line.trim() == "ready";
        if !ready {
            let _ = shim.start_kill();
        }
        // Its end is seen by `watch`; here it is only collected.
        tokio::spawn(async move { shim.wait().await });
        match line.trim().strip_prefix("error ") {
            _ if ready => Ok(pid),
            Some(error) => Err(Error::host(failed()).because(error.to_string())),
            None => Err(Error::host(failed()).hint(format!("see {}", self.layout.machine(name).join("shim.log").display()))),
        }
    }

    /// Sees the end of the machine's shim, whoever its parent is.
    fn watch(self: &Arc<Self>, name: &str, shim: i32) {
        let (cloud, name) = (self.clone(), name.to_string());
        tokio::spawn(async move {
            crate::sys::process::ended(shim).await;
            cloud.ended(&name, shim).await;
        });
    }

    async fn ended(self: &Arc<Self>, name: &str, shim: i32) {
        let exit = shim::last_exit(&self.layout, name);
        {
            let mut state = self.state.lock();
            // It may have been stopped on purpose, or started again, since.
            let Some(Life::Running { shim: current, since }) = state.machines.get(name) else { return };
            if *current != shim {
                return;
            }
            if since.elapsed() > HEALTHY_AFTER {
                state.pauses.remove(name);
            }
            let why = exit.as_ref().map_or("its shim was killed".into(), |exit| exit.why.clone());
            tracing::info!("machine {name} ended: {why}");
            state.machines.insert(name.into(), Life::Stopped(why));
        }
        self.bump();
        self.refresh_balancers().await;
        if exit.is_some_and(|exit| exit.reboot) {
            self.restart(name, Duration::ZERO).await;
        } else {
            self.revive(name).await;
        }
    }

    /// Machines of the control plane are started again by the cloud: the loop that would repair them lives there.
    pub(super) async fn revive(self: &Arc<Self>, name: &str) {
        loop {
            let Ok(record) = self.record(&Id::new(MACHINE, name)) else { return };
            let control_plane = record.spec::<MachineSpec>().is_ok_and(|spec| spec.role == "control-plane");
            let stopped = matches!(self.state.lock().machines.get(name), Some(Life::Stopped(_)));
            if record.stage != Stage::Made || !control_plane || !stopped {
                return;
            }
            let pause = self.state.lock().pauses.get(name).copied().unwrap_or_default();
            self.state.lock().pauses.insert(name.into(), (pause * 2).clamp(FIRST_PAUSE, HEALTHY_AFTER));
            self.restart(name, pause).await;
        }
    }

    async fn restart(self: &Arc<Self>, name: &str, pause: Duration) {
        tokio::time::sleep(pause).await;
        let id = Id::new(MACHINE, name);
        let work = async |cloud: &Arc<Cloud>| {
            let wanted = cloud.record(&id).is_ok_and(|record| record.stage == Stage::Made);
            let stopped = matches!(cloud.state.lock().machines.get(name), Some(Life::Stopped(_)));
            if wanted && stopped { cloud.start(name).await } else { Ok(()) }
        };
        if let Err(error) = self.turn(&id, work).await {
            tracing::warn!("{}", error.chain());
        }
    }
}
