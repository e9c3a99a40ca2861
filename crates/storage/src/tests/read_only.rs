//! Reading beside a writer: what is seen is always some state that the writer was in, and nothing on
//! the disk changes by it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use quorate_env::Env;
use quorate_env::sim::Sim;

use super::conformance::try_list;
use super::crash::{Script, dump};
use super::workload::{AtEnd, DATA, META, dir, tiny};
use crate::{
    Batch, Durability, Engine, ErrorKind, IngestOptions, IterOptions, KeyRange, Lsm, Options,
    Prefix, ReadAt, ReadOnly, WriteOptions,
};

fn open(env: &Env) -> crate::Result<ReadOnly> {
    Lsm::open_read_only(env, dir())
}

#[test]
fn read_only_sees_what_was_logged_at_opening_and_more_when_refreshed() {
    for (wal, seed) in [(true, 31), (true, 32), (false, 33)] {
        let script = Script::new(seed, wal, 60);
        let sim = Sim::new(seed);
        assert!(open(&sim.env()).is_err(), "there is nothing");
        let lsm = Lsm::open(&sim.env(), dir(), script.options.clone()).unwrap();
        let (mut views, mut flushed) = (Vec::new(), 0);
        let follower = open(&sim.env()).unwrap();
        for (n, batch) in script.batches.iter().enumerate() {
            let how = WriteOptions {
                durability: if wal {
                    Durability::Buffered
                } else {
                    Durability::None
                },
                throttle: true,
                ..WriteOptions::default()
            };
            lsm.write(batch, how).unwrap();
            if n % 7 == 0 {
                lsm.flush().unwrap();
                flushed = n + 1;
            }
            if n % 11 == 0 {
                lsm.compact_all().unwrap();
                flushed = n + 1;
            }
            let sees = if wal { n + 1 } else { flushed };
            let operations = sim.disk.operations();
            let view = open(&sim.env()).unwrap();
            assert_eq!(follower.refresh().unwrap(), view.sequence());
            assert_eq!(sim.disk.operations(), operations, "nothing is written");
            // Without a log, memtables that filled up are seen as well.
            let found = dump(&view);
            let state = script.states[sees..=n + 1].iter().find(|s| **s == found);
            assert!(state.is_some(), "batch {n}: no state of the writer");
            assert_eq!(dump(&follower), found);
            views.push((view, found));
        }
        lsm.compact_all().unwrap();
        let range = KeyRange::ALL;
        lsm.remove_range(DATA, range).unwrap();
        // All that they read is long gone from the directory.
        for (view, found) in &views {
            assert_eq!(dump(view), *found);
        }
        let (view, found) = views.pop().unwrap();
        let snapshot = view.snapshot();
        view.refresh().unwrap();
        assert_eq!(dump(&view), dump(&lsm));
        let at = IterOptions {
            at: ReadAt::snapshot(&snapshot),
            all_versions: true,
            ..IterOptions::default()
        };
        let before = format!("{:?}", try_list(&view, DATA, &at).unwrap());
        assert!(found.starts_with(&before), "the snapshot stays");
        lsm.close().unwrap();
        drop(lsm);
        // Prefixes are a matter of tables, not of the store.
        let mut wanted = script.options.keyspaces;
        wanted.iter_mut().for_each(|k| k.prefix = Prefix::None);
        assert_eq!(open(&sim.env()).unwrap().keyspaces(), wanted);
    }
}

#[test]
fn read_only_refuses_writes_and_keeps_to_the_watermark() {
    let sim = Sim::new(1);
    let lsm = Lsm::open(&sim.env(), dir(), tiny()).unwrap();
    let mut batch = Batch::new();
    for version in [5, 9] {
        batch.put_at(DATA, b"k", version, b"v");
    }
    lsm.write(&batch, WriteOptions::APPLY).unwrap();
    lsm.set_watermark(DATA, 7).unwrap();
    lsm.flush().unwrap();
    let view = open(&sim.env()).unwrap();
    let refused = view.write(&batch, WriteOptions::APPLY).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    let got = view.get(DATA, b"k", &ReadAt::version(8)).unwrap().unwrap();
    assert_eq!(got.version, 5);
    let dropped = view.get(DATA, b"k", &ReadAt::version(6)).unwrap_err();
    assert_eq!(dropped.kind(), ErrorKind::Dropped);
    let foreign = ReadAt::snapshot(&lsm.snapshot());
    assert!(view.get(DATA, b"k", &foreign).is_err());
}

#[test]
fn read_only_names_what_is_damaged() {
    let sim = Sim::new(1);
    let options = Options {
        wal: true,
        ..tiny()
    };
    let lsm = Lsm::open(&sim.env(), dir(), options).unwrap();
    for n in 0..20u64 {
        let mut batch = Batch::new();
        batch.put(META, &n.to_be_bytes(), &[1; 50]);
        lsm.write(&batch, WriteOptions::SYNCED).unwrap();
    }
    let path = Path::new("/store/wal/0000000000000001.log");
    sim.disk.flip_bit(path, 8 * 100).unwrap();
    let error = open(&sim.env()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corruption);
    assert!(error.message().contains("0000000000000001.log"), "{error}");
}

/// A writer on a real thread, with flushes, compactions, ingests and log segments that come and go.
#[test]
fn read_only_beside_a_busy_writer_sees_whole_batches() {
    let sim = Sim::new(1);
    let env = Env {
        disk: sim.env().disk,
        ..Env::real(2)
    };
    let options = Options {
        wal: true,
        wal_segment_bytes: 16 << 10,
        memtable_bytes: 8 << 10,
        ..tiny()
    };
    let lsm = Lsm::open(&env, dir(), options.clone()).unwrap();
    let (done, allowed) = (AtomicBool::new(false), AtomicU64::new(100));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 1u64.. {
                // Not so far ahead that the reader never gets anywhere.
                while n > allowed.load(Ordering::Acquire) && !done.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
                let mut batch = Batch::new();
                for part in 0..3u8 {
                    batch.put(META, &[part], &n.to_be_bytes());
                }
                batch.put_at(DATA, &(n % 50).to_be_bytes(), n, &[3; 100]);
                match n % 100 {
                    0 => {
                        let ingest = IngestOptions {
                            batch: Some(&batch),
                            ..IngestOptions::default()
                        };
                        lsm.ingest(&[], &ingest).unwrap();
                    }
                    _ => drop(lsm.write(&batch, WriteOptions::default()).unwrap()),
                }
                if done.load(Ordering::Acquire) {
                    return;
                }
            }
        });
        let _done = AtEnd(&done);
        let view = loop {
            if let Ok(view) = open(&env) {
                break view;
            }
        };
        let mut last = 0;
        for _ in 0..300 {
            allowed.fetch_add(40, Ordering::AcqRel);
            let written = lsm.stats().sequence;
            let sequence = view.refresh().unwrap();
            assert!(sequence >= written.max(last), "what was written is seen");
            last = sequence;
            let get = |key: &[u8]| view.get(META, key, &ReadAt::NEWEST).unwrap();
            let parts = [0, 1, 2u8].map(|part| get(&[part]).map(|e| e.value));
            assert!(parts[0] == parts[1] && parts[1] == parts[2], "{parts:?}");
            let listed = try_list(&view, DATA, &IterOptions::default()).unwrap();
            let newest = listed.iter().map(|look| look.1).max().unwrap_or(0);
            let at = parts[0].as_ref().map_or(0, |value| {
                u64::from_be_bytes(value.as_ref().try_into().unwrap())
            });
            assert_eq!(newest, at, "a batch is seen whole across keyspaces");
        }
    });
    lsm.close().unwrap();
    assert!(env.disk.exists(&dir().join("CURRENT")).unwrap());
}
