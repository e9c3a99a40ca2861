//! Reading what `fillrandom` left.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Result, ensure};

use super::Case;
use super::writes::on_threads;
use crate::keys::{Rng, Values, key};
use crate::measure::{Metrics, Stretch, peak_memory_bytes};

const MULTI_GET: usize = 16;
const SEEK_NEXT: usize = 11;

pub fn settle(case: &Case) -> Result<Metrics> {
    let store = case.open(&case.setup())?;
    let stretch = Stretch::begin();
    store.settle()?;
    let metrics = stretch.end(case.keys);
    store.close()?;
    Ok(metrics)
}

/// Calls `step` on every thread until the time is over; the steps of all.
fn for_a_time(
    case: &Case,
    step: impl Fn(&mut Rng, &mut Vec<u8>) -> Result<()> + Sync,
) -> Result<u64> {
    let total = AtomicU64::new(0);
    let end = Instant::now() + case.time();
    on_threads(case.threads, |thread| {
        let mut rng = Rng::new(case.seed + 100 + thread);
        let mut buffer = Vec::new();
        let mut done = 0;
        loop {
            for _ in 0..64 {
                step(&mut rng, &mut buffer)?;
            }
            done += 64;
            if Instant::now() >= end {
                break;
            }
        }
        total.fetch_add(done, Ordering::Relaxed);
        Ok(())
    })?;
    Ok(total.load(Ordering::Relaxed))
}

/// Gets of keys that may be there (about 63 % of them are, as after db_bench's fillrandom), or of
/// keys between those, which never are.
pub fn random(case: &Case, present: bool) -> Result<Metrics> {
    let store = case.open(&case.setup())?;
    let found = AtomicU64::new(0);
    let get = |rng: &mut Rng, buffer: &mut Vec<u8>| {
        key(buffer, rng.below(case.keys), case.key_bytes);
        if !present && let Some(last) = buffer.last_mut() {
            *last = b'1';
        }
        let here = store.get(0, buffer)?.is_some();
        found.fetch_add(u64::from(here), Ordering::Relaxed);
        Ok(())
    };
    // Warm: the cache holds what it can.
    let warm = Case {
        seconds: case.seconds.div_ceil(2),
        seed: case.seed + 7,
        ..case.clone()
    };
    for_a_time(&warm, get)?;
    found.store(0, Ordering::Relaxed);
    let stretch = Stretch::begin();
    let done = for_a_time(case, get)?;
    let mut metrics = stretch.end(done);
    let share = found.load(Ordering::Relaxed) as f64 / done as f64;
    ensure!(
        if present { share > 0.3 } else { share == 0.0 },
        "{share} of the keys were found"
    );
    metrics.insert("memory_bytes".into(), peak_memory_bytes());
    store.close()?;
    Ok(metrics)
}

pub fn multi_get(case: &Case) -> Result<Metrics> {
    let store = case.open(&case.setup())?;
    let get = |rng: &mut Rng, buffer: &mut Vec<u8>| {
        let keys: Vec<Vec<u8>> = (0..MULTI_GET)
            .map(|_| {
                key(buffer, rng.below(case.keys), case.key_bytes);
                buffer.clone()
            })
            .collect();
        store.multi_get(0, &keys).map(drop)
    };
    let warm = Case {
        seconds: case.seconds.div_ceil(2),
        seed: case.seed + 7,
        ..case.clone()
    };
    for_a_time(&warm, get)?;
    let stretch = Stretch::begin();
    let done = for_a_time(case, get)?;
    let metrics = stretch.end(done * MULTI_GET as u64);
    store.close()?;
    Ok(metrics)
}

/// Whole passes over everything, the first of them to warm up.
pub fn sequential(case: &Case, reverse: bool) -> Result<Metrics> {
    let mut setup = case.setup();
    if case.name == "large-scan" {
        setup.large_values = true;
    }
    let store = case.open(&setup)?;
    let (first, _) = store.scan(0, &[], usize::MAX, reverse)?;
    ensure!(first as u64 > case.keys / 2, "{first} keys are there");
    let end = Instant::now() + case.time();
    let stretch = Stretch::begin();
    let mut total = 0;
    loop {
        let (count, _) = store.scan(0, &[], usize::MAX, reverse)?;
        ensure!(count == first, "{count} keys, not {first}");
        total += count as u64;
        if Instant::now() >= end {
            break;
        }
    }
    let metrics = stretch.end(total);
    store.close()?;
    Ok(metrics)
}

/// A seek to a random key, then ten steps.
pub fn seek(case: &Case, reverse: bool) -> Result<Metrics> {
    let store = case.open(&case.setup())?;
    let seek = |rng: &mut Rng, buffer: &mut Vec<u8>| {
        key(buffer, rng.below(case.keys), case.key_bytes);
        store.scan(0, buffer, SEEK_NEXT, reverse).map(drop)
    };
    let warm = Case {
        seconds: case.seconds.div_ceil(2),
        seed: case.seed + 7,
        ..case.clone()
    };
    for_a_time(&warm, seek)?;
    let stretch = Stretch::begin();
    let done = for_a_time(case, seek)?;
    let metrics = stretch.end(done);
    store.close()?;
    Ok(metrics)
}

/// Random gets while one more thread writes as fast as it can; gets are counted.
pub fn while_writing(case: &Case) -> Result<Metrics> {
    let store = case.open(&case.setup())?;
    let values = Values::new();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| -> Result<u64> {
            let mut rng = Rng::new(case.seed + 999);
            let mut buffer = Vec::new();
            let mut written = 0;
            while !over.load(Ordering::Relaxed) {
                key(&mut buffer, rng.below(case.keys), case.key_bytes);
                store.put(0, &buffer, values.get(&mut rng, case.value_bytes), false)?;
                written += 1;
            }
            Ok(written)
        });
        let (stretch, begun) = (Stretch::begin(), Instant::now());
        let done = for_a_time(case, |rng, buffer| {
            key(buffer, rng.below(case.keys), case.key_bytes);
            store.get(0, buffer).map(drop)
        });
        over.store(true, Ordering::Relaxed);
        let mut metrics = stretch.end(done?);
        let seconds = begun.elapsed().as_secs_f64();
        let written = writer
            .join()
            .map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        metrics.insert("writes_throughput_ops".into(), written as f64 / seconds);
        Ok::<_, anyhow::Error>(metrics)
    })
    .and_then(|metrics| {
        store.close()?;
        Ok(metrics)
    })
}
