//! `kprov schema`: the blueprint's JSON Schema, for editors and pipelines.

use super::terminal;
use crate::blueprint::schema::json_schema;
use crate::error::Result;

pub fn run() -> Result<()> {
    terminal::print_json(&json_schema())
}
