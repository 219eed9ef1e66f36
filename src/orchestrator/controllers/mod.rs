//! The list of controllers; one file each.
