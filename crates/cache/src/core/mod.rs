//! The protocol: records, many of them within a bound, and how a fill goes through two tiers. No clock, no task, no I/O.
//!
//! A cache goes wrong between its steps: a reader misses and loads 1; a writer commits 2 and invalidates; the
//! reader installs 1, and there it stays. Here a fill is *registered* before it loads, and installed only if
//! nothing newer was seen since:
//!
//! ```text
//! look ─► mark, need, value?      the record now has a mark; the need is the least that a fill must have
//! load(need) ─► value, seen       the source was asked after the mark was taken, never before
//! put(mark, value, seen)          refused if the mark is another, or seen is below the floor
//! invalidate(at 7)                the floor is 7: a value seen below goes, and so does a fill
//! invalidate(unknown)             the mark is another, and the next fill needs the source's newest state
//! ```
//!
//! # Invariants
//!
//! - A value is in a record only if it was seen at its floor or above, and was loaded after the last
//!   invalidation without a version.
//! - A mark is given to one record once. A record that was evicted and made anew has another one.
//! - The floor of a key that has no record is at least that of every record which was evicted.
//! - The *base* holds for all keys: below it is what a failover took back.
//! - A *tag* is a record without a value. A value is served only under the marks that its tags had when its fill was
//!   registered, and at their floors or above: so an invalidated tag is as good as all its keys invalidated.
//! - A local tier that hears of other processes ([`Feed`]) is read only while it is proven that all was heard.
//!
//! What is not decided here: when to load, whom to ask, how long to wait. Times are microseconds of the
//! tier's own clock, and are given by the caller.

mod feed;
mod fill;
pub(crate) mod planted;
mod record;
mod records;
#[cfg(test)]
pub(crate) mod tests;
mod want;

pub use feed::{Batch, Feed, Heard, Message, Position, Told, is_believed};
pub use fill::{Fill, Place, Refused, Step, invalidation_order};
pub use record::{Cached, Invalidation, Looked, Mark, Put, Record, TagMarks};
pub use records::{Left, Records, Weigh};
pub use want::Want;
