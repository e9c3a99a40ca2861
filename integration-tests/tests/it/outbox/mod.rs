//! The outbox with real processes: a producer, relays and consumers over PostgreSQL and a Kafka-compatible
//! broker, or all in one process over SQLite, killed at named points and frozen.
//!
//! The check at the end is always the same: every committed order has its effects, once; no other has any;
//! and the effects of a key are in the order of their numbers.

mod check;
mod commands;
mod crash;
mod kv;
mod process;
mod zombie;
