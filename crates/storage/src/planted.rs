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
    /// A backup is answered before its files are synced.
    BackupUnsynced,
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
    /// A compaction filter is shown the pointer to a value that lies apart.
    FilterSeesPointers,
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
    /// What has expired is still read.
    ExpiredIsRead,
    /// Entries expire by the calendar, however it leaps.
    TimeIsTheCalendars,
    /// A table that has expired is dropped from over what it hides.
    ExpiredTablesUncover,
    /// A compaction filter is asked about what snapshots see.
    FilterIgnoresSnapshots,
    /// A compaction filter is asked about versions that may be read.
    FilterIgnoresWatermark,
    /// A table says that its filter knows prefixes, which it does not.
    PrefixesAreNotInTheFilter,
    /// A scan takes the prefix of its first key for that of all.
    PrefixIgnoresUpperBound,
    /// A scan asks a table's filter for the prefix of another extractor.
    PrefixOfTheWrongExtractor,
    /// The cache keeps its size whatever the others take.
    CacheDoesNotShrink,
    /// Tables are not closed, however many are open.
    TablesStayOpen,
    /// A write that does not want to wait does.
    BusyIsWaitedFor,
    /// A deadline that passes while the write waits is not noticed.
    DeadlineIsNotLookedAtAgain,
    /// Writes are held up long instead of early.
    ThrottleIsAllOrNothing,
    /// A policy leaves tables that lie under others.
    TieredSkipsARun,
    /// The newest tables are dropped instead of the oldest.
    FifoDropsTheNewest,
    /// Tables full of deletions stay.
    HeavyTablesStay,
    /// An edit takes effect before the manifest is synced.
    ManifestUnsynced,
    /// Tables are in the manifest whose names were not synced.
    NamesUnsynced,
    /// Tables are in the manifest whose content was not synced.
    TablesUnsynced,
    /// CURRENT names a manifest whose name was not synced.
    CurrentBeforeManifest,
    /// An edit takes effect before it is in the manifest.
    InstalledBeforeDurable,
    /// Tables that were merged are removed before the manifest says so.
    InputsRemovedTooEarly,
    /// The log forgets segments that memtables still need.
    LogReleasedTooEarly,
    /// A memtable does not know where in the log it begins.
    SegmentIsNotNoted,
    /// A flush says that it wrote out what is in newer memtables too.
    FlushedTooHigh,
    /// Of sealed memtables the newest is flushed first.
    FlushNewestFirst,
    /// After opening, sequences are given out again that tables have.
    SequencesAreReused,
    /// The numbers of files that are gone are given out again.
    FileNumbersAreReused,
    /// The watermark is not in the manifest.
    WatermarkIsForgotten,
    /// A failed sync of the log is not held against it.
    FailedSyncIsForgotten,
    /// A batch that the log refused is in memory.
    RefusedIsApplied,
    /// A batch is published before it is in the memtable.
    PublishedBeforeApplied,
    /// A batch is published though earlier ones are under way.
    PublishedOutOfOrder,
    /// A snapshot takes its sequence before it is listed.
    SnapshotListedTooLate,
    /// A read takes its sequence before its state.
    SequenceBeforeState,
    /// Tables of level 0 are asked from the oldest on.
    LevelZeroReversed,
    /// A deletion goes though what it hides lies further down.
    DeletionsAreLostAboveTheBottom,
    /// Compaction does not look at snapshots.
    SnapshotsAreIgnored,
    /// An entry loses its sequence though a snapshot does not see it.
    SequenceIsLostUnderSnapshot,
    /// A table ends between versions of a key.
    TablesEndInsideKeys,
    /// A key's versions in the next block are not looked for.
    LookupEndsWithBlock,
    /// A table ends before its last key.
    BoundsEndOffByOne,
    /// The filter has the version in its hash.
    FilterOfWrongKey,
    /// The index may have a block under a key before its last.
    SeparatorTooLow,
    /// A block's checksum does not know where the block lies.
    ChecksumWithoutPlace,
    /// A block's checksum is not looked at.
    ChecksumIsIgnored,
    /// The cache does not know tables apart.
    CacheWithoutTable,
    /// Going back from an entry ends on the entry.
    PrevOffByOne,
    /// When a merge turns around, its sources stay where they are.
    MergeDoesNotTurn,
    /// A merge goes on with its source though another one is nearer.
    MergeDoesNotSwitch,
    /// A node of the skip list is linked without making known what is in it. For Miri.
    LinkIsRelaxed,
    /// A search begins at the restart point behind the one that it needs.
    RestartOffByOne,
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
