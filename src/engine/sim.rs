//! The world in which tests run: faults, shuffled order, checkers.
