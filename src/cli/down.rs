//! `kprov down FILE|NAME`: the loop is fenced, everything of the cluster goes, and a fresh look proves it.

use super::progress::Progress;
use super::session::Session;
use super::state::{self, Named};
use super::{logging, terminal, up};
use crate::blueprint::ProviderName;
use crate::blueprint::manifests::unjudged;
use crate::error::{Error, Kind, Result};
use crate::providers::Settings;
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::Instant;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The cluster's name (its uid, where two have one name), or its blueprint
    #[arg(value_name = "FILE|NAME")]
    target: String,
    /// With a name: its provider, where clusters of this name are on several or its state is lost
    #[arg(long, value_parser = state::provider_name)]
    provider: Option<ProviderName>,
    /// Do not ask before doing what the plan says
    #[arg(short, long)]
    yes: bool,
    /// Give up after this many seconds; a next run continues
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    timeout: u64,
    /// Print the result as JSON
    #[arg(short, long, value_parser = ["json"])]
    output: Option<String>,
}

pub async fn run(args: &Args) -> Result<ExitCode> {
    let Some((name, settings)) = target(args).await? else { return Ok(terminal::bad_input()) };
    logging::to_file("down", &name)?;
    let mut session = Session::open(&name, settings).await?;
    let world = session.way_down()?;
    let look = world.look().await?;
    let mut progress = Progress::start();
    if !look.plan.is_empty() {
        terminal::talk(format_args!("{}\n", up::shown(&look.plan, None)));
        if !args.yes && !terminal::confirm(&format!("Take {name} away for good?"))? {
            return Err(Error::new(Kind::Interrupted, "could not go on: nobody agreed to the plan"));
        }
        if !args.yes {
            progress.restart();
        }
        session.finish_what_is_begun()?;
        session.remember()?;
        let epoch = session.seize().await?;
        world.converge(epoch, Instant::now() + Duration::from_secs(args.timeout), &progress).await?;
    }
    progress.finish();
    prove(&session).await?;
    let seconds = (progress.elapsed().as_secs_f64() * 10.0).round() / 10.0;
    let existed = !look.plan.is_empty();
    session.forget()?;
    if args.output.is_some() {
        let answer = json!({"cluster": name, "existed": existed, "left": [], "seconds": seconds});
        terminal::print_json(&answer)?;
    } else if existed {
        terminal::print(format_args!("{name} is gone after {seconds} s: a fresh look found nothing of it.\n"))?;
    } else {
        terminal::print(format_args!("{name} does not exist: a fresh look found nothing of it.\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks the provider and, where the provider is this host, the host itself: nothing of the cluster may be there any more.
async fn prove(session: &Session) -> Result<()> {
    let mut left: Vec<String> = session.observe_provider().await?.iter().map(|thing| format!("{} ({})", thing.id, thing.handle)).collect();
    left.extend(session.provider.leftovers().await);
    if left.is_empty() {
        return Ok(());
    }
    Err(Error::provider(format!("could not take everything away; still there:\n  {}", left.join("\n  "))).hint("run kprov down again"))
}

/// A path to a blueprint, or a cluster's name. A blueprint that cannot be read in full decides nothing.
async fn target(args: &Args) -> Result<Option<(String, Settings)>> {
    let text = &args.target;
    if Path::new(text).is_file() {
        let loaded = terminal::read_blueprint(Path::new(text), &unjudged);
        return Ok(loaded.map(|loaded| (loaded.blueprint.metadata.name.clone(), Settings::of(&loaded.blueprint))));
    }
    let record = Named { name: text.clone(), provider: args.provider }.find().await?;
    // Of two with one name only the uid says which.
    let name = if *text == record.cluster.uid { record.cluster.uid } else { record.cluster.name };
    Ok(Some((name, record.settings)))
}
