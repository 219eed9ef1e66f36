//! Pods bound to this node, kept running through the container runtime interface.

pub mod container;
pub mod cri;
pub mod decide;
pub mod environment;
pub mod fields;
pub mod observed;
pub mod resources;
pub mod sandbox;
pub mod status;
