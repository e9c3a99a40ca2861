//! What the shared log knows of one replica: its vote, and where its entries are.

use std::collections::VecDeque;
use std::ops::Range;

use parking_lot::Mutex;
use quorate_env::switch;

use super::record::{Of, Place, ReplicaState};
use crate::codec::tag_of;
use crate::raft::{Entry, EntryPayload, LogId, Vote};

/// One replica's part of the shared log.
pub(crate) struct Replica {
    pub of: Of,
    pub state: Mutex<State>,
}

/// Invariants: `entries` have consecutive indexes, the first of them after `purged` if that is set
/// (0 or later if not); their places never go back.
#[derive(Default)]
pub(crate) struct State {
    pub vote: Option<Vote>,
    pub purged: Option<LogId>,
    /// Known committed; only in memory, and written along with the next entries.
    pub committed: Option<LogId>,
    pub entries: VecDeque<Meta>,
    /// While replaying: an entry was missing.
    pub has_hole: bool,
}

/// An entry: what it is called, where it lies, and what it says if the cache still holds that.
pub(crate) struct Meta {
    pub id: LogId,
    pub tag: u8,
    pub place: Place,
    pub cached: Option<EntryPayload>,
}

impl Meta {
    pub fn new(entry: Entry, place: Place) -> Meta {
        Meta {
            id: entry.log_id,
            tag: tag_of(&entry),
            place,
            cached: Some(entry.payload),
        }
    }
}

impl Replica {
    pub fn new(of: Of) -> Replica {
        Replica {
            of,
            state: Mutex::default(),
        }
    }
}

impl State {
    /// The last entry, or the last purged one.
    pub fn last(&self) -> Option<LogId> {
        self.entries.back().map(|meta| meta.id).or(self.purged)
    }

    /// The index of the first entry that is here.
    pub fn first_index(&self) -> Option<u64> {
        self.entries.front().map(|meta| meta.id.index)
    }

    /// The part of `indexes` that is here, as positions in `entries`.
    pub fn positions(&self, indexes: Range<u64>) -> Range<usize> {
        let Some(first) = self.first_index() else {
            return 0..0;
        };
        let end = first + self.entries.len() as u64;
        let from = indexes.start.clamp(first, end);
        let to = indexes.end.clamp(from, end);
        (from - first) as usize..(to - first) as usize
    }

    /// Adds an entry at the end, in place of what is there from its index on. False if it would leave
    /// a hole. One that was purged already changes nothing.
    pub fn push(&mut self, meta: Meta) -> bool {
        let index = meta.id.index;
        if self.purged.is_some_and(|purged| index <= purged.index) {
            return true;
        }
        // While replaying nothing is known of what came before the first entry found.
        if let Some(last) = self.entries.back().map(|meta| meta.id.index) {
            if index > last + 1 {
                self.has_hole = true;
                return false;
            }
            if index <= last && switch::bug("conflicting_entries_kept") {
                return true;
            }
            if index <= last {
                self.truncate(Some(index));
            }
        }
        self.entries.push_back(meta);
        true
    }

    /// Drops entries from this index on; all, without one.
    pub fn truncate(&mut self, from: Option<u64>) {
        let from = from.unwrap_or(0);
        while self
            .entries
            .back()
            .is_some_and(|meta| meta.id.index >= from)
        {
            self.entries.pop_back();
        }
    }

    /// Drops entries up to and with `upto`.
    pub fn purge(&mut self, upto: LogId) {
        while self
            .entries
            .front()
            .is_some_and(|meta| meta.id.index <= upto.index)
        {
            self.entries.pop_front();
        }
        if self.purged.is_none_or(|purged| purged.index < upto.index) {
            self.purged = Some(upto);
        }
    }

    /// Takes a vote if it is greater than the one there.
    pub fn vote(&mut self, vote: Vote) {
        if self.vote.is_none_or(|mine| vote > mine) {
            self.vote = Some(vote);
        }
    }

    /// The committed id as far as the log here reaches.
    pub fn committed(&self) -> Option<LogId> {
        self.committed
            .filter(|id| self.last().is_some_and(|last| id.index <= last.index))
    }

    /// What a state record says of it.
    pub fn checkpoint(&self, of: Of) -> ReplicaState {
        ReplicaState {
            of,
            vote: self.vote,
            purged: self.purged,
        }
    }

    /// Whether nothing was ever kept for it.
    pub fn is_blank(&self) -> bool {
        self.vote.is_none() && self.purged.is_none() && self.entries.is_empty()
    }

    /// Whether the first entry joins what was purged.
    pub fn is_whole(&self) -> bool {
        match (self.first_index(), self.purged) {
            _ if self.has_hole => false,
            (None, _) => true,
            (Some(first), None) => first == 0,
            (Some(first), Some(purged)) => first == purged.index + 1,
        }
    }

    /// The oldest segment that holds an entry of it.
    pub fn oldest_segment(&self) -> Option<u64> {
        self.entries.front().map(|meta| meta.place.record.segment)
    }

    /// The last index whose entry lies below a segment.
    pub fn last_below(&self, segment: u64) -> Option<u64> {
        let below = self
            .entries
            .partition_point(|meta| meta.place.record.segment < segment);
        below.checked_sub(1).map(|at| self.entries[at].id.index)
    }
}
