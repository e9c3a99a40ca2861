//! The seam [`Tier`]: where values are kept, each under a record of the [protocol](crate::core).
//!
//! Two kinds: [`Memory`] in this process, and `Redis`, shared by processes (feature `redis`). Both pass one
//! suite (feature `conformance`).

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod memory;
#[cfg(feature = "redis")]
pub mod redis;
mod tenants;

use std::future::ready;
use std::time::Duration;

use bytes::Bytes;
use quorate_kv::BoxFuture;

use crate::Result;
use crate::core::{Cached, Invalidation, Looked, Mark, Put};

pub use memory::Memory;
pub use tenants::TenantOf;

/// Keeps records. Each method is one atomic step of the protocol for its key, and may be called from many
/// tasks at once. Times are of the tier's own clock, in microseconds: [`Looked::at`] tells it.
///
/// A tier may lose any record at any time. Then `put` under its mark says [`Put::Overtaken`], and the next
/// `look` needs at least what the lost record did.
pub trait Tier: Send + Sync + 'static {
    /// What is there, expired or not, and a mark for a fill.
    fn look<'a>(&'a self, key: &'a Bytes) -> BoxFuture<'a, Result<Looked<Bytes>>>;

    /// Installs a fill that was registered under `mark`.
    ///
    /// # Errors
    /// When the tier does not answer, or has no room; it may have been installed all the same.
    fn put<'a>(
        &'a self,
        key: &'a Bytes,
        mark: Mark,
        cached: Cached<Bytes>,
    ) -> BoxFuture<'a, Result<Put>>;

    /// Notes that a key was written. Returns when no look that comes later sees less.
    ///
    /// # Errors
    /// When the tier does not answer; it may have been done all the same. Repeating it does no harm.
    fn invalidate<'a>(
        &'a self,
        key: &'a Bytes,
        invalidation: Invalidation,
    ) -> BoxFuture<'a, Result<()>>;

    /// Drops all values and all fills under way.
    ///
    /// # Errors
    /// When the tier does not answer; part of it may have been done.
    fn clear(&self) -> BoxFuture<'_, Result<()>>;

    /// Asks to be the one who loads a key, for so long at most. It saves loads and protects nothing: who loads without
    /// a lease, or after it has ended, puts under a mark as anybody does. That is the fence: what was overtaken is refused.
    ///
    /// A tier that has no leases grants all.
    ///
    /// # Errors
    /// When the tier does not answer.
    fn lease<'a>(&'a self, _: &'a Bytes, _: Mark, _: Duration) -> BoxFuture<'a, Result<Lease>> {
        Box::pin(ready(Ok(Lease::Granted(0))))
    }

    /// Ends a lease by its number, for who has nothing to put.
    ///
    /// # Errors
    /// When the tier does not answer; then it ends by itself.
    fn release<'a>(&'a self, _: &'a Bytes, _: Mark, _: u64) -> BoxFuture<'a, Result<()>> {
        Box::pin(ready(Ok(())))
    }
}

/// Who loads a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// Who asked; the lease has this number.
    Granted(u64),
    /// Another one, for so long at most.
    Held(Duration),
}
