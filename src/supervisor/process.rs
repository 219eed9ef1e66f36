//! Starting, signalling and recognising the processes of services.

use super::{LOGS, RUNNING, Service};
use crate::sys::process::Identity;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Beyond this a log is moved to `<name>.log.1`; with both files a service keeps at most twice as much.
const LOG_LIMIT_BYTES: u64 = 10 << 20;

/// `TERM` or `SIGTERM`.
pub fn signal(name: &str) -> Option<Signal> {
    let name = name.strip_prefix("SIG").unwrap_or(name);
    format!("SIG{name}").parse().ok()
}

pub fn log_file(name: &str) -> PathBuf {
    Path::new(LOGS).join(format!("{name}.log"))
}

/// Starts the service as its own session, with its log as output.
pub fn spawn(service: &Service) -> io::Result<Identity> {
    fs::create_dir_all(LOGS)?;
    let log = OpenOptions::new().create(true).append(true).mode(0o640).open(log_file(&service.name))?;
    let oom_score_adj = service.oom_score_adj.map(|score| score.to_string());
    let mut command = Command::new(&service.argv[0]);
    command.args(&service.argv[1..]).current_dir("/").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("LANG", "C.UTF-8");
    command.envs(&service.env);
    // SAFETY: only system calls between fork and exec, in a process of one thread.
    unsafe {
        command.pre_exec(move || {
            libc::setsid();
            // As every service manager's services have it; ours may have been started with another.
            libc::umask(0o022);
            // The manager reads its signals from a descriptor, so they are blocked; a service that inherits this never hears SIGTERM.
            nix::sys::signal::SigSet::empty().thread_set_mask()?;
            if let Some(score) = &oom_score_adj {
                // Refused without CAP_SYS_RESOURCE; the service runs all the same.
                let _ = fs::write("/proc/self/oom_score_adj", score);
            }
            Ok(())
        });
    }
    let pid = command.spawn()?.id() as i32;
    // A process that ended at once is a zombie until it is reaped: it has an identity all the same, its start time does not matter.
    Ok(Identity::of(pid).unwrap_or(Identity { pid, start_time: 0 }))
}

pub fn kill(pid: i32, signal: Signal) {
    let _ = nix::sys::signal::kill(Pid::from_raw(pid), signal);
}

/// What runs under `name`, written for the next service manager on this machine.
pub fn remember(name: &str, identity: Option<&Identity>) {
    let file = Path::new(RUNNING).join(name);
    let _ = match identity {
        Some(identity) => fs::create_dir_all(RUNNING).and_then(|()| fs::write(file, serde_json::to_vec(identity).expect("plain numbers"))),
        None => fs::remove_file(file),
    };
}

/// What an earlier service manager started and still runs.
pub fn remembered(name: &str) -> Option<Identity> {
    let identity: Identity = serde_json::from_slice(&fs::read(Path::new(RUNNING).join(name)).ok()?).ok()?;
    identity.is_alive().then_some(identity)
}

/// Copies and truncates, because the service holds the file open (appending, so its next line lands at the new beginning).
pub fn rotate_log(name: &str) {
    let path = log_file(name);
    if fs::metadata(&path).is_ok_and(|log| log.len() > LOG_LIMIT_BYTES) && fs::copy(&path, path.with_extension("log.1")).is_ok() {
        let _ = OpenOptions::new().write(true).open(&path).and_then(|log: File| log.set_len(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_with_and_without_prefix() {
        assert_eq!(signal("TERM"), Some(Signal::SIGTERM));
        assert_eq!(signal("SIGQUIT"), Some(Signal::SIGQUIT));
        assert_eq!(signal("NOSUCH"), None);
    }
}
