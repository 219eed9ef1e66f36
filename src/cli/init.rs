//! `kprov init`: a commented starter blueprint on stdout.

use super::terminal;
use crate::blueprint::starter;
use crate::error::Result;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The cluster's name
    #[arg(default_value = "shop")]
    name: String,
}

pub fn run(args: &Args) -> Result<()> {
    terminal::print(starter::checked(&args.name)?)
}
