//! A reachable machine becomes an installed host, over SSH.
