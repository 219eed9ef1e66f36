//! Events -> queue -> filter and score -> bind.
