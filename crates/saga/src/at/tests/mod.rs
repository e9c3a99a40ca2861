//! Tests on real databases. They want the features postgres and sqlite.

mod branches;
mod images;
mod isolation;
#[cfg(feature = "crash-points")]
mod kills;
mod operator;
pub(crate) mod support;
mod troubles;
