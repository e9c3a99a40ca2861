//! Tests against a PostgreSQL with a replica, MariaDB and SQLite; and of the pure cores.

mod aggregates;
mod bulks;
mod cores;
mod failover;
mod limits;
mod locks;
mod moves;
mod pair;
mod pools;
mod proxy;
mod reads;
mod rekeys;
mod rules;
mod shards;
mod support;
mod transactions;
