//! One generic API server for all kinds.

pub mod kinds;
pub mod status;
