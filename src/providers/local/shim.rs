//! The process beside each machine: makes its namespaces, starts its first process, holds its lock, and waits for its end.
//!
//! A program of its own (`kprov local shim FOLDER NAME`) because namespaces can only be made by a process of one thread. While it
//! lives the machine lives; when it is killed, the kernel takes the machine with it. It also waits for the daemon's death and then
//! starts the next daemon: a cloud has people for that.

use super::layout::Layout;
use super::record::{self, Record};
use super::root::Root;
use super::{daemon, fabric, lock, machine};
use crate::engine::Id;
use crate::error::{Context, Error, Kind, Result};
use crate::providers::resources::{MACHINE, MachineSpec};
use crate::supervisor::{READY_ADDRESS, READY_FD};
use crate::sys::cgroups::Group;
use crate::sys::files;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// `shim.json` in the machine's folder; true only while `shim.lock` is held.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Running {
    pub shim: i32,
    /// The machine's first process, as the host counts.
    pub init: i32,
}

/// `exit.json`: how the machine ended, for people and for whoever decides on a restart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exit {
    pub why: String,
    /// The machine asked for it.
    pub reboot: bool,
}

/// From the first process to an answer on port 22; 30 ms when idle, but a machine with one core on a loaded host is slow.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

pub fn main(uid: &str, name: &str) -> Result<()> {
    let outcome = run(uid, name);
    if let Err(error) = &outcome {
        tell(&format!("error {}", error.chain().replace('\n', " ")));
    }
    outcome
}

/// One line for the daemon; if that died meanwhile, the next one sees the machine by its lock.
fn tell(line: &str) {
    let mut out = io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn run(uid: &str, name: &str) -> Result<()> {
    let layout = Layout::new(uid);
    let folder = layout.machine(name);
    let failed = || format!("could not start machine {name}");
    let _lock = take_lock(&layout, name)?;
    for old in ["shim.json", "exit.json"] {
        let _ = std::fs::remove_file(folder.join(old));
    }
    let record =
        Record::load(&layout, &Id::new(MACHINE, name))?.ok_or_else(|| Error::internal(format!("machine {name} is not on record")))?;
    let spec: MachineSpec = record.spec()?;
    let address = record.address.ok_or_else(|| Error::internal(format!("machine {name} has no address on record")))?;
    // What an earlier life left, if the kernel was slower than the restart.
    let group = Group::new(layout.group(name)).or_fail(Kind::Host, failed)?;
    group.kill().or_fail(Kind::Host, failed)?;
    group.remove().or_fail(Kind::Host, failed)?;
    group.create().or_fail(Kind::Host, || "could not make control groups")?;
    group.limit(spec.cpu_millis, spec.memory_bytes).or_fail(Kind::Host, || "could not set the machine's limits")?;
    machine::write_files(&layout, &record, &spec)?;

    let (report, reporter) = pipe().or_fail(Kind::Host, failed)?;
    let (go_reader, go) = pipe().or_fail(Kind::Host, failed)?;
    let birth = Birth { layout: &layout, name, group: &group, record: &record, reporter, go: go_reader };
    let init = match clone_into_pid_namespace().or_fail(Kind::Host, failed)? {
        None => {
            // Its copies would keep it from seeing the shim's end.
            drop((report, go));
            birth.run()
        }
        Some(pid) => pid,
    };
    drop(birth);
    let mut report = BufReader::new(File::from(report));
    let started = follow_birth(&layout, name, init, address, &mut report, go);
    if let Err(error) = started {
        let _ = nix::sys::signal::kill(Pid::from_raw(init), Signal::SIGKILL);
        let _ = waitpid(Pid::from_raw(init), None);
        return Err(error);
    }
    let running = serde_json::to_vec(&Running { shim: std::process::id() as i32, init }).or_fail(Kind::Internal, failed)?;
    files::write_atomic(&folder.join("shim.json"), &running, 0o600).or_fail(Kind::Host, failed)?;
    tell("ready");
    watch_daemon(layout.clone());
    let exit = wait_for_end(init);
    let _ = std::fs::remove_file(folder.join("shim.json"));
    let _ = files::write_atomic(&folder.join("exit.json"), &serde_json::to_vec(&exit).or_fail(Kind::Internal, failed)?, 0o600);
    Ok(())
}

/// A shim that was just killed may be a moment from releasing its lock.
fn take_lock(layout: &Layout, name: &str) -> Result<File> {
    let path = layout.machine(name).join("shim.lock");
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        match lock::try_take(&path).or_fail(Kind::Host, || format!("could not lock machine {name}"))? {
            Some(lock) => return Ok(lock),
            None if Instant::now() > deadline => return Err(Error::conflict(format!("machine {name} runs already"))),
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn pipe() -> nix::Result<(OwnedFd, OwnedFd)> {
    nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
}

/// Like fork, but the child is process 1 of a new pid namespace. (`unshare` would bar this process from ever starting a thread.)
fn clone_into_pid_namespace() -> io::Result<Option<i32>> {
    // SAFETY: without CLONE_VM this is fork; this process has one thread, so the child may go on as it likes.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_NEWPID | libc::SIGCHLD, 0, 0, 0, 0) };
    match pid {
        ..0 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(pid as i32)),
    }
}

/// The shim's half of a machine's birth: waits for its namespaces, connects it, lets it go, hears "ready".
fn follow_birth(
    layout: &Layout,
    name: &str,
    init: i32,
    address: std::net::Ipv4Addr,
    report: &mut BufReader<File>,
    go: OwnedFd,
) -> Result<()> {
    let deadline = Instant::now() + READY_TIMEOUT;
    expect(report, "namespaces", deadline)?;
    fabric::attach(layout, name, init, address)?;
    File::from(go).write_all(b"g").or_fail(Kind::Host, || "the machine's first process died")?;
    expect(report, "ready", deadline)
}

/// One line from the machine's first process. Its end without a word is a failure, too.
fn expect(report: &mut BufReader<File>, word: &str, deadline: Instant) -> Result<()> {
    let mut line = String::new();
    if report.buffer().is_empty() {
        let left = deadline.saturating_duration_since(Instant::now()).as_millis().min(60_000) as u16;
        let fd = report.get_ref().as_fd();
        let mut watched = [nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN)];
        if nix::poll::poll(&mut watched, left).or_fail(Kind::Host, || "could not wait for the machine")? == 0 {
            return Err(
                Error::timeout(format!("the machine did not say {word:?} in {READY_TIMEOUT:?}")).hint("see console.log in its folder")
            );
        }
    }
    report.read_line(&mut line).or_fail(Kind::Host, || "could not hear the machine")?;
    match line.trim() {
        said if said == word => Ok(()),
        "" => Err(Error::host(format!("the machine's first process ended before it said {word:?}")).hint("see console.log in its folder")),
        said => Err(Error::host(said.to_string())),
    }
}

fn wait_for_end(init: i32) -> Exit {
    loop {
        return match waitpid(Pid::from_raw(init), None) {
            Err(nix::errno::Errno::EINTR) => continue,
            // reboot(2) in a pid namespace: pid_namespaces(7).
            Ok(WaitStatus::Signaled(_, Signal::SIGHUP, _)) => Exit { why: "rebooted".into(), reboot: true },
            Ok(WaitStatus::Signaled(_, Signal::SIGINT, _)) | Ok(WaitStatus::Exited(_, 0)) => {
                Exit { why: "powered off".into(), reboot: false }
            }
            Ok(WaitStatus::Signaled(_, signal, _)) => Exit { why: format!("its first process was killed by {signal}"), reboot: false },
            Ok(WaitStatus::Exited(_, code)) => Exit { why: format!("its first process ended with exit code {code}"), reboot: false },
            other => Exit { why: format!("its first process ended ({other:?})"), reboot: false },
        };
    }
}

/// Blocks in the kernel on the daemon's lock. Who gets it hands it to a new daemon without ever letting go, so there is one daemon.
fn watch_daemon(layout: Layout) {
    std::thread::spawn(move || {
        let mut last = None::<Instant>;
        let mut pause = Duration::ZERO;
        while let Ok(Some(held)) = lock::wait(&layout.lock()) {
            // A daemon that cannot live must not be started in a circle; the lock is kept meanwhile, so nobody else starts it either.
            pause = if last.is_some_and(|last| last.elapsed() < Duration::from_secs(10)) {
                (pause * 2).clamp(Duration::from_millis(100), Duration::from_secs(5))
            } else {
                Duration::ZERO
            };
            std::thread::sleep(pause);
            last = Some(Instant::now());
            if let Err(error) = daemon::spawn(daemon::OWN_PROGRAM.as_ref(), &layout, held) {
                eprintln!("{}", error.chain());
            }
        }
    });
}

/// What the machine's first process does before it becomes its init.
struct Birth<'a> {
    layout: &'a Layout,
    name: &'a str,
    group: &'a Group,
    record: &'a Record,
    reporter: OwnedFd,
    go: OwnedFd,
}

impl Birth<'_> {
    fn run(&self) -> ! {
        let outcome = self.become_init();
        let error = outcome.err().unwrap_or_else(|| io::Error::other("exec returned"));
        let _ = self.say(&format!("could not start machine {}: {error}\n", self.name));
        // SAFETY: ends this process at once, without running the parent's exit handlers.
        unsafe { libc::_exit(1) }
    }

    fn say(&self, line: &str) -> io::Result<()> {
        nix::unistd::write(&self.reporter, line.as_bytes()).map(drop).map_err(io::Error::from)
    }

    fn become_init(&self) -> io::Result<()> {
        // The machine ends with its shim.
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        nix::unistd::setsid()?;
        let executable = File::open("/proc/self/exe")?;
        let folder = self.layout.machine(self.name);
        let console = OpenOptions::new().create(true).append(true).open(folder.join("console.log"))?;
        // Into its groups first: a cgroup namespace shows as root whatever group its maker was in.
        self.group.join()?;
        unshare(CloneFlags::CLONE_NEWCGROUP)?;
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWNET)?;
        self.say("namespaces\n")?;
        let root = Root { folder: &folder, filesystems: &self.layout.filesystems() };
        root.prepare()?;
        // Its network is connected meanwhile; end of file means that the shim died.
        if (&File::from(self.go.try_clone()?)).read(&mut [0])? == 0 {
            return Err(io::Error::other("nobody waits for this machine any more"));
        }
        root.enter()?;
        nix::unistd::sethostname(self.name)?;
        machine::write_facts(std::path::Path::new("/"), self.record)?;
        drop_capabilities();
        let null = OpenOptions::new().read(true).open("/dev/null")?;
        // SAFETY: dup2 onto the standard descriptors of this process, which exec keeps.
        unsafe {
            libc::dup2(null.as_raw_fd(), 0);
            libc::dup2(console.as_raw_fd(), 1);
            libc::dup2(console.as_raw_fd(), 2);
        }
        let reporter = self.reporter.try_clone()?;
        lock::keep_over_exec(&reporter)?;
        let text = |text: String| CString::new(text).map_err(io::Error::other);
        let argv =
            [text("kprov".into())?, text("local".into())?, text("init".into())?, text(format!("{}/{}", self.layout.uid, self.name))?];
        let env = [
            text("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into())?,
            text(format!("{READY_FD}={}", reporter.into_raw_fd()))?,
            text(format!("{READY_ADDRESS}=127.0.0.1:22"))?,
        ];
        nix::unistd::fexecve(&executable, &argv, &env)?;
        Ok(())
    }
}

/// What would reach through to the host's kernel: its clock, its modules, its ports. Refusals do not matter: then it had none.
fn drop_capabilities() {
    const MODULE: i32 = 16;
    const RAWIO: i32 = 17;
    const TIME: i32 = 25;
    for capability in [MODULE, RAWIO, TIME] {
        // SAFETY: prctl with integer arguments.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
}

/// What is known of the machine's shim; stale unless its lock is held.
pub fn running(layout: &Layout, name: &str) -> Option<Running> {
    record::read(&layout.machine(name).join("shim.json")).ok().flatten()
}

pub fn last_exit(layout: &Layout, name: &str) -> Option<Exit> {
    record::read(&layout.machine(name).join("exit.json")).ok().flatten()
}
