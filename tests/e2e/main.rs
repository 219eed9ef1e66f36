//! Whole processes on this machine, as root.

mod kubelet;
mod local_machines;
