//! `kprov validate FILE`: every problem of a blueprint and what it names, at once.

use super::terminal;
use crate::blueprint::load;
use crate::error::{Context, Kind, Result};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The blueprint
    file: PathBuf,
    /// Print as JSON
    #[arg(short, long, value_parser = ["json"])]
    output: Option<String>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let loaded = load::from_path(&args.file);
    if args.output.is_some() {
        let (problems, warnings) = match &loaded {
            Ok(loaded) => (json!([]), json!(loaded.warnings)),
            Err(problems) => (json!(problems), json!([])),
        };
        let text = serde_json::to_string_pretty(&json!({"valid": loaded.is_ok(), "problems": problems, "warnings": warnings}));
        println!("{}", text.or_fail(Kind::Internal, || "could not print the answer")?);
        return Ok(exit(loaded.is_ok()));
    }
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(problems) => {
            terminal::print_problems(&problems);
            return Ok(exit(false));
        }
    };
    terminal::print_warnings(&loaded.warnings);
    let spec = &loaded.blueprint.spec;
    let machines: u32 = spec.machines.iter().map(|group| group.count).sum();
    println!(
        "{} is valid: cluster {}, {machines} machines, {} load balancers, {} filesystems, {} workload objects.",
        args.file.display(),
        loaded.blueprint.metadata.name,
        spec.load_balancers.len(),
        spec.filesystems.len(),
        spec.workloads.len()
    );
    Ok(exit(true))
}

fn exit(valid: bool) -> ExitCode {
    if valid { ExitCode::SUCCESS } else { ExitCode::from(Kind::Input.exit_code()) }
}
