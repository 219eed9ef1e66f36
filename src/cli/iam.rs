//! `kprov iam aws`: the policy that the operator needs, or the loop inside has, as JSON.

use super::state::{self, Record};
use super::terminal;
use crate::blueprint::ProviderName;
use crate::blueprint::manifests::unjudged;
use crate::blueprint::providers::Aws as Section;
use crate::engine::Cluster;
use crate::error::{Error, Result};
use crate::providers::Settings;
use crate::providers::aws::iam::{self, Whose};
use std::path::Path;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Whose policies
    #[arg(value_parser = ["aws"])]
    provider: String,
    /// No more than this cluster needs: in its region, in the network that its blueprint gives it, and bound to its name, or to its uid
    /// once it is there (then a lost state folder needs the policy without a name to find it again)
    #[arg(value_name = "FILE|NAME")]
    cluster: Option<String>,
    /// What the loop inside the cluster may do, instead of the operator (kprov writes that into the control plane's role itself)
    #[arg(long)]
    inside: bool,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    debug_assert_eq!(args.provider, "aws", "the one that has policies");
    let (name, settings) = match &args.cluster {
        None => (None, Settings::plain(ProviderName::Aws)),
        Some(file) if Path::new(file).is_file() => {
            let Some(loaded) = terminal::read_blueprint(Path::new(file), &unjudged) else { return Ok(terminal::bad_input()) };
            // Its own section counts, whatever its provider line says today.
            let provider = ProviderName::Aws;
            let mut blueprint = loaded.blueprint;
            blueprint.spec.provider = provider;
            (Some(blueprint.metadata.name.clone()), Settings::of(&blueprint))
        }
        Some(name) => (Some(name.clone()), known(name)?.ok_or_else(|| unknown(name))?.settings),
    };
    let cluster = name.as_deref().map(known).transpose()?.flatten().map(|record| record.cluster);
    let section: Section = settings.own()?;
    let region = crate::providers::aws::region(&settings)?.unwrap_or_else(|| "*".into());
    let policy = if args.inside {
        let any = Cluster { name: name.unwrap_or_else(|| "NAME".into()), uid: "UID".into() };
        iam::loop_policy(&cluster.unwrap_or(any), &region, &section)
    } else {
        let whose = cluster.map(Whose::One).or(name.map(Whose::Named)).unwrap_or(Whose::All);
        iam::operator_policy(&whose, &region, &section)
    };
    terminal::print(format_args!("{policy}\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn known(name: &str) -> Result<Option<Record>> {
    state::record(&state::folder(ProviderName::Aws, name))
}

fn unknown(name: &str) -> Error {
    Error::input(format!("could not find cluster {name} on aws in this host's state"))
        .hint("name its blueprint instead; kprov list shows the clusters")
}
