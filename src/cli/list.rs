//! `kprov list`: the clusters that this operator or this host's providers know.

use super::state;
use crate::blueprint::ProviderName;
use crate::error::{Context, Kind, Result};
use crate::providers;
use crate::sys::paths;
use serde_json::json;
use std::collections::BTreeMap;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print as JSON
    #[arg(short, long, value_parser = ["json"])]
    output: Option<String>,
}

pub async fn run(args: &Args) -> Result<()> {
    let mut clusters: BTreeMap<String, (ProviderName, String, bool)> = BTreeMap::new();
    for provider in providers::ALL {
        for cluster in providers::clusters(*provider)? {
            clusters.insert(cluster.name, (*provider, cluster.uid, true));
        }
    }
    for name in state::names() {
        if let Some(record) = state::record(&paths::cluster(&name))? {
            clusters.entry(name).or_insert((record.provider, record.cluster.uid, false));
        }
    }
    if args.output.is_some() {
        let rows: Vec<_> = clusters
            .iter()
            .map(|(name, (provider, uid, exists))| json!({"name": name, "provider": provider, "uid": uid, "exists": exists}))
            .collect();
        println!("{}", serde_json::to_string_pretty(&rows).or_fail(Kind::Internal, || "could not print the clusters")?);
        return Ok(());
    }
    if clusters.is_empty() {
        eprintln!("No clusters. Start with: kprov init > shop.yaml && kprov up shop.yaml");
        return Ok(());
    }
    println!("{:<24} {:<10} {:<38} STATE", "NAME", "PROVIDER", "UID");
    for (name, (provider, uid, exists)) in clusters {
        let provider = format!("{provider:?}").to_lowercase();
        println!("{name:<24} {provider:<10} {uid:<38} {}", if exists { "exists" } else { "only remembered" });
    }
    Ok(())
}
