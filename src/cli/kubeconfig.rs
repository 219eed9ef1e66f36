//! `kprov kubeconfig NAME`: the administrator's kubeconfig on stdout.

use crate::error::{Context, Error, Kind, Result};
use crate::sys::paths;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The cluster
    name: String,
}

pub fn run(args: &Args) -> Result<()> {
    let path = paths::cluster(&args.name).join("kubeconfig");
    if !path.exists() {
        return Err(Error::input(format!("could not find a kubeconfig of cluster {}", args.name))
            .hint("kprov list shows the clusters; kprov up FILE writes the kubeconfig again"));
    }
    print!("{}", std::fs::read_to_string(&path).or_fail(Kind::Host, || format!("could not read {}", path.display()))?);
    Ok(())
}
