//! Values apart from their keys: who needs their files, and when they go.

use std::path::PathBuf;

use quorate_env::Disk;
use quorate_env::sim::{Fault, Sim, SimDisk};

use super::corruption::copy;
use super::workload::{META, dir, tiny, tiny_apart};
use crate::planted::{self, Bug};
use crate::{
    Batch, Compression, Engine, ErrorKind, IngestOptions, IterOptions, KeyRange, Lsm, Options,
    ReadAt, Result, WriteOptions,
};

/// Values of a kilobyte and more are apart, in files of sixteen.
fn options() -> Options {
    Options {
        large_value_bytes: 1000,
        value_file_bytes: 16 << 10,
        value_garbage_percent: 50,
        memtable_bytes: 16 << 10,
        compression: Compression::None,
        ..tiny()
    }
}

fn open(sim: &Sim, options: &Options) -> Lsm {
    Lsm::open(&sim.env(), dir(), options.clone()).unwrap()
}

/// What key `n` holds in a round: large for even keys, small for odd ones.
fn value(n: u64, round: u64) -> Vec<u8> {
    let length = if n.is_multiple_of(2) { 1000 + n } else { 20 };
    vec![(n * 7 + round) as u8; length as usize]
}

fn put(lsm: &Lsm, keys: impl Iterator<Item = u64>, round: u64) {
    for n in keys {
        let mut batch = Batch::new();
        batch.put(META, &n.to_be_bytes(), &value(n, round));
        lsm.write(&batch, WriteOptions::APPLY).unwrap();
    }
}

fn files(disk: &SimDisk) -> Vec<PathBuf> {
    let names = disk.list(dir()).unwrap().into_iter();
    let files = names.filter(|name| name.ends_with(".values"));
    files.map(|name| dir().join(name)).collect()
}

fn get(lsm: &Lsm, n: u64) -> Result<Option<Vec<u8>>> {
    let found = lsm.get(META, &n.to_be_bytes(), &ReadAt::NEWEST)?;
    Ok(found.map(|entry| entry.value.to_vec()))
}

#[test]
fn values_apart_are_written_once_and_garbage_is_bounded() {
    let run = |options: &Options| {
        let sim = Sim::new(1);
        let lsm = open(&sim, options);
        for round in 0..20 {
            put(&lsm, (0..100).map(|n| (n * 37 + round) % 100), round);
            sim.jobs.pump_all();
        }
        lsm.flush().unwrap();
        sim.jobs.pump_all();
        for n in 0..100 {
            assert_eq!(get(&lsm, n).unwrap(), Some(value(n, 19)));
        }
        let stats = lsm.stats();
        assert_eq!(files(&sim.disk).len() as u64, stats.value_files);
        stats
    };
    let apart = run(&options());
    let inline = run(&Options {
        large_value_bytes: 0,
        ..options()
    });
    let (a, b) = (
        apart.write_amplification().unwrap(),
        inline.write_amplification().unwrap(),
    );
    println!("written for each byte: {a:.2} apart, {b:.2} inline");
    assert!(a * 2.0 < b, "{a} against {b}");
    assert!(
        apart.value_moved_bytes > 0,
        "nothing was collected: {apart:?}"
    );
    assert!(apart.value_dead_bytes * 2 <= apart.value_bytes, "{apart:?}");
    assert_eq!((inline.value_files, inline.value_write_bytes), (0, 0));
    assert!(inline.space_amplification().unwrap() >= 1.0);
    assert!(apart.space_amplification().unwrap() < 2.1);
}

#[test]
fn values_all_dead_leave_no_file() {
    let sim = Sim::new(1);
    let lsm = open(&sim, &options());
    put(&lsm, 0..50, 0);
    lsm.flush().unwrap();
    assert!(lsm.stats().value_files > 1);
    let all = lsm.approximate_bytes(META, KeyRange::ALL).unwrap();
    assert!(all > 25_000, "{all}");
    // By a range that is removed, by one that is deleted.
    let half = 20_u64.to_be_bytes();
    lsm.remove_range(META, KeyRange::new(&[], &half)).unwrap();
    let rest = lsm.approximate_bytes(META, KeyRange::ALL).unwrap();
    assert!(rest < all * 3 / 4, "{rest} of {all}");
    let mut batch = Batch::new();
    batch.delete_range(META, KeyRange::ALL);
    lsm.write(&batch, WriteOptions::APPLY).unwrap();
    lsm.compact_all().unwrap();
    assert_eq!(lsm.stats().value_bytes, 0);
    assert!(files(&sim.disk).is_empty());
}

/// An iterator and a snapshot go on to read what was overwritten and collected since.
fn read_what_is_gone() -> std::result::Result<(), String> {
    let sim = Sim::new(1);
    let lsm = open(&sim, &options());
    put(&lsm, 0..40, 0);
    lsm.flush().unwrap();
    let mut iter = lsm.iterate(META, IterOptions::default()).unwrap();
    put(&lsm, 0..40, 1);
    lsm.compact_all().unwrap();
    iter.seek_to_first().map_err(|e| e.to_string())?;
    let mut n = 0;
    while iter.valid() {
        assert_eq!(iter.value(), value(n, 0), "key {n}");
        iter.next().map_err(|e| e.to_string())?;
        n += 1;
    }
    assert_eq!(n, 40);
    let before = files(&sim.disk).len();
    drop(iter);
    let snapshot = lsm.snapshot();
    put(&lsm, 0..40, 2);
    // Also lets go of what the iterator held.
    lsm.compact_all().unwrap();
    let found = lsm.get(META, &0_u64.to_be_bytes(), &ReadAt::snapshot(&snapshot));
    assert_eq!(found.unwrap().unwrap().value, value(0, 1));
    drop(snapshot);
    lsm.compact_all().unwrap();
    assert_eq!(files(&sim.disk).len() as u64, lsm.stats().value_files);
    assert!(files(&sim.disk).len() < before);
    Ok(())
}

#[test]
fn values_stay_for_iterators_and_snapshots() {
    read_what_is_gone().unwrap();
}

#[test]
fn values_check_notices_files_that_go_under_a_reader() {
    let bug = Bug::ValueFilesGoAtOnce;
    assert!(planted::is_noticed(bug, read_what_is_gone));
}

#[test]
fn values_follow_the_option_both_ways() {
    let sim = Sim::new(1);
    let inline = Options {
        large_value_bytes: 0,
        ..options()
    };
    let lsm = open(&sim, &inline);
    put(&lsm, 0..60, 0);
    lsm.compact_all().unwrap();
    lsm.close().unwrap();
    drop(lsm);
    for (options, apart) in [(options(), true), (inline, false)] {
        let lsm = open(&sim, &options);
        lsm.compact_all().unwrap();
        assert_eq!(lsm.stats().value_files > 0, apart);
        assert_eq!(files(&sim.disk).is_empty(), !apart);
        for n in 0..60 {
            assert_eq!(get(&lsm, n).unwrap(), Some(value(n, 0)));
        }
        lsm.close().unwrap();
    }
}

#[test]
fn values_lazily_read_are_read_when_asked_for() {
    let sim = Sim::new(1);
    let lsm = open(&sim, &options());
    put(&lsm, 0..10, 0);
    lsm.flush().unwrap();
    let lazy = || IterOptions {
        lazy_values: true,
        ..IterOptions::default()
    };
    let mut iter = lsm.iterate(META, lazy()).unwrap();
    iter.seek_to_first().unwrap();
    assert!(iter.value().is_empty(), "not read yet");
    assert_eq!(iter.read_value().unwrap(), value(0, 0));
    assert_eq!(iter.value(), value(0, 0));
    iter.next().unwrap();
    assert_eq!(iter.value(), value(1, 0), "small ones are there");
    assert_eq!(iter.read_value().unwrap(), value(1, 0));
    iter.seek_to_last().unwrap();
    iter.prev().unwrap();
    assert_eq!(iter.read_value().unwrap(), value(8, 0));
    lsm.close().unwrap();
    drop((iter, lsm));
    // Keys need no value; a value that can't be read is an error, and not more.
    let lsm = open(&sim, &options());
    for path in files(&sim.disk) {
        sim.disk.remove(&path).unwrap();
    }
    let mut iter = lsm.iterate(META, lazy()).unwrap();
    iter.seek_to_first().unwrap();
    for n in 0..10_u64 {
        assert_eq!(iter.key(), n.to_be_bytes());
        let read = iter.read_value();
        assert_eq!(read.is_err(), n.is_multiple_of(2), "{n}");
        iter.next().unwrap();
    }
    let mut iter = lsm.iterate(META, IterOptions::default()).unwrap();
    let failed = iter.seek_to_first().unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Corruption);
    assert!(!iter.valid());
}

#[test]
fn values_missing_or_damaged_are_found_and_named() {
    let sim = Sim::new(1);
    let lsm = open(&sim, &options());
    put(&lsm, 0..40, 0);
    lsm.close().unwrap();
    drop(lsm);
    let all = files(&sim.disk);
    let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    let refused = |what: &str, spoil: &dyn Fn(&Sim)| {
        let sim = copy(&sim.disk);
        spoil(&sim);
        let error = Lsm::open(&sim.env(), dir(), options()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corruption, "{what}: {error}");
        assert!(error.message().contains(&name(&all[0])), "{what}: {error}");
    };
    refused("missing", &|sim| sim.disk.remove(&all[0]).unwrap());
    refused("cut", &|sim| {
        let file = sim.disk.open(&all[0]).unwrap();
        file.set_size(file.size().unwrap() - 1).unwrap();
    });
    // Damage within is found when it is read, and the rest stays readable.
    let spoiled = copy(&sim.disk);
    spoiled.disk.flip_bit(&all[0], 8 * 100).unwrap();
    let lsm = open(&spoiled, &options());
    let failed = get(&lsm, 0).unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Corruption);
    let text = failed.message();
    assert!(
        text.contains(&name(&all[0])) && text.contains("byte 64"),
        "{text}"
    );
    assert_eq!(get(&lsm, 2).unwrap(), Some(value(2, 0)));
    drop(lsm);
    // A file in the place of another.
    let spoiled = copy(&sim.disk);
    let content = spoiled.disk.read(&all[1]).unwrap();
    let file = spoiled.disk.open(&all[0]).unwrap();
    file.set_size(content.len() as u64).unwrap();
    file.write_all_at(&content, 0).unwrap();
    let found = Lsm::open(&spoiled.env(), dir(), options()).and_then(|lsm| get(&lsm, 0));
    assert_eq!(found.unwrap_err().kind(), ErrorKind::Corruption);
}

#[test]
fn values_failed_sync_poisons_and_full_disk_leaves_nothing() {
    let sim = Sim::new(1);
    let small_files = Options {
        value_file_bytes: 1000,
        ..options()
    };
    // The first file ends before the table does.
    let lsm = open(&sim, &small_files);
    put(&lsm, 0..4, 0);
    sim.disk.inject(Fault::Sync);
    let failed = lsm.flush().unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Poisoned);
    assert!(failed.message().contains(".values"), "{failed}");
    assert_eq!(get(&lsm, 2).unwrap(), Some(value(2, 0)));
    drop(lsm);
    let sim = Sim::new(1);
    let lsm = open(&sim, &options());
    let used = u64::MAX - sim.disk.space(dir()).unwrap().free;
    sim.disk.set_capacity(Some(used + 2500));
    put(&lsm, 0..8, 0);
    assert_eq!(lsm.flush().unwrap_err().kind(), ErrorKind::DiskFull);
    assert!(
        files(&sim.disk).is_empty(),
        "nothing stays of a failed flush"
    );
    sim.disk.set_capacity(None);
    lsm.retry();
    sim.jobs.pump_all();
    lsm.flush().unwrap();
    assert_eq!(files(&sim.disk).len() as u64, lsm.stats().value_files);
    assert_eq!(get(&lsm, 6).unwrap(), Some(value(6, 0)));
}

#[test]
fn values_that_collection_can_not_read_stop_it_not_the_engine() {
    let sim = Sim::new(1);
    let lsm = open(&sim, &options());
    put(&lsm, 0..10, 0);
    lsm.flush().unwrap();
    let first = files(&sim.disk).remove(0);
    put(&lsm, 2..10, 1);
    sim.disk.flip_bit(&first, 8 * 100).unwrap();
    let failed = lsm.compact_all().and_then(|()| lsm.compact_all());
    let failed = failed.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Corruption, "{failed}");
    put(&lsm, 10..12, 0);
    lsm.flush().unwrap();
    assert_eq!(get(&lsm, 10).unwrap(), Some(value(10, 0)));
}

#[test]
fn values_of_tables_from_elsewhere_are_refused() {
    let sim = Sim::new(1);
    let lsm = open(&sim, &options());
    put(&lsm, 0..10, 0);
    lsm.compact_all().unwrap();
    let names = sim.disk.list(dir()).unwrap();
    let table = names.iter().find(|name| name.ends_with(".table")).unwrap();
    let refused = lsm.ingest(&[dir().join(table)], &IngestOptions::default());
    let refused = refused.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
    assert!(refused.message().contains("elsewhere"), "{refused}");
}

#[test]
fn compression_is_chosen_by_level() {
    let sim = Sim::new(1);
    let options = Options {
        level_compression: vec![Compression::Lz4, Compression::None],
        bottom_compression: Some(Compression::Lz4),
        auto_compact: false,
        ..tiny_apart()
    };
    assert_eq!(options.compression_of(0, false), Compression::Lz4);
    assert_eq!(options.compression_of(1, false), Compression::None);
    assert_eq!(options.compression_of(5, false), Compression::None);
    assert_eq!(options.compression_of(5, true), Compression::Lz4);
    assert_eq!(tiny().compression_of(0, false), Compression::Lz4);
    assert_eq!(tiny().compression_of(1, true), Compression::Lz4);
    let lsm = open(&sim, &options);
    put(&lsm, 0..40, 0);
    lsm.compact_all().unwrap();
    put(&lsm, 0..40, 1);
    lsm.close().unwrap();
    drop(lsm);
    let summary = crate::inspect::Inspection::open(&sim.env(), dir())
        .unwrap()
        .summary();
    let all = summary
        .tables
        .iter()
        .all(|t| t.compression == Compression::Lz4);
    assert!(
        all && summary.tables.iter().any(|t| t.level > 0),
        "{summary:?}"
    );
}

/// A checkpoint that is used on its own.
fn checkpoint() -> std::result::Result<(), String> {
    let sim = Sim::new(1);
    let lsm = open(&sim, &options());
    put(&lsm, 0..30, 0);
    let target = PathBuf::from("/checkpoint");
    lsm.checkpoint(&target).unwrap();
    put(&lsm, 0..30, 1);
    lsm.compact_all().unwrap();
    drop(lsm);
    let copy = Lsm::open(&sim.env(), &target, options()).map_err(|e| e.to_string())?;
    for n in 0..30 {
        assert_eq!(get(&copy, n).unwrap(), Some(value(n, 0)));
    }
    Ok(())
}

#[test]
fn values_are_in_checkpoints_and_the_check_notices_when_not() {
    checkpoint().unwrap();
    assert!(planted::is_noticed(
        Bug::CheckpointWithoutValues,
        checkpoint
    ));
}
