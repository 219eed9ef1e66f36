//! The software load balancer: the model, health checks, balancing, the sockets.
