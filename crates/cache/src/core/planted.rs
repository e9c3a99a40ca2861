//! Bugs on purpose, which tests switch on to see that the checks have teeth.
//!
//! Each takes one guard of the protocol away. Outside of tests the answer is a constant, and nothing of this
//! is left in the program. `docs/testing.md` lists them.

/// What can be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A fill is installed though its key was invalidated, without a version, since it was registered.
    PutIgnoresTheMark,
    /// A fill is installed though it is below the floor.
    PutIgnoresTheFloor,
    /// A fill is installed though its record was evicted since it was registered.
    PutMakesARecord,
    /// A fill takes the place of a newer value.
    PutIgnoresWhatIsNewer,
    /// A fill of an epoch that has ended is installed.
    PutIgnoresTheBase,
    /// A value of an epoch that has ended is served.
    LookIgnoresTheBase,
    /// A record that is made anew has the mark that it had before.
    MarksAreReused,
    /// An invalidation by version leaves the value.
    InvalidationLeavesTheValue,
    /// An invalidation by version leaves the floor where it was.
    InvalidationLeavesTheFloor,
    /// An invalidation without a version does not ask for the newest state.
    InvalidationForgetsLatest,
    /// Once a fill is installed, later ones may come from anywhere again.
    LatestIsForgottenOnceFilled,
    /// The floor of an evicted record is forgotten.
    EvictionForgetsTheFloor,
    /// That an evicted record needed the newest state is forgotten.
    EvictionForgetsLatest,
    /// After a gap, values stay.
    GapLeavesValues,
    /// After a gap, fills may come from anywhere.
    GapForgetsLatest,
    /// A fill registers locally only after it has read the remote tier.
    LocalIsRegisteredLate,
    /// The remote tier is invalidated last.
    RemoteIsInvalidatedLast,
    /// A fill that the remote tier refused is installed locally.
    RefusalIsIgnored,
    /// The source is not told the floor, and its answer not held against it.
    NeedIsNotHeldAgainstTheAnswer,
    /// What the remote tier has is taken though it is below the local floor.
    RemoteIsTakenBelowTheFloor,
    /// What a lagging replica gave counts as the newest.
    LagIsIgnored,
    /// When the remote tier does not answer, fills may come from anywhere.
    SilenceNeedsNothing,
    /// A value of unknown age counts as new.
    UnknownAgeIsNew,
    /// A read with a bound does not look at the age.
    BoundIsNotLookedAt,
    /// A read with a token does not look at the version.
    TokenIsNotLookedAt,
    /// A linearizable read is served from a tier.
    LinearizableIsServed,
    /// What has expired is served as if it had not.
    ExpiredIsServed,
    /// A value is served though one of its tags was invalidated, without a version, since its fill was registered.
    TagMarksAreIgnored,
    /// A value is served though it is below the floor of one of its tags.
    TagFloorsAreIgnored,
    /// A fill does not need what its tags need.
    TagNeedsAreIgnored,
    /// What was heard counts as all, though messages are missing between.
    FeedIgnoresGaps,
    /// Another stream counts as the one before.
    FeedIgnoresTheStream,
    /// All counts as heard, though there is more to come.
    FeedProvesWhatIsBehind,
    /// All counts as heard until the answer came, and not until it was asked for.
    FeedProvesTheTimeOfTheAnswer,
    /// All counts as heard before it was done to the local tier.
    FeedProvesBeforeItIsDone,
    /// A process that begins to hear keeps what it had.
    FeedBeginsWithWhatIsThere,
    /// The local tier is believed though it is not proven that all was heard.
    UnprovenIsServed,
    /// An invalidation lets later readers join a load that began before it.
    RunningIsNotDetached,
    /// Who joins late takes what was overtaken.
    OvertakenIsShared,
    /// In a process without a tier of its own, a flight is joined while the remote tier installs it.
    WhatIsPutIsJoined,
    /// In a process without a tier of its own, who joins late takes what the remote tier did not confirm.
    UnconfirmedIsShared,
    /// A linearizable read joins a load that has begun.
    LinearizableJoinsWhatRuns,
    /// What has expired is served at levels that do not allow it.
    StaleIsServedAtAnyLevel,
    /// A write whose outcome is unknown invalidates nothing.
    UnknownOutcomeIsIgnored,
    /// A remote tier that does not answer counts as told.
    UntoldCountsAsTold,
    /// A remote tier is believed about keys whose invalidation it was not told.
    UntoldIsTrusted,
    /// An invalidated tag lets later readers join loads that began before it.
    TagLeavesWhatRuns,
    /// A tenant that begins anew knows no floors of what was dropped.
    TenantFloorsAreForgotten,
    /// A tenant that begins anew gives marks that it has given before.
    TenantMarksAreReused,
    /// The meter asks the source after a read instead of before it.
    ShadowAfterRead,
    /// While it is not proven that all was heard, who comes late joins a load that has begun.
    UnprovenIsJoined,
}

#[cfg(test)]
impl Bug {
    /// Those of what is around the protocol: flights, levels, writes.
    pub(crate) const AROUND: [Bug; 13] = [
        Bug::RunningIsNotDetached,
        Bug::TagLeavesWhatRuns,
        Bug::TenantFloorsAreForgotten,
        Bug::TenantMarksAreReused,
        Bug::OvertakenIsShared,
        Bug::WhatIsPutIsJoined,
        Bug::UnconfirmedIsShared,
        Bug::LinearizableJoinsWhatRuns,
        Bug::StaleIsServedAtAnyLevel,
        Bug::UnknownOutcomeIsIgnored,
        Bug::UntoldCountsAsTold,
        Bug::UntoldIsTrusted,
        Bug::UnprovenIsServed,
    ];

    /// Those of the protocol.
    pub(crate) const PROTOCOL: [Bug; 37] = [
        Bug::PutIgnoresTheMark,
        Bug::PutIgnoresTheFloor,
        Bug::PutMakesARecord,
        Bug::PutIgnoresWhatIsNewer,
        Bug::PutIgnoresTheBase,
        Bug::LookIgnoresTheBase,
        Bug::MarksAreReused,
        Bug::InvalidationLeavesTheValue,
        Bug::InvalidationLeavesTheFloor,
        Bug::InvalidationForgetsLatest,
        Bug::LatestIsForgottenOnceFilled,
        Bug::EvictionForgetsTheFloor,
        Bug::EvictionForgetsLatest,
        Bug::GapLeavesValues,
        Bug::GapForgetsLatest,
        Bug::LocalIsRegisteredLate,
        Bug::RemoteIsInvalidatedLast,
        Bug::RefusalIsIgnored,
        Bug::NeedIsNotHeldAgainstTheAnswer,
        Bug::RemoteIsTakenBelowTheFloor,
        Bug::LagIsIgnored,
        Bug::SilenceNeedsNothing,
        Bug::UnknownAgeIsNew,
        Bug::BoundIsNotLookedAt,
        Bug::TokenIsNotLookedAt,
        Bug::LinearizableIsServed,
        Bug::ExpiredIsServed,
        Bug::TagMarksAreIgnored,
        Bug::TagFloorsAreIgnored,
        Bug::TagNeedsAreIgnored,
        Bug::FeedIgnoresGaps,
        Bug::FeedIgnoresTheStream,
        Bug::FeedProvesWhatIsBehind,
        Bug::FeedProvesTheTimeOfTheAnswer,
        Bug::FeedProvesBeforeItIsDone,
        Bug::FeedBeginsWithWhatIsThere,
        Bug::UnprovenIsServed,
    ];
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
