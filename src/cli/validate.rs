//! `kprov validate FILE`: every problem of a blueprint and what it names, at once.

use super::terminal;
use crate::blueprint::counted;
use crate::blueprint::load;
use crate::error::{Kind, Result};
use crate::orchestrator::api::kinds::refusals;
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
    let loaded = load::from_path(&args.file, &refusals);
    if args.output.is_some() {
        let (problems, warnings) = match &loaded {
            Ok(loaded) => (json!([]), json!(loaded.warnings)),
            Err(problems) => (json!(problems), json!([])),
        };
        terminal::print_json(&json!({"valid": loaded.is_ok(), "problems": problems, "warnings": warnings}))?;
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
    terminal::print(format_args!(
        "{} is valid: cluster {}, {}, {}, {}, {}.\n",
        args.file.display(),
        loaded.blueprint.metadata.name,
        counted(machines as usize, "machine"),
        counted(spec.load_balancers.len(), "load balancer"),
        counted(spec.filesystems.len(), "filesystem"),
        counted(spec.workloads.len(), "workload object")
    ))?;
    Ok(exit(true))
}

fn exit(valid: bool) -> ExitCode {
    if valid { ExitCode::SUCCESS } else { ExitCode::from(Kind::Input.exit_code()) }
}
