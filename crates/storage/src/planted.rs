//! Bugs on purpose, which tests switch on to see that the checks have teeth.
//!
//! Each is a place in the code that asks [`is_on`]. Outside of tests the answer is a constant, and
//! nothing of this is left in the program. `docs/testing.md` lists the bugs and what finds each.

/// What can be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A checkpoint is not marked as incomplete while it is made.
    CheckpointUnmarked,
    /// A checkpoint leaves out the last sync of its directory.
    CheckpointUnsynced,
    /// The manifest gets ingested tables whose files were not synced.
    IngestUnsynced,
    /// Excising a range leaves its first key.
    ExciseOffByOne,
    /// Ingested tables go below tables that overlap them.
    IngestTooDeep,
    /// Snapshots taken before see what is ingested.
    IngestWithoutSequence,
}

#[cfg(test)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Whether the code is to be wrong in this way.
#[cfg(test)]
pub(crate) fn is_on(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether the code is to be wrong in this way: not here.
#[cfg(not(test))]
#[inline(always)]
pub(crate) fn is_on(_: Bug) -> bool {
    false
}

/// Whether a check that passes otherwise fails, or panics, with a bug planted on this thread.
#[cfg(test)]
pub(crate) fn is_noticed(bug: Bug, check: impl FnOnce() -> Result<(), String>) -> bool {
    PLANTED.set(Some(bug));
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check));
    PLANTED.set(None);
    !matches!(done, Ok(Ok(())))
}
