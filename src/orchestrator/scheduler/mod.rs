//! Events -> queue -> filter and score -> bind.
//!
//! ```text
//! informers (pods, nodes, claims, volumes) -> Snapshot, kept current object by object
//! pending pod -> decide::schedule(pod, snapshot) -> assume -> POST binding   (binds run in parallel; the decision does not wait for them)
//!                                                -> or parked with the reason, until an event could change the answer
//! ```
//! The decision is pure; only `run.rs` talks to the API.

pub mod decide;
pub mod filter;
pub mod labels;
pub mod pod;
pub mod queue;
pub mod run;
pub mod score;
pub mod snapshot;

pub use run::{Watches, run};
