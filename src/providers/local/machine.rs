//! Making, changing, stopping and removing one machine, from the daemon's side and in terms of its folder.

use super::layout::Layout;
use super::record::Record;
use super::root::DATA;
use super::{fabric, hostkey, lock, shim};
use crate::error::{Context, Error, Kind, Result};
use crate::providers::resources::MachineSpec;
use crate::supervisor::Service;
use crate::sys::cgroups::Group;
use crate::sys::files;
use k8s_openapi::jiff::Timestamp;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// How long a shim may take to notice that its machine is gone.
const SHIM_GRACE: Duration = Duration::from_secs(1);

const SSHD_CONFIG: &str = "Port 22
HostKey /etc/ssh/ssh_host_ed25519_key
UsePAM no
UseDNS no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
AuthorizedKeysFile .ssh/authorized_keys /run/kprov/admitted_keys
MaxStartups 100:30:200
MaxSessions 100
PrintMotd no
AcceptEnv LANG LC_*
Subsystem sftp internal-sftp
";

/// Everything a machine finds on its disk at its first boot, written below its overlay before that is mounted. Idempotent: on a later
/// boot it sets right what the cloud owns and leaves the rest.
pub fn write_files(layout: &Layout, record: &Record, spec: &MachineSpec) -> Result<()> {
    let name = &record.id.name;
    (|| {
        let folder = layout.machine(name);
        for part in ["upper", "work", "root", "skeleton"] {
            make(&folder.join(part), 0o755)?;
        }
        make(&folder.join(DATA), 0o755)?;
        make(&folder.join(DATA).join("filesystems"), 0o755)?;
        make(&layout.filesystems(), 0o755)?;
        let upper = folder.join("upper");
        for (part, mode) in [
            ("etc", 0o755),
            ("etc/ssh", 0o755),
            ("etc/kprov", 0o755),
            ("etc/kprov/services", 0o755),
            ("root", 0o700),
            ("root/.ssh", 0o700),
            ("var", 0o755),
            ("var/log", 0o755),
        ] {
            make(&upper.join(part), mode)?;
        }
        let address = record.address.map(|address| address.to_string()).unwrap_or_default();
        let put = |path: &str, text: &str, mode: u32| write_quickly(&upper.join(path), text.as_bytes(), mode);
        put("etc/hostname", &format!("{name}\n"), 0o644)?;
        put("etc/hosts", &format!("127.0.0.1 localhost\n::1 localhost ip6-localhost\n{address} {name}\n"), 0o644)?;
        put("etc/resolv.conf", "# machines of the local cloud have no way out of their network\n", 0o644)?;
        if !upper.join("etc/machine-id").exists() {
            put("etc/machine-id", &format!("{}\n", uuid::Uuid::new_v4().simple()), 0o444)?;
        }
        put("etc/shadow", &without_passwords(&fs::read_to_string("/etc/shadow").unwrap_or_default()), 0o640)?;
        put("etc/ssh/sshd_config", SSHD_CONFIG, 0o644)?;
        put("etc/ssh/ssh_host_ed25519_key", record.host_key.as_deref().unwrap_or_default(), 0o600)?;
        put("root/.ssh/authorized_keys", &format!("{}\n", spec.ssh_public_key.trim()), 0o600)?;
        let sshd = Service::new("sshd", &["/usr/sbin/sshd", "-D", "-e"]);
        put("etc/kprov/services/sshd.json", &serde_json::to_string_pretty(&sshd).map_err(io::Error::other)?, 0o600)?;
        // Without them each login is greeted by a warning.
        for log in ["lastlog", "wtmp", "btmp"] {
            fs::OpenOptions::new().create(true).append(true).open(upper.join("var/log").join(log)).map(drop)?;
        }
        io::Result::Ok(())
    })()
    .or_fail(Kind::Host, || format!("could not write the disk of machine {name}"))
}

/// `/run/kprov/machine.json`: what the machine was given, for whoever reports a node's capacity (/proc shows the host's).
pub fn write_facts(root: &Path, record: &Record) -> io::Result<()> {
    let spec: MachineSpec = record.spec().map_err(|error| io::Error::other(error.chain()))?;
    let facts = serde_json::json!({
        "name": record.id.name, "cpuMillis": spec.cpu_millis, "memoryBytes": spec.memory_bytes, "diskBytes": spec.disk_bytes,
    });
    files::write_atomic(&root.join("run/kprov/machine.json"), facts.to_string().as_bytes(), 0o644)
}

/// Applies limits and key to a machine that runs; one that is stopped gets them at its next start.
pub fn update(layout: &Layout, record: &Record, spec: &MachineSpec) -> Result<()> {
    let name = &record.id.name;
    let failed = || format!("could not change machine {name}");
    let Alive::Running(running) = alive(layout, name)? else { return Ok(()) };
    Group::new(layout.group(name)).and_then(|group| group.limit(spec.cpu_millis, spec.memory_bytes)).or_fail(Kind::Host, failed)?;
    // Through its own mount namespace: writing below a mounted overlay is undefined.
    let root = Path::new("/proc").join(running.init.to_string()).join("root");
    write_facts(&root, record).or_fail(Kind::Host, failed)?;
    let keys = format!("{}\n", spec.ssh_public_key.trim());
    files::write_atomic(&root.join("root/.ssh/authorized_keys"), keys.as_bytes(), 0o600).or_fail(Kind::Host, failed)
}

/// How long an admitted key may log in: enough for one login, too short to be forgotten about.
const ADMITTED: Duration = Duration::from_secs(120);

/// Lets a key in beside the cluster's own. sshd itself ends it, and a reboot forgets it: the file is in memory.
pub fn admit(layout: &Layout, name: &str, key: &str, now: SystemTime) -> Result<()> {
    let failed = || format!("could not admit a key to machine {name}");
    let Alive::Running(running) = alive(layout, name)? else { return Err(Error::host(failed()).hint("the machine does not run")) };
    let until = (now + ADMITTED).duration_since(SystemTime::UNIX_EPOCH).or_fail(Kind::Host, failed)?.as_secs();
    let until = Timestamp::from_second(until as i64)
        .map_err(|error| Error::host(failed()).because(error.to_string()))?
        .strftime("%Y%m%d%H%M%SZ")
        .to_string();
    let line = admission(key, &until).ok_or_else(|| Error::input(failed()).hint("a key is one line: ssh-ed25519 AAAA... comment"))?;
    let path = Path::new("/proc").join(running.init.to_string()).join("root/run/kprov/admitted_keys");
    files::write_atomic(&path, line.as_bytes(), 0o600).or_fail(Kind::Host, failed)
}

/// One line of sshd's own format; a text that is more than one key is refused.
fn admission(key: &str, until: &str) -> Option<String> {
    let key = key.trim();
    let one = !key.contains(['\n', '\r']) && key.starts_with("ssh-");
    one.then(|| format!("expiry-time=\"{until}\" {key}\n"))
}

/// What a machine is doing, by its lock and what its shim has written.
pub enum Alive {
    No,
    /// Begun by an earlier daemon, not ready yet.
    Starting,
    Running(shim::Running),
}

pub fn alive(layout: &Layout, name: &str) -> Result<Alive> {
    let path = layout.machine(name).join("shim.lock");
    if !path.exists() || lock::try_take(&path).or_fail(Kind::Host, || format!("could not look at machine {name}"))?.is_some() {
        return Ok(Alive::No);
    }
    // An old file may still be there while a new shim has just begun: only the shim that it names is meant.
    let running = shim::running(layout, name).filter(|running| Path::new("/proc").join(running.init.to_string()).exists());
    Ok(running.map_or(Alive::Starting, Alive::Running))
}

/// Returns when no process of the machine is left. Thaws it first: frozen processes do not die.
pub fn stop(layout: &Layout, name: &str) -> Result<()> {
    let failed = || format!("could not stop machine {name}");
    let path = layout.machine(name).join("shim.lock");
    let (begun, deadline) = (Instant::now(), Instant::now() + Duration::from_secs(10));
    let group = Group::new(layout.group(name)).or_fail(Kind::Host, failed)?;
    loop {
        group.kill().or_fail(Kind::Host, failed)?;
        if !path.exists() || lock::try_take(&path).or_fail(Kind::Host, failed)?.is_some() {
            return Ok(());
        }
        // It ends by itself once it has collected the machine's first process.
        if let Some(running) = shim::running(layout, name).filter(|_| begun.elapsed() > SHIM_GRACE) {
            let _ = nix::sys::signal::kill(Pid::from_raw(running.shim), Signal::SIGKILL);
        }
        if Instant::now() > deadline {
            return Err(Error::host(failed()).hint("its shim does not end"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Everything of the machine but its record.
pub fn remove(layout: &Layout, name: &str) -> Result<()> {
    let failed = || format!("could not remove machine {name}");
    stop(layout, name)?;
    let group = Group::new(layout.group(name)).or_fail(Kind::Host, failed)?;
    group.remove().or_fail(Kind::Host, failed)?;
    group.remove_empty_parents();
    fabric::detach(layout, name)?;
    let folder = layout.machine(name);
    // Somebody may have mounted something there by hand: never delete through a mount.
    if let Some(mount) = super::sweep::mounts_below(&folder).first() {
        return Err(Error::host(failed()).hint(format!("{mount} is mounted; unmount it")));
    }
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).or_fail(Kind::Host, failed),
        _ => Ok(()),
    }
}

/// The public SSH host key line.
pub fn host_key(record: &Record) -> Option<String> {
    hostkey::public_of(record.host_key.as_deref()?)
}

/// Accounts stay (sshd needs its own), passwords go: `*` cannot match, and, unlike `!`, does not lock out keys.
fn without_passwords(shadow: &str) -> String {
    let mask = |line: &str| {
        let mut fields: Vec<&str> = line.split(':').collect();
        if fields.len() > 1 {
            fields[1] = "*";
        }
        fields.join(":") + "\n"
    };
    shadow.lines().map(mask).collect()
}

/// Without a sync each: a boot that was cut short writes them again.
fn write_quickly(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)
}

fn make(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_passwords_do_not_reach_machines() {
        let masked = without_passwords("root:$y$secret:19000:0:99999:7:::\nsshd:!:19000::::::\n");
        assert_eq!(masked, "root:*:19000:0:99999:7:::\nsshd:*:19000::::::\n");
    }
}
