//! Intent before effect: what was about to be sent, on disk before it is sent.
