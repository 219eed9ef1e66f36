//! One generic API server for all kinds.

pub mod status;
