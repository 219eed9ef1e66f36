//! The store against a simple model, restarts, and a writer that is killed.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const KEY: [u8; 32] = [7; 32];

fn payload(text: &str) -> Payload {
    Payload { bytes: format!("{text}@").into(), revision_at: text.len() + 1 }
}
fn put(text: &str) -> Change {
    Change::Put { payload: payload(text), expires: 0 }
}
fn conflict(answer: Result<Entry, Refused>) -> Option<Entry> {
    match answer {
        Err(Refused::Conflict(current)) => current,
        Err(Refused::Failed(error)) => panic!("{}", error.chain()),
        Ok(entry) => panic!("{} was written", entry.key()),
    }
}
fn written(answer: Result<Entry, Refused>) -> Entry {
    answer.unwrap_or_else(|_| panic!("the write was refused"))
}
fn all(prefix: &str) -> Range<'_> {
    Range { prefix, after: None, limit: 0, at: None }
}
fn open(path: &std::path::Path) -> Arc<Store> {
    Store::open(Redb::open(path, &KEY).unwrap(), Window::default()).unwrap()
}

#[tokio::test]
async fn second_writer_with_the_same_revision_loses() {
    let store = Store::in_memory();
    let first = written(store.write("pods/a/x", Expect::Absent, put("one")).await);
    assert_eq!(first.value(), &format!("one@{}", first.modified()));
    assert!(conflict(store.write("pods/a/x", Expect::Absent, put("again")).await).is_some());
    let second = written(store.write("pods/a/x", Expect::Revision(first.modified()), put("two")).await);
    let current = conflict(store.write("pods/a/x", Expect::Revision(first.modified()), put("three")).await).unwrap();
    assert_eq!(current.modified(), second.modified());
    assert_eq!(second.created(), first.created());
    assert!(conflict(store.write("pods/a/y", Expect::Revision(1), Change::Delete).await).is_none());
}

#[tokio::test]
async fn deleted_object_is_seen_by_watchers_at_the_revision_of_its_end() {
    let store = Store::in_memory();
    let made = written(store.write("pods/a/x", Expect::Absent, put("one")).await);
    let gone = written(store.write("pods/a/x", Expect::Revision(made.modified()), Change::Delete).await);
    assert_eq!(gone.value(), &format!("one@{}", gone.modified()));
    let (events, to) = store.events("pods/", made.modified(), 10).unwrap_or_else(|_| panic!("compacted"));
    assert_eq!((events.len(), events[0].deleted, to), (1, true, gone.modified()));
    assert!(store.get("pods/a/x").is_none());
}

#[tokio::test]
async fn watch_that_fell_out_of_the_window_is_told_so_and_other_buckets_are_not() {
    let store = Store::open(Memory, Window { events: 2, bytes: 1 << 20 }).unwrap();
    let config = written(store.write("configmaps/a/x", Expect::Absent, put("one")).await);
    let mut last = written(store.write("pods/a/x", Expect::Absent, put("0")).await);
    for number in 1..5 {
        last = written(store.write("pods/a/x", Expect::Revision(last.modified()), put(&number.to_string())).await);
    }
    assert!(store.events("pods/", config.modified(), 10).is_err());
    assert!(store.events("pods/", last.modified() - 2, 10).is_ok());
    assert!(store.events("configmaps/", config.modified() - 1, 10).is_ok());
    assert!(store.range(&Range { at: Some(config.modified()), ..all("pods/") }).is_err());
}

#[tokio::test]
async fn state_and_revisions_survive_a_restart_and_secrets_are_not_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    let store = open(&path);
    let secret = written(store.write("secrets/a/x", Expect::Absent, put("hunter2-hunter2")).await);
    let pod = written(store.write("pods/a/x", Expect::Absent, put("visible-visible")).await);
    written(store.write("pods/a/x", Expect::Revision(pod.modified()), Change::Delete).await);
    written(store.write("pods/a/y", Expect::Absent, put("visible-again")).await);
    let revision = store.revision();
    drop(store);
    let file = std::fs::read(&path).unwrap();
    let holds = |text: &str| file.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(holds("visible-again") && !holds("hunter2"));

    let store = open(&path);
    assert_eq!(store.revision(), revision);
    assert_eq!(store.get("secrets/a/x").unwrap().value(), secret.value());
    assert!(store.get("pods/a/x").is_none());
    assert!(store.events("pods/", revision, 10).is_ok(), "nothing changed since: the watch resumes");
    assert!(store.events("pods/", revision - 1, 10).is_err(), "the event in between is forgotten");
    assert!(store.events("secrets/", secret.modified(), 10).is_ok());
    drop(store);
    let mut other = Redb::open(&path, &[8; 32]).unwrap();
    assert!(other.load().err().unwrap().chain().contains("could not decrypt secrets/a/x"));
}

#[tokio::test]
async fn expired_entry_goes_away_and_is_announced() {
    let store = Store::in_memory();
    let mut changes = store.changes("events/");
    let past = Change::Put { payload: payload("old"), expires: 1 };
    let made = written(store.write("events/a/x", Expect::Absent, past).await);
    let seen = *changes.wait_for(|revision| *revision > made.modified()).await.unwrap();
    let (events, _) = store.events("events/", made.modified(), 10).unwrap_or_else(|_| panic!("compacted"));
    assert!(events[0].deleted && events[0].revision == seen);
    assert!(store.get("events/a/x").is_none());
}

/// A disk that fails after some batches.
struct Failing(usize);
impl Engine for Failing {
    fn load(&mut self) -> Result<Stored> {
        Ok(Stored::default())
    }
    fn commit(&mut self, _: &[Arc<Event>]) -> Result<()> {
        self.0 = self.0.checked_sub(1).ok_or_else(|| Error::host("disk is full"))?;
        Ok(())
    }
}

#[tokio::test]
async fn write_that_did_not_reach_the_disk_is_neither_acknowledged_nor_visible() {
    let store = Store::open(Failing(1), Window::default()).unwrap();
    written(store.write("pods/a/x", Expect::Absent, put("one")).await);
    assert!(matches!(store.write("pods/a/y", Expect::Absent, put("two")).await, Err(Refused::Failed(_))));
    assert!(store.get("pods/a/y").is_none() && store.get("pods/a/x").is_some());
    assert!(!store.healthy());
    assert_eq!(store.failed().await.chain(), "disk is full", "who waits for the failure is told");
}

/// A writer that panics.
struct Broken;
impl Engine for Broken {
    fn load(&mut self) -> Result<Stored> {
        Ok(Stored::default())
    }
    fn commit(&mut self, _: &[Arc<Event>]) -> Result<()> {
        panic!("the engine panics, as this test wants")
    }
}

#[tokio::test]
async fn a_writer_that_is_gone_counts_as_a_failed_store() {
    let store = Store::open(Broken, Window::default()).unwrap();
    assert!(matches!(store.write("pods/a/x", Expect::Absent, put("one")).await, Err(Refused::Failed(_))));
    assert!(store.failed().await.chain().contains("writer is gone"));
    assert!(!store.healthy());
}

#[derive(Debug, Clone)]
enum Step {
    Put(usize, String),
    Delete(usize),
    Page { limit: usize, back: usize, after: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..12usize, "[a-z]{0,4}").prop_map(|(key, text)| Step::Put(key, text)),
        2 => (0..12usize).prop_map(Step::Delete),
        2 => (0..5usize, 0..8usize, 0..13usize).prop_map(|(limit, back, after)| Step::Page { limit, back, after }),
    ];
    proptest::collection::vec(step, 1..60)
}

fn key(number: usize) -> String {
    format!("{}/n{}/o{}", ["pods", "secrets"][number % 2], number % 3, number)
}

/// (value, revision) of each key, for each revision there ever was.
type History = Vec<BTreeMap<String, (String, Revision)>>;

async fn check(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let store = Store::in_memory();
    let mut history: History = vec![BTreeMap::new(), BTreeMap::new()];
    for step in steps {
        let mut now = history.last().unwrap().clone();
        match step {
            Step::Put(number, text) => {
                let expect = now.get(&key(number)).map_or(Expect::Absent, |(_, revision)| Expect::Revision(*revision));
                let entry = written(store.write(&key(number), expect, put(&text)).await);
                now.insert(key(number), (format!("{text}@{}", entry.modified()), entry.modified()));
                prop_assert_eq!(entry.modified() as usize, history.len());
                history.push(now);
            }
            Step::Delete(number) => {
                let expect = now.remove(&key(number)).map_or(0, |(_, revision)| revision);
                let answer = store.write(&key(number), Expect::Revision(expect), Change::Delete).await;
                prop_assert_eq!(answer.is_ok(), expect > 0);
                if answer.is_ok() {
                    history.push(now);
                }
            }
            Step::Page { limit, back, after } => {
                let at = store.revision().saturating_sub(back as u64).max(1);
                let after = key(after);
                let page = store
                    .range(&Range { prefix: "pods/", after: Some(&after), limit, at: Some(at) })
                    .unwrap_or_else(|_| panic!("compacted"));
                let then = history[at as usize].iter().filter(|(key, _)| key.starts_with("pods/") && **key > after);
                let expected: Vec<_> = then.map(|(key, (value, _))| (key.clone(), value.clone())).collect();
                let found: Vec<_> = page
                    .entries
                    .iter()
                    .map(|entry| (entry.key().to_string(), String::from_utf8_lossy(entry.value()).into_owned()))
                    .collect();
                let shown = if limit == 0 { expected.len() } else { expected.len().min(limit) };
                prop_assert_eq!(&found, &expected[..shown]);
                prop_assert_eq!(page.remaining, expected.len() - shown);
            }
        }
    }
    replay(&store, &history)
}

/// The events from any revision on, applied to the state then, give the state now.
fn replay(store: &Store, history: &History) -> Result<(), TestCaseError> {
    for from in 1..history.len() {
        let mut state: BTreeMap<String, Revision> = history[from].iter().map(|(key, (_, revision))| (key.clone(), *revision)).collect();
        for bucket in ["pods/", "secrets/"] {
            let mut cursor = from as u64;
            loop {
                let (events, to) = store.events(bucket, cursor, 3).unwrap_or_else(|_| panic!("compacted"));
                for event in &events {
                    let before = state.insert(event.entry.key().to_string(), event.revision);
                    prop_assert_eq!(before, event.previous.as_ref().map(Entry::modified));
                    if event.deleted {
                        state.remove(&**event.entry.key());
                    }
                }
                cursor = to;
                if cursor == store.revision() {
                    break;
                }
            }
        }
        let now: BTreeMap<String, Revision> = history.last().unwrap().iter().map(|(key, (_, revision))| (key.clone(), *revision)).collect();
        prop_assert_eq!(state, now);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn past_and_present_agree_with_a_model(steps in steps()) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(check(steps))?;
    }
}

/// Run as a child of the next test: writes for ever and prints each acknowledged key.
#[test]
fn child_writer() {
    let Ok(path) = std::env::var("KPROV_TEST_STORE") else { return };
    let store = open(path.as_ref());
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap().block_on(async {
        let writers = (0..8).map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for number in 0u64.. {
                    let key = format!("pods/w{writer}/{:x}-{number}", std::process::id());
                    written(store.write(&key, Expect::Absent, put("x")).await);
                    println!("ack {key}");
                }
            })
        });
        futures::future::join_all(writers).await;
    });
}

#[test]
fn killed_writer_loses_no_acknowledged_write() {
    use std::io::BufRead;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    let mut acknowledged = Vec::new();
    for round in 1..4 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "orchestrator::store::tests::child_writer", "--nocapture"])
            .env("KPROV_TEST_STORE", &path)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let output = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut lines = output.split(b'\n').map_while(Result::ok);
        let key = |line: Vec<u8>| String::from_utf8_lossy(&line).split_once("ack ").map(|(_, key)| key.to_owned());
        acknowledged.extend(lines.by_ref().filter_map(key).take(150 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        // What was still in the pipe was acknowledged too; the last line may be cut.
        let rest: Vec<String> = lines.filter_map(key).collect();
        acknowledged.extend(rest.iter().take(rest.len().saturating_sub(1)).cloned());
        let store = open(&path);
        let missing: Vec<&String> = acknowledged.iter().filter(|key| store.get(key).is_none()).collect();
        assert!(missing.is_empty(), "lost after round {round}: {missing:?}");
        assert!(acknowledged.len() >= 150);
    }
}
