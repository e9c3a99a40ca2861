//! Tests of whole caches.

mod bad_input;
mod flights;
mod levels;
mod others;
mod protection;
mod support;
mod tiers;
mod writes;
