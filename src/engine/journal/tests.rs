//! Journals through crashes and damage.

use super::book::Book;
use super::*;
use crate::engine::{Action, Cluster, Verb};
use serde_json::json;

fn request(verb: Verb, name: &str, generation: u32) -> Request {
    let cluster = Cluster { name: "shop".into(), uid: "u-1".into() };
    let id = Id::new("machine", name);
    let (after, reason, summary) = (Vec::new(), String::new(), String::new());
    let action = Action { verb, id, generation, spec: json!({}), handle: None, after, reason, summary };
    Request::of(&cluster, &action, json!({"name": name, "text": "line\nbreak"}))
}

fn clock() -> Clock {
    Arc::new(|| 1000)
}

/// Everything a journal can be asked.
fn view(journal: &dyn Journal) -> (Vec<Entry>, Vec<Entry>, BTreeMap<Id, u32>) {
    (journal.pending(), journal.created(), journal.generations())
}

/// A short life: two machines made, one deleted and made again, one left open, one refused.
fn live(journal: &dyn Journal) {
    for (verb, name, generation, state) in [
        (Verb::Create, "a", 1, Some(State::Done)),
        (Verb::Create, "b", 1, Some(State::Done)),
        (Verb::Delete, "b", 1, Some(State::Done)),
        (Verb::Create, "b", 2, Some(State::Done)),
        (Verb::Update, "a", 1, Some(State::Done)),
        (Verb::Create, "c", 1, None),
        (Verb::Create, "d", 3, Some(State::Failed)),
    ] {
        let sequence = journal.intent(&request(verb, name, generation)).expect("a journal that works");
        if let Some(state) = state {
            journal.close(sequence, state).expect("a journal that works");
        }
    }
}

#[test]
fn knows_what_is_open_what_was_made_and_the_highest_generations() {
    let journal = MemoryJournal::new(clock());
    live(&journal);
    let (pending, created, generations) = view(&journal);
    let said =
        |entries: &[Entry]| entries.iter().map(|entry| format!("{} {}", entry.request.id, entry.request.generation)).collect::<Vec<_>>();
    assert_eq!(said(&pending), ["machine/c 1"]);
    assert_eq!(said(&created), ["machine/a 1", "machine/b 2"]);
    assert_eq!(generations.values().copied().collect::<Vec<_>>(), [1, 2, 1, 3]);
}

#[test]
fn a_journal_read_again_is_the_same_and_gives_the_same_bytes_to_send() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("journal");
    let before = {
        let journal = FileJournal::open(&path, clock()).expect("a new journal");
        live(&journal);
        view(&journal)
    };
    let journal = FileJournal::open(&path, clock()).expect("an old journal");
    assert_eq!(view(&journal), before);
    assert_eq!(before.0[0].request, request(Verb::Create, "c", 1));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).expect("a file").permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn cut_at_any_byte_it_keeps_every_whole_line_and_takes_new_ones() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("journal");
    live(&FileJournal::open(&path, clock()).expect("a new journal"));
    let bytes = std::fs::read(&path).expect("a file");
    let lines = |length: usize| bytes[..=length].iter().filter(|byte| **byte == b'\n').count();
    for length in 0..bytes.len() {
        // A line that lacks only its end is whole.
        assert_eq!(file::read(&bytes[..length]).0, file::read(&bytes).0[..lines(length)], "cut at {length}");
    }
    // Real files cost real syncs: every byte of the last two lines.
    let last_lines = bytes.len() - 1 - bytes.iter().rev().skip(1).position(|byte| *byte == b'\n').expect("more than one line");
    for length in last_lines - 150..bytes.len() {
        std::fs::write(&path, &bytes[..length]).expect("a write");
        let journal = FileJournal::open(&path, clock()).expect("a torn journal");
        let mut expected = Book::default();
        file::read(&bytes).0.into_iter().take(lines(length)).for_each(|record| expected.apply(record));
        assert_eq!(view(&journal), (expected.pending(), expected.created(), expected.generations()), "cut at {length}");
        let sequence = journal.intent(&request(Verb::Create, "late", 9)).expect("a write after the cut");
        drop(journal);
        let again = FileJournal::open(&path, clock()).expect("a mended journal");
        assert!(again.pending().iter().any(|entry| entry.sequence == sequence), "cut at {length}");
    }
}

#[test]
fn any_flipped_bit_loses_at_most_its_own_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("journal");
    live(&FileJournal::open(&path, clock()).expect("a new journal"));
    let bytes = std::fs::read(&path).expect("a file");
    let (all, _) = file::read(&bytes);
    for place in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[place] ^= 1 << bit;
            let (records, whole) = file::read(&damaged);
            assert!(!whole, "byte {place} bit {bit} went unseen");
            assert!(records.iter().all(|record| all.contains(record)), "byte {place} bit {bit} changed a record");
            // A lost line end joins two lines.
            assert!(records.len() + 2 >= all.len(), "byte {place} bit {bit} lost more than its line");
        }
    }
}

#[test]
fn stays_small_over_a_long_life_without_forgetting() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("journal");
    let mut expected = Book::default();
    for sequence in 0..4000u64 {
        let request = request(Verb::Create, &format!("m{}", sequence % 5), sequence as u32 / 5 + 1);
        let record = |state, request| book::Record { sequence, state, time: 1000, request };
        expected.apply(record(State::Intent, Some(request)));
        expected.apply(record(State::Done, None));
    }
    let mut again = Book::default();
    expected.records().into_iter().for_each(|record| again.apply(record));
    assert_eq!(again, expected);
    assert!(expected.records().len() <= 15);
    let journal = FileJournal::open(&path, clock()).expect("a new journal");
    for turn in 0..700 {
        let sequence = journal.intent(&request(Verb::Update, "a", turn)).expect("a write");
        journal.close(sequence, State::Done).expect("a write");
    }
    drop(journal);
    let lines = std::fs::read(&path).expect("a file").iter().filter(|byte| **byte == b'\n').count();
    assert!(lines < 600, "{lines} lines for one id");
    assert_eq!(FileJournal::open(&path, clock()).expect("a journal").generations()[&Id::new("machine", "a")], 699);
}
