//! The engine under many schedules of its threads, also such as real ones hardly ever take: writers,
//! readers, scans that leave voids, conditions, flushes and compactions, interleaved at every lock and atomic
//! step as a seed says. See `sync.rs`.

use std::sync::Arc;
use std::time::Duration;

use quorate_env::sim::Sim;
use quorate_env::{Env, Event, Job, JobClass, Jobs};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner, thread};

use super::workload::{DATA, META, dir, tiny};
use crate::planted::{Bug, is_noticed};
use crate::{
    Batch, Condition, Engine, ErrorKind, IterOptions, KeyRange, Lsm, Options, ReadAt, WriteOptions,
};

/// Each job is a thread of its own, and who waits looks again and again.
struct Scheduled;

impl Jobs for Scheduled {
    fn spawn(&self, _: JobClass, job: Job) {
        thread::spawn(job);
    }

    fn wait(&self, _: &Event, ready: &mut dyn FnMut() -> bool, timeout: Option<Duration>) -> bool {
        for turn in 0u64.. {
            if ready() {
                return true;
            }
            if timeout.is_some() && turn > 3 {
                break;
            }
            thread::yield_now();
        }
        false
    }
}

fn store(wal: bool) -> Lsm {
    let env = Env {
        jobs: Arc::new(Scheduled),
        ..Sim::new(1).env()
    };
    let options = Options {
        wal,
        memtable_bytes: 400,
        wal_segment_bytes: 32 << 10,
        ..tiny()
    };
    Lsm::open(&env, dir(), options).unwrap()
}

fn how(lsm_logs: bool) -> WriteOptions {
    match lsm_logs {
        true => WriteOptions::SYNCED,
        false => WriteOptions::APPLY,
    }
}

fn number(lsm: &Lsm, key: &[u8], at: &ReadAt) -> u64 {
    let found = lsm.get(META, key, at).unwrap();
    found.map_or(0, |entry| u64::from(entry.value[0]))
}

/// Each batch of a writer sets two keys to one number; whoever reads sees both or none, never goes back, and
/// the writer sees its own.
fn batches_are_whole(wal: bool) {
    let lsm = Arc::new(store(wal));
    let writers = (0..2u8).map(|me| {
        let lsm = Arc::clone(&lsm);
        thread::spawn(move || {
            for n in 1..=4u8 {
                let mut batch = Batch::new();
                batch.put(META, &[me, 0], &[n; 40]);
                batch.put(META, &[me, 9], &[n; 40]);
                batch.put_at(DATA, &[me], u64::from(n), &[n]);
                lsm.write(&batch, how(wal)).unwrap();
                assert_eq!(number(&lsm, &[me, 0], &ReadAt::NEWEST), u64::from(n));
                let own = lsm.get(DATA, &[me], &ReadAt::NEWEST).unwrap().unwrap();
                assert_eq!(own.version, u64::from(n));
            }
        })
    });
    let mut all: Vec<_> = writers.collect();
    let reader = Arc::clone(&lsm);
    all.push(thread::spawn(move || {
        let mut last = [0; 2];
        for turn in 0..4 {
            for me in 0..2u8 {
                let at = ReadAt::snapshot(&reader.snapshot());
                let keys: [&[u8]; 2] = [&[me, 0], &[me, 9]];
                let at = if turn % 2 == 0 { at } else { ReadAt::NEWEST };
                let both = reader.multi_get(META, &keys, &at).unwrap();
                assert_eq!(both[0], both[1], "a batch is seen whole");
                let now = both[0].as_ref().map_or(0, |entry| entry.value[0]);
                assert!(now >= last[usize::from(me)], "what was seen stays");
                last[usize::from(me)] = now;
            }
        }
    }));
    let keeper = Arc::clone(&lsm);
    all.push(thread::spawn(move || {
        keeper.flush().unwrap();
        keeper.compact_all().unwrap();
    }));
    all.into_iter().for_each(|one| one.join().unwrap());
    for me in 0..2 {
        assert_eq!(number(&lsm, &[me, 9], &ReadAt::NEWEST), 4);
    }
    lsm.close().unwrap();
}

/// A snapshot reads the same before and after others write, flush and compact; so does a scan.
fn snapshots_stay() {
    let lsm = Arc::new(store(false));
    let writer = Arc::clone(&lsm);
    let writer = thread::spawn(move || {
        for n in 1..=5u8 {
            let mut batch = Batch::new();
            batch.put(META, b"key", &[n; 60]);
            writer.write(&batch, WriteOptions::APPLY).unwrap();
        }
    });
    let keeper = Arc::clone(&lsm);
    let keeper = thread::spawn(move || {
        keeper.compact_all().unwrap();
        keeper.compact_all().unwrap();
    });
    let mut last = 0;
    for _ in 0..3 {
        let now = lsm.multi_get(META, &[b"key"], &ReadAt::NEWEST).unwrap();
        let now = now[0].as_ref().map_or(0, |entry| entry.value[0]);
        assert!(now >= last, "what was seen stays");
        last = now;
        let at = ReadAt::snapshot(&lsm.snapshot());
        let before = number(&lsm, b"key", &at);
        thread::yield_now();
        assert_eq!(number(&lsm, b"key", &at), before, "a snapshot stays");
        let mut scan = lsm
            .iterate(
                META,
                IterOptions {
                    at,
                    ..IterOptions::default()
                },
            )
            .unwrap();
        scan.seek_to_first().unwrap();
        let scanned = if scan.valid() {
            u64::from(scan.value()[0])
        } else {
            0
        };
        assert_eq!(scanned, before, "a scan sees what a lookup sees");
    }
    writer.join().unwrap();
    let newest = number(&lsm, b"key", &ReadAt::NEWEST);
    assert_eq!(newest, 5);
    keeper.join().unwrap();
    assert_eq!(number(&lsm, b"key", &ReadAt::NEWEST), 5);
}

/// What is overwritten and left out by a flush while a read begins is not missed by it.
fn reads_miss_nothing() {
    let lsm = Arc::new(store(false));
    let put = |lsm: &Lsm, n: u8| {
        let mut batch = Batch::new();
        batch.put(META, b"key", &[n]);
        lsm.write(&batch, WriteOptions::APPLY).unwrap();
    };
    put(&lsm, 1);
    lsm.compact_all().unwrap();
    put(&lsm, 2);
    let reader = Arc::clone(&lsm);
    let reader = thread::spawn(move || {
        let found = reader.multi_get(META, &[b"key"], &ReadAt::NEWEST).unwrap();
        let found = found[0].as_ref().map(|entry| entry.value[0]);
        assert!(found >= Some(2), "{found:?} was overwritten before");
    });
    put(&lsm, 3);
    lsm.flush().unwrap();
    reader.join().unwrap();
}

/// Increments on condition: none is lost.
fn conditions_lose_nothing() {
    let lsm = Arc::new(store(false));
    let adders = (0..3u8).map(|me| {
        let lsm = Arc::clone(&lsm);
        thread::spawn(move || {
            for _ in 0..2 {
                while !add_one(&lsm) {}
                if me == 0 {
                    lsm.flush().unwrap();
                }
            }
        })
    });
    let all: Vec<_> = adders.collect();
    all.into_iter().for_each(|one| one.join().unwrap());
    assert_eq!(number(&lsm, b"counter", &ReadAt::NEWEST), 6);
}

fn add_one(lsm: &Lsm) -> bool {
    let old = lsm.get(META, b"counter", &ReadAt::NEWEST).unwrap();
    let count = old.as_ref().map_or(0, |entry| entry.value[0]);
    let mut batch = Batch::new();
    batch.put(META, b"counter", &[count + 1]);
    batch.require(
        META,
        b"counter",
        old.map_or(Condition::Absent, |e| Condition::ValueIs(e.value)),
    );
    match lsm.write(&batch, WriteOptions::APPLY) {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConditionFailed, "{error}");
            false
        }
    }
}

/// Scans over deletions, which leave voids, while others write into them: what was written is found.
fn voids_hide_nothing() {
    let lsm = Arc::new(store(false));
    let mut batch = Batch::new();
    for n in 0..8u8 {
        batch.delete(META, &[n]);
    }
    lsm.write(&batch, WriteOptions::APPLY).unwrap();
    let count = |lsm: &Lsm| {
        let mut scan = lsm.iterate(META, IterOptions::default()).unwrap();
        let mut count = 0;
        scan.seek_to_first().unwrap();
        while scan.valid() {
            count += 1;
            scan.next().unwrap();
        }
        count
    };
    let scanners = (0..2).map(|_| {
        let lsm = Arc::clone(&lsm);
        thread::spawn(move || (0..3).for_each(|_| _ = count(&lsm)))
    });
    let mut all: Vec<_> = scanners.collect();
    let writer = Arc::clone(&lsm);
    all.push(thread::spawn(move || {
        for n in [3, 5, 6] {
            let mut batch = Batch::new();
            batch.put(META, &[n], b"");
            writer.write(&batch, WriteOptions::APPLY).unwrap();
            let found = count(&writer);
            assert!(found > 0, "what was just written is found");
        }
    }));
    all.into_iter().for_each(|one| one.join().unwrap());
    assert_eq!(count(&lsm), 3);
}

/// A range is removed while others write and read beside it.
fn removal_takes_the_range_alone() {
    let lsm = Arc::new(store(false));
    let mut batch = Batch::new();
    for n in 0..4u8 {
        batch.put(META, &[n], &[1; 60]);
    }
    lsm.write(&batch, WriteOptions::APPLY).unwrap();
    let writer = Arc::clone(&lsm);
    let writer = thread::spawn(move || {
        for n in 1..=4u8 {
            let mut batch = Batch::new();
            batch.put(META, &[9], &[n; 60]);
            writer.write(&batch, WriteOptions::APPLY).unwrap();
        }
    });
    lsm.remove_range(META, KeyRange::new(&[1], &[3])).unwrap();
    let there = [0, 1, 2, 3].map(|n| number(&lsm, &[n], &ReadAt::NEWEST));
    assert_eq!(there, [1, 0, 0, 1]);
    writer.join().unwrap();
    assert_eq!(number(&lsm, &[9], &ReadAt::NEWEST), 4);
}

const CHECKS: &[(&str, fn())] = &[
    ("batches without a log", || batches_are_whole(false)),
    ("batches with a log", || batches_are_whole(true)),
    ("snapshots", snapshots_stay),
    ("reads", reads_miss_nothing),
    ("conditions", conditions_lose_nothing),
    ("voids", voids_hide_nothing),
    ("removal", removal_takes_the_range_alone),
];

/// Runs a check under so many schedules, half of them random, half with few changes of thread.
fn schedules(check: fn(), seed: u64, count: usize) {
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    let random = RandomScheduler::new_from_seed(seed, count);
    Runner::new(random, config.clone()).run(check);
    let few = PctScheduler::new_from_seed(seed, 3, count);
    Runner::new(few, config).run(check);
}

#[test]
fn torture_schedules() {
    super::torture::rounds("schedules", 1, "schedules", |seed| {
        for (name, check) in CHECKS {
            println!("schedules: {name}, seed {seed}");
            schedules(*check, seed, 100);
        }
        Ok(200 * CHECKS.len() as u64)
    });
}

#[test]
fn schedules_notice_steps_that_are_left_out() {
    for (bug, name) in [
        (Bug::PublishedBeforeApplied, "batches without a log"),
        (Bug::PublishedOutOfOrder, "batches without a log"),
        (Bug::SequenceBeforeState, "reads"),
        (Bug::SnapshotListedTooLate, "snapshots"),
        (Bug::FlushNewestFirst, "batches without a log"),
        (Bug::ConditionsAreNotLookedAtAgain, "conditions"),
        (Bug::VoidsAreNotCut, "voids"),
        (Bug::VoidsAreSureAtOnce, "voids"),
    ] {
        let check = CHECKS.iter().find(|(of, _)| *of == name).unwrap().1;
        let found = (0..100).find(|seed| {
            is_noticed(bug, || {
                schedules(check, *seed, 50);
                Ok(())
            })
        });
        println!("{bug:?}: found by seed {found:?}");
        assert!(found.is_some(), "{name} does not notice {bug:?}");
    }
}
