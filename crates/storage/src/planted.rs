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
    /// A table's bounds are those of its entries, whatever its range deletions cover.
    BoundsForgetRanges,
    /// A table's filter is asked before its range deletions.
    FilterHidesRanges,
    /// A table takes range deletions whole that go on in the next one.
    RangesAreNotCut,
    /// Compaction loses range deletions though something lies below.
    RangesAreLostAboveTheBottom,
    /// Compaction drops what a range deletion covers though a snapshot sees it.
    RangesIgnoreSnapshots,
    /// An entry loses its sequence beside a range deletion that stays.
    SequenceIsLostUnderRange,
    /// A scan skips older sources whatever versions they hold.
    SkipIgnoresVersions,
    /// A range is not removed from range deletions.
    RemovalForgetsRanges,
    /// A conditional batch does not look who wrote since it was judged.
    ConditionsAreNotLookedAtAgain,
    /// A write does not cut the voids that it lands in.
    VoidsAreNotCut,
    /// A void is used before it is sure.
    VoidsAreSureAtOnce,
    /// Some pointers are not counted to what a table needs of value files.
    PointersAreNotCounted,
    /// A value file goes though somebody reads it.
    ValueFilesGoAtOnce,
    /// The checksum of a value does not know the file.
    ValuesForgetTheirFile,
    /// Going back, a pointer is given out for the value.
    PointersAreGivenOut,
    /// The pointer to a value that was moved has the offset in the old file.
    MovedValuesKeepTheirOffset,
    /// A checkpoint leaves out value files.
    CheckpointWithoutValues,
    /// The scan's buffer of a file is taken for that of another.
    WindowsAreMixedUp,
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
pub(crate) const fn is_on(_: Bug) -> bool {
    false
}

/// Plants a bug in all that this thread does from now on; `None` takes it away.
#[cfg(test)]
pub(crate) fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether a check that passes otherwise fails, or panics, with a bug planted on this thread.
#[cfg(test)]
pub(crate) fn is_noticed(bug: Bug, check: impl FnOnce() -> Result<(), String>) -> bool {
    plant(Some(bug));
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check));
    plant(None);
    !matches!(done, Ok(Ok(())))
}
