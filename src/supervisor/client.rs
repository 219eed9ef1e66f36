//! The service manager's client: what bootstrap and `kprov service` call on a machine.

use super::{Answer, Command, SOCKET, Service, State, Status};
use crate::error::{Context, Error, Kind, Result};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// The service manager answers from memory; longer means it hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// Whether a service manager of kprov runs on this machine.
pub fn is_running() -> bool {
    UnixStream::connect(SOCKET).is_ok()
}

/// Starts `kprov supervise` in the background where no service manager of kprov runs yet.
pub fn ensure_supervisor() -> Result<()> {
    if is_running() {
        return Ok(());
    }
    use std::os::unix::process::CommandExt;
    let mut command = std::process::Command::new("/proc/self/exe");
    command.arg("supervise").current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: setsid is a plain system call.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            Ok(())
        });
    }
    command.spawn().or_fail(Kind::Host, || "could not start kprov's service manager")?;
    wait_until(ANSWER_TIMEOUT, "kprov's service manager did not start", is_running)
}

/// Makes the service run as defined; `true` if that changed anything.
pub fn ensure(service: &Service) -> Result<bool> {
    changed(&Command::Ensure { service: service.clone() })
}

pub fn start(name: &str) -> Result<bool> {
    changed(&Command::Start { name: name.into() })
}

/// Returns when it has stopped.
pub fn stop(name: &str) -> Result<bool> {
    let changed = changed(&Command::Stop { name: name.into() })?;
    wait_gone(name)?;
    Ok(changed)
}

pub fn restart(name: &str) -> Result<bool> {
    changed(&Command::Restart { name: name.into() })
}

/// Stops it and forgets its definition; a service that does not exist is removed already.
pub fn remove(name: &str) -> Result<bool> {
    let changed = changed(&Command::Remove { name: name.into() })?;
    wait_gone(name)?;
    Ok(changed)
}

/// Ends the service manager with all its services; one that is the machine's first process stays. `true` if one ran.
pub fn end() -> Result<bool> {
    let Ok(stream) = UnixStream::connect(SOCKET) else { return Ok(false) };
    let failed = || "could not end kprov's service manager";
    let peer = nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials).or_fail(Kind::Host, failed)?;
    if peer.pid() <= 1 {
        return Ok(false);
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(peer.pid()), nix::sys::signal::Signal::SIGTERM).or_fail(Kind::Host, failed)?;
    wait_until(Duration::from_secs(60), "kprov's service manager did not end", || !is_running()).map(|()| true)
}

pub fn status() -> Result<Vec<Status>> {
    match call(&Command::Status)? {
        Answer::Services(services) => Ok(services),
        other => Err(Error::internal(format!("kprov's service manager answered {other:?}"))),
    }
}

/// When a service counts as ready.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ready {
    /// It runs and has not ended since it was asked for.
    Running,
    /// It accepts connections there.
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Waits until the service runs and is ready; the error tells how it last ended and where its log is.
pub fn wait_ready(name: &str, ready: &Ready, timeout: Duration) -> Result<()> {
    let deadline = Instant::now() + timeout;
    loop {
        let status = status()?.into_iter().find(|status| status.name == name);
        let status = status.ok_or_else(|| Error::internal(format!("service {name} is not defined")))?;
        let answers = match ready {
            Ready::Running => true,
            Ready::Tcp(address) => TcpStream::connect_timeout(address, ANSWER_TIMEOUT).is_ok(),
            Ready::Unix(path) => UnixStream::connect(path).is_ok(),
        };
        if status.state == State::Running && answers {
            return Ok(());
        }
        if Instant::now() > deadline {
            let last_exit = status.last_exit.map(|exit| format!(", last process ended: {exit}")).unwrap_or_default();
            let message =
                format!("service {name} is not ready after {timeout:?} ({:?}, {} restarts{last_exit})", status.state, status.restarts);
            return Err(Error::timeout(message).hint(format!("its log: {}", status.log)));
        }
        std::thread::sleep(POLL);
    }
}

fn wait_gone(name: &str) -> Result<()> {
    let gone =
        || status().is_ok_and(|services| services.iter().filter(|status| status.name == name).all(|status| status.state == State::Stopped));
    // The longest stop timeout in use, and then SIGKILL.
    wait_until(Duration::from_secs(60), &format!("service {name} did not stop"), gone)
}

fn wait_until(timeout: Duration, message: &str, done: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + timeout;
    while !done() {
        if Instant::now() > deadline {
            return Err(Error::timeout(message));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

fn changed(command: &Command) -> Result<bool> {
    match call(command)? {
        Answer::Done { changed } => Ok(changed),
        Answer::Refused(why) => Err(Error::host(why)),
        other => Err(Error::internal(format!("kprov's service manager answered {other:?}"))),
    }
}

fn call(command: &Command) -> Result<Answer> {
    let failed = || "could not reach kprov's service manager on this machine";
    let mut stream = UnixStream::connect(SOCKET).or_fail(Kind::Host, failed)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).or_fail(Kind::Host, failed)?;
    let mut line = serde_json::to_vec(command).or_fail(Kind::Internal, failed)?;
    line.push(b'\n');
    stream.write_all(&line).or_fail(Kind::Host, failed)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).or_fail(Kind::Host, failed)?;
    serde_json::from_str(&answer).or_fail(Kind::Host, failed)
}
