//! Stand-ins for clouds with real machines behind them, offline: nothing here leaves a network namespace without a way out.

pub mod aws;
mod cloud_init;
pub mod machines;
pub mod namespace;
mod tests;
