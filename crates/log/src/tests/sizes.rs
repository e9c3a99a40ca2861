//! Files of other sizes than usual: of records larger than a segment, and of a log that was closed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use quorate_env::sim::{Crash, Sim};
use quorate_env::{Disk, Random};

use super::{dir, open, small};
use crate::{Completion, Durability, ErrorKind, Log, LogOptions, Position};

/// The `n`th record, of up to three segments.
fn sized(n: usize) -> Vec<u8> {
    let mut bytes = n.to_le_bytes().to_vec();
    bytes.resize(8 + n * 3371 % 12_000, n as u8);
    bytes
}

fn size_of(sim: &Sim, segment: u64) -> u64 {
    let path = dir().join(format!("{segment:016x}.log"));
    sim.disk.open(&path).unwrap().size().unwrap()
}

#[test]
fn log_record_larger_than_a_segment_gets_one_of_its_size() {
    let sim = Sim::new(1);
    let (log, _) = open(&sim.env()).unwrap();
    let append = |n| log.append(&[&sized(n)], Durability::Synced).unwrap();
    let at: Vec<Position> = (0..30).map(append).collect();
    assert!(at.is_sorted());
    for (n, at) in at.iter().enumerate() {
        assert_eq!(log.read(*at).unwrap(), sized(n));
        let needs = at.offset + sized(n).len() as u64;
        assert!(size_of(&sim, at.segment) >= needs.max(small().segment_bytes));
    }
    let sizes = (1..=log.end().segment).map(|segment| size_of(&sim, segment));
    assert_eq!(log.size_bytes(), sizes.sum::<u64>());
    drop(log);
    let (log, found) = open(&sim.env()).unwrap();
    assert_eq!(found, (0..30).map(sized).collect::<Vec<_>>());
    assert_eq!(log.read(at[29]).unwrap(), sized(29));
    // A file that is used again for small records is of the usual size.
    log.release(log.end().segment).unwrap();
    let before = log.end().segment;
    while log.end().segment < before + 4 {
        log.append(&[&[1; 100]], Durability::Synced).unwrap();
    }
    for segment in before + 1..=log.end().segment {
        assert_eq!(size_of(&sim, segment), small().segment_bytes);
    }
}

#[test]
fn log_record_beyond_the_largest_is_refused() {
    let sim = Sim::new(2);
    let (log, _) = open(&sim.env()).unwrap();
    let part = vec![0; 256 << 20];
    let parts = [&part[..]; 4];
    let error = log.append(&parts, Durability::Buffered).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    log.append(&[b"small"], Durability::Synced).unwrap();
    drop(log);
    assert_eq!(open(&sim.env()).unwrap().1, [b"small"]);
}

#[test]
fn log_full_disk_refuses_a_large_record_alone() {
    let sim = Sim::new(3);
    let (log, _) = open(&sim.env()).unwrap();
    log.append(&[b"first"], Durability::Synced).unwrap();
    sim.disk.set_capacity(Some(20 << 10));
    let large = vec![7; 20 << 10];
    let error = log.append(&[&large], Durability::Synced).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DiskFull, "{error}");
    log.append(&[b"second"], Durability::Synced).unwrap();
    sim.disk.set_capacity(None);
    log.append(&[&large], Durability::Synced).unwrap();
    drop(log);
    let (_, found) = open(&sim.env()).unwrap();
    assert_eq!(found, [b"first".to_vec(), b"second".to_vec(), large]);
}

/// Of records that are written together the first fit the segment that is there, and no other can be made.
#[test]
fn log_full_disk_acknowledges_what_is_before_it_only_when_durable() {
    let sim = Sim::new(6);
    let (log, _) = open(&sim.env()).unwrap();
    sim.disk.set_capacity(Some(4 << 10));
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    for n in 0..6_u8 {
        let outcomes = Arc::clone(&outcomes);
        let done = move |outcome: crate::Result<()>| outcomes.lock().push((n, outcome.is_ok()));
        let done: Completion = Box::new(done);
        let record = [n; 1000];
        log.submit(&[&record], Durability::Synced, Some(done))
            .unwrap();
    }
    sim.jobs.pump_all();
    let kept: Vec<u8> = {
        let outcomes = outcomes.lock();
        assert_eq!(outcomes.len(), 6, "each hears of its record");
        let kept = outcomes.iter().filter(|(_, is_ok)| *is_ok);
        kept.map(|(n, _)| *n).collect()
    };
    assert!((1..6).contains(&kept.len()), "{kept:?}");
    let disk = sim.disk.crash_with(Crash::LoseAll);
    disk.set_capacity(None);
    let (_, found) = open(&Sim { disk, ..sim }.env()).unwrap();
    assert_eq!(found, kept.iter().map(|n| [*n; 1000]).collect::<Vec<_>>());
}

#[test]
fn log_closed_is_no_longer_than_its_records_and_goes_on_when_opened() {
    let sim = Sim::new(4);
    let (log, _) = open(&sim.env()).unwrap();
    for n in 0..60 {
        log.append(&[&[n; 500]], Durability::Synced).unwrap();
        sim.jobs.pump();
    }
    let last = log.end().segment;
    log.release(last).unwrap();
    log.append(&[b"one"], Durability::Buffered).unwrap();
    let end = log.end();
    log.close().unwrap();
    assert_eq!(log.size_bytes(), end.offset);
    let names = sim.disk.list(&dir()).unwrap();
    assert_eq!(names, [format!("{last:016x}.log")], "and nothing beside it");
    drop(log);
    let (log, found) = open(&sim.env()).unwrap();
    assert_eq!(found.last().unwrap(), b"one");
    assert_eq!(size_of(&sim, last), small().segment_bytes);
    log.append(&[b"two"], Durability::Synced).unwrap();
    let disk = sim.disk.crash_with(Crash::LoseAll);
    let (_, found) = open(&Sim { disk, ..sim }.env()).unwrap();
    assert!(found.ends_with(&[b"one".to_vec(), b"two".to_vec()]));
}

#[test]
fn log_closed_twice_or_written_to_after_its_close_leaves_the_next_owner_alone() {
    let sim = Sim::new(7);
    let (log, _) = open(&sim.env()).unwrap();
    log.append(&[b"one"], Durability::Buffered).unwrap();
    log.close().unwrap();
    let (next, _) = open(&sim.env()).unwrap();
    next.append(&[b"two"], Durability::Synced).unwrap();
    let error = log.append(&[b"late"], Durability::Synced).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Poisoned, "{error}");
    log.close().unwrap();
    drop((log, next));
    assert_eq!(open(&sim.env()).unwrap().1, [b"one", b"two"]);
}

#[test]
fn log_cut_behind_a_large_record_has_room_for_its_seal_when_opened_on_a_full_disk() {
    let sim = Sim::new(8);
    let (log, _) = open(&sim.env()).unwrap();
    let large = vec![1; 9000];
    log.append(&[&large], Durability::Synced).unwrap();
    log.close().unwrap();
    drop(log);
    let (log, _) = open(&sim.env()).unwrap();
    sim.disk.set_capacity(Some(1));
    let error = log.append(&[b"two"], Durability::Synced).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DiskFull, "{error}");
    sim.disk.set_capacity(None);
    log.append(&[b"two"], Durability::Synced).unwrap();
    drop(log);
    assert_eq!(open(&sim.env()).unwrap().1, [large, b"two".to_vec()]);
}

#[test]
fn log_of_larger_segments_is_gone_on_with_in_smaller_ones_and_back() {
    let sim = Sim::new(5);
    let mut count = 0;
    for segment_bytes in [16 << 10, 4 << 10, 64 << 10, 8 << 10] {
        let options = LogOptions {
            segment_bytes,
            ..small()
        };
        let mut found = 0;
        let hear = &mut |_, record: &[u8]| {
            assert_eq!(record, sized(found));
            found += 1;
            Ok(())
        };
        let log = Log::open(&sim.env(), &dir(), options, hear).unwrap();
        assert_eq!(found, count);
        for _ in 0..20 {
            log.append(&[&sized(count)], Durability::Synced).unwrap();
            sim.jobs.pump();
            count += 1;
        }
        if segment_bytes == 64 << 10 {
            log.close().unwrap();
        }
    }
}

/// Appends records of many sizes and closes the log between; until the power goes. Returns how many
/// records were acknowledged as synced and how many begun.
fn run(sim: &Sim, seed: u64) -> (usize, usize) {
    let random = Random::from_seed(seed);
    let (mut acked, mut n) = (0, 0);
    for _ in 0..3 {
        let Ok((log, found)) = open(&sim.env()) else {
            return (acked, n);
        };
        assert_eq!(found.len(), n);
        for _ in 0..8 {
            let durability = match random.below(4) {
                0 => Durability::Synced,
                _ => Durability::Buffered,
            };
            n += 1;
            if log.append(&[&sized(n - 1)], durability).is_err() {
                return (acked, n);
            }
            if durability == Durability::Synced {
                acked = n;
            }
            for _ in 0..random.below(3) {
                sim.jobs.pump();
            }
        }
        if log.close().is_err() {
            return (acked, n);
        }
        acked = n;
    }
    (acked, n)
}

#[test]
fn log_crash_at_every_operation_keeps_large_records_and_what_was_closed() {
    for seed in 0..8 {
        for at in 0.. {
            let sim = Sim::new(seed);
            sim.disk.crash_at(at);
            let (acked, begun) = run(&sim, seed);
            let finished = sim.disk.operations() < at;
            let up = sim.crash();
            let context = format!("seed {seed}, crash at operation {at}");
            let (log, found) = open(&up.env()).unwrap_or_else(|e| panic!("{context}: {e}"));
            let survived = found.len();
            assert!(
                (acked..=begun).contains(&survived),
                "{context}: {survived} survived, {acked} were promised, {begun} begun"
            );
            let right = found.iter().enumerate().all(|(n, r)| *r == sized(n));
            assert!(right, "{context}: a record is not what was written");
            log.append(&[&sized(survived)], Durability::Synced)
                .unwrap_or_else(|e| panic!("{context}: {e}"));
            drop(log);
            let again = open(&up.crash().env()).unwrap_or_else(|e| panic!("{context}: {e}"));
            assert_eq!(again.1.len(), survived + 1, "{context}");
            if finished {
                break;
            }
        }
    }
}

#[test]
fn log_release_that_fails_leaves_no_gap() {
    for failing in 0..8 {
        let sim = Sim::new(9);
        let (log, _) = open(&sim.env()).unwrap();
        for n in 0..40_u8 {
            let durability = match n % 8 {
                0 => Durability::Synced,
                _ => Durability::Buffered,
            };
            log.append(&[&[n; 500]], durability).unwrap();
        }
        log.sync().unwrap();
        let at = sim.disk.operations() + failing;
        sim.disk.fail_at(at, std::io::ErrorKind::Other);
        let first = log.release(3);
        for segment in [4, 5, 6] {
            log.release(segment).ok();
        }
        log.release(log.end().segment).unwrap();
        assert!(failing > 1 || first.is_err(), "operation {failing}");
        let first = log.first_segment();
        drop(log);
        let (log, found) = open(&sim.env()).unwrap_or_else(|e| panic!("{failing}: {e}"));
        assert_eq!(log.first_segment(), first);
        assert_eq!(found.last().unwrap(), &[39; 500]);
    }
}

/// What lies behind a torn end claims, all over, to be records that reach far.
#[test]
fn log_search_behind_a_torn_end_reads_little_whatever_is_there() {
    let sim = Sim::new(10);
    let options = LogOptions {
        segment_bytes: 4 << 20,
        ..small()
    };
    let open = || Log::open(&sim.env(), &dir(), options.clone(), &mut |_, _| Ok(()));
    let log = open().unwrap();
    let at = log.append(&[b"first"], Durability::Buffered).unwrap();
    let mut claim = [0; 16];
    claim[4..8].copy_from_slice(&(2_u32 << 20).to_le_bytes());
    claim[8..12].copy_from_slice(&(1_u32 << 20).to_le_bytes());
    let large = claim.repeat((4 << 20) / 16 - 100);
    log.append(&[&large], Durability::Buffered).unwrap();
    drop(log);
    let path = dir().join(format!("{:016x}.log", at.segment));
    sim.disk.flip_bit(&path, (at.offset + 17) * 8).unwrap();
    let begun = Instant::now();
    let log = open().unwrap();
    assert_eq!(log.end(), at, "the log ends where it is torn");
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(10), "it took {took:?}");
}
