//! Converge against the fake cloud: order, retries, deadlines, cancellation, what is said at the end.
