//! The checks can fail: each of these bugs is planted, and the check that is named must find it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::conditions::race;
use super::conformance;
use super::workload::option_sets;
use crate::planted::{Bug, plant};
use crate::voids;

/// Whether a check fails with a bug.
fn finds(bug: Bug, check: impl Fn()) -> bool {
    plant(Some(bug));
    let outcome = catch_unwind(AssertUnwindSafe(check));
    plant(None);
    outcome.is_err()
}

/// `engines_random_operations_agree`, with more seeds if it has to be.
fn random_operations_find(bug: Bug) {
    let found = (0..60).find(|seed| {
        option_sets().into_iter().any(|options| {
            let with_watermark = seed % 3 == 0;
            finds(bug, || {
                conformance::run(*seed, options.clone(), with_watermark, 600);
            })
        })
    });
    println!("{bug:?}: found by seed {found:?}");
    assert!(found.is_some(), "nobody noticed {bug:?}");
}

#[test]
fn random_operations_notice_what_is_wrong_with_range_deletes() {
    for bug in [
        Bug::BoundsForgetRanges,
        Bug::FilterHidesRanges,
        Bug::RangesAreNotCut,
        Bug::RangesAreLostAboveTheBottom,
        Bug::RangesIgnoreSnapshots,
        Bug::SequenceIsLostUnderRange,
        Bug::SkipIgnoresVersions,
        Bug::RemovalForgetsRanges,
    ] {
        random_operations_find(bug);
    }
}

#[test]
fn random_operations_notice_what_is_wrong_with_values_apart() {
    for bug in [
        Bug::PointersAreNotCounted,
        Bug::PointersAreGivenOut,
        Bug::MovedValuesKeepTheirOffset,
    ] {
        random_operations_find(bug);
    }
}

#[test]
fn random_operations_notice_a_void_that_is_not_cut() {
    random_operations_find(Bug::VoidsAreNotCut);
}

#[test]
fn voids_check_notices_one_that_is_not_sure() {
    let check = voids::tests::voids_hold_nothing_that_is_alive_in_any_history;
    assert!(finds(Bug::VoidsAreSureAtOnce, check));
}

#[test]
fn race_notices_conditions_that_are_not_looked_at_again() {
    // Threads may get out of each other's way.
    let bug = || plant(Some(Bug::ConditionsAreNotLookedAtAgain));
    let found = (0..50).find(|n| race(n % 2 == 0, bug).is_err());
    println!("found in race {found:?}");
    assert!(found.is_some(), "nobody noticed");
}
