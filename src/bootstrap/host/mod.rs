//! The work done on the machine itself: `kprov host`, started over SSH, told what to be on stdin, every step an "ensure".
//!
//! Blocking code with two threads: containerd and its images on one, files and the server on the other, so that neither waits for
//! what it does not need. Killed anywhere, the next run goes on: the marker is written last.

mod disk;
mod images;
mod init;
mod machine;
mod remove;

use super::frame::{self, Order, Report, Step};
use super::spec::{self, HostSpec, MARKER, Marker, Service};
use super::trust::{self, Trust};
use crate::error::{Context, Error, Kind, Result};
use crate::sys::files::Lock;
use crate::sys::paths;
use init::Init;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io::{BufReader, Stdin, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// `kprov host` (framed conversation), `kprov host status` (lines for the probe), `kprov host remove` (for people).
pub fn main() -> ExitCode {
    let outcome = match std::env::args().nth(2).as_deref() {
        None => converse(),
        Some("status") => status(),
        Some("remove") => remove::everything(&Reporter::silent()),
        Some(other) => Err(Error::input(format!("could not understand `kprov host {other}`"))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error.chain());
            ExitCode::from(error.kind.exit_code())
        }
    }
}

/// One order, its reports, and the last word. A failure is reported as a frame: the exit code is only for people.
fn converse() -> Result<()> {
    let mut input = BufReader::new(std::io::stdin());
    let reporter = Reporter::framed();
    let order = frame::read(&mut input)?.ok_or_else(|| Error::input("could not start: no order on stdin"))?;
    let outcome = carry_out(order, input, &reporter);
    let last = match &outcome {
        Ok(marker) => Report::Done(marker.clone().map(Box::new)),
        Err(error) => Report::Failed(error.into()),
    };
    reporter.send(&last).or_fail(Kind::Transient, || "could not report the outcome")?;
    outcome.map(drop)
}

fn carry_out(order: Order, input: BufReader<Stdin>, reporter: &Reporter) -> Result<Option<Marker>> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::host("could not install: not root"));
    }
    match order {
        Order::Install(spec) => install(&spec, input, reporter).map(Some),
        Order::Archives(images) => {
            let _lock = one_at_a_time(reporter)?;
            images::keep(&images, input, reporter)?;
            Ok(None)
        }
        Order::Remove => remove::everything(reporter).map(|()| None),
        Order::Keys => {
            let _lock = one_at_a_time(reporter)?;
            let keys = disk::keys(Path::new(paths::PKI))?;
            reporter.send(&Report::Keys(keys)).or_fail(Kind::Transient, || "could not send the keys")?;
            Ok(None)
        }
    }
}

fn install(spec: &HostSpec, input: BufReader<Stdin>, reporter: &Reporter) -> Result<Marker> {
    let _lock = one_at_a_time(reporter)?;
    let before = disk::marker();
    if let Some(marker) = before.as_ref().filter(|marker| marker.cluster_uid != spec.cluster_uid) {
        return Err(Error::host(format!("could not install: this machine is {} of another cluster", marker.node_name))
            .hint("take it out of that cluster first: run `kprov host remove` on it"));
    }
    keep_keys(spec)?;
    let program = disk::program_sum()?;
    let init = Init::detect()?;
    std::thread::scope(|scope| {
        let runtime = scope.spawn(|| {
            let containerd = machine::containerd(reporter, init, spec.nfs)?;
            start(&containerd, &program, init, reporter)?;
            images::ensure(spec, before.as_ref(), &program, input, reporter)
        });
        write_files(spec, reporter)?;
        let (with_runtime, alone): (Vec<_>, Vec<_>) =
            spec.services.iter().partition(|service| service.after.iter().any(|name| name == spec::CONTAINERD));
        for service in alone {
            start(service, &program, init, reporter)?;
        }
        runtime.join().map_err(|_| Error::internal("could not set up containerd: a bug"))??;
        for service in with_runtime {
            start(service, &program, init, reporter)?;
        }
        let marker = marker(spec, &program)?;
        reporter.step("marker", || {
            let bytes = serde_json::to_vec(&marker).expect("a marker always serialises");
            Ok(disk::ensure(Path::new(MARKER), 0o644, &bytes)?.into())
        })?;
        images::sweep(&spec.images)?;
        Ok(marker)
    })
}

/// A control plane's keys are the cluster's: what is signed and encrypted with them is lost with them. Whoever comes with others (two
/// `up` began at once) takes these over first.
fn keep_keys(spec: &HostSpec) -> Result<()> {
    let path = Path::new(paths::PKI).join("ca.crt");
    let offered = spec.files.iter().find(|file| file.path == path).map(|file| file.content.as_slice());
    let files = disk::keys(Path::new(paths::PKI))?.into_iter().map(|file| (file.path.to_string_lossy().into_owned(), file.content));
    // Damaged ones are no keys.
    let Ok(Some(kept)) = Trust::complete(&files.collect(), SystemTime::now()) else { return Ok(()) };
    if kept.cluster.uid != spec.cluster_uid || offered.is_none_or(|offered| offered == kept.ca.certificate.as_bytes()) {
        return Ok(());
    }
    Err(Error::conflict(
        "could not install: another `kprov up` has given this machine the cluster's keys meanwhile, and they are not yours",
    )
    .hint("run the same command again: it takes those keys over"))
}

/// An earlier run, whose connection was lost, may still be at work.
fn one_at_a_time(reporter: &Reporter) -> Result<Lock> {
    let path = Path::new("/run/kprov/host.lock");
    let failed = || format!("could not lock {}", path.display());
    std::fs::create_dir_all("/run/kprov").or_fail(Kind::Host, failed)?;
    if let Some(lock) = Lock::try_take(path).or_fail(Kind::Host, failed)? {
        return Ok(lock);
    }
    reporter.doing("waiting for an earlier run on this machine");
    Lock::wait(path).or_fail(Kind::Host, failed)
}

fn write_files(spec: &HostSpec, reporter: &Reporter) -> Result<()> {
    reporter.step("directories", || {
        spec.directories.iter().try_fold(false, |changed, folder| Ok(disk::ensure_directory(folder)? | changed)).map(Outcome::from)
    })?;
    reporter.step("files", || {
        spec.files
            .iter()
            .try_fold(false, |changed, file| Ok(disk::ensure(&file.path, file.mode, &file.content)? | changed))
            .map(Outcome::from)
    })?;
    reporter.step("certificates", || {
        let now = SystemTime::now();
        spec.leaves.iter().try_fold(false, |changed, leaf| Ok(disk::ensure_leaf(leaf, now)? | changed)).map(Outcome::from)
    })?;
    reporter.step("sysctls", || Ok(machine::sysctls(&spec.sysctls)))
}

/// Its files are there before it starts; it has answered when this returns.
fn start(service: &Service, program: &str, init: Init, reporter: &Reporter) -> Result<()> {
    reporter.doing(&format!("starting {}", service.name));
    reporter.step(&service.name, || {
        let changed = init.ensure(service, &service_revision(service, program)?)?;
        init.wait_ready(service)?;
        Ok(changed.into())
    })
}

/// Changes exactly when the running process would differ: the program, its arguments, the files it reads at its start.
fn service_revision(service: &Service, program: &str) -> Result<String> {
    let mut parts = vec![("argv", format!("{:?}", service.argv)), ("env", format!("{:?}", service.env))];
    if service.argv.first().is_some_and(|path| path == paths::BINARY) {
        parts.push(("program", program.to_string()));
    }
    for path in &service.restart_on {
        let content = std::fs::read(path).or_fail(Kind::Host, || format!("could not read {}", path.display()))?;
        parts.push(("file", format!("{} {}", path.display(), crate::sys::executable::sha256(&content))));
    }
    let parts: Vec<_> = parts.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Ok(spec::revision(&parts))
}

fn marker(spec: &HostSpec, program: &str) -> Result<Marker> {
    let mut rotate_at = u64::MAX;
    for leaf in &spec.leaves {
        let path = &leaf.certificate.path;
        let text = std::fs::read_to_string(path).or_fail(Kind::Host, || format!("could not read {}", path.display()))?;
        let moment = trust::life(&text)?.rotate_at().duration_since(UNIX_EPOCH).unwrap_or_default();
        rotate_at = rotate_at.min(moment.as_secs());
    }
    let leaves = spec.leaves.iter().flat_map(|leaf| [&leaf.certificate.path, &leaf.key.path]);
    Ok(Marker {
        cluster_uid: spec.cluster_uid.clone(),
        node_name: spec.node_name.clone(),
        role: spec.role.clone(),
        revision: spec.revision.clone(),
        generation: spec.generation,
        program: program.to_string(),
        services: std::iter::once(spec::CONTAINERD.to_string()).chain(spec.services.iter().map(|service| service.name.clone())).collect(),
        images: spec.images.iter().map(|image| image.sha256.clone()).collect(),
        files: spec.files.iter().map(|file| &file.path).chain(leaves).cloned().collect(),
        rotate_at,
    })
}

/// Lines that the probe script appends to its own.
fn status() -> Result<()> {
    let Some(marker) = disk::marker() else { return Ok(()) };
    let running = Init::detect()?.running(&marker.services);
    let lines: String = running.iter().map(|name| format!("running.{name}=yes\n")).collect();
    std::io::stdout().write_all(lines.as_bytes()).or_fail(Kind::Transient, || "could not print the status")
}

/// What an "ensure" did.
#[derive(Default)]
struct Outcome {
    changed: bool,
    note: Option<String>,
}

impl From<bool> for Outcome {
    fn from(changed: bool) -> Self {
        Outcome { changed, note: None }
    }
}

/// Tells the other side what happens. That side may be gone: then the work goes on to its end all the same.
struct Reporter {
    framed: bool,
    last: Mutex<BTreeMap<&'static str, String>>,
}

impl Reporter {
    fn framed() -> Self {
        Reporter { framed: true, last: Mutex::default() }
    }

    fn silent() -> Self {
        Reporter { framed: false, last: Mutex::default() }
    }

    fn send(&self, report: &Report) -> std::io::Result<()> {
        if self.framed { frame::write(&mut std::io::stdout().lock(), report) } else { Ok(()) }
    }

    fn doing(&self, what: &str) {
        let mut last = self.last.lock();
        if last.insert("doing", what.to_string()).as_deref() != Some(what) {
            let _ = self.send(&Report::Doing(what.to_string()));
        }
    }

    fn step(&self, name: &str, ensure: impl FnOnce() -> Result<Outcome>) -> Result<()> {
        let start = Instant::now();
        let outcome = ensure()?;
        let millis = start.elapsed().as_millis() as u64;
        let _ = self.send(&Report::Step(Step { name: name.to_string(), changed: outcome.changed, millis, note: outcome.note }));
        Ok(())
    }
}
