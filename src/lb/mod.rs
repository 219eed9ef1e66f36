//! The software load balancer for providers that have none: TCP, health checks, changes without a dropped connection.

mod model;
mod proxy;

pub use model::{Backend, Listener};
pub use proxy::Balancer;
