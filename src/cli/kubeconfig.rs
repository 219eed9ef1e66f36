//! `kprov kubeconfig NAME`: the administrator's kubeconfig on stdout.

use super::session::Session;
use super::state::{self, Named};
use super::terminal;
use crate::error::{Context, Error, Kind, Result};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    cluster: Named,
}

pub async fn run(args: &Args) -> Result<()> {
    let record = args.cluster.find().await?;
    let path = state::folder(record.settings.provider, &record.cluster.name).join("kubeconfig");
    if path.exists() {
        return terminal::print(std::fs::read_to_string(&path).or_fail(Kind::Host, || format!("could not read {}", path.display()))?);
    }
    // The state is lost: made again with the keys that the control plane keeps.
    let mut session = Session::view(record).await?;
    if !session.borrow_trust().await? {
        return Err(Error::input(format!("could not make a kubeconfig: cluster {} has no control plane yet", session.cluster.name))
            .hint("kprov up FILE makes one"));
    }
    let observed = session.observe_provider().await?;
    terminal::print(session.kubeconfig_text(&observed)?)
}
