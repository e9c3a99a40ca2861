//! Entries that expire, and the time by which they do.
//!
//! In a keyspace with a `ttl` each value is stored with the time of its write, as a [`Kind`] of its own;
//! what is older than the `ttl` reads as a deletion at its version, at once, and becomes one in
//! compaction. So an entry that expired hides what lies under it, as any deletion does. The age counts from
//! the write and against the `ttl` that the keyspace has now: with another `ttl`, or none, after the next
//! opening what is there lives by that one. What was written while there was none has no time and stays.
//!
//! # Which time
//!
//! That of the engine. It begins with the calendar's when the engine is opened, goes on with the
//! monotonic clock, and never goes back: each edit of the manifest says how late it was, and the next
//! opening begins no earlier. So
//!
//! - a calendar that leaps while the engine is open changes nothing;
//! - one that is behind when it opens makes entries live longer, by as much as the store was closed;
//! - one that is ahead when it opens makes entries older by the difference, once. What expired so stays
//!   expired when the calendar is set right; what is written from then on lives its full time.
//!
//! What expired never comes back. Snapshots don't stop time: what expires is gone from them as well. An
//! iterator judges by the time at which it was made.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use quorate_env::Clock;

use crate::key::Kind;
use crate::planted::{self, Bug};

/// The bytes of the time before a value.
pub(crate) const STAMP_BYTES: usize = 8;

/// The time of an engine, in milliseconds since 1970.
pub(crate) struct Time {
    /// None for one that stands still.
    clock: Option<Arc<dyn Clock>>,
    /// What it is ahead of the monotonic clock.
    offset_ms: AtomicI64,
}

impl Time {
    /// Time as it goes on from now by the calendar.
    pub(crate) fn running(clock: Arc<dyn Clock>) -> Self {
        let offset = signed(clock.unix_ms()).saturating_sub(monotonic_ms(clock.as_ref()));
        Time {
            clock: Some(clock),
            offset_ms: AtomicI64::new(offset),
        }
    }

    /// Time that stands still: nothing expires.
    pub(crate) fn stopped() -> Self {
        Time {
            clock: None,
            offset_ms: AtomicI64::new(0),
        }
    }

    /// The time; never less than it was.
    pub(crate) fn now_ms(&self) -> u64 {
        let Some(clock) = &self.clock else {
            return 0;
        };
        if planted::is_on(Bug::TimeIsTheCalendars) {
            return clock.unix_ms();
        }
        let offset = self.offset_ms.load(Ordering::Relaxed);
        monotonic_ms(clock.as_ref()).saturating_add(offset).max(0) as u64
    }

    /// It was so late already.
    pub(crate) fn not_before(&self, ms: u64) {
        if let Some(clock) = &self.clock {
            let offset = signed(ms).saturating_sub(monotonic_ms(clock.as_ref()));
            self.offset_ms.fetch_max(offset, Ordering::Relaxed);
        }
    }
}

/// A time that a file says may be any number.
fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

fn monotonic_ms(clock: &dyn Clock) -> i64 {
    i64::try_from(clock.now().as_millis()).unwrap_or(i64::MAX)
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Time").field(&self.now_ms()).finish()
    }
}

/// Puts a time before a value.
pub(crate) fn stamp(out: &mut Vec<u8>, now_ms: u64, value: &[u8]) {
    out.clear();
    out.extend_from_slice(&now_ms.to_le_bytes());
    out.extend_from_slice(value);
}

/// When a value was written. One too short to say is as old as can be; none of ours is.
pub(crate) fn written_ms(value: &[u8]) -> u64 {
    value
        .first_chunk::<STAMP_BYTES>()
        .map_or(0, |time| u64::from_le_bytes(*time))
}

/// What a read thinks of expiry: the `ttl` of its keyspace, and what time it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expiry {
    /// The highest number if nothing expires.
    pub(crate) ttl_ms: u64,
    pub(crate) now_ms: u64,
}

impl Expiry {
    /// Whether what was written then has expired.
    pub(crate) fn is_over(&self, written_ms: u64) -> bool {
        written_ms.saturating_add(self.ttl_ms) <= self.now_ms
            && self.ttl_ms < u64::MAX
            && !planted::is_on(Bug::ExpiredIsRead)
    }

    /// What an entry is to a read: an expired one is a deletion.
    pub(crate) fn kind(&self, kind: Kind, value: &[u8]) -> Kind {
        match kind {
            Kind::Expiring if self.is_over(written_ms(value)) => Kind::Delete,
            kind => kind,
        }
    }
}

/// Where in the stored bytes the user's value begins.
pub(crate) fn value_at(kind: Kind) -> usize {
    match kind {
        Kind::Expiring => STAMP_BYTES,
        _ => 0,
    }
}
