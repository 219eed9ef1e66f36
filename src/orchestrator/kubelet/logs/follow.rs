//! Reads one container's log file and, when asked, what is written to it from then on, across rotations, until the container ends.

use super::{Decoder, Options, tail_start};
use crate::orchestrator::kubelet::cri::Runtime;
use crate::orchestrator::kubelet::cri::events::Happening;
use crate::orchestrator::kubelet::cri::messages::container_state;
use crate::orchestrator::kubelet::inotify::Watch;
use bytes::Bytes;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::{broadcast, mpsc};

/// How much is read and sent at a time.
const CHUNK: usize = 64 << 10;
/// How far back the search for the last lines goes: more is nobody's terminal.
const LONGEST_TAIL: u64 = 64 << 20;

pub struct Reader {
    pub runtime: Runtime,
    pub container_id: String,
    pub file: PathBuf,
    pub options: Options,
    /// What happens in the runtime: tells when the container ends.
    pub happenings: broadcast::Receiver<Happening>,
    pub out: mpsc::Sender<Result<Bytes, Box<dyn std::error::Error + Send + Sync>>>,
}

impl Reader {
    pub async fn run(mut self) {
        if let Err(error) = self.read().await {
            let _ = self.out.send(Err(error.into())).await;
        }
    }

    async fn read(&mut self) -> io::Result<()> {
        let watch = match (self.options.follow, self.file.parent()) {
            (true, Some(folder)) => Some(Watch::folder(folder)?),
            _ => None,
        };
        let mut source = Source::open(&self.file, self.options.tail_lines)?;
        let mut decoder = Decoder::new(&self.options);
        let mut ended = self.options.previous || !self.is_running(&[0]).await;
        loop {
            if !self.pass_on(&mut source, &mut decoder).await? {
                return Ok(());
            }
            let Some(watch) = &watch else { return Ok(()) };
            if source.follow_rotation(&self.file)? {
                continue;
            }
            if ended {
                return Ok(());
            }
            tokio::select! {
                changed = watch.changed() => changed?,
                _ = self.out.closed() => return Ok(()),
                happening = self.happenings.recv() => ended = match happening {
                    Ok(Happening::Exited(id)) if id != self.container_id => false,
                    Ok(Happening::OutOfMemory(_)) => false,
                    Err(broadcast::error::RecvError::Closed) => true,
                    // Its own end, or something that may have hidden it. The event overtakes the runtime's own books by milliseconds.
                    _ => !self.is_running(&[0, 20, 50, 200]).await,
                },
            }
            if ended {
                // The runtime writes the last lines a moment after the process is gone.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }

    /// Sends all that is there; false when nobody wants more.
    async fn pass_on(&mut self, source: &mut Source, decoder: &mut Decoder) -> io::Result<bool> {
        loop {
            let mut out = Vec::new();
            let more = source.next(|line| decoder.line(line, &mut out))?;
            if !out.is_empty() && self.out.send(Ok(out.into())).await.is_err() {
                return Ok(false);
            }
            if decoder.is_full() {
                return Ok(false);
            }
            if !more {
                return Ok(true);
            }
        }
    }

    /// Looks once after each pause, until it is not running.
    async fn is_running(&self, pauses_millis: &[u64]) -> bool {
        for pause in pauses_millis {
            tokio::time::sleep(Duration::from_millis(*pause)).await;
            match self.runtime.container_status(&self.container_id).await {
                Ok(status) if status.state == container_state::RUNNING => {}
                Ok(status) if status.state == container_state::CREATED => return true,
                _ => return false,
            }
        }
        true
    }
}

/// An open log file, and the piece of a line that was read from it without an end.
struct Source {
    file: File,
    inode: u64,
    rest: Vec<u8>,
}

impl Source {
    fn open(path: &Path, tail_lines: Option<usize>) -> io::Result<Source> {
        let mut file = File::open(path)?;
        let meta = file.metadata()?;
        if let Some(lines) = tail_lines {
            let from = meta.len().saturating_sub(LONGEST_TAIL);
            let start = from + last_lines(&mut file, from, lines)?;
            file.seek(SeekFrom::Start(start))?;
        }
        Ok(Source { inode: meta.ino(), file, rest: Vec::new() })
    }

    /// Hands on whole lines of the next chunk; false at the end of the file.
    fn next(&mut self, mut line: impl FnMut(&[u8])) -> io::Result<bool> {
        let mut chunk = vec![0; CHUNK];
        let count = self.file.read(&mut chunk)?;
        self.rest.extend_from_slice(&chunk[..count]);
        let mut from = 0;
        while let Some(length) = self.rest[from..].iter().position(|byte| *byte == b'\n') {
            line(&self.rest[from..from + length]);
            from += length + 1;
        }
        self.rest.drain(..from);
        Ok(count > 0)
    }

    /// True when the path holds another file by now, which is read from its beginning.
    fn follow_rotation(&mut self, path: &Path) -> io::Result<bool> {
        match std::fs::metadata(path) {
            Ok(meta) if meta.ino() != self.inode => {
                *self = Source::open(path, None)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}

/// Reads ever larger ends of the file until the wanted lines are in it.
fn last_lines(file: &mut File, from: u64, lines: usize) -> io::Result<u64> {
    let length = file.metadata()?.len() - from;
    let mut size = CHUNK as u64;
    loop {
        let start = length.saturating_sub(size);
        file.seek(SeekFrom::Start(from + start))?;
        let mut content = Vec::new();
        file.by_ref().take(size).read_to_end(&mut content)?;
        let at = tail_start(&content, lines) as u64;
        // At the very beginning of the piece there may be more of the same line before it.
        if at > 0 || start == 0 {
            return Ok(start + at);
        }
        size *= 4;
    }
}
