//! Tests with real processes: clusters on loopback whose nodes are killed, frozen, damaged and
//! started again, and what a user sees meanwhile.
//!
//! They start the binary `quorate`, built by `cargo build --package quorate-server --profile test`;
//! `QUORATE_BIN` names another one. How many clusters run at once is bounded by
//! [`support::Share`], whatever the number of test threads.

mod bad_input;
#[cfg(feature = "chaos")]
mod chaos;
mod checker;
mod conformance;
mod damage;
mod failover;
mod faults;
mod history;
mod lifecycle;
mod linearizability;
mod members;
mod outbox;
mod overload;
mod saga;
mod snapshots;
mod storage;
mod support;
