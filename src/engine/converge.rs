//! Observe, plan, lint, apply, until quiet.
