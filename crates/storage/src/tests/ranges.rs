//! Range deletions: what they cost, and what becomes of them on the way down.

use quorate_env::sim::Sim;
use quorate_env::{Disk, Env, Random};

use super::conformance::list;
use super::workload::{DATA, META, dir, tiny};
use crate::{
    Batch, Engine, IterOptions, KeyRange, KeyspaceId, Lsm, Options, ReadAt, Result, WriteOptions,
};

/// No compaction but on demand.
fn still() -> Options {
    Options {
        memtable_bytes: 256 << 10,
        table_bytes: 8 << 10,
        auto_compact: false,
        ..tiny()
    }
}

fn open(sim: &Sim, options: &Options) -> Lsm {
    Lsm::open(&sim.env(), dir(), options.clone()).unwrap()
}

fn key(n: u64) -> [u8; 8] {
    n.to_be_bytes()
}

fn put(lsm: &Lsm, keys: std::ops::Range<u64>) {
    for n in keys {
        let mut batch = Batch::new();
        batch.put(META, &key(n), &[n as u8; 20]);
        batch.put_at(DATA, &key(n), 10, &[n as u8; 20]);
        lsm.write(&batch, WriteOptions::APPLY).unwrap();
    }
}

fn delete(lsm: &Lsm, keys: std::ops::Range<u64>) {
    let (lower, upper) = (key(keys.start), key(keys.end));
    let range = KeyRange::new(&lower, &upper);
    let mut batch = Batch::new();
    batch.delete_range(META, range);
    batch.delete_range_at(DATA, range, 20);
    lsm.write(&batch, WriteOptions::APPLY).unwrap();
}

fn blocks_asked(lsm: &Lsm) -> u64 {
    let stats = lsm.stats();
    stats.cache_hits + stats.cache_misses
}

fn tables(lsm: &Lsm) -> u64 {
    lsm.stats().levels.iter().map(|level| level.files).sum()
}

fn keys(lsm: &Lsm, keyspace: KeyspaceId, at: ReadAt) -> Vec<u64> {
    let options = IterOptions {
        at,
        ..IterOptions::default()
    };
    let all = list(lsm, keyspace, &options);
    let number = |k: &Vec<u8>| u64::from_be_bytes(*k.first_chunk().unwrap());
    all.iter().map(|(k, ..)| number(k)).collect()
}

#[test]
fn range_delete_hides_by_version_and_order() {
    let lsm = open(&Sim::new(1), &still());
    let range = KeyRange::new(b"b", b"d");
    let mut batch = Batch::new();
    for k in [b"a", b"b", b"c", b"d"] {
        batch.put(META, k, b"old");
        batch.put_at(DATA, k, 5, b"old");
    }
    batch.delete_range(META, range);
    batch.delete_range_at(DATA, range, 8);
    batch.put(META, b"c", b"new");
    batch.put_at(DATA, b"c", 8, b"same version, later");
    batch.put_at(DATA, b"b", 7, b"below");
    batch.delete_range(META, KeyRange::new(b"x", b"a"));
    lsm.write(&batch, WriteOptions::APPLY).unwrap();
    for _ in 0..3 {
        let get = |k: &[u8], version| {
            let plain = lsm.get(META, k, &ReadAt::NEWEST).unwrap();
            let versioned = lsm.get(DATA, k, &ReadAt::version(version)).unwrap();
            (plain.is_some(), versioned.map(|e| e.version))
        };
        assert_eq!(get(b"a", 9), (true, Some(5)));
        assert_eq!(get(b"b", 9), (false, None));
        assert_eq!(get(b"b", 7), (false, Some(7)), "history stays");
        assert_eq!(get(b"c", 9), (true, Some(8)));
        assert_eq!(get(b"c", 7), (true, Some(5)));
        assert_eq!(get(b"d", 9), (true, Some(5)), "the end is not in it");
        lsm.flush().unwrap();
        lsm.compact_all().unwrap();
    }
    let mut wrong = Batch::new();
    wrong.delete_range(DATA, range);
    assert!(lsm.write(&wrong, WriteOptions::APPLY).is_err());
}

#[test]
fn range_delete_is_skipped_by_scans_and_gets_read_no_block() {
    let lsm = open(&Sim::new(1), &still());
    put(&lsm, 0..3000);
    lsm.compact_all().unwrap();
    let stretch = |lsm: &Lsm, keyspace| {
        let before = blocks_asked(lsm);
        assert_eq!(keys(lsm, keyspace, ReadAt::NEWEST), [0, 1500, 2999]);
        blocks_asked(lsm) - before
    };
    // A key in the middle is written again, after the range was deleted.
    delete(&lsm, 1..2999);
    let mut batch = Batch::new();
    batch.put(META, &key(1500), b"again");
    batch.put_at(DATA, &key(1500), 30, b"again");
    lsm.write(&batch, WriteOptions::APPLY).unwrap();
    for flushed in [false, true] {
        if flushed {
            lsm.flush().unwrap();
        }
        for keyspace in [META, DATA] {
            // There are hundreds of blocks.
            let asked = stretch(&lsm, keyspace);
            assert!(asked < 40, "{asked} blocks for three keys, both ways");
        }
        let before = blocks_asked(&lsm);
        for n in (1..2999).filter(|n| *n != 1500) {
            for keyspace in [META, DATA] {
                assert_eq!(lsm.get(keyspace, &key(n), &ReadAt::NEWEST).unwrap(), None);
            }
        }
        // The filter of the newest table says maybe now and then.
        let asked = blocks_asked(&lsm) - before;
        assert!(asked < 200, "{asked} blocks for keys that are covered");
    }
}

#[test]
fn range_delete_is_kept_for_snapshots_and_history_and_goes_with_them() {
    let lsm = open(&Sim::new(1), &still());
    put(&lsm, 0..500);
    let before = lsm.snapshot();
    delete(&lsm, 100..400);
    let outside: Vec<u64> = (0..100).chain(400..500).collect();
    let all: Vec<u64> = (0..500).collect();
    lsm.compact_all().unwrap();
    for keyspace in [META, DATA] {
        assert_eq!(keys(&lsm, keyspace, ReadAt::NEWEST), outside);
        assert_eq!(keys(&lsm, keyspace, ReadAt::snapshot(&before)), all);
    }
    let with_all = lsm.approximate_bytes(META, KeyRange::ALL).unwrap();
    drop(before);
    lsm.compact_all().unwrap();
    assert_eq!(keys(&lsm, META, ReadAt::NEWEST), outside);
    let without = lsm.approximate_bytes(META, KeyRange::ALL).unwrap();
    assert!(without * 2 < with_all, "{without} of {with_all} are left");
    // History needs the versions until the watermark says otherwise.
    assert_eq!(keys(&lsm, DATA, ReadAt::version(19)), all);
    lsm.set_watermark(DATA, 20).unwrap();
    lsm.compact_all().unwrap();
    assert_eq!(keys(&lsm, DATA, ReadAt::NEWEST), outside);
    let with_all = with_all as f64;
    let left = lsm.approximate_bytes(DATA, KeyRange::ALL).unwrap() as f64;
    assert!(left < with_all / 2.0, "{left} of {with_all} are left");
}

#[test]
fn range_delete_of_everything_leaves_no_table() {
    let sim = Sim::new(1);
    let lsm = open(&sim, &still());
    put(&lsm, 0..500);
    lsm.compact_all().unwrap();
    let mut batch = Batch::new();
    batch.delete_range(META, KeyRange::ALL);
    batch.delete_range_at(DATA, KeyRange::ALL, 20);
    lsm.write(&batch, WriteOptions::APPLY).unwrap();
    lsm.set_watermark(DATA, 20).unwrap();
    lsm.compact_all().unwrap();
    assert_eq!(tables(&lsm), 0);
    // Where nothing is below, a flush keeps nothing of it either.
    lsm.write(&batch, WriteOptions::APPLY).unwrap();
    lsm.flush().unwrap();
    assert_eq!(tables(&lsm), 0);
    assert_eq!(lsm.flushed_sequence(), lsm.stats().sequence);
    lsm.close().unwrap();
    drop(lsm);
    put(&open(&sim, &still()), 0..1);
}

#[test]
fn range_delete_alone_is_flushed_survives_and_is_split_between_tables() {
    let sim = Sim::new(1);
    let lsm = open(&sim, &still());
    put(&lsm, 0..2000);
    lsm.compact_all().unwrap();
    let held = lsm.snapshot();
    delete(&lsm, 10..1990);
    lsm.flush().unwrap();
    assert_eq!(lsm.stats().levels[0].files, 1, "a table of nothing else");
    lsm.compact_all().unwrap();
    assert!(tables(&lsm) > 5, "the range goes over many tables");
    let left: Vec<u64> = (0..10).chain(1990..2000).collect();
    for keyspace in [META, DATA] {
        assert_eq!(keys(&lsm, keyspace, ReadAt::NEWEST), left);
    }
    lsm.close().unwrap();
    drop((held, lsm));
    let lsm = open(&sim, &still());
    for keyspace in [META, DATA] {
        assert_eq!(keys(&lsm, keyspace, ReadAt::NEWEST), left);
    }
    // What is removed takes its range deletions with it: lower versions live there again.
    lsm.remove_range(DATA, KeyRange::ALL).unwrap();
    let mut batch = Batch::new();
    batch.put_at(DATA, &key(50), 3, b"restored");
    lsm.write(&batch, WriteOptions::APPLY).unwrap();
    assert_eq!(keys(&lsm, DATA, ReadAt::NEWEST), [50]);
    assert_eq!(keys(&lsm, META, ReadAt::NEWEST), left);
}

#[test]
fn range_delete_lets_tables_go_unread() {
    let sim = Sim::new(1);
    let lsm = open(&sim, &still());
    let mut batch = Batch::new();
    for n in 0..1000 {
        batch.put(META, &key(n), &[7; 30]);
    }
    lsm.write(&batch, WriteOptions::APPLY).unwrap();
    lsm.compact_all().unwrap();
    let names = sim.disk.list(dir()).unwrap();
    for name in names.iter().filter(|name| name.ends_with(".table")) {
        sim.disk.flip_bit(&dir().join(name), 8 * 100).unwrap();
    }
    let mut batch = Batch::new();
    batch.delete_range(META, KeyRange::ALL);
    lsm.write(&batch, WriteOptions::APPLY).unwrap();
    lsm.compact_all().unwrap();
    assert_eq!(tables(&lsm), 0, "what nobody can see need not be sound");
}

#[test]
fn deletions_in_a_run_are_stepped_over_once() {
    let lsm = open(&Sim::new(1), &still());
    put(&lsm, 0..3000);
    lsm.compact_all().unwrap();
    for n in 0..2990 {
        let mut batch = Batch::new();
        batch.delete(META, &key(n));
        batch.delete_at(DATA, &key(n), 20);
        lsm.write(&batch, WriteOptions::APPLY).unwrap();
    }
    let head = |keyspace| {
        let before = blocks_asked(&lsm);
        let mut iter = lsm.iterate(keyspace, IterOptions::default()).unwrap();
        iter.seek_to_first().unwrap();
        let first = iter.key().to_vec();
        iter.seek_to_last().unwrap();
        while iter.valid() {
            iter.prev().unwrap();
        }
        (first, blocks_asked(&lsm) - before)
    };
    for keyspace in [META, DATA] {
        assert!(head(keyspace).1 > 100, "there is something to step over");
        for n in 2990..2995 {
            let (first, asked) = head(keyspace);
            assert_eq!(first, key(n));
            assert!(asked < 20, "{asked} blocks at {n}");
            let mut batch = Batch::new();
            match keyspace {
                META => batch.delete(META, &key(n)),
                _ => batch.delete_at(DATA, &key(n), 20),
            }
            lsm.write(&batch, WriteOptions::APPLY).unwrap();
        }
        // What comes in again is seen.
        let mut batch = Batch::new();
        match keyspace {
            META => batch.put(META, &key(7), b"again"),
            _ => batch.put_at(DATA, &key(7), 30, b"again"),
        }
        lsm.write(&batch, WriteOptions::APPLY).unwrap();
        let (first, asked) = head(keyspace);
        assert_eq!(first, key(7));
        assert!(asked < 30, "{asked} blocks");
    }
}

/// Each thread walks over what the others write to, and must see what it wrote itself.
#[test]
fn deletions_stepped_over_by_many_threads_hide_no_write() {
    let env = Env {
        disk: Sim::new(1).env().disk,
        ..Env::real(2)
    };
    let lsm = &Lsm::open(&env, dir(), tiny()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            scope.spawn(move || {
                let random = Random::from_seed(u64::from(thread));
                for _ in 0..1000 {
                    let key = [random.below(40) as u8, thread];
                    let mut batch = Batch::new();
                    batch.put(META, &key, b"here");
                    lsm.write(&batch, WriteOptions::APPLY).unwrap();
                    let mut iter = lsm.iterate(META, IterOptions::default()).unwrap();
                    iter.seek(&key).unwrap();
                    assert_eq!(iter.key(), key, "its own write");
                    iter.seek_to_first().unwrap();
                    assert!(iter.key() <= key.as_slice());
                    iter.seek_to_last().unwrap();
                    assert!(iter.key() >= key.as_slice());
                    batch.clear();
                    batch.delete(META, &key);
                    lsm.write(&batch, WriteOptions::APPLY).unwrap();
                }
            });
        }
    });
    assert_eq!(keys(lsm, META, ReadAt::NEWEST), [0u64; 0]);
}

#[test]
fn range_deletes_many_and_overlapping_stay_cheap() -> Result<()> {
    let lsm = open(&Sim::new(1), &still());
    for n in 0..5_000u64 {
        let mut batch = Batch::new();
        batch.put(META, &key(n), &[1; 10]);
        let (lower, upper) = (key(n / 2), key(n / 2 + 3));
        batch.delete_range(META, KeyRange::new(&lower, &upper));
        lsm.write(&batch, WriteOptions::APPLY)?;
    }
    assert_eq!(keys(&lsm, META, ReadAt::NEWEST).first(), Some(&2_502));
    lsm.compact_all()?;
    assert_eq!(keys(&lsm, META, ReadAt::NEWEST).len(), 5_000 - 2_502);
    Ok(())
}
