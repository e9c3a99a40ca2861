//! What a cache has done, counted.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a cache has done since it was made.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        #[non_exhaustive]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub $name: AtomicU64,)*
        }

        impl Counters {
            pub fn read(&self) -> Stats {
                Stats { $($name: self.$name.load(Relaxed),)* }
            }
        }
    };
}

stats! {
    /// Reads that the tier of this process answered.
    hits_local,
    /// Reads that the remote tier answered, each for all who waited for it.
    hits_remote,
    /// Loads from the source that were begun.
    loads,
    /// Loads that failed, came too late or gave something too old.
    load_failures,
    /// Reads that waited for a load which another had begun.
    joins,
    /// Loads that waited since another process was loading the key.
    lease_waits,
    /// Fills that were not installed, since their key was invalidated meanwhile or something newer was there.
    fills_refused,
    /// Reads that were answered by what had expired.
    stale_served,
    /// Values that could not be decoded and were loaded anew.
    undecodable,
    /// Values that were too large to be kept.
    values_too_large,
    /// Calls of the remote tier that failed.
    remote_failures,
    /// Calls of the remote tier that were left out while it is left alone.
    remote_skips,
    /// Invalidations by others that this process heard of.
    heard,
    /// Times that messages were missed, or may have been, and the tier of this process was emptied; the beginning is one.
    gaps,
    /// Questions for what others wrote that failed.
    follow_failures,
    /// Reads that passed the tier of this process by, since it was not proven that all was heard.
    unproven_reads,
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
