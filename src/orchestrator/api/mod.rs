//! One generic API server for all kinds: path -> route -> user may -> verb -> store. What is particular to a kind is a table in `kinds`.

mod admission;
pub mod authn;
mod authz;
mod delete;
mod documents;
mod index;
pub mod kinds;
mod kubelets;
mod logs;
mod negotiate;
mod object;
mod protobuf;
mod read;
mod respond;
mod reviews;
mod route;
mod seed;
mod serve;
mod server;
pub mod status;
mod streams;
mod subresources;
#[cfg(test)]
mod tests;
pub mod tokens;
mod watch;
mod write;

pub use authn::User;
pub use serve::server_tls;
pub use server::{InProcess, Server};
