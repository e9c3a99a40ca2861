//! Tests of the crate. Those of PostgreSQL and Kafka need the services that `cargo xtask test` starts.

mod brokers;
mod consumers;
mod damage;
mod enqueuing;
mod faults;
mod handlers;
mod mysqls;
mod positions;
mod ranges;
mod relays;
mod schemas;
mod support;
mod troubles;
mod writers;
