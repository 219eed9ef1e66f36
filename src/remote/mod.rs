//! The SSH door: one multiplexed connection per machine through the host's own `ssh`, strict host keys, constant remote commands.

pub mod config;
pub mod failure;
mod folder;
pub mod forward;
pub mod key;

pub use config::{Jump, Login, Side, Target, address};

use crate::error::{Context, Error, Kind, Result};
use config::Targets;
use failure::Class;
use folder::Folder;
use key::SshKey;
use openssh::{ControlPersist, KnownHosts, Session, SessionBuilder, Stdio};
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::sync::{Mutex, Semaphore};

/// A default sshd drops handshakes beyond ten at once, and one host's CPU does some hundred a second: more at once help nobody.
const HANDSHAKES: usize = 32;
/// Behind another host nobody knows how far it is: far enough to compress what is sent.
const FAR: Duration = Duration::from_millis(20);
/// Two lost packets; a host that takes longer counts as silent for a look.
const GLANCE: Duration = Duration::from_secs(4);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// For keys that appear just after sshd did.
const DENIED_GRACE: Duration = Duration::from_secs(20);
/// OpenSSH 9.8 and later shuts out who is denied some three times within seconds.
const DENIED_PAUSE: Duration = Duration::from_secs(4);
/// sudo writes whole command lines into the machine's log. It gets to see this one: the script comes on stdin, after its length.
const FROM_STDIN: &str = r#"read -r bytes; script=$(dd bs=1 count="$bytes" 2>/dev/null); eval "$script""#;
/// A connection that nobody uses goes by itself, also when this process was killed.
const IDLE_SECONDS: usize = 60;

/// Connections of one cluster. Cheap to clone.
#[derive(Clone)]
pub struct Ssh(Arc<Inner>);

struct Inner {
    /// One lock per machine: two tasks never shake hands with the same one at once. Dropped before the folder with their sockets.
    connections: parking_lot::Mutex<HashMap<String, Slot>>,
    folder: Folder,
    targets: parking_lot::Mutex<Targets>,
    handshakes: Semaphore,
    /// One way through another host is opened at a time.
    hops: Mutex<()>,
}

type Slot = Arc<Mutex<Option<(Target, Connection)>>>;

/// An open connection. Clones share it.
#[derive(Clone)]
pub struct Connection {
    session: Arc<Session>,
    pub machine: String,
    is_root: bool,
    /// How long a packet takes to the machine and back.
    pub round_trip: Duration,
}

impl Ssh {
    /// `state` is the cluster's folder on this host: sockets and the key's file live below it (or, where a unix socket's path would
    /// get too long, in a private folder below the temporary one) for as long as this process.
    pub fn open(state: &Path, key: &SshKey) -> Result<Ssh> {
        let ssh = Ssh::without_key(state)?;
        ssh.keep_key(&key.private)?;
        Ok(ssh)
    }

    /// For targets that bring their own login.
    pub fn without_key(state: &Path) -> Result<Ssh> {
        let folder = Folder::make(state)?;
        folder.write_as(config::BY_FINGERPRINT, config::BY_FINGERPRINT_PROGRAM.as_bytes(), 0o700)?;
        Ok(Ssh(Arc::new(Inner {
            folder,
            targets: Default::default(),
            connections: Default::default(),
            handshakes: Semaphore::new(HANDSHAKES),
            hops: Mutex::default(),
        })))
    }

    /// The cluster's private key, tried after a target's own login.
    pub fn keep_key(&self, private: &str) -> Result<()> {
        self.0.folder.write("key", private.as_bytes())
    }

    /// For `ssh -F <this> <machine>`; valid while this value lives. The target must be known first ([`Ssh::know`]).
    pub fn config_file(&self) -> PathBuf {
        self.0.folder.path().join("config")
    }

    /// Takes the machine's address and host keys into ssh's files; what was known of it before is forgotten.
    pub fn know(&self, target: &Target) -> Result<()> {
        let mut targets = self.0.targets.lock();
        if targets.get(&target.machine) == Some(target) {
            return Ok(());
        }
        targets.insert(target.machine.clone(), target.clone());
        self.0.folder.write("known_hosts", config::known_hosts(targets.values()).as_bytes())?;
        self.0.folder.write("config", config::ssh_config(self.0.folder.path(), targets.values()).as_bytes())
    }

    /// The open connection to the machine, or a new one as soon as its sshd answers, within `patience`.
    pub async fn connect(&self, target: &Target, patience: Duration) -> Result<Connection> {
        let slot = self.0.connections.lock().entry(target.machine.clone()).or_default().clone();
        let mut slot = slot.lock().await;
        if let Some((known, connection)) = slot.take()
            && known == *target
            && connection.session.check().await.is_ok()
        {
            *slot = Some((known, connection.clone()));
            return Ok(connection);
        }
        self.know(target)?;
        let connection = self.knock(target, patience).await?;
        *slot = Some((target.clone(), connection.clone()));
        Ok(connection)
    }

    /// Tries until sshd lets us in. A plain TCP connect goes first: it costs a packet, an ssh process a hundredth of a second.
    async fn knock(&self, target: &Target, patience: Duration) -> Result<Connection> {
        let start = Instant::now();
        let mut pause = FIRST_PAUSE;
        let mut denied_since = None;
        loop {
            let (class, text) = match self.try_once(target, patience.saturating_sub(start.elapsed())).await {
                Ok(connection) => return Ok(connection),
                Err(failure) => failure,
            };
            let denied = class.may_pass_shortly().then(|| *denied_since.get_or_insert_with(Instant::now));
            let hopeful = class.may_pass() || denied.is_some_and(|since| since.elapsed() < DENIED_GRACE);
            if denied.is_some_and(|since| since.elapsed() > LONGEST_PAUSE) {
                pause = DENIED_PAUSE;
            }
            if !hopeful || start.elapsed() + pause >= patience {
                tracing::debug!(machine = target.machine, ?class, text, "ssh failed");
                return Err(failure::explain(class, target, &text));
            }
            tokio::time::sleep(pause).await;
            pause = if denied.is_some() { LONGEST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
        }
    }

    /// One attempt, and ssh's own words when it fails: for a look that must not wait.
    pub async fn glance(&self, target: &Target) -> Result<Connection, (Class, String)> {
        let slot = self.0.connections.lock().entry(target.machine.clone()).or_default().clone();
        let mut slot = slot.lock().await;
        if let Some((known, connection)) = slot.take()
            && known == *target
            && connection.session.check().await.is_ok()
        {
            *slot = Some((known, connection.clone()));
            return Ok(connection);
        }
        self.know(target).map_err(|error| (Class::Other, error.chain()))?;
        let connection = self.try_once(target, GLANCE).await?;
        *slot = Some((target.clone(), connection.clone()));
        Ok(connection)
    }

    async fn try_once(&self, target: &Target, patience: Duration) -> Result<Connection, (Class, String)> {
        let round_trip = reach(target, patience).await.map_err(|text| (failure::classify(&text), text))?;
        if let Some(jump) = &target.jump {
            self.hop(jump).await?;
        }
        let _permit = self.0.handshakes.acquire().await.expect("the semaphore is never closed");
        let mut builder = SessionBuilder::default();
        builder
            .known_hosts_check(KnownHosts::Strict)
            .config_file(self.config_file())
            .control_directory(self.0.folder.path())
            .control_persist(ControlPersist::IdleFor(NonZeroUsize::new(IDLE_SECONDS).expect("not zero")));
        match builder.connect(&target.machine).await {
            Ok(session) => Ok(Connection {
                session: Arc::new(session),
                machine: target.machine.clone(),
                is_root: target.ssh_user == "root",
                round_trip,
            }),
            Err(openssh::Error::Connect(error)) => {
                let text = error.to_string();
                Err((failure::classify(&text), text))
            }
            Err(error) => Err((Class::Other, chain(&error))),
        }
    }

    /// The one connection that all machines behind a host share; made apart, because only so ssh tells why it cannot be.
    async fn hop(&self, jump: &Jump) -> Result<(), (Class, String)> {
        let _turn = self.0.hops.lock().await;
        let alias = jump.alias();
        let log = self.0.folder.path().join(format!("{alias}.log"));
        let ssh = |arguments: &[&str]| {
            let mut command = tokio::process::Command::new("ssh");
            command.arg("-F").arg(self.config_file()).arg("-E").arg(&log).args(arguments).arg(&alias);
            // What goes on in the background must not hold a pipe of ours.
            command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
            command
        };
        if ssh(&["-O", "check"]).status().await.is_ok_and(|status| status.success()) {
            return Ok(());
        }
        let _ = std::fs::remove_file(&log);
        if ssh(&["-f", "-N", "-M"]).status().await.is_ok_and(|status| status.success()) {
            return Ok(());
        }
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        Err((
            failure::classify(&said),
            format!("{}\non the way, at {}: {}", said.trim(), jump.address, said.trim().lines().last().unwrap_or("no reason given")),
        ))
    }

    /// Forgets the connection to a machine, e.g. after it broke.
    pub fn forget(&self, machine: &str) {
        self.0.connections.lock().remove(machine);
    }
}

fn with_length(script: &str) -> String {
    format!("{}\n{script}", script.len())
}

/// Somebody listens at the machine's SSH port.
async fn reach(target: &Target, patience: Duration) -> Result<Duration, String> {
    if target.jump.is_some() {
        return Ok(FAR);
    }
    let limit = patience.min(Duration::from_secs(u64::from(config::CONNECT_SECONDS)));
    let start = Instant::now();
    match tokio::time::timeout(limit, tokio::net::TcpStream::connect((target.address.as_str(), target.ssh_port))).await {
        Ok(Ok(_)) => Ok(start.elapsed()),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => Err("Connection refused".into()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("Connection timed out".into()),
    }
}

impl Connection {
    /// Runs constant text with `sh`; `input` becomes its stdin.
    pub async fn shell(&self, script: &'static str, input: &[u8]) -> Result<Output> {
        let (command, head) = if self.is_root { (script, String::new()) } else { (FROM_STDIN, with_length(script)) };
        let mut child = self.spawn(&["sh", "-c", command]).await?;
        let mut stdin = child.stdin().take().expect("stdin is piped");
        let feed = async move {
            let outcome = stdin.write_all(&[head.as_bytes(), input].concat()).await;
            drop(stdin);
            outcome
        };
        let (fed, output) = tokio::join!(feed, child.wait_with_output());
        let output = output.map_err(|error| self.broken(error))?;
        match fed {
            // A script that ended early has its own reason.
            Err(error) if output.status.success() => Err(self.broken(error)),
            _ => Ok(output),
        }
    }

    /// A constant command, as root, with all its pipes open.
    pub async fn spawn(&self, argv: &[&'static str]) -> Result<openssh::Child<Arc<Session>>> {
        // Everything done on a machine is root's work; `-n`: a sudo that asks for a password fails at once, with its reason.
        let sudo: &[&str] = if self.is_root { &[] } else { &["sudo", "-n", "--"] };
        let mut words = sudo.iter().chain(argv);
        let mut command = self.session.clone().arc_command(*words.next().expect("a command has a word"));
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().await.map_err(|error| self.broken(error))
    }

    /// What went wrong with the connection itself: worth another try.
    pub fn broken(&self, error: impl std::error::Error + Send + Sync + 'static) -> Error {
        Error::transient(format!("could not go on with {}: the SSH connection broke", self.machine)).because(error)
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The output of a command that has to succeed.
pub fn success(machine: &str, what: &str, output: Output) -> Result<String> {
    let failed = || format!("could not {what} {machine}");
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr).trim().to_string();
        // 255 is ssh's own; 9 is the upload's "damaged on the way".
        let kind = if matches!(output.status.code(), Some(255 | 9) | None) { Kind::Transient } else { Kind::Host };
        return Err(Error::new(kind, failed()).because(format!("{words} ({})", output.status)));
    }
    String::from_utf8(output.stdout).or_fail(Kind::Host, failed)
}

/// What a constant script answers on this very host, for tests of whoever reads the answer.
#[cfg(test)]
pub(crate) fn answer_here(script: &str) -> String {
    use std::io::Write;
    let piped = std::process::Stdio::piped;
    let mut shell = std::process::Command::new("sh").arg("-s").stdin(piped()).stdout(piped()).spawn().expect("sh starts");
    shell.stdin.take().expect("stdin").write_all(script.as_bytes()).expect("sh reads");
    String::from_utf8(shell.wait_with_output().expect("sh ends").stdout).expect("text")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_script_that_comes_on_stdin_leaves_the_rest_for_itself() {
        let script = "read -r first; printf '%s|' \"$first\"; cat; exit 3\n# \u{e9}\n";
        let piped = std::process::Stdio::piped;
        let mut shell =
            std::process::Command::new("sh").args(["-c", FROM_STDIN]).stdin(piped()).stdout(piped()).spawn().expect("sh starts");
        let input = format!("{}one\ntwo\n", with_length(script));
        shell.stdin.take().expect("stdin").write_all(input.as_bytes()).expect("sh reads");
        let output = shell.wait_with_output().expect("sh ends");
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(3), &b"one|two\n"[..]));
    }
}
