//! The seam [`Invalidations`]: where a process hears of what others wrote, for [`Cache::follow`](crate::Cache::follow).
//!
//! Two kinds: `RedisInvalidations`, what all processes tell the remote tier (feature `redis`), and `PgInvalidations`,
//! what a PostgreSQL database notifies (feature `postgres`). What a process makes of the answers is in
//! [`core`](crate::core): a source gives what it has, and need not notice itself what is missing.

#[cfg(feature = "postgres")]
mod postgres;

use std::time::Duration;

use quorate_kv::BoxFuture;

use crate::Result;
pub use crate::core::{Batch, Message, Position, Told};
#[cfg(feature = "postgres")]
pub use postgres::PgInvalidations;

/// A stream of invalidations, asked by one task.
///
/// What an answer promises, the rest rests upon:
/// - `stream` names one history: if it begins anew, or loses what it gave out, it has another name from then on.
/// - Numbers within it follow each other without gaps. Messages may be missing in an answer, or come twice; what was
///   said is never changed.
/// - `end`, where there is one, is no lower than the number of any message that was told before the question was
///   asked.
pub trait Invalidations: Send + 'static {
    /// What is past a position. Waits for about `wait` until there is something, then answers that there is nothing.
    /// At no position, or at one of another stream, it answers where the stream ends.
    ///
    /// May be dropped on its way, and asked again.
    ///
    /// # Errors
    /// When it does not answer; it is asked again.
    fn after<'a>(
        &'a mut self,
        position: Option<&'a Position>,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Batch>>;
}
