//! Batches with conditions: refused as a whole, and never in a race.

use std::collections::BTreeMap;
use std::sync::Mutex;

use quorate_env::Env;
use quorate_env::sim::Sim;

use super::workload::{DATA, META, dir, keyspaces, tiny};
use crate::{
    Batch, Condition, Engine, Entry, ErrorKind, KeyRange, Lsm, Model, Options, ReadAt, WriteOptions,
};

fn refused(engine: &dyn Engine, batch: &Batch) -> bool {
    match engine.write(batch, WriteOptions::APPLY) {
        Ok(_) => false,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConditionFailed, "{error}");
            true
        }
    }
}

/// The newest entry as a condition.
fn unchanged(found: Option<Entry>, by_version: bool) -> Condition {
    match found {
        None => Condition::Absent,
        Some(found) if by_version => Condition::VersionIs(found.version),
        Some(found) => Condition::ValueIs(found.value),
    }
}

#[test]
fn conditions_are_judged_by_the_newest_entry_before_the_batch() {
    let lsm = Lsm::open(&Sim::new(1).env(), dir(), tiny()).unwrap();
    let model = Model::new(&keyspaces());
    for engine in [&lsm as &dyn Engine, &model] {
        let mut setup = Batch::new();
        setup.put_at(DATA, b"k", 7, b"seven");
        setup.put(META, b"k", b"value");
        setup.put(META, b"gone", b"soon");
        setup.delete_range(META, KeyRange::new(b"g", b"h"));
        engine.write(&setup, WriteOptions::APPLY).unwrap();
        let value = |value: &'static [u8]| Condition::ValueIs(value.into());
        let cases = [
            (DATA, b"k".as_slice(), Condition::VersionIs(7), true),
            (DATA, b"k", Condition::VersionIs(6), false),
            (DATA, b"none", Condition::VersionIs(0), false),
            (DATA, b"k", value(b"seven"), true),
            (META, b"k", value(b"value"), true),
            (META, b"k", value(b"other"), false),
            (META, b"k", Condition::Present, true),
            (META, b"k", Condition::Absent, false),
            (META, b"gone", Condition::Absent, true),
            (META, b"gone", Condition::Present, false),
        ];
        for (keyspace, key, condition, holds) in cases {
            let mut batch = Batch::new();
            batch.require(keyspace, key, condition.clone());
            assert_eq!(!refused(engine, &batch), holds, "{condition:?}");
            batch.put(META, b"side", b"effect");
            // Another one, that holds: all must.
            batch.require(META, b"side", Condition::Absent);
            assert_eq!(!refused(engine, &batch), holds, "{condition:?}");
            let side = engine.get(META, b"side", &ReadAt::NEWEST).unwrap();
            assert_eq!(side.is_some(), holds, "all or nothing");
            batch.clear();
            batch.delete(META, b"side");
            assert!(!refused(engine, &batch), "conditions are cleared too");
        }
        let mut nonsense = Batch::new();
        nonsense.require(META, b"k", Condition::VersionIs(0));
        let error = engine.write(&nonsense, WriteOptions::APPLY).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
}

/// What a thread wrote to the key: the value that it replaced, if it had a condition on that.
type Written = (Vec<u8>, Option<Option<Vec<u8>>>);

/// Threads write to one key, with a condition and without; others write elsewhere, flush and compact.
/// Each write that had a condition must have replaced what it required.
pub(super) fn race(wal: bool, before_thread: fn()) -> Result<(), String> {
    let env = Env {
        disk: Sim::new(1).env().disk,
        ..Env::real(2)
    };
    let options = Options {
        wal,
        memtable_bytes: 32 << 10,
        wal_segment_bytes: 256 << 10,
        ..tiny()
    };
    let lsm = Lsm::open(&env, dir(), options).unwrap();
    let how = |n: u64| match (wal, n % 3) {
        (false, _) => WriteOptions::APPLY,
        (true, 0) => WriteOptions::SYNCED,
        (true, _) => WriteOptions::default(),
    };
    let history: Mutex<BTreeMap<u64, Written>> = Mutex::default();
    let (lsm, history) = (&lsm, &history);
    std::thread::scope(|scope| {
        for thread in 0..5u64 {
            scope.spawn(move || {
                before_thread();
                for n in 0..400u64 {
                    let value = [thread.to_le_bytes(), n.to_le_bytes()].concat();
                    let mut batch = Batch::new();
                    batch.put(META, b"key", &value);
                    if thread == 0 {
                        // Now and then, unconditionally; or all of the range.
                        if n % 8 == 0 {
                            batch.delete_range(META, KeyRange::new(b"a", b"b"));
                        }
                        let sequence = lsm.write(&batch, how(n)).unwrap();
                        history.lock().unwrap().insert(sequence, (value, None));
                        lsm.write(&elsewhere(n), how(n)).unwrap();
                        continue;
                    }
                    let old = lsm.get(META, b"key", &ReadAt::NEWEST).unwrap();
                    let required = old.as_ref().map(|e| e.value.to_vec());
                    batch.require(META, b"key", unchanged(old, false));
                    if let Ok(sequence) = lsm.write(&batch, how(n)) {
                        let written = (value, Some(required));
                        history.lock().unwrap().insert(sequence, written);
                    }
                }
            });
        }
    });
    let history = history.lock().unwrap();
    let mut last: Option<&Vec<u8>> = None;
    let mut conditional = 0;
    for (sequence, (value, required)) in history.iter() {
        if let Some(required) = required {
            conditional += 1;
            if required.as_ref() != last {
                return Err(format!("the write at {sequence} replaced something else"));
            }
        }
        last = Some(value);
    }
    assert!(conditional > 0, "no conditional write got through");
    let newest = lsm.get(META, b"key", &ReadAt::NEWEST).unwrap();
    assert_eq!(newest.map(|e| e.value.to_vec()).as_ref(), last);
    Ok(())
}

/// A batch that fills memory.
fn elsewhere(n: u64) -> Batch {
    let mut batch = Batch::new();
    batch.put_at(DATA, &n.to_be_bytes(), n, &[0; 300]);
    batch
}

#[test]
fn conditions_hold_when_threads_race() {
    for wal in [true, false] {
        race(wal, || ()).unwrap();
    }
}

#[test]
fn conditions_count_every_increment_of_many_threads() {
    let env = Env {
        disk: Sim::new(1).env().disk,
        ..Env::real(2)
    };
    let lsm = &Lsm::open(&env, dir(), tiny()).unwrap();
    let (threads, each) = (4, 200u64);
    let add_one = || {
        loop {
            let old = lsm.get(DATA, b"counter", &ReadAt::NEWEST).unwrap();
            let count = old.as_ref().map_or(0, |entry| entry.version);
            let mut batch = Batch::new();
            batch.require(DATA, b"counter", unchanged(old, true));
            batch.put_at(DATA, b"counter", count + 1, b"");
            if !refused(lsm, &batch) {
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(move || (0..each).for_each(|_| add_one()));
        }
    });
    let counter = lsm.get(DATA, b"counter", &ReadAt::NEWEST).unwrap();
    assert_eq!(counter.unwrap().version, threads * each);
}
