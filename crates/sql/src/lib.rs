//! Read replicas, transactions and pools of SQL databases, made safe to use: over sqlx, for PostgreSQL, MySQL
//! and SQLite.
//!
//! An application with one primary and some replicas has to answer, for every read, whether a replica may
//! serve it. Most answer by hope: replicas are mostly close behind. Here the rule is said in the call
//! ([`Read`]), and is kept or the read fails: a replica serves only what it is *proved* to hold.
//!
//! # A worked example
//!
//! A session commits an order: the primary's log ends at 0/5000 then, on timeline 1, and that is the
//! session's [`Token`]. Its next read, [`Read::Session`], finds the replica at 0/4000, waits, and is served
//! there when it has replayed 0/5000. Had it not come so far within the session's patience, the primary
//! would have served it, or the read failed, as the session was told ([`Otherwise`]). The token is sent to
//! the browser, and goes on there in the next request, in another process ([`Database::resume`]).
//!
//! Now the primary dies, and the replica is promoted at 0/4800: a new timeline, 2. The order is lost. Its
//! log soon passes 0/5000, and to compare these numbers would say that the order is there. The token names
//! timeline 1: it is not compared. The read goes to the new primary, or fails with
//! [`ErrorKind::TokenLost`].
//!
//! # What is promised
//!
//! - A read rule is met or the read fails; see [`Read`] for what each says.
//! - [`Session::transaction`] runs its closure again after a conflict, never after a commit whose answer was
//!   lost: that is [`ErrorKind::OutcomeUnknown`].
//! - Waits for a connection, for a replica and for the answer to a commit have limits; statements have that of
//!   [`PoolOptions::statement_max`], which the server keeps. Leaked leases do not drain a pool.
//!
//! The proofs rest upon this: the URL of a replica leads to one server, not to a balancer over several. A
//! connection that leads to another server than the one that is watched is refused.
//!
//! # What it does not do
//!
//! Reads of a session do not go back behind its writes, but may go back behind its earlier *reads*, if
//! these were served by a replica further ahead. Statements are not parsed: a write on a replica is refused
//! by that replica.
//!
//! Not yet there: GTID tokens (MySQL's replicas are served by [`Read::Any`] only, other rules are
//! `Unsupported` with them); of shards a global index, and resharding and changes of shard keys on other
//! databases than PostgreSQL; change data capture; throttling of slow statements.
//!
//! Features: `postgres`, `mysql`, `sqlite`; without any there is nothing to open.

mod backend;
pub mod bulk;
mod database;
mod error;
pub mod lock;
#[cfg(feature = "postgres")]
mod points;
pub mod pool;
mod route;
mod session;
pub mod shard;
#[cfg(all(test, feature = "postgres", feature = "mysql", feature = "sqlite"))]
mod tests;
mod token;
mod transaction;

#[doc(hidden)]
pub use backend::Backend;
pub use database::{Database, Options, ReplicaStatus, Status};
pub use error::{Error, ErrorKind, Outcome, Result};
pub use pool::{Lease, Place, PoolOptions};
pub use route::Read;
pub use session::{Otherwise, Session, SessionOptions};
pub use token::{Position, Token};
pub use transaction::{Isolation, Transaction, Work};
