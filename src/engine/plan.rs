//! Desired and observed -> plan. Pure.
