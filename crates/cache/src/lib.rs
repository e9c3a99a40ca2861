//! x
#![allow(missing_docs)]
pub mod cache;
pub mod core;
mod error;
mod level;
pub mod source;
pub mod tier;
mod version;
pub use crate::core::Invalidation;
pub use cache::{Cache, CacheOptions, Stats, Strategy, Tiers, Written};
pub use error::{Error, ErrorKind, Result};
pub use level::{Level, Origin, Read};
pub use version::{Need, Version};

#[cfg(test)]
mod tests;
