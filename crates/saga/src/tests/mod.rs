//! Tests of the crate. Those of PostgreSQL need the services that `cargo xtask test` starts.

mod journals;
mod support;
