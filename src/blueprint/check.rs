//! Every mistake in a blueprint at once.
