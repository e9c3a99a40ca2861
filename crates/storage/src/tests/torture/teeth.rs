//! The torture can fail: each bug in the core of the engine is planted, and the part that is named must
//! find it.

use std::collections::BTreeMap;

use quorate_env::Random;
use quorate_env::sim::Sim;

use super::{crash, faults, options, threads};
use crate::cursor::Cursor;
use crate::key::{self, Key};
use crate::memtable::Memtable;
use crate::merge::MergeCursor;
use crate::options::Compression;
use crate::planted::{Bug, is_noticed, plant};
use crate::table::format::{open_block, seal_block};
use crate::tests::workload::{META, dir, tiny};
use crate::{Batch, Engine, Lsm, ReadAt, WriteOptions};

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
            crash::life(seed, 300)?;
            crash::everywhere(seed, 60, 13).map(|_| ())
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
        Bug::PrevOffByOne,
        Bug::MergeDoesNotSwitch,
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

/// Lookups between flushes and compactions, by what the cache may have kept. No iterator, which in a wrong
/// block may go round for ever.
fn lookups(seed: u64) -> Result<(), String> {
    let sim = Sim::new(seed);
    let text = |e: crate::Error| e.to_string();
    let lsm = Lsm::open(&sim.env(), dir(), tiny()).map_err(text)?;
    let mut written = BTreeMap::new();
    for n in 0..400u64 {
        let key = [sim.random.below(50) as u8];
        let value = n.to_be_bytes();
        match sim.random.below(20) {
            0 => drop(lsm.flush().map_err(text)?),
            1 => lsm.compact_all().map_err(text)?,
            2..=9 => {
                let mut batch = Batch::new();
                batch.put(META, &key, &value);
                lsm.write(&batch, WriteOptions::APPLY).map_err(text)?;
                written.insert(key, value.to_vec());
            }
            _ => {
                let found = lsm.get(META, &key, &ReadAt::NEWEST).map_err(text)?;
                let found = found.map(|entry| entry.value.to_vec());
                if found.as_ref() != written.get(&key) {
                    return Err(format!("{key:?} is {found:?}"));
                }
            }
        }
    }
    Ok(())
}

#[test]
fn lookups_notice_wrong_places_in_blocks_and_blocks_of_other_tables() {
    (0..3).for_each(|seed| lookups(seed).unwrap());
    for bug in [
        Bug::CacheWithoutTable,
        Bug::FileNumbersAreReused,
        Bug::RestartOffByOne,
    ] {
        finds("lookups", bug, lookups);
    }
}

/// A merge that turns around as it likes, against one list with all entries.
fn merged(seed: u64) -> Result<(), String> {
    let random = Random::from_seed(seed);
    let all = Memtable::new(1 << 16);
    let parts = [(); 3].map(|()| Memtable::new(1 << 16));
    for sequence in 1..60 {
        let mut batch = Batch::new();
        batch.put(META, &[random.below(20) as u8], &[]);
        all.apply(&batch, sequence);
        parts[random.below(3) as usize].apply(&batch, sequence);
    }
    let cursor = |part: &Memtable| Box::new(part.cursor()) as Box<dyn Cursor>;
    let mut merged = MergeCursor::new(parts.iter().map(cursor).collect());
    let mut list = cursor(&all);
    for step in 0..300 {
        let target = key::place(META, &[random.below(20) as u8]);
        let target = Key::seek(&target, 0);
        let how = random.below(8);
        let mut moves: [&mut dyn Cursor; 2] = [&mut merged, list.as_mut()];
        for cursor in &mut moves {
            let moved = match how {
                0 => cursor.seek(&target),
                1 => cursor.seek_before(&target),
                _ if !cursor.valid() => cursor.seek_to_first(),
                2..=4 => cursor.next(),
                _ => cursor.prev(),
            };
            moved.map_err(|e| e.to_string())?;
        }
        let [merged, list] = moves.map(|c| c.valid().then(|| c.key().to_string()));
        if merged != list {
            return Err(format!("step {step}: {merged:?}, not {list:?}"));
        }
    }
    Ok(())
}

/// A block with a bit that flipped, and one that lies elsewhere than where it was written, do not open.
fn wrong_blocks() -> Result<(), String> {
    let mut sealed = Vec::new();
    seal_block(&mut sealed, 64, b"a block", Compression::None);
    open_block(sealed.clone(), 64)?;
    if open_block(sealed.clone(), 128).is_ok() {
        return Err("a block from elsewhere opens".to_owned());
    }
    sealed[3] ^= 1;
    match open_block(sealed, 64) {
        Ok(_) => Err("a damaged block opens".to_owned()),
        Err(_) => Ok(()),
    }
}

#[test]
fn damage_notices_checksums_that_are_not_looked_at() {
    wrong_blocks().unwrap();
    for bug in [Bug::ChecksumIsIgnored, Bug::ChecksumWithoutPlace] {
        finds("a wrong block", bug, |_| wrong_blocks());
    }
}

#[test]
fn merge_moves_like_one_list_and_the_check_notices_when_it_does_not() {
    (0..100).for_each(|seed| merged(seed).unwrap());
    for bug in [Bug::MergeDoesNotTurn, Bug::MergeDoesNotSwitch] {
        finds("merged", bug, merged);
    }
}

#[test]
fn torture_of_threads_notices_what_is_visible_too_early() {
    for bug in [Bug::PublishedBeforeApplied, Bug::PublishedOutOfOrder] {
        finds("threads", bug, |seed| {
            threads::round(seed, 400, &|| plant(Some(bug))).map(|_| ())
        });
    }
}
