//! Tests of whole caches.

mod bad_input;
mod concurrent;
mod flights;
mod follow;
mod levels;
mod meter;
mod others;
#[cfg(feature = "postgres")]
mod postgres;
mod protection;
#[cfg(any(feature = "redis", feature = "postgres"))]
pub mod proxy;
pub mod support;
mod tags;
mod tenants;
mod tiers;
mod writes;
