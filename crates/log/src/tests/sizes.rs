//! Files of other sizes than usual: of records larger than a segment, and of a log that was closed.

use quorate_env::sim::{Crash, Sim};
use quorate_env::{Disk, Random};

use super::{dir, open, small};
use crate::{Durability, ErrorKind, Log, LogOptions, Position};

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

#[test]
fn log_closed_is_no_longer_than_its_records_and_goes_on_when_opened() {
    let sim = Sim::new(4);
    let (log, _) = open(&sim.env()).unwrap();
    log.append(&[b"one"], Durability::Buffered).unwrap();
    log.close().unwrap();
    assert_eq!(size_of(&sim, 1), log.end().offset);
    // Who writes nevertheless loses nothing.
    log.append(&[b"two"], Durability::Synced).unwrap();
    drop(log);
    let (log, found) = open(&sim.env()).unwrap();
    assert_eq!(found, [b"one", b"two"]);
    assert_eq!(size_of(&sim, 1), small().segment_bytes);
    log.append(&[b"tre"], Durability::Synced).unwrap();
    let disk = sim.disk.crash_with(Crash::LoseAll);
    let (_, found) = open(&Sim { disk, ..sim }.env()).unwrap();
    assert_eq!(found, [b"one", b"two", b"tre"]);
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
