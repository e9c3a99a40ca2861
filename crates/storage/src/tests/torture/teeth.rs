//! The checks can fail.
