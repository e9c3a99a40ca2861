//! What is acknowledged as synced survives every crash, in order; damage is named.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use quorate_env::sim::{Crash, Fault, HookedDisk, Hooks, Sim};
use quorate_env::{Disk, Env, JobClass, Jobs};

use crate::{Durability, ErrorKind, Log, LogOptions, Position, WhenFull};

mod ends;
mod sizes;

fn dir() -> PathBuf {
    PathBuf::from("/data/log")
}

fn small() -> LogOptions {
    LogOptions {
        segment_bytes: 4 << 10,
        prepare_segments: true,
        when_full: WhenFull::Refuse,
    }
}

fn open(env: &Env) -> crate::Result<(Log, Vec<Vec<u8>>)> {
    let mut found = Vec::new();
    let log = Log::open(env, &dir(), small(), &mut |_, record| {
        found.push(record.to_vec());
        Ok(())
    })?;
    Ok((log, found))
}

fn record(n: usize) -> Vec<u8> {
    let mut bytes = n.to_le_bytes().to_vec();
    bytes.resize(8 + n * 37 % 900, n as u8);
    bytes
}

#[test]
fn log_reopened_replays_all_in_order_and_reads_back() {
    let sim = Sim::new(1);
    let (log, found) = open(&sim.env()).unwrap();
    assert!(found.is_empty());
    let at: Vec<Position> = (0..100)
        .map(|n| {
            log.append(&[&record(n)[..5], &record(n)[5..]], Durability::Synced)
                .unwrap()
        })
        .collect();
    assert!(at.is_sorted());
    assert!(at.last().unwrap().segment > 5);
    for (n, at) in at.iter().enumerate() {
        assert_eq!(log.read(*at).unwrap(), record(n));
    }
    drop(log);
    let (log, found) = open(&sim.env()).unwrap();
    assert_eq!(found, (0..100).map(record).collect::<Vec<_>>());
    assert_eq!(log.read(at[50]).unwrap(), record(50));
}

#[test]
fn log_submitted_records_are_readable_at_once_and_complete_in_order() {
    let sim = Sim::new(2);
    let (log, _) = open(&sim.env()).unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    for n in 0..50 {
        let order = Arc::clone(&order);
        let done = move |result: crate::Result<()>| {
            result.unwrap();
            order.lock().push(n);
        };
        let durability = if n % 3 == 0 {
            Durability::Synced
        } else {
            Durability::Buffered
        };
        let at = log
            .submit(&[&record(n)], durability, Some(Box::new(done)))
            .unwrap();
        assert_eq!(log.read(at).unwrap(), record(n));
    }
    assert!(order.lock().is_empty());
    sim.jobs.pump_all();
    assert_eq!(*order.lock(), (0..50).collect::<Vec<_>>());
}

#[test]
fn log_released_segments_are_gone_and_reused() {
    let sim = Sim::new(3);
    let (log, _) = open(&sim.env()).unwrap();
    let at: Vec<_> = (0..60)
        .map(|n| log.append(&[&record(n)], Durability::Synced).unwrap())
        .collect();
    let keep = at[40].segment;
    log.release(keep).unwrap();
    assert_eq!(log.first_segment(), keep);
    assert_eq!(log.read(at[0]).unwrap_err().kind(), ErrorKind::NotFound);
    for n in 60..90 {
        log.append(&[&record(n)], Durability::Synced).unwrap();
    }
    drop(log);
    let (_, found) = open(&sim.env()).unwrap();
    let first = at.iter().position(|at| at.segment == keep).unwrap();
    assert_eq!(found, (first..90).map(record).collect::<Vec<_>>());
}

#[test]
fn log_by_many_threads_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let env = Env::real(1);
    let options = LogOptions {
        segment_bytes: 64 << 10,
        ..small()
    };
    let log = Log::open(&env, folder.path(), options.clone(), &mut |_, _| Ok(())).unwrap();
    let completed = Arc::new(AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (log, completed) = (&log, Arc::clone(&completed));
            scope.spawn(move || {
                for n in 0..100 {
                    let bytes = record(thread * 1000 + n);
                    if n % 2 == 0 {
                        log.append(&[&bytes], Durability::Synced).unwrap();
                        completed.fetch_add(1, Ordering::SeqCst);
                    } else {
                        let completed = Arc::clone(&completed);
                        let done = move |result: crate::Result<()>| {
                            result.unwrap();
                            completed.fetch_add(1, Ordering::SeqCst);
                        };
                        log.submit(&[&bytes], Durability::Synced, Some(Box::new(done)))
                            .unwrap();
                    }
                }
            });
        }
    });
    log.sync().unwrap();
    drop(log);
    let mut count = 0;
    Log::open(&env, folder.path(), options, &mut |_, _| {
        count += 1;
        Ok(())
    })
    .unwrap();
    assert_eq!(count, 800);
    assert_eq!(completed.load(Ordering::SeqCst), 800);
}

/// Appends and releases until the power goes; returns how many records were acknowledged as synced,
/// how many were begun, and the first that may be gone by release.
fn run_until_crash(sim: &Sim, lie_about_sync: bool) -> (usize, usize, usize) {
    let Ok((log, found)) = open(&sim.env()) else {
        return (0, 0, 0);
    };
    assert!(found.is_empty());
    let mut acked = 0;
    let mut released = 0;
    let mut first_of = std::collections::BTreeMap::new();
    for n in 0..40 {
        let synced = n % 3 != 1;
        let durability = if synced && !lie_about_sync {
            Durability::Synced
        } else {
            Durability::Buffered
        };
        let Ok(at) = log.append(&[&record(n)], durability) else {
            return (acked, n + 1, released);
        };
        first_of.entry(at.segment).or_insert(n);
        if synced {
            acked = n + 1;
        }
        if n == 25 {
            // A release that fails half way may have forgotten any of these.
            released = first_of[&at.segment];
            if log.release(at.segment).is_err() {
                return (acked, n + 1, released);
            }
        }
    }
    (acked, 40, released)
}

fn survives_crash_at(seed: u64, at: u64, lie_about_sync: bool) -> Result<bool, String> {
    let sim = Sim::new(seed);
    sim.disk.crash_at(at);
    let (acked, begun, released) = run_until_crash(&sim, lie_about_sync);
    let finished = sim.disk.operations() < at;
    let up = sim.crash();
    let (log, found) = open(&up.env()).map_err(|e| format!("does not open: {e}"))?;
    let first = found.first().map_or(acked.max(released), |r| {
        usize::from_le_bytes(r[..8].try_into().unwrap())
    });
    if first > released {
        return Err(format!("record {released} is gone; the first is {first}"));
    }
    for (n, bytes) in found.iter().enumerate() {
        if *bytes != record(first + n) {
            return Err(format!("record {} is not what was written", first + n));
        }
    }
    let end = first + found.len();
    if end < acked || end > begun {
        return Err(format!(
            "{end} records survived, {acked} were promised, {begun} begun"
        ));
    }
    log.append(&[&record(end)], Durability::Synced)
        .map_err(|e| e.to_string())?;
    drop(log);
    let again = up.crash();
    let (_, twice) = open(&again.env()).map_err(|e| format!("does not open again: {e}"))?;
    if twice.len() != found.len() + 1 {
        return Err("a record after recovery was lost".into());
    }
    Ok(finished)
}

#[test]
fn log_crash_at_every_operation_keeps_what_was_synced() {
    for seed in 0..12 {
        for at in 0.. {
            match survives_crash_at(seed, at, false) {
                Ok(true) => break,
                Ok(false) => {}
                Err(what) => panic!("seed {seed}, crash at operation {at}: {what}"),
            }
        }
    }
}

#[test]
fn log_crash_check_notices_a_sync_that_is_left_out() {
    let mut caught = false;
    for at in 0..200 {
        caught |= survives_crash_at(1, at, true).is_err();
    }
    assert!(caught, "the check has no teeth");
}

#[test]
fn log_damaged_synced_record_is_reported_with_file_and_byte() {
    let sim = Sim::new(5);
    let (log, _) = open(&sim.env()).unwrap();
    let at: Vec<_> = (0..4)
        .map(|_| log.append(&[&[1; 100]], Durability::Synced).unwrap())
        .collect();
    drop(log);
    let path = Path::new("/data/log/0000000000000001.log");
    sim.disk.flip_bit(path, (at[1].offset + 40) * 8).unwrap();
    let error = open(&sim.env()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corruption);
    assert!(
        error.to_string().contains("0000000000000001.log"),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .contains(&format!("byte {}", at[1].offset)),
        "{error}"
    );
}

#[test]
fn log_any_flipped_bit_gives_an_error_or_a_prefix() {
    let sim = Sim::new(6);
    let (log, _) = open(&sim.env()).unwrap();
    (0..12).for_each(|n| {
        log.append(&[&record(n)], Durability::Synced).unwrap();
    });
    let bytes = log.size_bytes();
    drop(log);
    let segments = bytes / (4 << 10);
    for segment in 1..=segments {
        let path = dir().join(format!("{segment:016x}.log"));
        for bit in (0..(4 << 10) * 8).step_by(13) {
            // Each on a copy: opening may clear the end.
            let copy = sim.disk.crash_with(quorate_env::sim::Crash::KeepAll);
            copy.flip_bit(&path, bit).unwrap();
            let env = Env {
                disk: Arc::new(copy),
                ..sim.env()
            };
            if let Ok((_, found)) = open(&env) {
                let wrong = found
                    .iter()
                    .enumerate()
                    .find(|(n, bytes)| **bytes != record(*n));
                assert!(
                    wrong.is_none(),
                    "segment {segment}, bit {bit}: wrong record"
                );
            }
        }
    }
}

#[test]
fn log_failed_sync_poisons_and_is_never_retried() {
    let sim = Sim::new(7);
    let (log, _) = open(&sim.env()).unwrap();
    log.append(&[b"one"], Durability::Synced).unwrap();
    sim.disk.inject(Fault::Sync);
    assert!(log.append(&[b"two"], Durability::Synced).is_err());
    let error = log.append(&[b"three"], Durability::Synced).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Poisoned);
    assert!(log.submit(&[b"four"], Durability::Buffered, None).is_err());
    drop(log);
    let (_, found) = open(&sim.env()).unwrap();
    assert_eq!(found[0], b"one");
}

#[test]
fn log_on_a_full_disk_refuses_and_goes_on_when_there_is_space() {
    let sim = Sim::new(8);
    let (log, _) = open(&sim.env()).unwrap();
    sim.disk.set_capacity(Some(10 << 10));
    let mut kept = 0;
    let error = loop {
        match log.append(&[&[kept as u8; 1000]], Durability::Synced) {
            Ok(_) => kept += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::DiskFull);
    assert!(kept >= 6);
    sim.disk.set_capacity(None);
    log.append(&[&[kept as u8; 1000]], Durability::Synced)
        .unwrap();
    drop(log);
    let (_, found) = open(&sim.env()).unwrap();
    assert_eq!(found.len(), kept + 1);
    assert!(
        found
            .iter()
            .enumerate()
            .all(|(n, bytes)| bytes[0] == n as u8)
    );
}

/// Segments are so small that the writer is often faster than the job that prepares the next one: then
/// both make a file, and it must not matter who is first.
#[test]
fn log_that_outruns_its_preparation_loses_nothing() {
    for round in 0..8 {
        let folder = tempfile::tempdir().unwrap();
        let env = Env::real(1);
        let log = Log::open(&env, folder.path(), small(), &mut |_, _| Ok(())).unwrap();
        for n in 0..600_u32 {
            let mut record = vec![0; 900];
            record[..4].copy_from_slice(&n.to_le_bytes());
            // Segments are prepared where records are synced.
            let durability = match n % 3 {
                0 => Durability::Synced,
                _ => Durability::Buffered,
            };
            log.append(&[&record], durability).unwrap();
        }
        drop(log);
        let mut found = 0;
        let reopened = Log::open(&Env::real(1), folder.path(), small(), &mut |_, record| {
            assert_eq!(record[..4], u32::to_le_bytes(found));
            found += 1;
            Ok(())
        });
        reopened.unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(found, 600, "round {round}");
    }
}

/// A log on a disk with room for little, told to wait; twenty records are queued, and what became of
/// each. `when_full` runs once, while they wait.
fn wait_on_a_full_disk(when_full: impl FnOnce(&Sim, &Log) + Send + 'static) -> (Sim, Vec<bool>) {
    let sim = Sim::new(81);
    let options = LogOptions {
        when_full: WhenFull::Wait,
        ..small()
    };
    let log = Log::open(&sim.env(), &dir(), options, &mut |_, _| Ok(())).unwrap();
    sim.disk.set_capacity(Some(10 << 10));
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    for n in 0..20_u8 {
        let outcomes = Arc::clone(&outcomes);
        let done = Box::new(move |result: crate::Result<()>| outcomes.lock().push(result.is_ok()));
        log.submit(&[&[n; 1000]], Durability::Synced, Some(done))
            .unwrap();
        if n < 3 {
            sim.jobs.pump_all();
        }
    }
    look(&sim, log.clone(), when_full);
    sim.jobs.pump_all();
    assert!(!log.is_full());
    let outcomes = outcomes.lock().clone();
    (sim, outcomes)
}

/// Looks, job after job, until the log is full.
fn look(sim: &Sim, log: Log, when_full: impl FnOnce(&Sim, &Log) + Send + 'static) {
    let (again, jobs) = (sim.clone(), sim.jobs.clone());
    let job = move || match log.is_full() {
        true => when_full(&again, &log),
        false => look(&again, log, when_full),
    };
    jobs.spawn(JobClass::Read, Box::new(job));
}

#[test]
fn log_told_to_wait_loses_no_record_to_a_full_disk() {
    let (sim, outcomes) = wait_on_a_full_disk(|sim, _| sim.disk.set_capacity(None));
    assert_eq!(outcomes, [true; 20]);
    let (_, found) = open(&sim.crash().env()).unwrap();
    let first_bytes: Vec<u8> = found.iter().map(|record| record[0]).collect();
    assert_eq!(first_bytes, (0..20).collect::<Vec<u8>>());
}

#[test]
fn log_told_to_wait_no_longer_fails_what_waits() {
    let (sim, outcomes) = wait_on_a_full_disk(|_, log| log.refuse_when_full());
    let kept = outcomes.iter().filter(|ok| **ok).count();
    assert!((3..20).contains(&kept), "{kept} records were kept");
    assert!(outcomes[..kept].iter().all(|ok| *ok));
    assert_eq!(outcomes.len(), 20);
    let (_, found) = open(&sim.crash().env()).unwrap();
    assert_eq!(found.len(), kept);
}

/// The failed sync left its records in the page cache, and on no disk.
#[test]
fn log_opened_after_a_failed_sync_makes_durable_what_it_replays() {
    let sim = Sim::new(8);
    let (log, _) = open(&sim.env()).unwrap();
    log.append(&[&record(1)], Durability::Synced).unwrap();
    sim.disk.inject(Fault::Sync);
    log.append(&[&record(2)], Durability::Synced).unwrap_err();
    drop(log);
    let (log, found) = open(&sim.env()).unwrap();
    assert_eq!(found, [record(1), record(2)]);
    log.append(&[&record(3)], Durability::Synced).unwrap();
    let disk = sim.disk.crash_with(Crash::LoseAll);
    let (_, found) = open(&Sim { disk, ..sim }.env()).unwrap();
    assert_eq!(found, [record(1), record(2), record(3)]);
}

#[test]
fn log_of_a_newer_format_is_refused() {
    let sim = Sim::new(9);
    let (log, _) = open(&sim.env()).unwrap();
    drop(log);
    let path = dir().join("0000000000000001.log");
    let file = sim.disk.open(&path).unwrap();
    let mut header = [0; 60];
    file.read_exact_at(&mut header, 0).unwrap();
    header[8] = 9;
    file.write_all_at(&header, 0).unwrap();
    file.write_all_at(&crc32c::crc32c(&header).to_le_bytes(), 60)
        .unwrap();
    let error = open(&sim.env()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NewerFormat);
}

/// Buffered records of 64 KiB, with a segment that holds them all.
fn write_much(sim: &Sim, count: usize) -> (Log, LogOptions) {
    write_much_to(&sim.env(), &dir(), count)
}

fn write_much_to(env: &Env, dir: &Path, count: usize) -> (Log, LogOptions) {
    let options = LogOptions {
        segment_bytes: 16 << 20,
        ..small()
    };
    let log = Log::open(env, dir, options.clone(), &mut |_, _| Ok(())).unwrap();
    for n in 0..count {
        let record = vec![n as u8; 64 << 10];
        log.append(&[&record], Durability::Buffered).unwrap();
    }
    (log, options)
}

#[test]
fn log_that_is_never_asked_to_sync_is_synced_in_the_background() {
    let sim = Sim::new(4);
    let (_log, options) = write_much(&sim, 100);
    sim.jobs.pump_all();
    let crashed = Sim {
        disk: sim.disk.crash_with(Crash::LoseAll),
        ..sim.crash()
    };
    let mut found = 0;
    let count = &mut |_, _: &[u8]| {
        found += 1;
        Ok(())
    };
    Log::open(&crashed.env(), &dir(), options, count).unwrap();
    assert!(found >= 64, "{found} of 100 survived");
}

#[test]
fn log_whose_background_sync_failed_takes_no_more() {
    let sim = Sim::new(5);
    let (log, _) = write_much(&sim, 10);
    sim.disk.inject(Fault::Sync);
    for n in 10..100 {
        let record = vec![n as u8; 64 << 10];
        if log.append(&[&record], Durability::Buffered).is_err() {
            break;
        }
        sim.jobs.pump_all();
    }
    let late = log.append(&[b"late"], Durability::Synced).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Poisoned);
    let sync = log.sync().unwrap_err();
    assert_eq!(sync.kind(), ErrorKind::Poisoned);
}

/// Of syncs of a segment after the first, which made it, one fails late: when another came meanwhile, or
/// none did for a while. The others are told nothing, as by a real system.
#[derive(Default)]
struct OneIsTold {
    syncs: Mutex<usize>,
    another: Condvar,
}

impl Hooks for OneIsTold {
    fn sync(&self, path: &Path, sync: &dyn Fn() -> std::io::Result<()>) -> std::io::Result<()> {
        // Under this name it was made.
        if !path.ends_with("spare") {
            return sync();
        }
        let mut syncs = self.syncs.lock();
        *syncs += 1;
        self.another.notify_all();
        if *syncs != 2 {
            return Ok(());
        }
        let wait = Duration::from_millis(300);
        self.another
            .wait_while_for(&mut syncs, |syncs| *syncs < 3, wait);
        Err(std::io::Error::other("the disk is broken"))
    }
}

#[test]
fn log_sync_beside_one_that_fails_acknowledges_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let env = Env::real(1);
    let told = Arc::new(OneIsTold::default());
    let disk = HookedDisk::new(Arc::clone(&env.disk), Arc::clone(&told));
    let env = Env {
        disk: Arc::new(disk),
        ..env
    };
    let (log, _) = write_much_to(&env, folder.path(), 70);
    // The background sync has begun.
    let mut syncs = told.syncs.lock();
    let begun =
        told.another
            .wait_while_for(&mut syncs, |syncs| *syncs < 2, Duration::from_secs(20));
    assert!(!begun.timed_out());
    drop(syncs);
    let error = log.append(&[b"late"], Durability::Synced).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Poisoned);
}
