//! Filling, overwriting, syncing.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Result, anyhow};

use super::Case;
use crate::engines::Store;
use crate::keys::{Rng, Values, key};
use crate::measure::{Metrics, Stretch, add_latencies, disk_bytes, histogram, peak_memory_bytes};

/// Runs `work` on so many threads, each with its number; fails if one does.
pub fn on_threads(threads: u64, work: impl Fn(u64) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let work = &work;
        let each = (0..threads).map(|n| scope.spawn(move || work(n)));
        let each: Vec<_> = each.collect();
        for thread in each {
            thread.join().map_err(|_| anyhow!("a thread panicked"))??;
        }
        Ok(())
    })
}

/// Writes `keys` keys, in order or at random (then some more than once, as db_bench does).
pub fn put_all(store: &dyn Store, case: &Case, random: bool) -> Result<()> {
    let values = Values::new();
    let each = case.keys / case.threads;
    on_threads(case.threads, |thread| {
        let mut rng = Rng::new(case.seed + thread);
        let mut buffer = Vec::new();
        for n in 0..each {
            let n = match random {
                true => rng.below(case.keys),
                false => thread * each + n,
            };
            key(&mut buffer, n, case.key_bytes);
            let value = values.get(&mut rng, case.value_bytes);
            store.put(0, &buffer, value, false)?;
        }
        Ok(())
    })
}

pub fn fill(case: &Case, random: bool) -> Result<Metrics> {
    let store = case.open(&case.setup())?;
    let stretch = Stretch::begin();
    put_all(&*store, case, random)?;
    let mut metrics = stretch.end(case.keys);
    store.close()?;
    add_space(&mut metrics, case);
    Ok(metrics)
}

pub fn overwrite(case: &Case) -> Result<Metrics> {
    fill(case, true)
}

/// Disk against the user's own bytes, and memory.
fn add_space(metrics: &mut Metrics, case: &Case) {
    let own = case.keys as f64 * (case.key_bytes + case.value_bytes) as f64;
    metrics.insert("space_ratio".into(), disk_bytes(&case.dir) as f64 / own);
    metrics.insert("memory_bytes".into(), peak_memory_bytes());
}

/// Each write is synced before the next of its thread.
pub fn fill_synced(case: &Case) -> Result<Metrics> {
    let store = case.open(&case.setup())?;
    let values = Values::new();
    let all = Mutex::new(histogram()?);
    let count = AtomicU64::new(0);
    let stretch = Stretch::begin();
    let end = Instant::now() + case.time();
    on_threads(case.threads, |thread| {
        let mut rng = Rng::new(case.seed + thread);
        let mut buffer = Vec::new();
        let mut mine = histogram()?;
        let mut done = 0;
        loop {
            let before = Instant::now();
            key(&mut buffer, rng.below(case.keys), case.key_bytes);
            let value = values.get(&mut rng, case.value_bytes);
            store.put(0, &buffer, value, true)?;
            let after = Instant::now();
            mine.record((after - before).as_nanos() as u64)?;
            done += 1;
            if after >= end {
                break;
            }
        }
        count.fetch_add(done, Ordering::Relaxed);
        all.lock().map_err(|_| anyhow!("poisoned"))?.add(mine)?;
        Ok(())
    })?;
    let mut metrics = stretch.end(count.load(Ordering::Relaxed));
    add_latencies(&mut metrics, &*all.lock().map_err(|_| anyhow!("poisoned"))?);
    store.close()?;
    Ok(metrics)
}

/// Large values, overwritten several times.
pub fn large_overwrite(case: &Case) -> Result<Metrics> {
    const ROUNDS: u64 = 4;
    let mut setup = case.setup();
    setup.large_values = true;
    let store = case.open(&setup)?;
    let values = Values::new();
    let mut rng = Rng::new(case.seed);
    let mut buffer = Vec::new();
    let stretch = Stretch::begin();
    for n in 0..case.keys * ROUNDS {
        let n = if n < case.keys {
            n
        } else {
            rng.below(case.keys)
        };
        key(&mut buffer, n, case.key_bytes);
        store.put(0, &buffer, values.get(&mut rng, case.value_bytes), false)?;
    }
    let mut metrics = stretch.end(case.keys * ROUNDS);
    store.close()?;
    add_space(&mut metrics, case);
    Ok(metrics)
}

/// Overwrites for a time, with every write's latency.
pub fn soak(case: &Case) -> Result<Metrics> {
    let store = case.open(&case.setup())?;
    let values = Values::new();
    let mut rng = Rng::new(case.seed);
    let mut buffer = Vec::new();
    let mut latencies = histogram()?;
    let mut gaps = 0_u64;
    let stretch = Stretch::begin();
    let begun = Instant::now();
    let mut before = begun;
    let mut count = 0;
    loop {
        key(&mut buffer, rng.below(case.keys), case.key_bytes);
        store.put(0, &buffer, values.get(&mut rng, case.value_bytes), false)?;
        let now = Instant::now();
        let nanos = (now - before).as_nanos() as u64;
        gaps += u64::from(nanos > 100_000_000);
        latencies.record(nanos)?;
        before = now;
        count += 1;
        if before - begun >= case.time() {
            break;
        }
    }
    let mut metrics = stretch.end(count);
    add_latencies(&mut metrics, &latencies);
    metrics.insert("gaps_over_100_ms".into(), gaps as f64);
    store.close()?;
    add_space(&mut metrics, case);
    Ok(metrics)
}
