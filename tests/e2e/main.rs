//! Whole processes on this machine, as root.

mod api_kubectl;
mod aws;
mod aws_cluster;
mod aws_given;
mod aws_kills;
mod aws_scale;
mod bad_luck;
mod bootstrap;
mod cli;
mod crash;
mod gcp;
mod gcp_cluster;
mod gcp_crash;
mod gcp_preflight;
mod harness;
mod kubelet;
mod local_machines;
mod main_job;
mod rig;
mod ssh;
mod steps;
