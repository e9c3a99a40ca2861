//! Whole engines under each policy: the same answers, changing the policy on the way, bounded size.

use std::time::Duration;

use quorate_env::Random;
use quorate_env::sim::Sim;

use super::crash::{Script, dump};
use super::workload::{DATA, META, dir, tiny, write_options};
use crate::planted::{Bug, is_noticed};
use crate::{
    Batch, Compaction, Compression, Engine, FifoOptions, IterOptions, KeyRange, Lsm, Options,
    ReadAt, TieredOptions, WriteOptions,
};

fn tiered() -> Compaction {
    Compaction::Tiered(TieredOptions {
        runs_max: 3,
        space_percent_max: 150,
    })
}

fn fifo(size_bytes_max: u64) -> Compaction {
    Compaction::Fifo(FifoOptions {
        size_bytes_max,
        age_max: None,
    })
}

fn with(compaction: Compaction) -> Options {
    Options {
        compaction,
        compression: Compression::None,
        ..tiny()
    }
}

fn put(lsm: &Lsm, key: u64, length: usize) {
    let mut batch = Batch::new();
    batch.put(META, &key.to_be_bytes(), &vec![key as u8; length]);
    lsm.write(&batch, WriteOptions::APPLY).unwrap();
}

#[test]
fn policy_may_be_another_at_each_opening() {
    for seed in 0..6 {
        let script = Script::new(seed, false, 120);
        let sim = Sim::new(seed);
        let random = Random::from_seed(seed);
        for written in (0..120).step_by(10) {
            // A FIFO so large that it drops nothing.
            let all = [Compaction::Leveled, tiered(), fifo(1 << 40)];
            let options = with(all[random.below(3) as usize]);
            let lsm = Lsm::open(&sim.env(), dir(), options.clone()).unwrap();
            sim.jobs.pump_all();
            assert_eq!(
                dump(&lsm),
                script.states[written],
                "seed {seed}, {:?}",
                options.compaction
            );
            for batch in &script.batches[written..written + 10] {
                lsm.write(batch, write_options(&options, &random)).unwrap();
                lsm.flush().unwrap();
            }
            sim.jobs.pump_all();
            assert_eq!(dump(&lsm), script.states[written + 10], "seed {seed}");
            lsm.close().unwrap();
        }
    }
}

#[test]
fn policy_tiered_bounds_runs_and_rewrites_less_than_leveled() {
    let written = |compaction| {
        let sim = Sim::new(1);
        let lsm = Lsm::open(&sim.env(), dir(), with(compaction)).unwrap();
        let random = Random::from_seed(1);
        for _ in 0..6000 {
            put(&lsm, random.below(2000), 60);
            sim.jobs.pump_all();
            if compaction != Compaction::Leveled {
                let stats = lsm.stats();
                let runs = stats.levels[1..].iter().filter(|l| l.files > 0).count();
                assert!(runs <= 3 && stats.levels[0].files < 2, "{:?}", stats.levels);
                let last = stats.levels.iter().rev().find(|l| l.files > 0);
                let sum: u64 = stats.levels.iter().map(|l| l.size_bytes).sum();
                let most = last.map_or(0, |last| last.size_bytes * 250 / 100);
                assert!(sum <= most.max(1), "{:?}", stats.levels);
            }
        }
        lsm.stats().write_amplification().unwrap()
    };
    let (leveled, tiered) = (written(Compaction::Leveled), written(tiered()));
    println!("write amplification: leveled {leveled}, tiered {tiered}");
    assert!(tiered < leveled);
}

#[test]
fn policy_fifo_keeps_the_newest_within_its_bounds() {
    check_fifo(0);
}

/// What goes with its table counts, and value files go with the last table that needs them.
#[test]
fn policy_fifo_keeps_its_bounds_with_values_apart() {
    check_fifo(64);
}

fn check_fifo(large_value_bytes: usize) {
    let sim = Sim::new(1);
    let age_max = Some(Duration::from_secs(100));
    let size_bytes_max = 30 << 10;
    let options = Options {
        large_value_bytes,
        ..with(Compaction::Fifo(FifoOptions {
            size_bytes_max,
            age_max,
        }))
    };
    let lsm = Lsm::open(&sim.env(), dir(), options).unwrap();
    for n in 0..2000 {
        put(&lsm, n, 100);
        sim.jobs.pump_all();
        let stats = lsm.stats();
        let tables: u64 = stats.levels.iter().map(|l| l.size_bytes).sum();
        // Without header and footer.
        let size = tables + stats.value_bytes - 128 * stats.value_files;
        assert!(size <= size_bytes_max, "{size}");
        assert_eq!(stats.value_dead_bytes, 0, "tables and values go together");
    }
    let keys = |lsm: &Lsm| {
        let mut iter = lsm.iterate(META, IterOptions::default()).unwrap();
        iter.seek_to_first().unwrap();
        let first = iter.valid().then(|| iter.key().to_vec());
        first.map(|key| u64::from_be_bytes(key.try_into().unwrap()))
    };
    let first = keys(&lsm).unwrap();
    assert!((1600..1900).contains(&first), "it begins with {first}");
    assert!((first..2000).all(|n| {
        let found = lsm.get(META, &n.to_be_bytes(), &ReadAt::NEWEST);
        found.unwrap().is_some()
    }));
    let stats = lsm.stats();
    assert!(
        stats.compaction_write_bytes == 0 && stats.stalls == 0,
        "{stats:?}"
    );
    lsm.flush().unwrap();
    sim.clock.advance(Duration::from_secs(100));
    put(&lsm, 9999, 100);
    lsm.flush().unwrap();
    sim.jobs.pump_all();
    assert_eq!(
        keys(&lsm),
        Some(9999),
        "all that is older than its age went"
    );
    let files = u64::from(large_value_bytes > 0);
    assert_eq!(lsm.stats().value_files, files);
}

/// A queue: written at its end, read and deleted at its front. Its size must not grow with its age.
fn check_queue(compaction: Compaction) -> Result<(), String> {
    let sim = Sim::new(1);
    let options = Options {
        // Levels so large that none is ever full.
        level_base_bytes: 1 << 30,
        ..with(compaction)
    };
    let lsm = Lsm::open(&sim.env(), dir(), options).map_err(|e| e.to_string())?;
    // Something that stays, in the deepest level, on both sides of the queue.
    for n in 0..200 {
        let mut batch = Batch::new();
        batch.put_at(DATA, &[n], 1, &[n; 50]);
        lsm.write(&batch, WriteOptions::APPLY)
            .map_err(|e| e.to_string())?;
    }
    lsm.compact_all().map_err(|e| e.to_string())?;
    let mut largest = 0;
    let (mut front, mut end) = (0_u64, 0_u64);
    for n in 0..6000 {
        put(&lsm, end, 40);
        end += 1;
        if n > 300 {
            let mut iter = lsm
                .iterate(META, IterOptions::default())
                .map_err(|e| e.to_string())?;
            iter.seek_to_first().map_err(|e| e.to_string())?;
            if iter.key() != front.to_be_bytes() {
                return Err(format!("the front is {:?}, not {front}", iter.key()));
            }
            let mut batch = Batch::new();
            batch.delete(META, iter.key());
            lsm.write(&batch, WriteOptions::APPLY)
                .map_err(|e| e.to_string())?;
            front += 1;
        }
        sim.jobs.pump_all();
        let size: u64 = lsm.stats().levels.iter().map(|l| l.size_bytes).sum();
        largest = largest.max(size);
    }
    println!(
        "{compaction:?}: at most {largest} bytes for {} entries",
        end - front
    );
    match largest < 100 << 10 {
        true => Ok(()),
        false => Err(format!("the queue took {largest} bytes")),
    }
}

#[test]
fn queue_that_takes_from_its_front_stays_small() {
    check_queue(Compaction::Leveled).unwrap();
    check_queue(tiered()).unwrap();
}

/// Deletions in the deepest level that a snapshot held back go when it has ended, by themselves.
fn check_held_back() -> Result<(), String> {
    let sim = Sim::new(1);
    let lsm = Lsm::open(&sim.env(), dir(), with(Compaction::Leveled)).map_err(|e| e.to_string())?;
    for n in 0..100 {
        put(&lsm, n, 40);
    }
    let snapshot = lsm.snapshot();
    let mut batch = Batch::new();
    for n in 0..100_u64 {
        batch.delete(META, &n.to_be_bytes());
    }
    lsm.write(&batch, WriteOptions::APPLY)
        .map_err(|e| e.to_string())?;
    lsm.compact_all().map_err(|e| e.to_string())?;
    drop(snapshot);
    // Far away.
    put(&lsm, u64::MAX, 1);
    lsm.flush().map_err(|e| e.to_string())?;
    sim.jobs.pump_all();
    let size: u64 = lsm.stats().levels.iter().map(|l| l.size_bytes).sum();
    match size < 1000 {
        true => Ok(()),
        false => Err(format!("{size} bytes for one entry")),
    }
}

#[test]
fn deletions_that_were_held_back_go_by_themselves() {
    check_held_back().unwrap();
}

#[test]
fn queue_checks_notice_deletions_that_stay() {
    assert!(is_noticed(Bug::HeavyTablesStay, check_held_back));
}

#[test]
fn tables_under_a_range_deletion_go_by_themselves_unread() {
    for compaction in [Compaction::Leveled, tiered()] {
        let sim = Sim::new(1);
        let lsm = Lsm::open(&sim.env(), dir(), with(compaction)).unwrap();
        for n in 0..500 {
            put(&lsm, n, 50);
        }
        lsm.compact_all().unwrap();
        let snapshot = lsm.snapshot();
        let mut batch = Batch::new();
        batch.delete_range(META, KeyRange::ALL);
        lsm.write(&batch, WriteOptions::APPLY).unwrap();
        let before = lsm.stats();
        lsm.flush().unwrap();
        sim.jobs.pump_all();
        assert_eq!(lsm.stats().dropped_tables, 0, "a snapshot sees them");
        let key = 7_u64.to_be_bytes();
        let seen = lsm.get(META, &key, &ReadAt::snapshot(&snapshot)).unwrap();
        assert!(seen.is_some());
        drop(snapshot);
        put(&lsm, 1000, 50);
        lsm.flush().unwrap();
        sim.jobs.pump_all();
        let after = lsm.stats();
        let read = after.compaction_read_bytes - before.compaction_read_bytes;
        assert!(after.dropped_tables > 5, "{compaction:?}: {after:?}");
        assert!(read < 2000, "{compaction:?}: read {read} bytes");
        assert_eq!(lsm.get(META, &key, &ReadAt::NEWEST).unwrap(), None);
    }
}
