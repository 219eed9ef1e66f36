//! What has to happen on one machine: facts and wish -> steps as data. Pure.

use super::facts::Facts;
use std::fmt;
use std::time::SystemTime;

/// One conversation with the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send the program.
    Upload { bytes: u64, because: String },
    /// Let `kprov host` there ensure everything.
    Install { because: String },
}

impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Upload { bytes, because } => write!(out, "upload kprov ({} MiB): {because}", bytes >> 20),
            Step::Install { because } => write!(out, "install: {because}"),
        }
    }
}

/// What the machine should be, as far as the decision needs it.
#[derive(Debug, Clone)]
pub struct Wish<'a> {
    pub revision: &'a str,
    pub program_sha256: &'a str,
    pub program_bytes: u64,
}

/// Nothing to do is an empty list. The upload comes first: the uploaded program does the rest.
pub fn steps(facts: &Facts, wish: &Wish<'_>, now: SystemTime) -> Vec<Step> {
    let Some(because) = reason(facts, wish.revision, now) else { return Vec::new() };
    let mut steps = Vec::new();
    if facts.program.as_deref() != Some(wish.program_sha256) {
        let because = if facts.program.is_some() { "another version is there" } else { "not there" };
        steps.push(Step::Upload { bytes: wish.program_bytes, because: because.into() });
    }
    steps.push(Step::Install { because });
    steps
}

/// Why this host is not what it should be; `None` when it is.
pub fn reason(facts: &Facts, revision: &str, now: SystemTime) -> Option<String> {
    let Some(marker) = &facts.marker else { return Some("not installed".into()) };
    if marker.revision != revision {
        return Some(format!("revision: {} -> {revision}", marker.revision));
    }
    ailment(facts, now)
}

/// What is wrong with an installed host, whatever its revision.
pub fn ailment(facts: &Facts, now: SystemTime) -> Option<String> {
    let marker = facts.marker.as_ref()?;
    if facts.program.as_deref() != Some(marker.program.as_str()) {
        return Some("its program is not the one that was installed".into());
    }
    let stopped: Vec<_> = marker.services.iter().filter(|service| !facts.running.contains(*service)).map(String::as_str).collect();
    if !stopped.is_empty() {
        return Some(format!("not running: {}", stopped.join(", ")));
    }
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    (seconds >= marker.rotate_at).then(|| "certificates are due for renewal".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap::facts::tests::{FRESH, installed};
    use std::time::Duration;

    const ALL: &[&str] = &["containerd", "kprov-agent"];

    fn check(name: &str, probe: &str, program: &str, seconds: u64, expected: &[&str]) {
        let facts = Facts::parse(probe).unwrap();
        let wish = Wish { revision: "r1", program_sha256: program, program_bytes: 40 << 20 };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let steps: Vec<_> = steps(&facts, &wish, now).iter().map(Step::to_string).collect();
        assert_eq!(steps, expected, "{name}");
    }

    #[test]
    fn only_what_is_missing_is_done() {
        let now = 1_800_000_000;
        check("fresh", FRESH, "abc", now, &["upload kprov (40 MiB): not there", "install: not installed"]);
        check("all there", &installed("r1", ALL), "abc", now, &[]);
        check("killed between upload and install", &format!("program=abc\n{FRESH}"), "abc", now, &["install: not installed"]);
        check("other settings", &installed("r0", ALL), "abc", now, &["install: revision: r0 -> r1"]);
        check(
            "other version",
            &installed("r0", ALL),
            "def",
            now,
            &["upload kprov (40 MiB): another version is there", "install: revision: r0 -> r1"],
        );
        check("agent dead", &installed("r1", &["containerd"]), "abc", now, &["install: not running: kprov-agent"]);
        check("two thirds of a year later", &installed("r1", ALL), "abc", 1_900_000_000, &["install: certificates are due for renewal"]);
    }

    #[test]
    fn a_program_that_was_swapped_is_put_back() {
        let probe = installed("r1", ALL).replacen("program=abc", "program=evil", 1);
        check(
            "swapped",
            &probe,
            "abc",
            1_800_000_000,
            &["upload kprov (40 MiB): another version is there", "install: its program is not the one that was installed"],
        );
    }
}
