//! What happened, once, for terminal, log file and API.
