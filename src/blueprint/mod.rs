//! Blueprint text -> schema -> defaults -> check -> what is desired. Pure: the one file read is done by the caller's loader.

pub mod aws;
pub mod check;
pub mod diagnostic;
pub mod hosts;
pub mod load;
pub mod manifests;
pub mod providers;
pub mod quantity;
pub mod schema;
pub mod starter;
pub mod structure;
#[cfg(test)]
mod tests;
pub mod tree;

pub use diagnostic::{Problem, Problems, counted};
pub use load::{Loaded, from_object, from_path, from_text};
pub use schema::{Blueprint, Filesystem, Listener, LoadBalancer, MachineGroup, ProviderName, Role, Size, Spec};
