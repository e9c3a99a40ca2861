//! Care for pools: an adaptive limit before a pool of fixed size, leases that say who holds them, and leaks
//! that do not drain it.
//!
//! sqlx's pool has a fixed size and one dead-line for waiting and connecting. Before it stands a gate whose
//! limit follows how long connections are held. A lease that is held longer than
//! [`PoolOptions::hold_max`] is counted out: its place is given to others, and the database ends what the
//! session left open. The pool has a few connections more than the gate lets in, and is replaced by a new
//! one when leaks have used those up.

mod gate;
mod lane;
mod lease;
pub(crate) mod limit;

use std::time::Duration;

pub use gate::Holder;
pub(crate) use lane::{Lane, Welcome};
pub use lease::{Lease, Place};
pub use limit::LimitOptions;

/// Settings of one server's pool.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PoolOptions {
    /// How many leases may be held at once.
    pub limit: LimitOptions,
    /// How long to wait for a connection, connecting included.
    pub patience: Duration,
    /// A lease held longer is counted out, and what its session holds in the database is ended: on PostgreSQL
    /// and MariaDB an idle transaction, by the server, which needs whole milliseconds and seconds.
    pub hold_max: Option<Duration>,
    /// An idle connection is closed after this.
    pub idle_max: Duration,
    /// A connection is closed after this, when it is idle.
    pub life_max: Duration,
    /// A statement is ended by the server after this. Not on SQLite, and on MySQL for reads only.
    pub statement_max: Option<Duration>,
    /// Statements slower than this are logged by sqlx, as warnings of the target `sqlx::query`.
    pub slow: Duration,
}

impl PoolOptions {
    /// So many connections, at the defaults.
    pub fn up_to(ceiling: usize) -> PoolOptions {
        PoolOptions {
            limit: LimitOptions::up_to(ceiling),
            patience: Duration::from_secs(5),
            hold_max: Some(Duration::from_secs(300)),
            idle_max: Duration::from_secs(300),
            life_max: Duration::from_secs(1800),
            statement_max: Some(Duration::from_secs(60)),
            slow: Duration::from_secs(1),
        }
    }
}

impl Default for PoolOptions {
    fn default() -> Self {
        PoolOptions::up_to(16)
    }
}

/// How one server's pool stands.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PoolStatus {
    /// The server's name.
    pub name: String,
    /// How many leases may be held now.
    pub limit: usize,
    /// Who holds one, the longest first.
    pub holders: Vec<Holder>,
    /// Open connections.
    pub size: usize,
    /// Those that nobody uses.
    pub idle: usize,
    /// Leases that were counted out since the start.
    pub leaked: u64,
    /// How often the pool was replaced because leaks had used up what it had to spare.
    pub replaced: u64,
}
