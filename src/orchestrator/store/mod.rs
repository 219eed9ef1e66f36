//! Revisions, compare-and-put, range, watch.
