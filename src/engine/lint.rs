//! Plans we refuse.
