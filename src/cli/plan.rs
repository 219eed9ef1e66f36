//! `kprov plan FILE`: what `up` would do, or why it would refuse to, and nothing else.

use super::session::Session;
use super::{logging, terminal, up};
use crate::error::Result;
use crate::orchestrator::api::kinds::refusals;
use crate::providers::Settings;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The blueprint
    file: PathBuf,
    /// Print the plan as JSON
    #[arg(short, long, value_parser = ["json"])]
    output: Option<String>,
    /// Exit with 2 when there are changes
    #[arg(long)]
    exit_code: bool,
}

pub async fn run(args: &Args) -> Result<ExitCode> {
    let Some(loaded) = terminal::read_blueprint(&args.file, &refusals) else { return Ok(terminal::bad_input()) };
    let name = &loaded.blueprint.metadata.name;
    logging::to_file("plan", name)?;
    let mut session = Session::open(name, Settings::of(&loaded.blueprint)).await?;
    session.borrow_trust().await?;
    let world = session.world(&loaded.blueprint, &loaded.images).await?;
    let plan = world.look().await?.plan;
    if args.output.is_some() {
        terminal::print_json(&plan)?;
    } else {
        terminal::print(format_args!("{}\n", up::shown(&plan, world.price().as_ref())))?;
    }
    // The plan is of use all the same; that `up` would refuse it is no less true.
    world.check(&plan).await?;
    let changes = args.exit_code && !plan.is_empty();
    Ok(if changes { ExitCode::from(2) } else { ExitCode::SUCCESS })
}
