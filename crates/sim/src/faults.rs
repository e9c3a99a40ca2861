//! What goes wrong, when, and that it is mended in the end.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use quorate_env::Random;
use quorate_env::sim::Crash;

use crate::cluster::Cluster;
use crate::history::Violation;
use crate::run::any_crash;

/// The faults of a run.
pub struct Faults {
    next_us: u64,
    counts: BTreeMap<&'static str, u64>,
    up_at: BTreeMap<u64, u64>,
    errors: Arc<Mutex<Vec<String>>>,
}

impl Faults {
    /// What the seed chooses of them.
    pub fn new(_random: &Random, _nodes: u64, _late: u64, errors: Arc<Mutex<Vec<String>>>) -> Faults {
        Faults {
            next_us: 0,
            counts: BTreeMap::new(),
            up_at: BTreeMap::new(),
            errors,
        }
    }

    /// Perhaps breaks or mends something.
    pub fn step(&mut self, cluster: &mut Cluster) -> Result<(), Violation> {
        let due: Vec<u64> = self.up_at.iter().filter(|(_, at)| **at <= cluster.now_us).map(|(id, _)| *id).collect();
        for id in due {
            self.up_at.remove(&id);
            cluster.start(id);
        }
        if cluster.now_us < self.next_us {
            return Ok(());
        }
        self.next_us = cluster.now_us + 500_000 + cluster.random.below(1_500_000);
        let alive = cluster.alive();
        if let Some(id) = alive.get(cluster.random.below(alive.len().max(1) as u64) as usize) {
            let crash: Crash = any_crash(&cluster.random);
            cluster.kill(*id, crash);
            self.up_at.insert(*id, cluster.now_us + 100_000 + cluster.random.below(2_000_000));
            *self.counts.entry("kill").or_default() += 1;
        }
        Ok(())
    }

    /// Mends everything.
    pub fn heal(&mut self, cluster: &mut Cluster) -> Result<(), Violation> {
        cluster.network.heal();
        for id in std::mem::take(&mut self.up_at).into_keys() {
            cluster.start(id);
        }
        Ok(())
    }

    /// Whether a node need not come up to date any more.
    pub fn is_excused(&self, _id: u64) -> bool {
        false
    }

    /// Errors that no fault explains.
    pub fn judge_errors(&self) -> Result<(), Violation> {
        match self.errors.lock().first() {
            Some(error) => Err(Violation::new("no_odd_errors", error.clone())),
            None => Ok(()),
        }
    }

    /// Faults by kind.
    pub fn counts(&self, cluster: &Cluster) -> BTreeMap<&'static str, u64> {
        let mut counts = self.counts.clone();
        let (lost, late) = cluster.network.counts();
        counts.insert("message_lost", lost);
        counts.insert("message_late", late);
        counts
    }
}
