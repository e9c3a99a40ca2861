//! Bugs that tests plant, to see that other tests find them.
//!
//! Outside of tests there are none, and the questions for them cost nothing.

/// A bug to plant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
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
}

#[cfg(not(test))]
pub(crate) const fn planted(_: Bug) -> bool {
    false
}

#[cfg(test)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

#[cfg(test)]
pub(crate) fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Plants a bug in all that this thread does from now on; `None` takes it away.
#[cfg(test)]
pub(crate) fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}
