//! The three conversations with one machine: probe, upload, `kprov host`. Each is one remote command over one connection.

use super::facts::{self, Facts, Needs};
use super::frame::{self, Order, Report};
use super::plan::{self, Step, Wish};
use super::spec::{File, HostSpec, Image, Marker};
use super::trust::Trust;
use crate::engine::Progress;
use crate::error::{Context, Error, Kind, Result};
use crate::remote::{self, Connection};
use crate::sys::executable::Executable;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::OnceCell;

const UPLOAD: &str = include_str!("../../templates/upload.sh");
/// A probe reads a few files; a machine that takes longer is not well.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);
/// A report comes at least when a service is ready or has failed (120 s) and when packages are installed.
const SILENCE: Duration = Duration::from_secs(600);
/// For stderr to end after stdout has.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Farther away than this, compressing costs less time than sending: a gigabit within one house, or one host.
const NEAR: Duration = Duration::from_millis(2);
/// Room for containerd's content and snapshots of kprov's own image beside what is uploaded.
const DISK_FLOOR: u64 = 256 << 20;

/// The program to put on machines: this very one. Read once, compressed once at most.
pub struct Program {
    executable: Executable,
    packed: OnceCell<Bytes>,
}

impl Program {
    pub fn current() -> Result<Arc<Program>> {
        Ok(Self::of(Executable::current()?))
    }

    pub fn of(executable: Executable) -> Arc<Program> {
        Arc::new(Program { executable, packed: OnceCell::new() })
    }

    pub fn sha256(&self) -> &str {
        &self.executable.sha256
    }

    /// gzip at its fastest.
    async fn packed(&self) -> Result<Bytes> {
        let pack = || async {
            let path = self.executable.path.clone();
            let pack = move || -> std::io::Result<Bytes> {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                std::io::copy(&mut std::fs::File::open(path)?, &mut encoder)?;
                Ok(encoder.finish()?.into())
            };
            let failed = || "could not compress the program for its upload";
            tokio::task::spawn_blocking(pack).await.or_fail(Kind::Internal, failed)?.or_fail(Kind::Host, failed)
        };
        self.packed.get_or_try_init(pack).await.cloned()
    }
}

/// What the machine is, and our clock when it said so.
pub async fn probe(connection: &Connection) -> Result<(Facts, SystemTime)> {
    let asked = SystemTime::now();
    let answer = tokio::time::timeout(PROBE_TIMEOUT, connection.shell(facts::PROBE, b""));
    let output = answer.await.map_err(|_| Error::transient(format!("could not examine {}: no answer", connection.machine)))??;
    let text = remote::success(&connection.machine, "examine", output)?;
    let middle = asked + asked.elapsed().unwrap_or_default() / 2;
    Ok((Facts::parse(&text)?, middle))
}

/// Makes the machine what `spec` says: looks first, sends only what is missing. The marker is what the machine then says of itself.
pub async fn ensure(connection: &Connection, spec: &HostSpec, program: &Program, progress: Progress<'_>) -> Result<Marker> {
    progress("examining the machine");
    let (facts, now) = probe(connection).await?;
    let executable = &program.executable;
    let wish = Wish { revision: &spec.revision, program_sha256: &executable.sha256, program_bytes: executable.size };
    let steps = plan::steps(&facts, &wish, SystemTime::now());
    if steps.is_empty() {
        return facts.marker.ok_or_else(|| Error::internal("could not tell what is installed: no steps and no marker"));
    }
    let images: u64 = spec.images.iter().map(|image| image.size).sum();
    let uploaded = facts.program.as_deref() == Some(&executable.sha256);
    // Twice: an archive and what containerd makes of it.
    let disk_bytes = if uploaded { 0 } else { DISK_FLOOR + executable.size * 3 + images * 2 };
    let needs = Needs { cluster_uid: &spec.cluster_uid, arch: &executable.arch, disk_bytes, now };
    if let Some(refusal) = facts::refusal(&connection.machine, &facts::preflight(&facts, &needs)) {
        return Err(refusal);
    }
    let mut marker = None;
    for step in steps {
        tracing::info!(machine = connection.machine, %step, "host");
        match step {
            Step::Upload { .. } => upload(connection, &facts, program, progress).await?,
            Step::Install { .. } => marker = converse(connection, Order::Install(Box::new(spec.clone())), progress).await?.marker,
        }
    }
    marker.ok_or_else(|| Error::internal("could not tell what was installed: no marker came back"))
}

async fn upload(connection: &Connection, facts: &Facts, program: &Program, progress: Progress<'_>) -> Result<()> {
    let executable = &program.executable;
    let far = connection.round_trip > NEAR && facts.programs.contains("gzip");
    progress(&format!("uploading kprov ({} MiB)", executable.size >> 20));
    let mut child = connection.spawn(&["sh", "-c", UPLOAD]).await?;
    let mut stdin = child.stdin().take().expect("stdin is piped");
    let encoding = if far { "gzip" } else { "raw" };
    let send = async move {
        stdin.write_all(format!("{} {encoding}\n", executable.sha256).as_bytes()).await?;
        if far {
            let packed = program.packed().await.map_err(|error| std::io::Error::other(error.chain()))?;
            stdin.write_all(&packed).await?;
        } else {
            let file = tokio::fs::File::open(&executable.path).await?;
            tokio::io::copy_buf(&mut BufReader::with_capacity(1 << 20, file), &mut stdin).await?;
        }
        stdin.shutdown().await
    };
    let (sent, output) = tokio::join!(send, child.wait_with_output());
    let output = output.map_err(|error| connection.broken(error))?;
    // The remote side's own words first: a full disk there breaks the pipe here.
    remote::success(&connection.machine, "upload kprov to", output)?;
    sent.or_fail(Kind::Transient, || format!("could not upload kprov to {}", connection.machine))
}

/// What came of an order.
#[derive(Debug, Default)]
struct Answer {
    marker: Option<Marker>,
    keys: Vec<File>,
}

/// One order to `kprov host`, its reports as progress, archives when it asks for them.
async fn converse(connection: &Connection, order: Order, progress: Progress<'_>) -> Result<Answer> {
    let machine = &connection.machine;
    let mut child = connection.spawn(&[crate::sys::paths::BINARY, "host"]).await?;
    let mut stdin = child.stdin().take().expect("stdin is piped");
    let mut stdout = BufReader::new(child.stdout().take().expect("stdout is piped"));
    let mut stderr = child.stderr().take().expect("stderr is piped");
    // Panics and the like: a few lines at most. Read beside the talk, or a chatty machine would block on a full pipe.
    let words = tokio::spawn(async move {
        let mut words = Vec::new();
        let _ = (&mut stderr).take(16 << 10).read_to_end(&mut words).await;
        String::from_utf8_lossy(&words).trim().to_string()
    });
    let talk = async {
        frame::write_async(&mut stdin, &order).await?;
        let mut answer = Answer::default();
        loop {
            let report = tokio::time::timeout(SILENCE, frame::read_async::<Report>(&mut stdout));
            let report = report.await.map_err(|_| Error::transient(format!("could not go on with {machine}: no sign of life")))?;
            match report? {
                Some(Report::Step(step)) => {
                    let note = step.note.as_deref().unwrap_or_default();
                    tracing::info!(machine, step = step.name, changed = step.changed, millis = step.millis, note, "host");
                }
                Some(Report::Doing(what)) => progress(&what),
                Some(Report::Need { sha256 }) => send_image(&order, &sha256, &mut stdin, progress).await?,
                Some(Report::Keys(keys)) => answer.keys = keys,
                Some(Report::Done(marker)) => {
                    answer.marker = marker.map(|marker| *marker);
                    return Ok(Some(answer));
                }
                Some(Report::Failed(failure)) => return Err(Error::from(failure)),
                None => return Ok(None),
            }
        }
    };
    if let Some(answer) = talk.await? {
        return Ok(answer);
    }
    let words = tokio::time::timeout(LAST_WORDS, words).await;
    let words = words.ok().and_then(|joined| joined.ok()).unwrap_or_default();
    Err(Error::transient(format!("could not finish the installation of {machine}: `kprov host` ended early")).because(words))
}

async fn send_image(order: &Order, sha256: &str, to: &mut (impl tokio::io::AsyncWrite + Unpin), progress: Progress<'_>) -> Result<()> {
    let offered = match order {
        Order::Install(spec) => spec.images.as_slice(),
        Order::Archives(images) => images.as_slice(),
        Order::Remove | Order::Keys => &[],
    };
    // Only what was offered: the machine names a sum, never a path.
    let image = offered.iter().find(|image| image.sha256 == sha256);
    let image = image.ok_or_else(|| Error::host("could not send an image: the machine asks for one that was not offered"))?;
    let name = image.names.first().map(String::as_str).unwrap_or(sha256);
    progress(&format!("uploading image {name} ({} MiB)", image.size >> 20));
    let failed = || format!("could not send {}", image.source.display());
    if image.size == 0 {
        return Err(Error::host(format!("{}: the control plane has not got it whole", failed()))
            .hint("run kprov up with the blueprint again: it brings the archive"));
    }
    let file = tokio::fs::File::open(&image.source).await.or_fail(Kind::Host, failed)?;
    let sent =
        tokio::io::copy_buf(&mut BufReader::with_capacity(1 << 20, file.take(image.size)), to).await.or_fail(Kind::Transient, failed)?;
    if sent != image.size {
        return Err(Error::host(format!("{}: it became shorter meanwhile", failed())));
    }
    to.flush().await.or_fail(Kind::Transient, failed)
}

/// The cluster's keys from a control plane, for an operator who has none or others; an installation that is under way there ends
/// first. `None` when this machine has none, or half of them.
pub async fn keys(connection: &Connection) -> Result<Option<Trust>> {
    let (facts, _) = probe(connection).await?;
    if facts.program.is_none() {
        return Ok(None);
    }
    let answer = converse(connection, Order::Keys, &|_| ()).await?;
    let files: BTreeMap<String, Vec<u8>> =
        answer.keys.into_iter().map(|file| (file.path.to_string_lossy().into_owned(), file.content)).collect();
    Trust::complete(&files, SystemTime::now())
}

/// Brings archives to a control plane, where the loop inside finds them.
pub async fn archives(connection: &Connection, images: &[Image], progress: Progress<'_>) -> Result<()> {
    converse(connection, Order::Archives(images.to_vec()), progress).await.map(drop)
}

/// Takes kprov away from a machine that stays.
pub async fn remove(connection: &Connection, progress: Progress<'_>) -> Result<()> {
    let (facts, _) = probe(connection).await?;
    match facts.program {
        Some(_) => converse(connection, Order::Remove, progress).await.map(drop),
        None => Ok(()),
    }
}
