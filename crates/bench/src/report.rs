//! Reports: ours beside a peer's.

use std::collections::BTreeMap;

use serde::Serialize;

/// One metric of one workload.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Such as `put/clients=100/conns=8`.
    pub workload: String,
    /// Such as `throughput_ops`; units last.
    pub metric: String,
    /// Ours.
    pub ours: f64,
    /// The peers', by name.
    pub peers: BTreeMap<String, f64>,
    /// How much better ours is: above 1 is better, whatever the metric.
    pub ratio: BTreeMap<String, f64>,
}

/// A figure over time.
#[derive(Debug, Clone, Serialize)]
pub struct Series {
    /// The workload that ran meanwhile.
    pub workload: String,
    /// Such as `node1_memory_mb`; units last.
    pub metric: String,
    /// The time from one value to the next.
    pub every_ms: u64,
    /// The values, the oldest first.
    pub values: Vec<f64>,
}

/// All rows of a suite, with what they were measured on.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The suite.
    pub suite: String,
    /// The machine: cores, memory, kernel, versions of the peers.
    pub host: String,
    /// The commit that was measured.
    pub commit: String,
    /// The rows.
    pub rows: Vec<Row>,
    /// What was looked at over time, if anything.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub series: Vec<Series>,
}

impl Report {
    /// Adds a metric, of ours and perhaps of a peer's. More is better only of throughput.
    pub fn add(&mut self, workload: &str, metric: &str, ours: f64, peer: Option<(&str, f64)>) {
        self.beside(workload, metric, ours, peer.as_slice());
    }

    /// The same, beside several peers.
    pub fn beside(&mut self, workload: &str, metric: &str, ours: f64, peers: &[(&str, f64)]) {
        let more_is_better = metric.starts_with("throughput");
        let ratio = |theirs: f64| match more_is_better {
            true => ours / theirs,
            false => theirs / ours,
        };
        let name = |(name, _): &(&str, f64)| (*name).to_owned();
        self.rows.push(Row {
            workload: workload.to_owned(),
            metric: metric.to_owned(),
            ours,
            peers: peers.iter().map(|peer| (name(peer), peer.1)).collect(),
            ratio: peers
                .iter()
                .map(|peer| (name(peer), ratio(peer.1)))
                .collect(),
        });
    }

    /// All of it, as files have it.
    ///
    /// # Errors
    /// A figure that JSON does not have.
    pub fn json(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec_pretty(self)
    }

    /// The rows as lines for people, one for each peer.
    pub fn table(&self) -> String {
        let mut out = format!(
            "{:<34} {:<16} {:>12} {:>12} {:>7}\n",
            "workload", "metric", "quorate", "peer", "ratio"
        );
        for row in &self.rows {
            let head = format!("{:<34} {:<16} {:>12.1}", row.workload, row.metric, row.ours);
            if row.peers.is_empty() {
                out += &format!("{head} {:>12} {:>7}\n", "-", "-");
            }
            for (name, theirs) in &row.peers {
                let ratio = row.ratio.get(name).copied().unwrap_or(f64::NAN);
                out += &format!("{head} {theirs:>12.1} {ratio:>7.2} {name}\n");
            }
        }
        out
    }
}
