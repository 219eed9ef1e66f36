//! `kprov doctor`: what this host lacks for the local provider, and how to get it.

use super::terminal::paint;
use crate::error::{Context, Kind, Result};
use crate::providers::local;
use serde_json::json;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print as JSON
    #[arg(short, long, value_parser = ["json"])]
    output: Option<String>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let findings = local::doctor();
    let all_well = findings.iter().all(|finding| finding.ok);
    if args.output.is_some() {
        println!("{}", serde_json::to_string_pretty(&json!(findings)).or_fail(Kind::Internal, || "could not print the findings")?);
    } else {
        for finding in &findings {
            let mark = if finding.ok { paint("32", "✓") } else { paint("31", "✗") };
            println!("{mark} {}: {}", finding.what, finding.detail);
            if !finding.ok {
                println!("  {} {}", paint("36", "hint:"), finding.fix);
            }
        }
    }
    Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::from(Kind::Host.exit_code()) })
}
