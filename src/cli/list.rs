//! `kprov list`: the clusters that this operator or this host's providers know.

use super::{state, terminal};
use crate::blueprint::ProviderName;
use crate::error::{Error, Kind, Result};
use crate::providers::{self, Settings};
use serde_json::json;
use std::collections::BTreeMap;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also search this provider's account, where its usual environment points
    #[arg(long, value_parser = state::provider_name)]
    provider: Option<ProviderName>,
    /// Print as JSON
    #[arg(short, long, value_parser = ["json"])]
    output: Option<String>,
}

/// Fails, after the list, when somebody could not be asked: it may be longer than it looks.
pub async fn run(args: &Args) -> Result<ExitCode> {
    let records = state::all();
    // Two may have one name: made at the same moment, or with their states lost.
    let mut clusters: BTreeMap<(String, ProviderName, String), &str> = BTreeMap::new();
    for record in &records {
        clusters.insert((record.cluster.name.clone(), record.settings.provider, record.cluster.uid.clone()), "remembered");
    }
    // This host always; an account where this operator has a cluster, or asks for it.
    let mut places: Vec<Settings> = records.into_iter().map(|record| record.settings).collect();
    places.extend(args.provider.iter().copied().chain([ProviderName::Local]).map(Settings::plain));
    places.sort_by_key(|settings| (settings.provider, settings.location.clone()));
    places.dedup();
    let mut unknown = None;
    for settings in &places {
        match providers::clusters(settings).await {
            Ok(found) => clusters.extend(found.into_iter().map(|cluster| ((cluster.name, settings.provider, cluster.uid), "exists"))),
            Err(error) => {
                let failed = Error::new(error.kind, format!("could not ask {}", settings.provider)).because(error);
                terminal::print_error(&failed);
                unknown = Some(failed.kind);
            }
        }
    }
    let code = ExitCode::from(unknown.map_or(0, Kind::exit_code));
    if args.output.is_some() {
        let row = |((name, provider, uid), state): (&(String, ProviderName, String), &&str)| json!({"name": name, "provider": provider, "uid": uid, "exists": *state == "exists"});
        terminal::print_json(&clusters.iter().map(row).collect::<Vec<_>>())?;
    } else if !clusters.is_empty() {
        let head = format!("{:<24} {:<10} {:<38} STATE\n", "NAME", "PROVIDER", "UID");
        let rows = clusters.iter().map(|((name, provider, uid), state)| format!("{name:<24} {provider:<10} {uid:<38} {state}\n"));
        terminal::print(head + &rows.collect::<String>())?;
    } else if unknown.is_none() {
        terminal::talk("No clusters. Start with: kprov init > shop.yaml && kprov up shop.yaml");
    }
    Ok(code)
}
