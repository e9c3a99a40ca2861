//! Disks that fail and fill up, and threads that write at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use quorate_env::sim::{Fault, Sim};
use quorate_env::{Disk, Env};

use super::workload::{DATA, META, dir, keyspaces, tiny};
use crate::planted;
use crate::{Batch, Engine, ErrorKind, IterOptions, Lsm, Options, ReadAt, WriteOptions};

fn put(lsm: &Lsm, n: u64, options: WriteOptions) -> crate::Result<u64> {
    let mut batch = Batch::new();
    batch.put(META, &n.to_be_bytes(), &[n as u8; 100]);
    lsm.write(&batch, options)
}

fn has(lsm: &Lsm, n: u64) -> bool {
    lsm.get(META, &n.to_be_bytes(), &ReadAt::NEWEST)
        .unwrap()
        .is_some()
}

fn with_log() -> Options {
    Options {
        wal: true,
        ..tiny()
    }
}

#[test]
fn lsm_failed_sync_of_a_table_poisons_and_reads_go_on() {
    for wal in [true, false] {
        let sim = Sim::new(1);
        let options = Options { wal, ..tiny() };
        let lsm = Lsm::open(&sim.env(), dir(), options.clone()).unwrap();
        let how = if wal {
            WriteOptions::SYNCED
        } else {
            WriteOptions::APPLY
        };
        put(&lsm, 1, how).unwrap();
        sim.disk.inject(Fault::Sync);
        let failed = lsm.flush().unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::Poisoned);
        assert!(failed.message().contains(".table"), "{failed}");
        let refused = put(&lsm, 2, how).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Poisoned);
        assert!(refused.message().contains(".table"), "{refused}");
        assert!(lsm.flush().is_err(), "a failed sync is never retried");
        assert!(has(&lsm, 1), "reads go on");
        assert!(lsm.stats().last_error.is_some());
        drop(lsm);
        let lsm = Lsm::open(&sim.env(), dir(), options).unwrap();
        assert_eq!(has(&lsm, 1), wal, "what was promised is there");
        put(&lsm, 3, how).unwrap();
    }
}

#[test]
fn lsm_failed_sync_of_the_log_poisons() {
    let sim = Sim::new(1);
    let lsm = Lsm::open(&sim.env(), dir(), with_log()).unwrap();
    put(&lsm, 1, WriteOptions::SYNCED).unwrap();
    sim.disk.inject(Fault::Sync);
    assert!(put(&lsm, 2, WriteOptions::SYNCED).is_err());
    assert!(!has(&lsm, 2), "what is not durable as asked is not visible");
    let refused = put(&lsm, 3, WriteOptions::SYNCED).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Poisoned);
    assert!(refused.message().contains(".log"), "{refused}");
    assert!(has(&lsm, 1));
}

#[test]
fn lsm_flush_that_goes_back_is_refused_and_poisons() {
    let sim = Sim::new(1);
    let options = Options {
        memtables_waiting: 8,
        ..tiny()
    };
    let lsm = Lsm::open(&sim.env(), dir(), options).unwrap();
    planted::plant(Some(planted::Bug::FlushNewestFirst));
    let refused = (0..1000).find_map(|n| {
        // Jobs run while somebody waits, so that memtables gather until then.
        let done = put(&lsm, n, WriteOptions::APPLY);
        let done = done.and_then(|_| if n % 200 == 199 { lsm.flush() } else { Ok(0) });
        done.err()
    });
    planted::plant(None);
    let refused = refused.expect("two memtables wait at some time, and the newer is flushed first");
    assert_eq!(refused.kind(), ErrorKind::Poisoned);
    let says = refused.message();
    assert!(says.contains("it is flushed to"), "{says}");
}

#[test]
fn lsm_full_disk_refuses_writes_and_heals() {
    for wal in [true, false] {
        let sim = Sim::new(1);
        let options = Options { wal, ..tiny() };
        let lsm = Lsm::open(&sim.env(), dir(), options.clone()).unwrap();
        let how = WriteOptions {
            throttle: true,
            ..if wal {
                WriteOptions::SYNCED
            } else {
                WriteOptions::APPLY
            }
        };
        let used = u64::MAX - sim.disk.space(dir()).unwrap().free;
        sim.disk.set_capacity(Some(used + 4000));
        let mut n = 0;
        let error = loop {
            n += 1;
            match put(&lsm, n, how) {
                Ok(_) => sim.jobs.pump_all(),
                Err(error) => break error,
            }
            assert!(n < 10_000, "the disk never fills");
        };
        assert_eq!(error.kind(), ErrorKind::DiskFull, "{error}");
        assert!(!has(&lsm, n) && (1..n).all(|n| has(&lsm, n)));
        if !wal {
            // Replicated commands are applied all the same.
            put(&lsm, 1_000_000, WriteOptions::APPLY).unwrap();
        }
        assert_eq!(lsm.flush().unwrap_err().kind(), ErrorKind::DiskFull);
        sim.disk.set_capacity(None);
        if !wal {
            // Nobody need write for it.
            lsm.retry();
            sim.jobs.pump_all();
            lsm.flush().unwrap();
        }
        let healed = (0..5).any(|_| {
            let outcome = put(&lsm, n, how);
            sim.jobs.pump_all();
            outcome.is_ok()
        });
        assert!(healed, "there is space again");
        lsm.close().unwrap();
        drop(lsm);
        let lsm = Lsm::open(&sim.env(), dir(), options).unwrap();
        assert!((1..=n).all(|n| has(&lsm, n)));
        assert_eq!(has(&lsm, 1_000_000), !wal);
        let tables = lsm
            .stats()
            .levels
            .iter()
            .map(|level| level.files)
            .sum::<u64>();
        let names = sim.disk.list(dir()).unwrap();
        let on_disk = names.iter().filter(|name| name.ends_with(".table")).count();
        assert_eq!(
            on_disk as u64, tables,
            "failed flushes leave nothing behind"
        );
    }
}

#[test]
fn lsm_unreadable_input_stops_compaction_not_the_engine() {
    let sim = Sim::new(1);
    let options = Options {
        auto_compact: false,
        ..tiny()
    };
    let lsm = Lsm::open(&sim.env(), dir(), options).unwrap();
    put(&lsm, 1, WriteOptions::APPLY).unwrap();
    lsm.flush().unwrap();
    put(&lsm, 2, WriteOptions::APPLY).unwrap();
    lsm.flush().unwrap();
    let names = sim.disk.list(dir()).unwrap();
    let table = names.iter().find(|name| name.ends_with(".table")).unwrap();
    sim.disk.flip_bit(&dir().join(table), 8 * 70).unwrap();
    let failed = lsm.compact_all().unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Corruption);
    assert!(failed.message().contains(table.as_str()), "{failed}");
    assert!(failed.message().contains("block at byte 64"), "{failed}");
    assert!(lsm.stats().last_error.is_some());
    put(&lsm, 3, WriteOptions::APPLY).unwrap();
    lsm.flush().unwrap();
    assert!(has(&lsm, 3));
}

#[test]
fn lsm_stalls_until_background_work_catches_up() {
    let sim = Sim::new(4);
    let lsm = Lsm::open(&sim.env(), dir(), tiny()).unwrap();
    let throttled = WriteOptions {
        throttle: true,
        ..WriteOptions::APPLY
    };
    for n in 0..2000 {
        put(&lsm, n, throttled).unwrap();
        assert!(lsm.debt().memtable_bytes < 5 * 4096, "memory is bounded");
        assert!(lsm.debt().l0_files <= 9, "level 0 is bounded");
    }
    assert!(lsm.stats().stalls > 0);
    // Unthrottled writes go ahead, and the debt tells.
    for n in 0..1000 {
        put(&lsm, n, WriteOptions::APPLY).unwrap();
    }
    assert!(lsm.debt().pressure > 1.0);
    sim.jobs.pump_all();
    assert!(lsm.debt().pressure < 1.0);
    assert_eq!(lsm.stats().memtables, 1);
}

/// Writers, readers, snapshots, flushes and compactions on real threads: each batch is seen whole.
#[test]
fn lsm_many_threads_see_whole_batches_and_own_writes() {
    let sim = Sim::new(1);
    for wal in [true, false] {
        let env = Env {
            disk: sim.env().disk,
            ..Env::real(2)
        };
        let options = Options {
            keyspaces: keyspaces(),
            wal,
            wal_segment_bytes: 256 << 10,
            memtable_bytes: 64 << 10,
            compactions: 2,
            ..tiny()
        };
        let path = dir().join(if wal { "wal-on" } else { "wal-off" });
        let lsm = Lsm::open(&env, &path, options).unwrap();
        let done = AtomicBool::new(false);
        let how = |n: u64| match (wal, n % 3) {
            (false, _) => WriteOptions {
                throttle: true,
                ..WriteOptions::APPLY
            },
            (true, 0) => WriteOptions::SYNCED,
            (true, _) => WriteOptions::default(),
        };
        std::thread::scope(|scope| {
            let lsm = &lsm;
            let writers: Vec<_> = (0..3u8)
                .map(|writer| {
                    scope.spawn(move || {
                        for n in 1..=800u64 {
                            let mut batch = Batch::new();
                            for part in 0..3u8 {
                                batch.put(META, &[writer, part], &n.to_be_bytes());
                            }
                            batch.put_at(DATA, &[writer], n, &n.to_be_bytes());
                            lsm.write(&batch, how(n)).unwrap();
                            let own = lsm.get(DATA, &[writer], &ReadAt::NEWEST).unwrap();
                            assert_eq!(own.unwrap().version, n);
                        }
                    })
                })
                .collect();
            let done = &done;
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let at = ReadAt::snapshot(&lsm.snapshot());
                    for writer in 0..3u8 {
                        let get = |part| lsm.get(META, &[writer, part], &at).unwrap();
                        let parts = [get(0), get(1), get(2)].map(|e| e.map(|e| e.value));
                        assert!(parts[0] == parts[1] && parts[1] == parts[2], "{parts:?}");
                    }
                    let mut iter = lsm.iterate(META, IterOptions::default()).unwrap();
                    iter.seek_to_first().unwrap();
                    let mut values = Vec::new();
                    while iter.valid() {
                        values.push((iter.key()[0], iter.value().to_vec()));
                        iter.next().unwrap();
                    }
                    values.dedup();
                    assert!(values.windows(2).all(|w| w[0].0 != w[1].0), "{values:?}");
                }
            });
            for writer in writers {
                writer.join().unwrap();
            }
            lsm.compact_all().unwrap();
            done.store(true, Ordering::Relaxed);
        });
        for writer in 0..3u8 {
            let newest = lsm.get(DATA, &[writer], &ReadAt::NEWEST).unwrap().unwrap();
            assert_eq!(newest.version, 800);
        }
        lsm.close().unwrap();
    }
    drop(Arc::new(sim));
}
