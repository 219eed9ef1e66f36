//! `kprov iam aws`: the policy that the operator needs, or the loop inside has, as JSON.

use super::terminal;
use crate::engine::Cluster;
use crate::error::Result;
use crate::providers::aws::iam;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Whose policies
    #[arg(value_parser = ["aws"])]
    provider: String,
    /// What the loop inside a cluster NAME with the uid UID may do, instead of the operator (kprov writes that into the control
    /// plane's role itself)
    #[arg(long)]
    inside: bool,
}

pub fn run(args: &Args) -> Result<()> {
    debug_assert_eq!(args.provider, "aws", "the one that has policies");
    let any = Cluster { name: "NAME".into(), uid: "UID".into() };
    let policy = if args.inside { iam::loop_policy(&any, "*") } else { iam::operator_policy() };
    terminal::print(format_args!("{policy}\n"))
}
