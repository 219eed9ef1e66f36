//! Text to a checked blueprint with its manifests inline, or every problem.
