//! The torture can fail: each bug in the core of the engine is planted, and the part that is named must
//! find it.

use super::{crash, faults, options, threads};
use crate::planted::{Bug, is_noticed, plant};

/// So many seeds may pass before a bug counts as unnoticed.
const SEEDS: u64 = 60;

fn finds(part: &str, bug: Bug, round: impl Fn(u64) -> Result<(), String>) {
    let found = (0..SEEDS).find(|seed| is_noticed(bug, || round(*seed)));
    println!("{bug:?}: found by {part}, seed {found:?}");
    assert!(found.is_some(), "{part} does not notice {bug:?}");
}

#[test]
fn torture_of_crashes_notices_what_is_durable_too_late_or_gone_too_early() {
    for bug in [
        Bug::ManifestUnsynced,
        Bug::NamesUnsynced,
        Bug::TablesUnsynced,
        Bug::CurrentBeforeManifest,
        Bug::InputsRemovedTooEarly,
        Bug::LogReleasedTooEarly,
        Bug::SegmentIsNotNoted,
        Bug::FlushedTooHigh,
        Bug::FlushNewestFirst,
        Bug::SequencesAreReused,
    ] {
        finds("crash", bug, |seed| {
            crash::life(seed, 150)?;
            crash::everywhere(seed, 60, 7).map(|_| ())
        });
    }
}

#[test]
fn torture_of_faults_notices_errors_that_are_forgotten() {
    for bug in [
        Bug::InstalledBeforeDurable,
        Bug::FailedSyncIsForgotten,
        Bug::RefusedIsApplied,
    ] {
        finds("faults", bug, |seed| {
            faults::everywhere(seed, 40, 5).map(|_| ())
        });
    }
}

#[test]
fn torture_of_options_notices_wrong_reads_of_tables() {
    for bug in [
        Bug::LookupEndsWithBlock,
        Bug::BoundsEndOffByOne,
        Bug::FilterOfWrongKey,
        Bug::SeparatorTooLow,
        Bug::CacheWithoutTable,
        Bug::FileNumbersAreReused,
        Bug::PrevOffByOne,
        Bug::MergeDoesNotTurn,
        Bug::MergeDoesNotSwitch,
        Bug::RestartOffByOne,
    ] {
        finds("options", bug, |seed| {
            options::round(seed, 400);
            Ok(())
        });
    }
}

#[test]
fn torture_of_options_notices_wrong_compactions() {
    for bug in [
        Bug::LevelZeroReversed,
        Bug::DeletionsAreLostAboveTheBottom,
        Bug::SnapshotsAreIgnored,
        Bug::SequenceIsLostUnderSnapshot,
        Bug::TablesEndInsideKeys,
        Bug::WatermarkIsForgotten,
    ] {
        finds("options", bug, |seed| {
            options::round(seed, 400);
            Ok(())
        });
    }
}

#[test]
fn torture_of_threads_notices_what_is_visible_too_early() {
    for bug in [
        Bug::PublishedBeforeApplied,
        Bug::PublishedOutOfOrder,
        Bug::SequenceBeforeState,
    ] {
        finds("threads", bug, |seed| {
            threads::round(seed, 400, &|| plant(Some(bug))).map(|_| ())
        });
    }
}
