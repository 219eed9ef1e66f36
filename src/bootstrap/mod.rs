//! A reachable machine becomes an installed host, over SSH.
//!
//! ```text
//! trust   keys and certificates of a cluster            spec   what a host should be (data)
//! facts   what a machine is (pure, from one probe)      plan   facts + spec -> steps (pure)
//! host    the work done on the machine (`kprov host`)    install the three conversations with one machine
//! door    all of it as the engine's door of kind `host`
//! ```

pub mod door;
pub mod facts;
pub mod frame;
pub mod host;
pub mod install;
pub mod plan;
pub mod spec;
pub mod template;
pub mod trust;
