//! Stand-ins for clouds with real machines behind them, offline: nothing here leaves a network namespace without a way out.

pub mod aws;
pub mod balancers;
mod cloud_init;
pub mod gcp;
pub mod hosts;
pub mod http;
pub mod kill;
pub mod machines;
pub mod metadata;
pub mod namespace;
pub mod operator;
pub mod proxy;
mod tests;
