//! Named points between two writes, at which a test can make the process die: those of the outbox.

/// Passes a point.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub(crate) fn pass(_name: &str) {}

#[cfg(feature = "crash-points")]
pub use quorate_outbox::points::pass;
