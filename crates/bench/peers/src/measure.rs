//! What a process used, and how fast it was.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use hdrhistogram::Histogram;

/// What one case of one engine gave, by metric; units last.
pub type Metrics = BTreeMap<String, f64>;

/// A stretch of work that is measured.
pub struct Stretch {
    begun: Instant,
    cpu_before: f64,
    written_before: f64,
}

impl Stretch {
    pub fn begin() -> Self {
        Stretch {
            cpu_before: cpu_seconds(),
            written_before: written_bytes(),
            begun: Instant::now(),
        }
    }

    /// Ends after so many operations.
    pub fn end(self, operations: u64) -> Metrics {
        let seconds = self.begun.elapsed().as_secs_f64();
        let cpu = cpu_seconds() - self.cpu_before;
        let mut metrics = Metrics::new();
        let ops = operations as f64;
        metrics.insert("throughput_ops".into(), ops / seconds);
        metrics.insert("cpu_us_per_op".into(), cpu * 1e6 / ops);
        let written = written_bytes() - self.written_before;
        metrics.insert("written_bytes_per_op".into(), written / ops);
        metrics
    }
}

/// Adds the percentiles of a histogram of nanoseconds.
pub fn add_latencies(metrics: &mut Metrics, latencies: &Histogram<u64>) {
    let marks = [("p50_us", 0.5), ("p99_us", 0.99), ("p9999_us", 0.9999)];
    for (name, quantile) in marks {
        let micros = latencies.value_at_quantile(quantile) as f64 / 1e3;
        metrics.insert(name.into(), micros);
    }
    metrics.insert("longest_ms".into(), latencies.max() as f64 / 1e6);
}

pub fn histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 600_000_000_000, 3)?)
}

/// What all threads of this process used so far, in user and kernel mode.
fn cpu_seconds() -> f64 {
    const TICKS_PER_SECOND: f64 = 100.0;
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The program's name, in brackets, may hold anything; user and system time are the 12th and 13th after.
    let fields = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let ticks = fields.split(' ').skip(11).take(2);
    ticks
        .filter_map(|tick| tick.parse::<f64>().ok())
        .sum::<f64>()
        / TICKS_PER_SECOND
}

/// What this process had written to storage, in bytes.
fn written_bytes() -> f64 {
    let text = fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|number| number.parse().ok()).unwrap_or(0.0)
}

/// The most memory that this process ever held, in bytes.
pub fn peak_memory_bytes() -> f64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<f64>().ok());
    number.unwrap_or(0.0) * 1024.0
}

/// The bytes that the files of a directory take on disk.
pub fn disk_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    let mut bytes = 0;
    for entry in entries.flatten() {
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes += disk_bytes(&entry.path()),
            Ok(metadata) => bytes += metadata.blocks() * 512,
            Err(_) => {}
        }
    }
    bytes
}
