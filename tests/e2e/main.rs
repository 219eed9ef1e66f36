//! Whole processes on this machine, as root.

mod bootstrap;
mod kubelet;
mod local_machines;
