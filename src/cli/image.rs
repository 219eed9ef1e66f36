//! `kprov image`: kprov's own image, made from this very binary. Hidden.

use crate::error::{Context, Kind, Result};
use crate::sys::oci;
use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to write the archive
    #[arg(short, long)]
    output: PathBuf,
    #[arg(long, default_value = oci::KPROV_IMAGE)]
    name: String,
}

pub fn run(args: &Args) -> Result<()> {
    let binary = std::fs::read("/proc/self/exe").or_fail(Kind::Host, || "could not read kprov's own binary")?;
    let file = File::create(&args.output).or_fail(Kind::Host, || format!("could not create {}", args.output.display()))?;
    oci::write_archive(BufWriter::new(file), &args.name, &binary, oci::architecture())
        .or_fail(Kind::Host, || format!("could not write {}", args.output.display()))
}
