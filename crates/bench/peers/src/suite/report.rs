//! The report: medians, ratios by round, and how sure they are.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Results;
use crate::engines;

/// The suite's report, in the form that all our benchmarks share.
#[derive(Serialize)]
pub struct Report {
    suite: &'static str,
    host: String,
    commit: String,
    rows: Vec<Row>,
    /// Workloads that an engine can't do, with its reason.
    unable: Vec<String>,
}

#[derive(Serialize)]
struct Row {
    workload: String,
    metric: String,
    ours: f64,
    peers: BTreeMap<String, f64>,
    /// Above 1 is better, whatever the metric.
    ratio: BTreeMap<String, f64>,
    /// Half the width of the ratio's 95 % interval, where there were rounds enough to tell.
    interval: BTreeMap<String, f64>,
    rounds: usize,
}

fn more_is_better(metric: &str) -> bool {
    metric.contains("throughput")
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// The median of the rounds' ratios against a peer, and half the width of its 95 % interval (infinite
/// with fewer than three rounds).
pub fn ratio(row: &BTreeMap<String, Vec<f64>>, metric: &str, peer: &str) -> Option<(f64, f64)> {
    let (ours, theirs) = (row.get(engines::NAMES[0])?, row.get(peer)?);
    let ratios: Vec<f64> = ours
        .iter()
        .zip(theirs)
        .filter(|(a, b)| **a > 0.0 && **b > 0.0)
        .map(|(a, b)| if more_is_better(metric) { a / b } else { b / a })
        .collect();
    if ratios.is_empty() {
        return None;
    }
    Some((median(&ratios), half_width(&ratios)))
}

/// Student's t for 95 %, by degrees of freedom from 2.
const T: [f64; 9] = [4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23];

fn half_width(values: &[f64]) -> f64 {
    let n = values.len();
    if n < 3 {
        return f64::INFINITY;
    }
    let mean = values.iter().sum::<f64>() / n as f64;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1) as f64;
    let t = T.get(n - 3).copied().unwrap_or(2.0);
    t * (variance / n as f64).sqrt()
}

impl Report {
    pub fn new(
        commit: &str,
        engines: &[String],
        results: &Results,
        unable: &BTreeMap<(String, String), String>,
    ) -> Report {
        let ours = engines::NAMES[0];
        let rows = results.iter().filter_map(|((workload, metric), row)| {
            let mut peers = BTreeMap::new();
            let (mut ratios, mut interval) = (BTreeMap::new(), BTreeMap::new());
            for peer in engines.iter().filter(|name| *name != ours) {
                if let Some(values) = row.get(peer) {
                    peers.insert(peer.clone(), median(values));
                }
                if let Some((ratio, width)) = ratio(row, metric, peer) {
                    ratios.insert(peer.clone(), ratio);
                    if width.is_finite() {
                        interval.insert(peer.clone(), width);
                    }
                }
            }
            let values = row.get(ours)?;
            Some(Row {
                workload: workload.clone(),
                metric: metric.clone(),
                ours: median(values),
                peers,
                ratio: ratios,
                interval,
                rounds: values.len(),
            })
        });
        let unable = unable
            .iter()
            .map(|((workload, engine), why)| format!("{workload}: {engine}: {why}"));
        Report {
            suite: "storage",
            host: host(),
            commit: commit.to_owned(),
            rows: rows.collect(),
            unable: unable.collect(),
        }
    }

    /// The throughput rows as lines for people, and what the others say of them together.
    pub fn table(&self) -> String {
        let mut out = format!("{:<36} {:>12}", "workload", "ours");
        let peers = &engines::NAMES[1..];
        for peer in peers {
            out += &format!(" {peer:>18}");
        }
        out.push('\n');
        for row in self
            .rows
            .iter()
            .filter(|row| row.metric == "throughput_ops")
        {
            out += &format!("{:<36} {:>12.0}", row.workload, row.ours);
            for peer in peers {
                let cell = match (row.peers.get(*peer), row.ratio.get(*peer)) {
                    (Some(value), Some(ratio)) => format!("{value:.0} ({ratio:.2})"),
                    _ => "-".into(),
                };
                out += &format!(" {cell:>18}");
            }
            out.push('\n');
        }
        let ratios: Vec<f64> = self
            .rows
            .iter()
            .filter(|row| row.metric == "throughput_ops")
            .filter_map(|row| row.ratio.get("rocksdb").copied())
            .collect();
        out += &format!("median ratio to rocksdb: {:.2}\n", median(&ratios));
        out
    }
}

fn host() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown", |rest| rest.trim_start_matches(['\t', ' ', ':']));
    let cores = cpu
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let memory = read("/proc/meminfo");
    let memory = memory.lines().next().unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{cores} x {model}; {memory}; Linux {}", kernel.trim())
}
