//! Which applied entries are on disk: the engine speaks of sequences, Raft of indexes.

use std::collections::VecDeque;

use parking_lot::Mutex;
use quorate_storage::Sequence;

/// Maps the engine's flushed sequence to the last applied index below it, for one group.
#[derive(Debug)]
pub(crate) struct FlushTracker {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    flushed: Option<u64>,
    /// Applied and perhaps not flushed, ascending in both.
    pending: VecDeque<(Sequence, u64)>,
}

impl FlushTracker {
    /// `flushed` is what was recovered.
    pub(crate) fn new(flushed: Option<u64>) -> FlushTracker {
        FlushTracker {
            state: Mutex::new(State {
                flushed,
                pending: VecDeque::new(),
            }),
        }
    }

    /// What was found when the engine was opened is on disk, up to this index.
    pub(crate) fn recovered(&self, index: u64) {
        let mut state = self.state.lock();
        state.pending.clear();
        state.flushed = Some(index);
    }

    /// The batch that brought the group to `index` has this sequence.
    pub(crate) fn applied(&self, sequence: Sequence, index: u64) {
        let mut state = self.state.lock();
        debug_assert!(
            state
                .pending
                .back()
                .is_none_or(|(s, i)| *s < sequence && *i < index)
        );
        state.pending.push_back((sequence, index));
    }

    /// The last index on disk, now that the engine has flushed up to `sequence`.
    pub(crate) fn flushed(&self, sequence: Sequence) -> Option<u64> {
        let mut state = self.state.lock();
        while let Some((at, index)) = state.pending.front().copied()
            && at <= sequence
        {
            state.pending.pop_front();
            state.flushed = Some(index);
        }
        state.flushed
    }
}
