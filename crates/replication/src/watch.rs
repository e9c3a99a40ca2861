//! Waiting for an index to be applied here. Each waiter is woken once, when its own index is
//! reached, and not at every step.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// The last index applied, and those who wait for a later one.
#[derive(Default)]
pub(crate) struct AppliedWatch {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// One more than the last index applied.
    next: u64,
    waiters: BTreeMap<u64, Vec<oneshot::Sender<()>>>,
    closed: bool,
}

impl AppliedWatch {
    pub fn applied(&self) -> Option<u64> {
        self.state.lock().next.checked_sub(1)
    }

    /// Everything up to `index` is applied.
    pub fn advance(&self, index: u64) {
        let mut state = self.state.lock();
        if index < state.next {
            return;
        }
        state.next = index + 1;
        let later = state.waiters.split_off(&(index + 1));
        let ready = std::mem::replace(&mut state.waiters, later);
        drop(state);
        for waiter in ready.into_values().flatten() {
            let _ = waiter.send(());
        }
    }

    /// Resolves when `index` is applied; an error says that it never will be here. `None` if it
    /// is already.
    pub fn wait(&self, index: u64) -> Option<oneshot::Receiver<()>> {
        let mut state = self.state.lock();
        if index < state.next {
            return None;
        }
        let (tx, rx) = oneshot::channel();
        if !state.closed {
            state.waiters.entry(index).or_default().push(tx);
        }
        Some(rx)
    }

    /// Nothing will be applied any more.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.waiters.clear();
    }
}
