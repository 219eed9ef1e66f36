//! `kprov doctor`: what this host lacks for the local provider, and how to get it.

use super::terminal::{self, paint_data};
use crate::error::{Kind, Result};
use crate::providers::local;
use std::fmt::Write;
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
        terminal::print_json(&findings)?;
    } else {
        let mut text = String::new();
        for finding in &findings {
            let mark = if finding.ok { paint_data("32", "✓") } else { paint_data("31", "✗") };
            let _ = writeln!(text, "{mark} {}: {}", finding.what, finding.detail);
            if !finding.ok {
                let _ = writeln!(text, "  {} {}", paint_data("36", "hint:"), finding.fix);
            }
        }
        terminal::print(text)?;
    }
    Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::from(Kind::Host.exit_code()) })
}
