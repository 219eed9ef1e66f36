//! `kprov schema`: the blueprint's JSON Schema, for editors and pipelines.

use crate::blueprint::schema::json_schema;
use crate::error::{Context, Kind, Result};

pub fn run() -> Result<()> {
    let text = serde_json::to_string_pretty(&json_schema()).or_fail(Kind::Internal, || "could not print the schema")?;
    println!("{text}");
    Ok(())
}
