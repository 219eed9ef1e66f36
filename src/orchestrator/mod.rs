//! Kubernetes by contract: API server, scheduler, controllers, kubelet, service proxy, DNS, in one process each side.

pub mod api;
pub mod client;
pub mod config;
pub mod controllers;
pub mod dns;
pub mod kubelet;
pub mod network;
pub mod proxy;
pub mod scheduler;
pub mod store;
mod upgrade;
