//! What the machine itself offers: programs (found, or installed), kernel settings, and how containerd has to be configured for it.

use super::init::Init;
use super::{Outcome, Reporter, disk};
use crate::bootstrap::spec::{CONTAINERD, CONTAINERD_CONFIG, CONTAINERD_SOCKET, Ready, Service};
use crate::bootstrap::template::{self, ContainerdHost};
use crate::error::{Error, Result};
use crate::sys::paths;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Daemons and their tools live in sbin, which a login over SSH does not always have.
const SEARCH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// A first unattended upgrade takes minutes.
const OTHERS: Duration = Duration::from_secs(600);
const LOCK_PAUSE: Duration = Duration::from_secs(2);
/// CAP_SYS_RESOURCE, capabilities(7).
const SYS_RESOURCE: u64 = 1 << 24;

/// Programs found or installed, containerd's configuration written: the service that is left to start.
pub fn containerd(reporter: &Reporter, init: Init, nfs: bool) -> Result<Service> {
    reporter.step("packages", || packages(reporter, init, nfs))?;
    let program = find("containerd").ok_or_else(|| missing(&["containerd"]))?;
    let config = template::containerd(&ContainerdHost {
        systemd: init == Init::Systemd,
        apparmor: std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y')),
        may_protect_from_oom: bounding_set().is_some_and(|set| set & SYS_RESOURCE != 0),
        cni_bin_dir: paths::cni_plugin_folder().ok_or_else(|| missing(&["CNI plugins"]))?.to_string(),
    })?;
    reporter.step("containerd configuration", || Ok(disk::ensure(Path::new(CONTAINERD_CONFIG), 0o644, config.as_bytes())?.into()))?;
    Ok(Service {
        name: CONTAINERD.into(),
        description: "containerd, the container runtime of kprov's pods".into(),
        argv: vec![program.display().to_string(), "--config".into(), CONTAINERD_CONFIG.into()],
        env: BTreeMap::from([("PATH".to_string(), SEARCH.to_string())]),
        after: Vec::new(),
        restart_on: vec![CONTAINERD_CONFIG.into()],
        ready: Some(Ready::Unix(CONTAINERD_SOCKET.into())),
    })
}

/// What is missing comes from the distribution's own packages, which it also keeps safe.
fn packages(reporter: &Reporter, init: Init, nfs: bool) -> Result<Outcome> {
    let absent = absent(nfs);
    if absent.is_empty() {
        return Ok(Outcome::default());
    }
    if find("apt-get").is_none() {
        return Err(missing(&absent));
    }
    let what = format!("installing {}", absent.join(", "));
    let install = || {
        let mut words = vec!["install", "--no-install-recommends"];
        words.extend(&absent);
        apt(reporter, &what, &words, "could not install packages")
    };
    // Lists are often there and fresh: only ask for new ones when that does not do.
    let installed = install().or_else(|_| {
        apt(reporter, &what, &["update"], "could not read the package lists")?;
        install()
    });
    installed.map_err(|error| error.hint(format!("install by hand on the machine: {}", absent.join(" "))))?;
    if init == Init::Systemd && absent.contains(&"containerd") {
        // The package's own service would run beside ours for nothing.
        let _ = run(command("systemctl").args(["disable", "--now", "containerd"]), "could not stop the package's containerd");
    }
    match self::absent(nfs) {
        still if still.is_empty() => Ok(true.into()),
        still => Err(missing(&still)),
    }
}

/// Names of Debian packages whose programs are not there.
fn absent(nfs: bool) -> Vec<&'static str> {
    let programs = [("containerd", &["containerd", "ctr"][..]), ("runc", &["runc"]), ("nftables", &["nft"])];
    let absent = programs.into_iter().filter(|(_, names)| names.iter().any(|name| find(name).is_none())).map(|(package, _)| package);
    let nfs = (nfs && find("mount.nfs4").is_none()).then_some("nfs-common");
    absent.chain(paths::cni_plugin_folder().is_none().then_some("containernetworking-plugins")).chain(nfs).collect()
}

fn missing(names: &[&str]) -> Error {
    Error::host(format!("could not find {} on the machine", names.join(", ")))
        .hint("install them there, or choose an image that has apt-get")
}

/// Never asks, and waits for another package manager (a fresh machine's first upgrade) instead of failing: apt's own option does so for
/// one of its locks only, and tells nobody.
fn apt(reporter: &Reporter, what: &str, arguments: &[&str], failed: &str) -> Result<()> {
    let begun = Instant::now();
    loop {
        reporter.doing(what);
        let mut command = command("apt-get");
        command.args(["--yes", "--quiet", "-o", "Dpkg::Options::=--force-confold"]).args(arguments);
        // Its words are looked at.
        command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
        match run(&mut command, failed) {
            Err(error) if is_locked(&error.chain()) && begun.elapsed() < OTHERS => {
                reporter.doing("waiting for the machine's own package manager");
                std::thread::sleep(LOCK_PAUSE);
            }
            outcome => return outcome.map(drop),
        }
    }
}

fn is_locked(words: &str) -> bool {
    ["Could not get lock", "Unable to acquire the dpkg frontend lock", "Unable to lock"].iter().any(|sign| words.contains(sign))
}

fn find(program: &str) -> Option<PathBuf> {
    SEARCH.split(':').map(|folder| Path::new(folder).join(program)).find(|path| path.is_file())
}

fn bounding_set() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix("CapBnd:"))?;
    u64::from_str_radix(value.trim(), 16).ok()
}

/// Those that cannot be set are named and passed over: in a container, most of the kernel belongs to somebody else.
pub fn sysctls(wanted: &BTreeMap<String, String>) -> Outcome {
    let mut changed = false;
    let mut refused = Vec::new();
    for (name, value) in wanted {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        if std::fs::read_to_string(&path).is_ok_and(|found| found.trim() == value) {
            continue;
        }
        match std::fs::write(&path, value) {
            Ok(()) => changed = true,
            Err(error) => refused.push(format!("{name}: {error}")),
        }
    }
    Outcome { changed, note: (!refused.is_empty()).then(|| format!("could not set {}", refused.join(", "))) }
}

/// A program of the machine, by name, with nothing to read.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(find(program).unwrap_or_else(|| program.into()));
    command.env("PATH", SEARCH).stdin(Stdio::null());
    command
}

/// Its output; its words on stderr become the cause.
pub fn run(command: &mut Command, failed: &str) -> Result<String> {
    let output = command.output().map_err(|error| Error::host(failed).because(error))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let last: Vec<_> = words.trim().lines().rev().take(5).collect();
        let words: Vec<_> = last.into_iter().rev().collect();
        return Err(Error::host(failed).because(format!("{} ({})", words.join("; "), output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::is_locked;

    #[test]
    fn a_package_manager_at_work_is_told_from_one_that_fails() {
        let lists = "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 612 (apt-get)";
        let dpkg = "E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), is another process using it?";
        assert!(is_locked(lists) && is_locked(dpkg));
        assert!(!is_locked("E: Unable to locate package containerd"));
    }
}
