//! kprov's own init and service manager: runs services on machines that have no systemd.
//!
//! As process 1 of a machine (`kprov init`) or beside another init (`kprov supervise`). One thread, one poll, no runtime: an idle
//! machine should cost nothing. Definitions are files, so a machine that boots again starts what it ran before.

pub mod client;
mod policy;
mod process;
mod run;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

pub use run::{READY_ADDRESS, READY_FD, init, supervise};

/// Control socket (0600), definitions, logs, and what is running now (gone after a boot).
pub const SOCKET: &str = "/run/kprov/supervisor.sock";
pub const DEFINITIONS: &str = "/etc/kprov/services";
pub const LOGS: &str = "/var/log/kprov";
pub const RUNNING: &str = "/run/kprov/services";

/// What to run. Equal definitions are the same service: `ensure` of one changes nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Letters, digits, `-`, `_` and `.`: it names files.
    pub name: String,
    /// Program (absolute path) and arguments.
    pub argv: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Started after these at boot, and stopped before them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
    /// Any change restarts the service: a checksum of its binary and configuration.
    #[serde(default)]
    pub revision: String,
    /// Sent to the main process alone; what it started (containerd's shims) lives on.
    #[serde(default = "default_stop_signal")]
    pub stop_signal: String,
    /// Then SIGKILL.
    #[serde(default = "default_stop_timeout_seconds")]
    pub stop_timeout_seconds: u64,
    /// Lowering it needs CAP_SYS_RESOURCE; a refusal is not an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
}

fn default_stop_signal() -> String {
    "TERM".into()
}
fn default_stop_timeout_seconds() -> u64 {
    10
}

impl Service {
    pub fn new(name: &str, argv: &[&str]) -> Service {
        Service {
            name: name.into(),
            argv: argv.iter().map(|part| part.to_string()).collect(),
            env: BTreeMap::new(),
            after: Vec::new(),
            revision: String::new(),
            stop_signal: default_stop_signal(),
            stop_timeout_seconds: default_stop_timeout_seconds(),
            oom_score_adj: None,
        }
    }

    /// The sentence that says what is wrong with it, if anything is.
    pub fn problem(&self) -> Option<String> {
        let letter = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
        if self.name.is_empty() || self.name.starts_with('.') || self.name.len() > 64 || !self.name.chars().all(letter) {
            return Some(format!("{:?} cannot be a service's name", self.name));
        }
        if !self.argv.first().is_some_and(|program| program.starts_with('/')) {
            return Some(format!("service {}: the program must be an absolute path", self.name));
        }
        if process::signal(&self.stop_signal).is_none() {
            return Some(format!("service {}: unknown signal {:?}", self.name, self.stop_signal));
        }
        None
    }

    fn file(&self) -> PathBuf {
        definition_file(&self.name)
    }
}

fn definition_file(name: &str) -> PathBuf {
    PathBuf::from(DEFINITIONS).join(format!("{name}.json"))
}

/// How a service is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub name: String,
    pub state: State,
    pub pid: Option<i32>,
    /// How long in this state.
    pub seconds: f64,
    /// Starts that were not asked for.
    pub restarts: u32,
    /// "exit code 1", "killed by SIGKILL"; of the last process that ended.
    pub last_exit: Option<String>,
    pub revision: String,
    pub log: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    Running,
    /// Ended by itself; starts again after its back-off.
    Waiting,
    Stopping,
    Stopped,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "do")]
enum Command {
    /// Writes the definition and makes it run; restarts it only if definition or revision differ.
    Ensure {
        service: Service,
    },
    Start {
        name: String,
    },
    /// Until the next boot, `start` or `ensure`.
    Stop {
        name: String,
    },
    Restart {
        name: String,
    },
    /// Stops it and forgets its definition.
    Remove {
        name: String,
    },
    Status,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Answer {
    /// Whether the command changed anything.
    Done {
        changed: bool,
    },
    Services(Vec<Status>),
    Refused(String),
}
