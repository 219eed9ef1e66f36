//! The shell's tools: files, locks, processes, TLS, randomness, time. Only doors and composition roots may use them.

pub mod cgroups;
pub mod executable;
pub mod files;
#[cfg(test)]
pub mod fuzz;
pub mod oci;
pub mod paths;
pub mod process;
pub mod random;
pub mod sockets;
