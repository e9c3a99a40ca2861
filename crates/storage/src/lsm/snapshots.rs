//! Which snapshots are alive.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::engine::{Sequence, Snapshot};
use crate::planted::{self, Bug};
use crate::sync::Mutex;

/// The sequences of live snapshots, each with how many there are.
#[derive(Default)]
pub(crate) struct Snapshots {
    alive: Mutex<BTreeMap<Sequence, usize>>,
}

/// Ends a snapshot when dropped.
struct Hold {
    of: Arc<Snapshots>,
    sequence: Sequence,
}

impl Snapshots {
    /// A snapshot of what `visible` says. That is read under the lock, so that whoever lists the
    /// snapshots afterwards either has this one, or it sees all that was visible then.
    pub(crate) fn take(self: &Arc<Self>, visible: impl Fn() -> Sequence) -> Snapshot {
        let early = planted::is_on(Bug::SnapshotListedTooLate).then(&visible);
        let mut alive = self.alive.lock();
        let sequence = early.unwrap_or_else(visible);
        *alive.entry(sequence).or_default() += 1;
        drop(alive);
        let of = Arc::clone(self);
        Snapshot::new(sequence, Arc::new(Hold { of, sequence }))
    }

    /// Ascending.
    pub(crate) fn list(&self) -> Vec<Sequence> {
        self.alive.lock().keys().copied().collect()
    }

    pub(crate) fn count(&self) -> usize {
        self.alive.lock().values().sum()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut alive = self.of.alive.lock();
        if let Some(count) = alive.get_mut(&self.sequence) {
            *count -= 1;
            if *count == 0 {
                alive.remove(&self.sequence);
            }
        }
    }
}
