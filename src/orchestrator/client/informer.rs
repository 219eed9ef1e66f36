//! A kind's objects in memory, kept current by list and watch.
