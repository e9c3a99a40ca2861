//! YCSB, deletions, many keyspaces, versions.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::Case;
use super::writes::put_all;
use crate::keys::{Rng, Values, Zipf, key};
use crate::measure::{Metrics, Stretch, add_latencies, disk_bytes, histogram, peak_memory_bytes};

/// Shares of reads, updates, scans, inserts, read-modify-writes, in percent.
fn mix(name: &str) -> [u64; 5] {
    match name {
        "ycsb-a" => [50, 50, 0, 0, 0],
        "ycsb-b" => [95, 5, 0, 0, 0],
        "ycsb-c" => [100, 0, 0, 0, 0],
        "ycsb-e" => [0, 0, 95, 5, 0],
        _ => [50, 0, 0, 0, 50],
    }
}

pub fn ycsb(case: &Case) -> Result<Metrics> {
    let store = case.open(&case.setup())?;
    let (values, zipf) = (Values::new(), Zipf::new(case.keys));
    let [read, update, scan, insert, _] = mix(&case.name);
    let mut rng = Rng::new(case.seed);
    let mut buffer = Vec::new();
    let mut next = case.keys;
    let (mut done, end) = (0, Instant::now() + case.time());
    let stretch = Stretch::begin();
    loop {
        for _ in 0..32 {
            key(&mut buffer, zipf.draw(&mut rng), case.key_bytes);
            let dice = rng.below(100);
            if dice < read {
                store.get(0, &buffer)?;
            } else if dice < read + update {
                store.put(0, &buffer, values.get(&mut rng, case.value_bytes), false)?;
            } else if dice < read + update + scan {
                let limit = 1 + rng.below(100) as usize;
                store.scan(0, &buffer, limit, false)?;
            } else if dice < read + update + scan + insert {
                key(&mut buffer, next, case.key_bytes);
                next += 1;
                store.put(0, &buffer, values.get(&mut rng, case.value_bytes), false)?;
            } else {
                store.get(0, &buffer)?;
                store.put(0, &buffer, values.get(&mut rng, case.value_bytes), false)?;
            }
        }
        done += 32;
        if Instant::now() >= end {
            break;
        }
    }
    let metrics = stretch.end(done);
    store.close()?;
    Ok(metrics)
}

/// A queue: 100,000 deletions at its head, then the first entry is sought, again and again, with an
/// entry taken and one appended each time.
pub fn queue(case: &Case) -> Result<Metrics> {
    const HEAD: u64 = 100_000;
    const STEPS: u64 = 2_000;
    let store = case.open(&case.setup())?;
    let values = Values::new();
    let mut rng = Rng::new(case.seed);
    let mut buffer = Vec::new();
    let total = HEAD * 3;
    for n in 0..total {
        key(&mut buffer, n, case.key_bytes);
        store.put(0, &buffer, values.get(&mut rng, case.value_bytes), false)?;
    }
    for n in 0..HEAD {
        key(&mut buffer, n, case.key_bytes);
        store.delete(0, &buffer)?;
    }
    let mut latencies = histogram()?;
    let stretch = Stretch::begin();
    for n in 0..STEPS {
        let before = Instant::now();
        let (count, _) = store.scan(0, &[], 1, false)?;
        latencies.record(before.elapsed().as_nanos() as u64)?;
        ensure!(count == 1, "the queue is empty");
        key(&mut buffer, HEAD + n, case.key_bytes);
        store.delete(0, &buffer)?;
        key(&mut buffer, total + n, case.key_bytes);
        store.put(0, &buffer, values.get(&mut rng, case.value_bytes), false)?;
    }
    let mut metrics = stretch.end(STEPS);
    add_latencies(&mut metrics, &latencies);
    store.close()?;
    Ok(metrics)
}

/// A range of nine tenths is removed from what `fillrandom` makes; then all is read.
pub fn delete_range(case: &Case) -> Result<Metrics> {
    let store = case.open(&case.setup())?;
    put_all(&*store, case, true)?;
    let (mut from, mut to) = (Vec::new(), Vec::new());
    key(&mut from, case.keys / 20, case.key_bytes);
    key(&mut to, case.keys - case.keys / 20, case.key_bytes);
    let begun = Instant::now();
    let stretch = Stretch::begin();
    let mut removed = true;
    if !store.delete_range(0, &from, &to)? {
        removed = false;
    }
    ensure!(removed, "there is no range delete");
    let took = begun.elapsed();
    let mut left = 0;
    for _ in 0..10 {
        (left, _) = store.scan(0, &[], usize::MAX, false)?;
    }
    let mut metrics = stretch.end(left as u64 * 10);
    metrics.insert("delete_us".into(), took.as_secs_f64() * 1e6);
    ensure!((left as u64) < case.keys / 9, "{left} keys are left");
    store.close()?;
    Ok(metrics)
}

/// Sixteen keyspaces in the memory of one, of which one is hardly written to.
pub fn keyspaces(case: &Case) -> Result<Metrics> {
    const COUNT: u16 = 16;
    let mut setup = case.setup();
    setup.keyspaces = COUNT;
    setup.write_buffer_bytes = match case.engine.as_str() {
        // Where all share one write buffer it has the whole budget.
        "quorate" => 32 << 20,
        _ => (32 << 20) / u64::from(COUNT),
    };
    let store = case.open(&setup)?;
    let values = Values::new();
    let mut rng = Rng::new(case.seed);
    let mut buffer = Vec::new();
    let stretch = Stretch::begin();
    for n in 0..case.keys {
        let at = match n {
            0 => 0,
            _ => 1 + rng.below(u64::from(COUNT) - 1) as u16,
        };
        key(&mut buffer, rng.below(case.keys), case.key_bytes);
        store.put(at, &buffer, values.get(&mut rng, case.value_bytes), false)?;
    }
    let mut metrics = stretch.end(case.keys);
    metrics.insert("memory_bytes".into(), peak_memory_bytes());
    store.close()?;
    metrics.insert("disk_bytes".into(), disk_bytes(&case.dir) as f64);
    Ok(metrics)
}

/// Reads of keys with `threads` versions each (the option's other use): the newest, or one at random.
pub fn versions(case: &Case, latest: bool) -> Result<Metrics> {
    let versions = case.threads;
    let mut setup = case.setup();
    setup.versioned = true;
    let store = case.open(&setup)?;
    let values = Values::new();
    let mut rng = Rng::new(case.seed);
    let mut buffer = Vec::new();
    let keys = case.keys / versions;
    for version in 1..=versions {
        for n in 0..keys {
            // A permutation of the keys: each gets each version once, in no order.
            let n = n.wrapping_mul(0x9E37_79B1) % keys;
            key(&mut buffer, n, case.key_bytes);
            let value = values.get(&mut rng, case.value_bytes);
            store.put_at(&buffer, version * 10, value)?;
        }
    }
    store.settle()?;
    let get = |rng: &mut Rng, buffer: &mut Vec<u8>| -> Result<bool> {
        key(
            buffer,
            rng.below(keys).wrapping_mul(0x9E37_79B1) % keys,
            case.key_bytes,
        );
        let at = match latest {
            true => u64::MAX >> 2,
            false => 10 + rng.below(versions * 10),
        };
        Ok(store.get_at(buffer, at)?.is_some())
    };
    for _ in 0..case.keys / 4 {
        get(&mut rng, &mut buffer)?;
    }
    let (mut done, mut found, end) = (0_u64, 0_u64, Instant::now() + case.time());
    let stretch = Stretch::begin();
    loop {
        for _ in 0..64 {
            found += u64::from(get(&mut rng, &mut buffer)?);
        }
        done += 64;
        if Instant::now() >= end {
            break;
        }
    }
    let metrics = stretch.end(done);
    ensure!(found == done, "{found} of {done} found");
    store.close()?;
    Ok(metrics)
}
