//! What a client counts of itself.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a client and its clones did since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClientCounters {
    /// Answers by which a node said that it had too much to do.
    pub refused_by_nodes: u64,
    /// Attempts that were refused here, since too much was in flight to the node.
    pub refused_here: u64,
    /// Repetitions that were paid for from the budget.
    pub retries: u64,
    /// Operations that failed since the budget was used up.
    pub budget_exhausted: u64,
}

/// The same while they are counted.
#[derive(Debug, Default)]
pub struct Counts {
    pub refused_by_nodes: AtomicU64,
    pub refused_here: AtomicU64,
    pub retries: AtomicU64,
    pub budget_exhausted: AtomicU64,
}

impl Counts {
    pub fn read(&self) -> ClientCounters {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        ClientCounters {
            refused_by_nodes: of(&self.refused_by_nodes),
            refused_here: of(&self.refused_here),
            retries: of(&self.retries),
            budget_exhausted: of(&self.budget_exhausted),
        }
    }
}

/// Counts one more.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
