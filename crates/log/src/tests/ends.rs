//! Ends of segments: the writer goes on before they are durable, and a crash may take them.

use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use quorate_env::sim::{Crash, Fault, HookedDisk, Hooks, Sim};
use quorate_env::{Disk, Env, Random};

use super::{dir, open, record, small};
use crate::{Durability, ErrorKind, Log, Position};

/// Appends records, syncing few, while jobs run now and then, until the power goes at an operation. Returns
/// how many were acknowledged as synced and how many were begun, and whether the power went.
fn run(sim: &Sim, seed: u64, at: u64) -> (usize, usize, bool) {
    let random = Random::from_seed(seed);
    sim.disk.crash_at(at);
    let Ok((log, _)) = open(&sim.env()) else {
        return (0, 0, true);
    };
    let mut acked = 0;
    for n in 0..60 {
        let durability = match random.below(12) {
            0 => Durability::Synced,
            _ => Durability::Buffered,
        };
        if log.append(&[&record(n)], durability).is_err() {
            return (acked, n + 1, true);
        }
        if durability == Durability::Synced {
            acked = n + 1;
        }
        for _ in 0..random.below(3) {
            sim.jobs.pump();
        }
    }
    (acked, 60, sim.disk.operations() >= at)
}

/// Whether the power went before the end.
fn survives(seed: u64, at: u64, crash: Crash) -> Result<bool, String> {
    let sim = Sim::new(seed);
    let (acked, begun, crashed) = run(&sim, seed, at);
    let up = Sim {
        disk: sim.disk.crash_with(crash),
        ..sim.crash()
    };
    let (log, found) = open(&up.env()).map_err(|e| format!("does not open: {e}"))?;
    if !(acked..=begun).contains(&found.len()) {
        let found = found.len();
        return Err(format!(
            "{found} survived of {acked} promised and {begun} begun"
        ));
    }
    if found
        .iter()
        .enumerate()
        .any(|(n, bytes)| *bytes != record(n))
    {
        return Err("what survived is no prefix".into());
    }
    // It goes on over the next ends, and what opens once is durable.
    let more = found.len() + 20;
    for n in found.len()..more {
        let appended = log.append(&[&record(n)], Durability::Buffered);
        appended.map_err(|e| e.to_string())?;
    }
    log.sync().map_err(|e| e.to_string())?;
    drop(log);
    let again = Sim {
        disk: up.disk.crash_with(Crash::LoseAll),
        ..up.crash()
    };
    let (_, found) = open(&again.env()).map_err(|e| format!("does not open again: {e}"))?;
    match found == (0..more).map(record).collect::<Vec<_>>() {
        true => Ok(crashed),
        false => Err(format!(
            "{} of {more} survived the second time",
            found.len()
        )),
    }
}

#[test]
fn log_crash_near_ends_of_segments_leaves_a_prefix_with_all_that_was_synced() {
    for seed in 0..10 {
        for at in 0.. {
            let crash =
                [Crash::Random, Crash::LoseAll, Crash::Random, Crash::KeepAll][at as usize % 4];
            match survives(seed, at, crash) {
                Ok(true) => {}
                Ok(false) => break,
                Err(what) => panic!("seed {seed}, crash at operation {at}: {what}"),
            }
        }
    }
}

/// A log with records up to a segment, and where they begin.
fn filled(sim: &Sim, last: u64, pump: bool) -> (Log, Vec<Position>) {
    let (log, _) = open(&sim.env()).unwrap();
    let mut at = Vec::new();
    while at.last().is_none_or(|at: &Position| at.segment < last) {
        at.push(
            log.append(&[&record(at.len())], Durability::Buffered)
                .unwrap(),
        );
        if pump {
            sim.jobs.pump_all();
        }
    }
    (log, at)
}

#[test]
fn log_damage_before_the_last_segment_is_named_once_that_was_durable() {
    let sim = Sim::new(3);
    let (log, at) = filled(&sim, 4, true);
    drop(log);
    for hit in at.iter().filter(|at| at.segment < 4) {
        let disk = sim.disk.crash_with(Crash::KeepAll);
        let path = dir().join(format!("{:016x}.log", hit.segment));
        disk.flip_bit(&path, (hit.offset + 17) * 8).unwrap();
        let copy = Sim {
            disk,
            ..sim.crash()
        };
        for error in [
            open(&copy.env()).err().unwrap(),
            crate::scan(&copy.env(), &dir(), &mut |_, _| Ok(())).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Corruption, "{hit:?}: {error}");
            let text = error.to_string();
            let named = text.contains(&format!("{:016x}.log", hit.segment))
                && text.contains(&format!("byte {}", hit.offset));
            assert!(named, "{hit:?}: {text}");
        }
    }
}

#[test]
fn log_end_that_no_sync_reached_is_where_it_ends() {
    let sim = Sim::new(3);
    let (_log, at) = filled(&sim, 2, false);
    let disk = sim.disk.crash_with(Crash::LoseAll);
    let copy = Sim {
        disk,
        ..sim.crash()
    };
    let (_, found) = open(&copy.env()).unwrap();
    assert!(
        found.len() < at.len() - 1,
        "{} of {}",
        found.len(),
        at.len()
    );
    assert_eq!(found, (0..found.len()).map(record).collect::<Vec<_>>());
    let names = copy.disk.list(&dir()).unwrap();
    assert!(!names.contains(&format!("{:016x}.log", 2)), "{names:?}");
}

#[test]
fn log_closed_gives_back_the_file_of_the_next_segment() {
    let sim = Sim::new(3);
    let (log, _) = open(&sim.env()).unwrap();
    let next = dir().join(format!("{:016x}.log", 2));
    let mut count = 0;
    while !sim.disk.exists(&next).unwrap() {
        log.append(&[&record(1)], Durability::Buffered).unwrap();
        sim.jobs.pump_all();
        count += 1;
    }
    assert_eq!(log.end().segment, 1);
    log.close().unwrap();
    assert!(!sim.disk.exists(&next).unwrap());
    // It still writes, over the end too.
    while log.end().segment < 2 {
        log.append(&[&record(1)], Durability::Buffered).unwrap();
        count += 1;
    }
    log.sync().unwrap();
    drop(log);
    assert_eq!(open(&sim.env()).unwrap().1.len(), count);
}

/// The sync of an ended segment failed, so that its records are in the page cache and on no disk.
#[test]
fn log_opened_after_a_failed_sync_of_an_ended_segment_makes_it_durable() {
    let sim = Sim::new(8);
    let (log, _) = open(&sim.env()).unwrap();
    let mut count = 0;
    while log.end().segment < 2 {
        log.append(&[&record(count)], Durability::Buffered).unwrap();
        count += 1;
    }
    sim.disk.inject(Fault::Sync);
    let error = log.sync().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Poisoned, "{error}");
    drop(log);
    let (log, found) = open(&sim.env()).unwrap();
    assert_eq!(found.len(), count);
    log.append(&[&record(count)], Durability::Synced).unwrap();
    let disk = sim.disk.crash_with(Crash::LoseAll);
    let (_, found) = open(&Sim { disk, ..sim }.env()).unwrap();
    assert_eq!(found, (0..=count).map(record).collect::<Vec<_>>());
}

/// Syncs of segments wait at a gate.
#[derive(Default)]
struct Gate {
    shut: Mutex<bool>,
    opened: Condvar,
}

impl Hooks for Gate {
    fn sync(&self, _: &Path, sync: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
        let mut shut = self.shut.lock();
        self.opened.wait_while(&mut shut, |shut| *shut);
        drop(shut);
        sync()
    }
}

#[test]
fn log_end_of_a_segment_waits_for_no_sync() {
    let folder = tempfile::tempdir().unwrap();
    let gate = Arc::new(Gate::default());
    let env = Env::real(2);
    let env = Env {
        disk: Arc::new(HookedDisk::new(Arc::clone(&env.disk), Arc::clone(&gate))),
        ..env
    };
    let log = Log::open(&env, folder.path(), small(), &mut |_, _| Ok(())).unwrap();
    let next = folder.path().join(format!("{:016x}.log", 2));
    let mut count = 0;
    while !next.exists() {
        // The file of the next segment is made when this one is nearly full.
        let full = log.end().offset > small().segment_bytes / 5 * 4;
        match full {
            true => std::thread::yield_now(),
            false => {
                log.append(&[&record(1)], Durability::Buffered).unwrap();
                count += 1;
            }
        }
    }
    *gate.shut.lock() = true;
    while log.end().segment < 2 {
        log.append(&[&record(1)], Durability::Buffered).unwrap();
        count += 1;
    }
    *gate.shut.lock() = false;
    gate.opened.notify_all();
    log.sync().unwrap();
    drop(log);
    let mut found = 0;
    let hear = &mut |_, _: &[u8]| {
        found += 1;
        Ok(())
    };
    Log::open(&env, folder.path(), small(), hear).unwrap();
    assert_eq!(found, count);
}
