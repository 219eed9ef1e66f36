//! Whole processes on this machine, as root.

mod api_kubectl;
mod bootstrap;
mod kubelet;
mod local_machines;
