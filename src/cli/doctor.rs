//! `kprov doctor`: what this host lacks for the local provider and for kubectl, and how to get it.

use super::terminal::{self, paint_data};
use crate::error::{Kind, Result};
use crate::providers::local::{self, Finding, finding};
use serde_json::Value;
use std::fmt::Write;
use std::io::ErrorKind;
use std::process::{Command, ExitCode, Stdio};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print as JSON
    #[arg(short, long, value_parser = ["json"])]
    output: Option<String>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let mut findings = local::doctor();
    findings.push(kubectl());
    let all_well = findings.iter().all(|finding| finding.ok || !finding.required);
    if args.output.is_some() {
        terminal::print_json(&findings)?;
    } else {
        let mut text = String::new();
        for finding in &findings {
            let mark = match (finding.ok, finding.required) {
                (true, _) => paint_data("32", "✓"),
                (false, true) => paint_data("31", "✗"),
                (false, false) => paint_data("33", "!"),
            };
            let _ = writeln!(text, "{mark} {}: {}", finding.what, finding.detail);
            if !finding.ok {
                let _ = writeln!(text, "  {} {}", paint_data("36", "hint:"), finding.fix);
            }
        }
        terminal::print(text)?;
    }
    Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::from(Kind::Host.exit_code()) })
}

/// The oldest kubectl that the API is tried with: Debian 12's.
const OLDEST_KUBECTL: [u32; 2] = [1, 20];

/// Advice only: kprov itself does without.
fn kubectl() -> Finding {
    let asked = Command::new("kubectl").args(["version", "--client", "-o", "json"]).stdin(Stdio::null()).output();
    let outcome = match asked {
        Ok(output) => judge(&String::from_utf8_lossy(&output.stdout)),
        Err(error) if error.kind() == ErrorKind::NotFound => Err("not installed".into()),
        Err(error) => Err(format!("cannot be run: {error}")),
    };
    let fix = "apt-get install kubernetes-client, or https://kubernetes.io/docs/tasks/tools";
    let package = Some("kubernetes-client".into());
    Finding { package, required: false, ..finding("kubectl", outcome.map_err(|detail| (detail, fix.into()))) }
}

/// By what `kubectl version` says: its version, or what is wrong with it.
fn judge(answer: &str) -> std::result::Result<String, String> {
    let answer: Value = serde_json::from_str(answer).unwrap_or_default();
    let version = answer["clientVersion"]["gitVersion"].as_str().ok_or("it does not tell its version")?;
    let mut numbers = version.trim_start_matches('v').split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let number = [numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)];
    let [major, minor] = OLDEST_KUBECTL;
    if number < OLDEST_KUBECTL { Err(format!("{version} is older than {major}.{minor}")) } else { Ok(version.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubectl_is_judged_by_its_own_word() {
        let said = |version: &str| judge(&format!(r#"{{"clientVersion": {{"gitVersion": "{version}"}}}}"#));
        assert_eq!(said("v1.32.4-dispatcher"), Ok("v1.32.4-dispatcher".into()));
        assert_eq!(said("v1.20.2"), Ok("v1.20.2".into()));
        assert_eq!(said("v2.0.0-alpha.1"), Ok("v2.0.0-alpha.1".into()));
        assert_eq!(said("v1.9.11"), Err("v1.9.11 is older than 1.20".into()));
        assert_eq!(judge("Client Version: v1.9"), Err("it does not tell its version".into()));
    }
}
