//! Tests of the crate. Those of PostgreSQL need the services that `cargo xtask test` starts.

mod fences;
mod isolation;
mod journals;
mod shop;
mod simulated;
mod stories;
mod support;
mod zombies;
