//! `kprov pause`: the sandbox process of every pod: holds its namespaces open, reaps orphans, leaves when told to. Hidden.

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

/// Runs before anything else of the program is set up: a pod's overhead is this process.
pub fn run() -> std::process::ExitCode {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        signals.add(signal);
    }
    if sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals), None).is_err() {
        return std::process::ExitCode::FAILURE;
    }
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => reap(),
            Ok(_) | Err(_) => return std::process::ExitCode::SUCCESS,
        }
    }
}

/// One SIGCHLD may stand for many children.
fn reap() {
    while !matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive) | Err(_)) {}
}
