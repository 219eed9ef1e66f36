//! What is particular to each kind, as tables and pure functions: no input or output, no clock, no store.

pub mod defaults;
pub mod discovery;
pub mod fields;
pub mod json;
pub mod merge_keys;
pub mod openapi;
pub mod patch;
pub mod place;
pub mod registry;
pub mod schema;
pub mod selector;
pub mod strategy;
pub mod table;
pub mod taints;
pub mod validation;

pub use super::status::Cause;
pub use registry::{KindRow, Registry, Subresource};
