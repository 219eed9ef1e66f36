//! The commented blueprint that `kprov init` writes.
