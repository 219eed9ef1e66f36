//! Pods bound to this node, kept running through the container runtime interface.
