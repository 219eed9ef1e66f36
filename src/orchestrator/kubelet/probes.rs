//! Liveness, readiness and startup probes: one task with its own timer each; a changed verdict is a message to the pod's worker.

use super::cri::Runtime;
use super::handlers::{self, Answer, Target};
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

/// Until its first yes a container is asked again after this, doubling up to its period: it becomes ready when it is, not a period later.
const EAGER: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Liveness,
    Readiness,
    Startup,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
            Kind::Startup => "Startup",
        }
    }
}

/// A probe's message.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    pub container_id: String,
    pub kind: Kind,
    /// The verdict after thresholds, when it changed.
    pub verdict: Option<bool>,
    /// What to record as the event `Unhealthy`.
    pub complaint: Option<String>,
}

pub fn of(spec: &Container, kind: Kind) -> Option<&Probe> {
    match kind {
        Kind::Liveness => spec.liveness_probe.as_ref(),
        Kind::Readiness => spec.readiness_probe.as_ref(),
        Kind::Startup => spec.startup_probe.as_ref(),
    }
}

/// Counts answers against the thresholds; pure.
#[derive(Debug, Default)]
pub struct Judge {
    successes: u32,
    failures: u32,
    verdict: Option<bool>,
}

impl Judge {
    /// The verdict when this answer changed it.
    pub fn hear(&mut self, yes: bool, success_threshold: u32, failure_threshold: u32) -> Option<bool> {
        if yes {
            self.successes += 1;
            self.failures = 0;
        } else {
            self.failures += 1;
            self.successes = 0;
        }
        let reached = if yes { self.successes >= success_threshold } else { self.failures >= failure_threshold };
        if !reached || self.verdict == Some(yes) {
            return None;
        }
        self.verdict = Some(yes);
        self.verdict
    }
}

/// Runs until aborted; a startup probe ends with its verdict.
pub async fn run(runtime: Runtime, pod: Arc<Pod>, spec: Container, target: Target, kind: Kind, reports: UnboundedSender<Report>) {
    let Some(probe) = of(&spec, kind).cloned() else { return };
    let seconds = |value: Option<i32>, default: u64| Duration::from_secs(value.map_or(default, |value| value.max(0) as u64));
    let at_least_one = |value: Option<i32>, default: u32| value.map_or(default, |value| value.max(1) as u32);
    let period = seconds(probe.period_seconds, 10).max(Duration::from_secs(1));
    let timeout = seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1));
    let (successes, failures) = (at_least_one(probe.success_threshold, 1), at_least_one(probe.failure_threshold, 3));
    let mut judge = Judge::default();
    let mut eager = (kind != Kind::Liveness).then_some(EAGER);
    tokio::time::sleep(seconds(probe.initial_delay_seconds, 0)).await;
    let begun = Instant::now();
    loop {
        let answer = ask(&runtime, &pod, &spec, &target, &probe, timeout).await;
        let yes = answer.is_ok();
        // What is only an early look neither counts nor complains.
        let early = !yes && eager.is_some() && begun.elapsed() < period;
        let verdict = if early { None } else { judge.hear(yes, successes, failures) };
        let complaint = answer.err().filter(|_| !early).map(|error| format!("{} probe failed: {error}", kind.name()));
        if verdict.is_some() || complaint.is_some() {
            let report = Report { container_id: target.container_id.clone(), kind, verdict, complaint };
            if reports.send(report).is_err() || (kind == Kind::Startup && verdict.is_some()) {
                return;
            }
        }
        let pause = match (yes, eager) {
            (false, Some(pause)) if early => {
                eager = Some(pause * 2);
                pause.min(period)
            }
            _ => {
                eager = None;
                period
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn ask(runtime: &Runtime, pod: &Pod, spec: &Container, target: &Target, probe: &Probe, timeout: Duration) -> Answer {
    if let Some(action) = &probe.exec {
        return handlers::exec(runtime, target, action.command.as_deref().unwrap_or_default(), timeout).await;
    }
    if let Some(action) = &probe.http_get {
        return handlers::http(pod, spec, target, action, timeout).await;
    }
    if let Some(action) = &probe.tcp_socket {
        return handlers::tcp(pod, spec, target, action.host.as_deref(), &action.port, timeout).await;
    }
    if let Some(action) = &probe.grpc {
        return handlers::grpc(target, action, timeout).await;
    }
    Ok(String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_follow_the_thresholds() {
        let check = |answers: &str, successes, failures, wanted: &str| {
            let mut judge = Judge::default();
            let verdicts = answers.chars().map(|answer| match judge.hear(answer == '+', successes, failures) {
                Some(true) => 'Y',
                Some(false) => 'N',
                None => '.',
            });
            assert_eq!(verdicts.collect::<String>(), wanted, "{answers}");
        };
        check("+++", 1, 3, "Y..");
        check("---", 1, 3, "..N");
        check("+--+---+", 1, 3, "Y.....NY");
        check("-+-++", 2, 1, "N...Y");
    }
}
