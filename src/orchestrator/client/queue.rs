//! Keyed work queue: one worker per key at a time, retries with back-off.
