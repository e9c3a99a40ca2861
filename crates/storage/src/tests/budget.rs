//! One budget of memory over all parts, and a limit of open tables.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use quorate_env::sim::Sim;
use quorate_env::{Env, Random};

use super::workload::{AtEnd, META, dir, tiny};
use crate::planted::{Bug, is_noticed};
use crate::{
    Batch, Compaction, Engine, Iter, IterOptions, Lsm, Options, ReadAt, TieredOptions, WriteOptions,
};

const BUDGET: u64 = 512 << 10;

fn options() -> Options {
    Options {
        memory_bytes: BUDGET,
        memtable_bytes: 1 << 30,
        table_bytes: 32 << 10,
        block_bytes: 1024,
        level_base_bytes: 256 << 10,
        large_value_bytes: 200,
        ..tiny()
    }
}

/// Half of the values lie apart.
fn length_of(n: u64) -> usize {
    if n.is_multiple_of(2) { 100 } else { 300 }
}

fn put(lsm: &Lsm, key: u64, length: usize) {
    let mut batch = Batch::new();
    batch.put(META, &key.to_be_bytes(), &vec![key as u8; length]);
    lsm.write(
        &batch,
        WriteOptions {
            throttle: true,
            ..WriteOptions::APPLY
        },
    )
    .unwrap();
}

/// Far more data than memory, written, read by key and scanned by many iterators that stay.
fn check_budget() -> Result<(), String> {
    let sim = Sim::new(1);
    let random = Random::from_seed(1);
    let lsm = Lsm::open(&sim.env(), dir(), options()).map_err(|e| e.to_string())?;
    let look = |what: &str| {
        let stats = lsm.stats();
        let sum = stats.memory_bytes;
        match sum <= BUDGET {
            true => Ok(stats),
            false => Err(format!("{what}: {sum} bytes of {BUDGET}: {stats:?}")),
        }
    };
    for n in 0..20_000_u64 {
        put(&lsm, n * 7919 % 20_000, length_of(n));
        if n % 100 == 0 {
            look("writing")?;
        }
    }
    for n in 0..20_000 {
        let key = random.below(20_000).to_be_bytes();
        let found = lsm
            .get(META, &key, &ReadAt::NEWEST)
            .map_err(|e| e.to_string())?;
        if found.is_none() {
            return Err("something is missing".to_owned());
        }
        if n % 100 == 0 {
            look("reading")?;
        }
    }
    let full = look("reading")?;
    if full.cache_bytes < BUDGET / 4 {
        return Err(format!("the cache does not take what is left: {full:?}"));
    }
    let mut iters: Vec<Box<dyn Iter>> = Vec::new();
    for n in 0..100_u64 {
        let mut iter = lsm
            .iterate(META, IterOptions::default())
            .map_err(|e| e.to_string())?;
        iter.seek(&(n * 200).to_be_bytes())
            .map_err(|e| e.to_string())?;
        iters.push(iter);
        // Through the cache, so that it lets go of what they stand on.
        for _ in 0..50 {
            let key = random.below(20_000).to_be_bytes();
            lsm.get(META, &key, &ReadAt::NEWEST)
                .map_err(|e| e.to_string())?;
        }
        look("iterators")?;
    }
    let pinned = look("iterators")?;
    if pinned.pinned_bytes < 50 << 10 || pinned.cache_bytes_max >= full.cache_bytes_max {
        return Err(format!("the cache did not make room: {pinned:?}"));
    }
    drop(iters);
    for _ in 0..5000 {
        let key = random.below(20_000).to_be_bytes();
        lsm.get(META, &key, &ReadAt::NEWEST)
            .map_err(|e| e.to_string())?;
    }
    match look("after")? {
        after if after.cache_bytes_max > pinned.cache_bytes_max => Ok(()),
        after => Err(format!("the cache did not grow again: {after:?}")),
    }
}

#[test]
fn budget_holds_under_a_load_far_above_it() {
    check_budget().unwrap();
}

fn check_open_tables() -> Result<(), String> {
    let sim = Sim::new(2);
    let random = Random::from_seed(2);
    let options = Options {
        open_tables: 8,
        table_bytes: 2 << 10,
        ..tiny()
    };
    let lsm = Lsm::open(&sim.env(), dir(), options).map_err(|e| e.to_string())?;
    let mut stays = None;
    for n in 0..6000_u64 {
        put(&lsm, n % 2000, 40);
        let key = random.below(n % 2000 + 1).to_be_bytes();
        let found = lsm
            .get(META, &key, &ReadAt::NEWEST)
            .map_err(|e| e.to_string())?;
        if found.is_none() {
            return Err(format!("key {key:?} is missing"));
        }
        if n == 2500 {
            let mut iter = lsm
                .iterate(META, IterOptions::default())
                .map_err(|e| e.to_string())?;
            iter.seek_to_first().map_err(|e| e.to_string())?;
            stays = Some(iter);
        }
        // It goes on through tables that were closed beside it, compacted away, and are opened again.
        if let Some(iter) = stays.as_mut().filter(|iter| iter.valid()) {
            iter.next().map_err(|e| e.to_string())?;
        }
        let stats = lsm.stats();
        // What a compaction reads, and the iterator has opened and holds, comes on top.
        let most = if stays.is_none() { 8 + 16 } else { 8 + 16 + 60 };
        if stats.open_tables > most {
            return Err(format!("{} tables are open after {n}", stats.open_tables));
        }
    }
    drop(stays);
    put(&lsm, 0, 40);
    lsm.flush().map_err(|e| e.to_string())?;
    sim.jobs.pump_all();
    let stats = lsm.stats();
    let tables: u64 = stats.levels.iter().map(|l| l.files).sum();
    match tables > 30 && stats.open_tables <= 9 {
        true => Ok(()),
        false => Err(format!("{} of {tables} tables are open", stats.open_tables)),
    }
}

#[test]
fn open_tables_stay_within_their_limit() {
    check_open_tables().unwrap();
}

#[test]
fn budget_checks_notice_what_does_not_make_room() {
    assert!(is_noticed(Bug::CacheDoesNotShrink, check_budget));
    assert!(is_noticed(Bug::TablesStayOpen, check_open_tables));
}

/// Tables are closed under the hands of readers, flushes and compactions on threads of their own.
#[test]
fn open_tables_close_beside_readers_and_compactions() {
    const KEYS: u64 = 300;
    let sim = Sim::new(3);
    let env = Env {
        disk: sim.env().disk,
        ..Env::real(2)
    };
    for compaction in [
        Compaction::Leveled,
        Compaction::Tiered(TieredOptions::default()),
    ] {
        let options = Options {
            compaction,
            open_tables: 2,
            memory_bytes: 128 << 10,
            compactions: 2,
            ..tiny()
        };
        let path = dir().join(format!("{}", matches!(compaction, Compaction::Leveled)));
        let lsm = Lsm::open(&env, &path, options).unwrap();
        (0..KEYS).for_each(|key| put(&lsm, key, 8));
        let newest: Vec<AtomicU64> = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (lsm, newest, done) = (&lsm, &newest, &done);
            let read = |seed| {
                let random = Random::from_seed(seed);
                while !done.load(Ordering::Relaxed) {
                    let key = random.below(KEYS);
                    let least = newest[key as usize].load(Ordering::SeqCst);
                    let found = lsm.get(META, &key.to_be_bytes(), &ReadAt::NEWEST).unwrap();
                    let value = found.unwrap().value;
                    let round = value
                        .iter()
                        .rev()
                        .take(8)
                        .rev()
                        .fold(0, |n, b| n << 8 | u64::from(*b));
                    assert!(least == 0 || round >= least, "{round} after {least}");
                    let mut iter = lsm.iterate(META, IterOptions::default()).unwrap();
                    iter.seek_to_first().unwrap();
                    let mut count = 0;
                    while iter.valid() {
                        count += 1;
                        iter.next().unwrap();
                    }
                    assert_eq!(count, KEYS);
                }
            };
            for seed in 0..2 {
                scope.spawn(move || read(seed));
            }
            let _end = AtEnd(done);
            for round in 1..=30_u64 {
                for key in 0..KEYS {
                    let mut batch = Batch::new();
                    batch.put(META, &key.to_be_bytes(), &round.to_be_bytes());
                    lsm.write(&batch, WriteOptions::APPLY).unwrap();
                    newest[key as usize].store(round, Ordering::SeqCst);
                }
                lsm.flush().unwrap();
            }
        });
        lsm.close().unwrap();
    }
}
