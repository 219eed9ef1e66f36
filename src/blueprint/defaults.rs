//! What a person left out.
