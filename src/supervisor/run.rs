//! The service manager's one loop: signals, the control socket, and services that end.

use super::process;
use super::{Answer, Command, DEFINITIONS, RUNNING, SOCKET, Service, State, Status, definition_file, policy};
use crate::error::{Context, Kind, Result};
use crate::sys::files;
use crate::sys::process::{Identity, open_pidfd};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

/// Told by whoever made the machine: where to say "ready", and which address must answer first.
pub const READY_FD: &str = "KPROV_READY_FD";
pub const READY_ADDRESS: &str = "KPROV_READY_ADDRESS";

/// How often a machine that is not ready yet is asked.
const READY_POLL: Duration = Duration::from_millis(5);
const LOG_CHECK: Duration = Duration::from_secs(30);
/// A clean stop of everything may not take longer, whatever services ask for: clouds pull the plug too.
const STOP_ALL_TIMEOUT: Duration = Duration::from_secs(5);
const MOST_CONNECTIONS: usize = 16;
const LONGEST_COMMAND: usize = 1 << 20;

/// Process 1 of a machine. Does not return before SIGTERM or SIGINT.
pub fn init() -> Result<()> {
    crate::sys::cgroups::settle_root();
    Manager::new()?.run()
}

/// Beside another init; a second one on the same machine ends at once.
pub fn supervise() -> Result<()> {
    fs::create_dir_all(RUNNING).or_fail(Kind::Host, || format!("could not make {RUNNING}"))?;
    match files::Lock::try_take("/run/kprov/supervisor.lock".as_ref()).or_fail(Kind::Host, || "could not lock the service manager")? {
        Some(_lock) => Manager::new()?.run(),
        None => Ok(()),
    }
}

struct Unit {
    service: Service,
    phase: Phase,
    since: Instant,
    /// The wait before the last start that was not asked for.
    delay: Option<Duration>,
    restarts: u32,
    last_exit: Option<String>,
}

enum Phase {
    Running(Process),
    Waiting { until: Instant },
    Stopping { process: Process, kill_at: Instant, then: Then },
    Stopped,
}

struct Process {
    identity: Identity,
    /// Of a process that an earlier service manager started: its end is seen here, not by waiting for a child.
    adopted: Option<OwnedFd>,
}

#[derive(Clone, Copy, PartialEq)]
enum Then {
    Start,
    Stop,
    Forget,
}

struct Manager {
    units: BTreeMap<String, Unit>,
    signals: SignalFd,
    listener: UnixListener,
    connections: Vec<(UnixStream, Vec<u8>)>,
    ready: Option<(fs::File, SocketAddr)>,
    logs_checked: Instant,
}

impl Manager {
    fn new() -> Result<Manager> {
        let failed = || "could not start the service manager";
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
            mask.add(signal);
        }
        mask.thread_block().or_fail(Kind::Host, failed)?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).or_fail(Kind::Host, failed)?;
        fs::create_dir_all(RUNNING).or_fail(Kind::Host, failed)?;
        fs::create_dir_all(DEFINITIONS).or_fail(Kind::Host, failed)?;
        let _ = fs::remove_file(SOCKET);
        let listener = UnixListener::bind(SOCKET).or_fail(Kind::Host, || format!("could not listen on {SOCKET}"))?;
        fs::set_permissions(SOCKET, fs::Permissions::from_mode(0o600)).or_fail(Kind::Host, failed)?;
        listener.set_nonblocking(true).or_fail(Kind::Host, failed)?;
        Ok(Manager { units: load(), signals, listener, connections: Vec::new(), ready: ready(), logs_checked: Instant::now() })
    }

    fn run(mut self) -> Result<()> {
        let services = self.units.iter().map(|(name, unit)| (name.clone(), unit.service.clone())).collect();
        for name in policy::order(&services) {
            match process::remembered(&name) {
                Some(identity) => self.adopt(&name, identity),
                None => self.start(&name),
            }
        }
        loop {
            self.wait();
            self.reap();
            if self.told_to_stop() {
                return self.stop_all();
            }
            self.serve();
            self.advance(Instant::now());
            self.say_ready();
        }
    }

    /// Sleeps until something happens or is due.
    fn wait(&self) {
        let now = Instant::now();
        let mut due = self.logs_checked + LOG_CHECK;
        for unit in self.units.values() {
            match &unit.phase {
                Phase::Waiting { until } => due = due.min(*until),
                Phase::Stopping { kill_at, .. } => due = due.min(*kill_at),
                _ => {}
            }
        }
        if self.ready.is_some() {
            due = due.min(now + READY_POLL);
        }
        let mut watched: Vec<BorrowedFd<'_>> = vec![self.signals.as_fd(), self.listener.as_fd()];
        watched.extend(self.connections.iter().map(|(stream, _)| stream.as_fd()));
        watched.extend(self.units.values().filter_map(|unit| unit.process()?.adopted.as_ref().map(AsFd::as_fd)));
        let mut watched: Vec<PollFd<'_>> = watched.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        // Rounded up: a timer that fires a moment early would spin.
        let timeout = (due.saturating_duration_since(now).as_millis() + 1).min(60_000) as u16;
        let _ = poll(&mut watched, PollTimeout::from(timeout));
    }

    /// Collects every process that has ended: services, and orphans that this process inherited.
    fn reap(&mut self) {
        loop {
            let (pid, how) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, format!("exit code {code}")),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, format!("killed by {signal}")),
                Ok(WaitStatus::StillAlive) | Err(_) => break,
                Ok(_) => continue,
            };
            let owner = self.units.iter().find(|(_, unit)| unit.process().is_some_and(|process| process.identity.pid == pid.as_raw()));
            if let Some(name) = owner.map(|(name, _)| name.clone()) {
                self.ended(&name, how);
            }
        }
        let adopted = self.units.iter().filter(|(_, unit)| unit.process().is_some_and(|process| process.adopted.is_some()));
        let gone = adopted.filter(|(_, unit)| !unit.process().is_some_and(|process| process.identity.is_alive()));
        for name in gone.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.ended(&name, "ended while another service manager was its parent".into());
        }
    }

    fn told_to_stop(&self) -> bool {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            if signal.ssi_signo != Signal::SIGCHLD as u32 {
                return true;
            }
        }
        false
    }

    /// Users of a service stop before it does; what does not stop in time is left to the kernel (process 1) or killed.
    fn stop_all(mut self) -> Result<()> {
        self.ready = None;
        let deadline = Instant::now() + STOP_ALL_TIMEOUT;
        let services = self.units.iter().map(|(name, unit)| (name.clone(), unit.service.clone())).collect();
        for name in policy::order(&services).into_iter().rev() {
            self.stop(&name, Then::Stop);
        }
        while self.units.values().any(|unit| unit.process().is_some()) && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now()).as_millis() as u16 + 1;
            let _ = poll(&mut [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)], PollTimeout::from(left.min(200)));
            let _ = self.told_to_stop();
            self.reap();
            self.advance(Instant::now());
        }
        for process in self.units.values().filter_map(Unit::process) {
            process::kill(process.identity.pid, Signal::SIGKILL);
        }
        let _ = fs::remove_file(SOCKET);
        Ok(())
    }

    /// What is due by time alone.
    fn advance(&mut self, now: Instant) {
        let names: Vec<String> = self.units.keys().cloned().collect();
        for name in &names {
            match &self.units[name].phase {
                Phase::Waiting { until } if *until <= now => self.start(name),
                Phase::Stopping { process, kill_at, .. } if *kill_at <= now => {
                    process::kill(process.identity.pid, Signal::SIGKILL);
                    if let Some(Phase::Stopping { kill_at, .. }) = self.units.get_mut(name).map(|unit| &mut unit.phase) {
                        *kill_at = now + Duration::from_secs(1);
                    }
                }
                _ => {}
            }
        }
        if now.duration_since(self.logs_checked) >= LOG_CHECK {
            self.logs_checked = now;
            names.iter().for_each(|name| process::rotate_log(name));
        }
    }

    fn say_ready(&mut self) {
        if let Some((pipe, address)) = &mut self.ready
            && TcpStream::connect_timeout(address, Duration::from_millis(200)).is_ok()
        {
            let _ = pipe.write_all(b"ready\n");
            self.ready = None;
        }
    }

    fn adopt(&mut self, name: &str, identity: Identity) {
        let adopted = open_pidfd(identity.pid);
        match (self.units.get_mut(name), adopted) {
            (Some(unit), Some(fd)) => unit.enter(Phase::Running(Process { identity, adopted: Some(fd) })),
            _ => self.start(name),
        }
    }

    fn start(&mut self, name: &str) {
        let Some(unit) = self.units.get_mut(name) else { return };
        match process::spawn(&unit.service) {
            Ok(identity) => {
                process::remember(name, Some(&identity));
                unit.enter(Phase::Running(Process { identity, adopted: None }));
            }
            Err(error) => {
                unit.last_exit = Some(format!("could not start: {error}"));
                unit.back_off(Duration::ZERO);
            }
        }
    }

    fn stop(&mut self, name: &str, then: Then) {
        let Some(unit) = self.units.get_mut(name) else { return };
        match std::mem::replace(&mut unit.phase, Phase::Stopped) {
            Phase::Running(process) => {
                process::kill(process.identity.pid, process::signal(&unit.service.stop_signal).unwrap_or(Signal::SIGTERM));
                let kill_at = Instant::now() + Duration::from_secs(unit.service.stop_timeout_seconds);
                unit.enter(Phase::Stopping { process, kill_at, then });
            }
            Phase::Stopping { process, kill_at, .. } => unit.enter(Phase::Stopping { process, kill_at, then }),
            Phase::Waiting { .. } | Phase::Stopped => self.stopped(name, then),
        }
    }

    fn ended(&mut self, name: &str, how: String) {
        process::remember(name, None);
        let Some(unit) = self.units.get_mut(name) else { return };
        unit.last_exit = Some(how);
        match &unit.phase {
            Phase::Stopping { then, .. } => {
                let then = *then;
                self.stopped(name, then);
            }
            _ => unit.back_off(unit.since.elapsed()),
        }
    }

    fn stopped(&mut self, name: &str, then: Then) {
        match then {
            Then::Forget => drop(self.units.remove(name)),
            Then::Start => self.start(name),
            Then::Stop => {
                if let Some(unit) = self.units.get_mut(name) {
                    unit.enter(Phase::Stopped);
                }
            }
        }
    }

    /// One command line per connection; a client that stalls holds up nobody.
    fn serve(&mut self) {
        while self.connections.len() < MOST_CONNECTIONS
            && let Ok((stream, _)) = self.listener.accept()
        {
            if stream.set_nonblocking(true).is_ok() {
                self.connections.push((stream, Vec::new()));
            }
        }
        for (mut stream, mut buffer) in std::mem::take(&mut self.connections) {
            let mut chunk = [0; 16 << 10];
            let open = loop {
                match stream.read(&mut chunk) {
                    Ok(0) => break false,
                    Ok(count) if buffer.len() + count <= LONGEST_COMMAND => buffer.extend_from_slice(&chunk[..count]),
                    Ok(_) => break false,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => break error.kind() == ErrorKind::WouldBlock,
                }
            };
            if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let answer = match serde_json::from_slice(&buffer[..end]) {
                    Ok(command) => self.obey(command),
                    Err(error) => Answer::Refused(format!("not a command: {error}")),
                };
                let mut line = serde_json::to_vec(&answer).expect("plain data");
                line.push(b'\n');
                // Back to blocking with a bound: a long status may exceed the socket's buffer.
                let _ = stream.set_nonblocking(false).and_then(|()| stream.set_write_timeout(Some(Duration::from_millis(200))));
                let _ = stream.write_all(&line);
            } else if open {
                self.connections.push((stream, buffer));
            }
        }
    }

    fn obey(&mut self, command: Command) -> Answer {
        let changed = match command {
            Command::Status => return Answer::Services(self.units.values().map(Unit::status).collect()),
            Command::Ensure { service } => return self.ensure(service),
            Command::Start { name } => match self.units.get(&name).map(|unit| &unit.phase) {
                None => return Answer::Refused(format!("there is no service {name}")),
                Some(Phase::Running(_)) => false,
                Some(Phase::Stopping { .. }) => {
                    self.stop(&name, Then::Start);
                    true
                }
                Some(_) => {
                    self.start(&name);
                    true
                }
            },
            Command::Stop { name } => {
                let changed = self.units.get(&name).is_some_and(|unit| !matches!(unit.phase, Phase::Stopped));
                self.stop(&name, Then::Stop);
                changed
            }
            Command::Restart { name } => {
                if !self.units.contains_key(&name) {
                    return Answer::Refused(format!("there is no service {name}"));
                }
                self.stop(&name, Then::Start);
                true
            }
            Command::Remove { name } => {
                let changed = self.units.contains_key(&name);
                let _ = fs::remove_file(definition_file(&name));
                self.stop(&name, Then::Forget);
                changed
            }
        };
        Answer::Done { changed }
    }

    fn ensure(&mut self, service: Service) -> Answer {
        if let Some(problem) = service.problem() {
            return Answer::Refused(problem);
        }
        let name = service.name.clone();
        let same = self.units.get(&name).is_some_and(|unit| unit.service == service);
        let up = self.units.get(&name).is_some_and(|unit| match &unit.phase {
            Phase::Running(_) | Phase::Waiting { .. } => true,
            Phase::Stopping { then, .. } => *then == Then::Start,
            Phase::Stopped => false,
        });
        if same && up {
            return Answer::Done { changed: false };
        }
        let text = serde_json::to_vec_pretty(&service).expect("plain data");
        if let Err(error) = files::write_atomic(&service.file(), &text, 0o600) {
            return Answer::Refused(format!("could not write {}: {error}", service.file().display()));
        }
        match self.units.get_mut(&name) {
            Some(unit) => {
                unit.service = service;
                unit.delay = None;
            }
            None => drop(self.units.insert(name.clone(), Unit::new(service))),
        }
        self.stop(&name, Then::Start);
        Answer::Done { changed: true }
    }
}

impl Unit {
    fn new(service: Service) -> Unit {
        Unit { service, phase: Phase::Stopped, since: Instant::now(), delay: None, restarts: 0, last_exit: None }
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.since = Instant::now();
    }

    fn back_off(&mut self, lived: Duration) {
        let delay = policy::delay(self.delay, lived);
        self.delay = Some(delay);
        self.restarts += 1;
        self.enter(Phase::Waiting { until: Instant::now() + delay });
    }

    fn process(&self) -> Option<&Process> {
        match &self.phase {
            Phase::Running(process) | Phase::Stopping { process, .. } => Some(process),
            Phase::Waiting { .. } | Phase::Stopped => None,
        }
    }

    fn status(&self) -> Status {
        Status {
            name: self.service.name.clone(),
            state: match self.phase {
                Phase::Running(_) => State::Running,
                Phase::Waiting { .. } => State::Waiting,
                Phase::Stopping { .. } => State::Stopping,
                Phase::Stopped => State::Stopped,
            },
            pid: self.process().map(|process| process.identity.pid),
            seconds: self.since.elapsed().as_secs_f64(),
            restarts: self.restarts,
            last_exit: self.last_exit.clone(),
            revision: self.service.revision.clone(),
            log: process::log_file(&self.service.name).display().to_string(),
        }
    }
}

/// The definitions on disk; one that cannot be read is told and left alone, the others start.
fn load() -> BTreeMap<String, Unit> {
    let files = fs::read_dir(DEFINITIONS).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut units = BTreeMap::new();
    for path in files.filter(|path| path.extension().is_some_and(|extension| extension == "json")) {
        match fs::read(&path)
            .map_err(|error| error.to_string())
            .and_then(|text| serde_json::from_slice::<Service>(&text).map_err(|error| error.to_string()))
        {
            Ok(service) if service.problem().is_none() => drop(units.insert(service.name.clone(), Unit::new(service))),
            Ok(service) => eprintln!("{}: {}", path.display(), service.problem().unwrap_or_default()),
            Err(error) => eprintln!("could not read {}: {error}", path.display()),
        }
    }
    units
}

fn ready() -> Option<(fs::File, SocketAddr)> {
    let fd: i32 = std::env::var(READY_FD).ok()?.parse().ok()?;
    let address = std::env::var(READY_ADDRESS).ok()?.parse().ok()?;
    // SAFETY: whoever started this process opened the descriptor for it and says so; nobody else here uses it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // Services must not inherit it: the reader would wait for them, too.
    nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC)).ok()?;
    Some((fd.into(), address))
}
