//! Blueprint text -> schema -> defaults -> check -> what is desired. Pure: the one file read is done by the caller's loader.

pub mod check;
pub mod defaults;
pub mod diagnostic;
pub mod load;
pub mod quantity;
pub mod schema;
pub mod starter;

pub use schema::{Blueprint, Filesystem, Listener, LoadBalancer, MachineGroup, ProviderName, Role, Size, Spec};
