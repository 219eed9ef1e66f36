//! Pod network of a node: CNI configuration and routes to other nodes' pods.
