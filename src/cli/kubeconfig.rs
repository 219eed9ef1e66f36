//! `kprov kubeconfig NAME`: the administrator's kubeconfig on stdout.

use super::state::{self, Named};
use super::terminal;
use crate::error::{Context, Error, Kind, Result};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    cluster: Named,
}

pub fn run(args: &Args) -> Result<()> {
    let record = args.cluster.record()?;
    let path = state::folder(record.settings.provider, &record.cluster.name).join("kubeconfig");
    if !path.exists() {
        return Err(Error::input(format!("could not find a kubeconfig of cluster {}", record.cluster.name))
            .hint("kprov list shows the clusters; kprov up FILE writes the kubeconfig again"));
    }
    terminal::print(std::fs::read_to_string(&path).or_fail(Kind::Host, || format!("could not read {}", path.display()))?)
}
