//! What a run says of itself, as one line that another process reads.

use std::collections::BTreeMap;

use crate::history::Violation;

/// The outcome of one seed.
#[derive(Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// What must not be, if anything was so.
    pub verdict: Option<Violation>,
    /// How much time passed in the simulation.
    pub simulated_ms: u64,
    /// Operations on keys that were judged.
    pub operations: u64,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// How often places fired.
    pub fired: BTreeMap<&'static str, u64>,
    /// How often planted bugs were met.
    pub bugs_reached: BTreeMap<&'static str, u64>,
    /// The hash of the trace, and its length.
    pub trace: (u64, u64),
    /// Entries appended, entries applied, states compared.
    pub seen: [u64; 3],
}

impl Report {
    /// Nothing yet.
    pub fn new(seed: u64) -> Report {
        Report {
            seed,
            verdict: None,
            simulated_ms: 0,
            operations: 0,
            faults: BTreeMap::new(),
            fired: BTreeMap::new(),
            bugs_reached: BTreeMap::new(),
            trace: (0, 0),
            seen: [0; 3],
        }
    }

    /// One line: words with tabs between.
    pub fn line(&self) -> String {
        let list = |of: &BTreeMap<&'static str, u64>| {
            let each = of.iter().map(|(name, count)| format!("{name}={count}"));
            each.collect::<Vec<_>>().join(",")
        };
        let verdict = match &self.verdict {
            None => "ok\t".to_owned(),
            Some(violation) => {
                let message = violation.message.replace(['\t', '\n'], " ");
                format!("{}\t{message}", violation.oracle)
            }
        };
        let [appended, applied, compared] = self.seen;
        format!(
            "seed\t{}\t{}\t{}\t{:016x}\t{}\t{}\t{}\t{appended},{applied},{compared}\t{verdict}",
            self.seed,
            self.simulated_ms,
            self.operations,
            self.trace.0,
            list(&self.faults),
            list(&self.fired),
            list(&self.bugs_reached),
        )
    }
}

/// A line read back.
#[derive(Debug, Clone, Default)]
pub struct Line {
    /// The seed.
    pub seed: u64,
    /// How much time passed in the simulation.
    pub simulated_ms: u64,
    /// Operations judged.
    pub operations: u64,
    /// The hash of the trace.
    pub trace: String,
    /// Faults by kind.
    pub faults: BTreeMap<String, u64>,
    /// Places that fired.
    pub fired: BTreeMap<String, u64>,
    /// Planted bugs that were met.
    pub bugs_reached: BTreeMap<String, u64>,
    /// Entries appended, entries applied, states compared.
    pub seen: Vec<u64>,
    /// Which oracle noticed something; empty if none did.
    pub oracle: String,
    /// What.
    pub message: String,
}

impl Line {
    /// Reads the line of a run; `None` if it is something else.
    pub fn parse(line: &str) -> Option<Line> {
        let words: Vec<&str> = line.split('\t').collect();
        let [
            "seed",
            seed,
            ms,
            ops,
            trace,
            faults,
            fired,
            bugs,
            seen,
            oracle,
            message,
        ] = words[..]
        else {
            return None;
        };
        let list = |text: &str| {
            let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
            let pairs = pairs.filter_map(|(name, n)| Some((name.to_owned(), n.parse().ok()?)));
            pairs.collect::<BTreeMap<String, u64>>()
        };
        Some(Line {
            seed: seed.parse().ok()?,
            simulated_ms: ms.parse().ok()?,
            operations: ops.parse().ok()?,
            trace: trace.into(),
            faults: list(faults),
            fired: list(fired),
            bugs_reached: list(bugs),
            seen: seen.split(',').filter_map(|n| n.parse().ok()).collect(),
            oracle: if oracle == "ok" { "" } else { oracle }.into(),
            message: message.into(),
        })
    }
}
