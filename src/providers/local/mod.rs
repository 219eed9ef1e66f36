//! This host as a cloud: namespace machines, load balancers and filesystems behind a daemon.
