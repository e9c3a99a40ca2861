//! A cache that serves nothing older than it was told, over any source of truth.
//!
//! A [`Cache`] keeps what a [`Source`](source::Source) gives in a tier of this process
//! ([`Memory`](tier::Memory)), in one that processes share (`Redis`, feature `redis`), or in both. Every read
//! says how new its answer has to be ([`Level`]), and gets that, or an error: never something older in silence.
//!
//! # The protocol
//!
//! ```text
//! reader   look: a mark, and the least that a fill needs ─► load(need) ─► put(mark, value, seen at)
//! writer   commit ─► invalidate(at its version, or unknown) in the local tier, the remote one, the local one
//! ```
//!
//! A fill is registered before it loads. It is installed only if its mark is still the record's and it was seen
//! at the record's *floor* or above. See [`core`], which is all of it, without a clock or a task.
//!
//! # A worked example
//!
//! Two processes share a Redis. P misses key `a` in both tiers, is given marks there, and asks a replica of the
//! database, which lags: 1. It freezes. Q commits 2 at version 7 and invalidates `a` at 7: the record in Redis
//! has the floor 7, and Q's call returns. P goes on: Redis refuses 1, seen at 6. So P does not keep it either,
//! and readers of P that joined its load on the way, perhaps after Q's write, load once more. Now the floor is
//! known: the replica is asked for at least 7, and waits, or says that it is behind; then the newest is read.
//!
//! Had Q not known the version, the record would have another mark: refused as well. Had Redis evicted the record,
//! been flushed, or failed over to a replica without the floor: no mark, refused, and the next fill reads the
//! newest. No step of this rests upon a clock.
//!
//! # What is promised
//!
//! - What an acknowledged [`invalidate`](Cache::invalidate) or [`write`](Cache::write) told of is seen by all later
//!   reads of that process, at every level, and by those of processes that have the remote tier alone.
//! - [`Level::AtLeast`], [`Level::BoundedStale`] and [`Level::Linearizable`] hold whatever was missed or lost, given
//!   what a source promises ([`Source`](source::Source)).
//! - One load of a key at a time, and one more that gathers readers for the next. Who waits is not stranded by one
//!   who is cancelled, nor by a source that panics or hangs. Errors are not kept.
//!
//! # What it does not do
//!
//! A process that dies between its commit and the invalidation leaves what was there until its TTL, at
//! [`Level::Any`]; so does a writer that tells nobody. A local tier that does not [follow](Cache::follow) other
//! processes is behind by at most `local_ttl` there; one that does, by `staleness_max`. [`Level::Linearizable`] asks the
//! source each time.
//!
//! Not yet: change data capture, invalidations through a broker, write-behind, hot keys,
//! Redis Cluster, and reading linearizably from a tier by the change stream.

pub mod cache;
pub mod core;
mod error;
pub mod invalidations;
mod level;
pub mod source;
#[cfg(test)]
mod tests;
pub mod tier;
mod version;

pub use cache::{Cache, CacheOptions, FollowOptions, Stats, Strategy, Tiers, Written};
pub use cache::{Estimate, Measured, MeterOptions, TierMeasured};
pub use core::Invalidation;
pub use error::{Error, ErrorKind, Result};
pub use level::{Level, Origin, Read};
pub use version::{Need, Version};
