//! kprov: one blueprint, any provider.
//!
//! ```text
//! blueprint text -> schema -> defaults -> check -> expand -> desired
//!      desired + observed -> plan -> lint -> apply   (repeat until quiet)          engine
//!      machines reachable -> bootstrap over SSH -> hosts report ready
//!      hand-off: blueprint and writer's epoch move into the cluster's store
//!      the same engine, now inside `kprov server`, for ever; pods, services and the rest beside it
//! ```
//! Decisions are pure functions, doors are thin. ARCHITECTURE.md shows the rooms; a test holds the edges between them.

pub mod blueprint;
pub mod bootstrap;
pub mod cli;
pub mod engine;
pub mod error;
pub mod lb;
pub mod orchestrator;
pub mod providers;
pub mod remote;
pub mod supervisor;
pub mod sys;
