//! A strict cloud in memory.
