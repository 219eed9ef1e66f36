//! The journal as a file: one checksummed line per record, synced before it counts.

use super::book::{Book, Record};
use super::{Clock, Entry, Journal, State};
use crate::engine::{Id, Request};
use crate::error::{Context, Error, Kind, Result};
use crate::sys::files;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Records beyond what the book needs before the file is rewritten: a few hundred kilobytes, read in milliseconds.
const SLACK: usize = 512;

/// See the module text.
pub struct FileJournal {
    path: PathBuf,
    clock: Clock,
    inner: Mutex<Inner>,
}

struct Inner {
    book: Book,
    file: File,
    /// The length up to which every line is whole; a failed write is cut back to it.
    length: u64,
    lines: usize,
}

impl FileJournal {
    /// Opens or makes the journal. Damaged lines (a torn tail after a crash, a flipped bit) are dropped, and the file is rewritten
    /// from what is whole.
    pub fn open(path: &Path, clock: Clock) -> Result<Self> {
        let failed = || format!("could not open the journal {}", path.display());
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(Error::host(failed()).because(error)),
        };
        let (records, whole) = read(&bytes);
        let mut book = Book::default();
        let lines = records.len();
        records.into_iter().for_each(|record| book.apply(record));
        let inner = match whole && lines <= book.len() + SLACK {
            true => Inner { book, file: append_to(path).or_fail(Kind::Host, failed)?, length: bytes.len() as u64, lines },
            false => rewrite(path, book).or_fail(Kind::Host, failed)?,
        };
        Ok(FileJournal { path: path.to_owned(), clock, inner: Mutex::new(inner) })
    }

    fn append(&self, inner: &mut Inner, record: Record) -> Result<()> {
        let failed = || format!("could not write the journal {}", self.path.display());
        if inner.lines > inner.book.len() + SLACK {
            let book = std::mem::take(&mut inner.book);
            *inner = rewrite(&self.path, book).or_fail(Kind::Host, failed)?;
        }
        let line = line(&record);
        if let Err(error) = inner.file.write_all(&line).and_then(|()| inner.file.sync_data()) {
            // Half a line would swallow the next one. If even this fails, the next run's checksum finds it.
            let _ = inner.file.set_len(inner.length);
            return Err(Error::host(failed()).because(error).hint("is the disk full? nothing was sent"));
        }
        inner.length += line.len() as u64;
        inner.lines += 1;
        inner.book.apply(record);
        Ok(())
    }
}

impl Journal for FileJournal {
    fn intent(&self, request: &Request) -> Result<u64> {
        let mut inner = self.inner.lock();
        let sequence = inner.book.next();
        self.append(&mut inner, Record { sequence, state: State::Intent, time: self.now(), request: Some(request.clone()) })?;
        Ok(sequence)
    }
    fn close(&self, sequence: u64, state: State) -> Result<()> {
        self.append(&mut self.inner.lock(), Record { sequence, state, time: self.now(), request: None })
    }
    fn pending(&self) -> Vec<Entry> {
        self.inner.lock().book.pending()
    }
    fn created(&self) -> Vec<Entry> {
        self.inner.lock().book.created()
    }
    fn latest(&self) -> Option<u64> {
        self.inner.lock().book.latest()
    }
    fn deleted(&self) -> Vec<Entry> {
        self.inner.lock().book.deleted()
    }
    fn generations(&self) -> BTreeMap<Id, u32> {
        self.inner.lock().book.generations()
    }
    fn now(&self) -> u64 {
        (self.clock)()
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    file.seek(SeekFrom::End(0))?;
    // The name must survive a power cut as well as the content does.
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        File::open(folder)?.sync_all()?;
    }
    Ok(file)
}

fn rewrite(path: &Path, book: Book) -> io::Result<Inner> {
    let records = book.records();
    let bytes: Vec<u8> = records.iter().flat_map(line).collect();
    files::write_atomic(path, &bytes, 0o600)?;
    Ok(Inner { book, file: append_to(path)?, length: bytes.len() as u64, lines: records.len() })
}

/// `<16 hexadecimal digits of SHA-256> <JSON>\n`
fn line(record: &Record) -> Vec<u8> {
    let json = serde_json::to_vec(record).expect("a record is plain data");
    let mut line = checksum(&json).into_bytes();
    line.push(b' ');
    line.extend(json);
    line.push(b'\n');
    line
}

fn checksum(json: &[u8]) -> String {
    hex::encode(&Sha256::digest(json)[..8])
}

/// The whole lines, and whether there was nothing else.
pub(super) fn read(bytes: &[u8]) -> (Vec<Record>, bool) {
    let mut whole = bytes.is_empty() || bytes.ends_with(b"\n");
    let mut records = Vec::new();
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let parsed = line.split_at_checked(17).filter(|(sum, json)| *sum == format!("{} ", checksum(json)).as_bytes());
        match parsed.and_then(|(_, json)| serde_json::from_slice(json).ok()) {
            Some(record) => records.push(record),
            None => whole = false,
        }
    }
    (records, whole)
}
