//! The schemas of the built-in kinds, compiled from k8s-openapi into a compact tree on first use.
