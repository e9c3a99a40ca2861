//! Keeping within the budget: memtables are counted, and tables closed when too many are open.

use std::sync::Arc;

use super::{Inner, State};
use crate::planted::{self, Bug};

impl Inner {
    /// Memtables came or went.
    pub(super) fn count_memtables(&self, state: &State) {
        let room = state.memtables().map(|m| m.capacity() as u64).sum();
        self.shelf.cache.memory().set_memtables(room);
    }

    /// Has tables closed from now on when too many are open.
    pub(super) fn close_tables_when_crowded(self: &Arc<Self>) {
        let inner = Arc::downgrade(self);
        self.shelf.on_crowded(move || {
            if let Some(inner) = inner.upgrade() {
                inner.close_tables();
            }
        });
    }

    /// Closes tables that were not read lately. While an edit is being made there are more for a moment: it
    /// began with the levels of before, and must not bring back handles that were replaced.
    fn close_tables(&self) {
        let Some(manifest) = self.manifest.try_lock() else {
            return;
        };
        let Some((tables, bytes)) = self.shelf.cache.memory().tables_to_close() else {
            return;
        };
        if planted::is_on(Bug::TablesStayOpen) {
            return;
        }
        let before = {
            let mut state = self.state.write();
            let mut next = State::clone(&state);
            next.levels = Arc::new(state.levels.with_closed(tables, bytes));
            std::mem::replace(&mut *state, Arc::new(next))
        };
        drop(manifest);
        // Not under the lock: this may close the files.
        drop(before);
        self.shelf.cache.rebalance();
    }
}
