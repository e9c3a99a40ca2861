//! The end of an engine: for good, once, and without a trace in what another makes of its directory.

use quorate_env::Disk;
use quorate_env::sim::Sim;

use super::workload::{META, dir, tiny};
use crate::{Batch, Engine, ErrorKind, IterOptions, Lsm, Options, ReadAt, WriteOptions};

fn with_log() -> Options {
    Options {
        wal: true,
        ..tiny()
    }
}

fn batch(key: &[u8]) -> Batch {
    let mut batch = Batch::new();
    batch.put(META, key, b"value");
    batch
}

#[test]
fn closed_engine_takes_no_writes_and_leaves_the_next_owner_alone() {
    let sim = Sim::new(1);
    let first = Lsm::open(&sim.env(), dir(), with_log()).unwrap();
    first
        .write(&batch(b"one"), WriteOptions::default())
        .unwrap();
    first.close().unwrap();
    let next = Lsm::open(&sim.env(), dir(), with_log()).unwrap();
    next.write(&batch(b"two"), WriteOptions::SYNCED).unwrap();
    let refused = [
        first.write(&batch(b"late"), WriteOptions::SYNCED).err(),
        first.ingest(&[], &crate::IngestOptions::default()).err(),
        first.flush().err(),
    ];
    for error in refused.iter().flatten() {
        assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
    }
    assert!(refused[0].is_some() && refused[2].is_some());
    first.close().unwrap();
    drop((first, next));
    let up = sim.crash();
    let lsm = Lsm::open(&up.env(), dir(), with_log()).unwrap();
    for (key, there) in [(b"one".as_slice(), true), (b"two", true), (b"late", false)] {
        let found = lsm.get(META, key, &ReadAt::NEWEST).unwrap();
        assert_eq!(found.is_some(), there, "{key:?}");
    }
}

#[test]
fn memtables_count_for_as_long_as_iterators_hold_them() {
    let sim = Sim::new(2);
    let lsm = Lsm::open(&sim.env(), dir(), with_log()).unwrap();
    let empty = lsm.stats().memory_bytes;
    let mut held = Vec::new();
    for n in 0..8_u8 {
        lsm.write(&batch(&[n]), WriteOptions::default()).unwrap();
        held.push(lsm.iterate(META, IterOptions::default()).unwrap());
        lsm.flush().unwrap();
    }
    sim.jobs.pump_all();
    let room = with_log().memtable_bytes as u64;
    let counted = lsm.stats().memory_bytes;
    assert!(counted >= empty + 8 * room, "{counted} of {empty}");
    drop(held);
    let counted = lsm.stats().memory_bytes;
    assert!(counted < empty + 2 * room, "{counted} of {empty}");
}

#[test]
fn closed_engine_leaves_no_file_that_nothing_refers_to() {
    for seed in 0..20 {
        let sim = Sim::new(seed);
        let options = Options {
            memtable_bytes: 2 << 10,
            ..with_log()
        };
        let lsm = Lsm::open(&sim.env(), dir(), options).unwrap();
        for n in 0..400_u16 {
            let key = (n * 37 % 100).to_be_bytes();
            lsm.write(&batch(&key), WriteOptions::default()).unwrap();
            if n % 3 == 0 {
                sim.jobs.pump();
            }
        }
        lsm.close().unwrap();
        let stats = lsm.stats();
        let tables: u64 = stats.levels.iter().map(|level| level.files).sum();
        let names = sim.disk.list(dir()).unwrap();
        let there = names.iter().filter(|name| name.ends_with(".table"));
        assert_eq!(there.count() as u64, tables, "seed {seed}: {names:?}");
    }
}
