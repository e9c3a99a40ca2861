//! Writes that do not want to wait, or not for ever.

use std::time::Duration;

use quorate_env::sim::Sim;

use super::slow_disk::slow;
use super::workload::{META, dir, tiny};
use crate::planted::{Bug, is_noticed};
use crate::{Batch, Condition, Engine, ErrorKind, Lsm, Options, ReadAt, WriteOptions};

const THROTTLED: WriteOptions = WriteOptions {
    throttle: true,
    ..WriteOptions::APPLY
};

fn batch(key: u64) -> Batch {
    let mut batch = Batch::new();
    batch.put(META, &key.to_be_bytes(), &[1; 200]);
    batch
}

fn is_there(lsm: &Lsm, key: u64) -> bool {
    let found = lsm.get(META, &key.to_be_bytes(), &ReadAt::NEWEST);
    found.unwrap().is_some()
}

/// An engine whose memtables are full, since no job of it has run yet.
fn full(sim: &Sim) -> Lsm {
    let lsm = Lsm::open(&sim.env(), dir(), tiny()).unwrap();
    for n in 1000.. {
        lsm.write(&batch(n), WriteOptions::APPLY).unwrap();
        if lsm.stats().memtables > 2 {
            return lsm;
        }
    }
    lsm
}

fn check_busy() -> Result<(), String> {
    let sim = Sim::new(1);
    let lsm = full(&sim);
    let busy = WriteOptions {
        refuse_if_busy: true,
        ..THROTTLED
    };
    let before = lsm.stats();
    match lsm.write(&batch(1), busy) {
        Err(error) if error.kind() == ErrorKind::Busy => {}
        other => return Err(format!("{other:?}")),
    }
    let after = lsm.stats();
    if is_there(&lsm, 1) || after.sequence != before.sequence || after.stalls != before.stalls {
        return Err("a refused write left something".to_owned());
    }
    // Whoever is not throttled is never busy, and whoever waits gets through.
    let free = WriteOptions {
        throttle: false,
        ..busy
    };
    lsm.write(&batch(2), free).map_err(|e| e.to_string())?;
    lsm.write(&batch(3), THROTTLED).map_err(|e| e.to_string())?;
    sim.jobs.pump_all();
    lsm.write(&batch(1), busy).map_err(|e| e.to_string())?;
    match (1..=3).all(|key| is_there(&lsm, key)) {
        true => Ok(()),
        false => Err("a write is missing".to_owned()),
    }
}

#[test]
fn busy_write_is_refused_at_once_and_not_applied() {
    check_busy().unwrap();
}

#[test]
fn deadline_that_is_over_refuses_and_applies_nothing() {
    let sim = Sim::new(1);
    sim.clock.advance(Duration::from_secs(10));
    let options = Options {
        wal: true,
        ..tiny()
    };
    let lsm = Lsm::open(&sim.env(), dir(), options.clone()).unwrap();
    let by = |seconds| WriteOptions {
        deadline: Some(Duration::from_secs(seconds)),
        ..WriteOptions::SYNCED
    };
    for over in [1, 10] {
        let refused = lsm.write(&batch(over), by(over)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::DeadlineExceeded);
    }
    lsm.write(&batch(11), by(11)).unwrap();
    let stats = lsm.stats();
    assert_eq!((stats.batches, stats.sequence), (1, 1));
    drop(lsm);
    sim.jobs.pump_all();
    let lsm = Lsm::open(&sim.env(), dir(), options).unwrap();
    assert!(
        is_there(&lsm, 11) && !is_there(&lsm, 10) && !is_there(&lsm, 1),
        "nor is it logged"
    );
}

/// An engine whose disk takes a millisecond for each operation, with full memtables.
fn full_and_slow(sim: &Sim) -> Lsm {
    let lsm = Lsm::open(&slow(sim), dir(), tiny()).unwrap();
    for n in 1000.. {
        lsm.write(&batch(n), WriteOptions::APPLY).unwrap();
        if lsm.stats().memtables > 2 {
            break;
        }
    }
    lsm
}

fn within(sim: &Sim, millis: u64) -> WriteOptions {
    WriteOptions {
        deadline: Some(sim.env().clock.now() + Duration::from_millis(millis)),
        ..THROTTLED
    }
}

#[test]
fn deadline_that_passes_while_a_write_waits_for_memory_refuses_it() {
    let sim = Sim::new(1);
    let lsm = full_and_slow(&sim);
    let refused = lsm.write(&batch(1), within(&sim, 2)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::DeadlineExceeded);
    assert!(!is_there(&lsm, 1));
    let stats = lsm.stats();
    assert_eq!(stats.stalls, 1);
    let lsm = full_and_slow(&Sim::new(2));
    lsm.write(&batch(1), within(&sim, 10_000)).unwrap();
    assert!(is_there(&lsm, 1), "there was time enough");
}

/// Conditions are judged after the first look at the deadline, and that reads the disk.
fn check_deadline_at_the_lock() -> Result<(), String> {
    let sim = Sim::new(1);
    let options = Options {
        cache_bytes: 0,
        ..tiny()
    };
    let lsm = Lsm::open(&slow(&sim), dir(), options).map_err(|e| e.to_string())?;
    lsm.write(&batch(7), WriteOptions::APPLY)
        .map_err(|e| e.to_string())?;
    lsm.flush().map_err(|e| e.to_string())?;
    let mut conditional = batch(1);
    conditional.require(META, &7_u64.to_be_bytes(), Condition::Present);
    match lsm.write(&conditional, within(&sim, 1)) {
        Err(error) if error.kind() == ErrorKind::DeadlineExceeded && !is_there(&lsm, 1) => {}
        other => return Err(format!("{other:?}")),
    }
    let written = lsm.write(&conditional, within(&sim, 1000));
    written.map(|_| ()).map_err(|e| e.to_string())
}

#[test]
fn deadline_that_passes_while_conditions_are_judged_refuses() {
    check_deadline_at_the_lock().unwrap();
}

#[test]
fn busy_checks_notice_waits() {
    assert!(is_noticed(Bug::BusyIsWaitedFor, check_busy));
    let late = Bug::DeadlineIsNotLookedAtAgain;
    assert!(is_noticed(late, check_deadline_at_the_lock));
}
