//! Tests of whole caches.

mod bad_input;
mod concurrent;
mod flights;
mod levels;
mod meter;
mod others;
mod protection;
#[cfg(feature = "redis")]
pub mod proxy;
pub mod support;
mod tiers;
mod writes;
