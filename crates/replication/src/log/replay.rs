//! Reading the log back: which replicas it has, and which of them damage has taken something of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quorate_log::{Lost, Position};

use super::LogDamage;
use super::cache::Cache;
use super::record::{Of, Place, Placed, Record, ReplicaState};
use super::replica::{Meta, Replica};
use crate::raft::LogId;
use crate::types::GroupId;

/// The stream as far as it was read.
#[derive(Default)]
pub(super) struct Replaying {
    replicas: BTreeMap<GroupId, Arc<Replica>>,
    /// Replicas of which something is lost: nothing of them counts.
    lost: BTreeSet<Of>,
    /// Something is lost that may be anybody's.
    all_lost: bool,
    damages: Vec<LogDamage>,
}

impl Replaying {
    /// What there is in the end, and what was damaged.
    pub fn end(mut self) -> (BTreeMap<GroupId, Arc<Replica>>, Vec<LogDamage>) {
        if self.all_lost {
            self.replicas.clear();
        }
        self.replicas
            .retain(|_, replica| !self.lost.contains(&replica.of));
        (self.replicas, self.damages)
    }

    /// Records are lost: those of one replica, or nobody knows whose.
    pub fn lose(&mut self, lost: &Lost, owner: Option<Of>) {
        self.damages.push(LogDamage {
            replicas: owner.map(|of| BTreeSet::from([(of.group, of.replica)])),
            what: format!(
                "{} at byte {}: {}",
                lost.path.display(),
                lost.at.offset,
                lost.what
            ),
        });
        match owner {
            Some(of) => drop(self.lost.insert(of)),
            None => self.all_lost = true,
        }
    }

    /// Takes one record of the stream into account.
    pub fn replay(&mut self, cache: &Cache, at: Position, record: Record) {
        match record {
            Record::Entries {
                of,
                committed,
                entries,
            } => self.entries(cache, (of, at), committed, entries),
            Record::Vote { of, vote } => self.replica_of(of).state.lock().vote(vote),
            Record::Truncate { of, after } => {
                let from = after.map(|id| id.index + 1);
                self.replica_of(of).state.lock().truncate(from);
            }
            Record::Purge { of, upto } => self.replica_of(of).state.lock().purge(upto),
            Record::State(states) => self.state(states),
            Record::Removed { of } => {
                let known = self.replicas.get(&of.group);
                if known.is_some_and(|replica| replica.of == of) {
                    self.replicas.remove(&of.group);
                }
            }
        }
    }

    fn entries(
        &mut self,
        cache: &Cache,
        (of, at): (Of, Position),
        committed: Option<LogId>,
        entries: Vec<Placed>,
    ) {
        let replica = self.replica_of(of);
        let Some(first) = entries.first().map(|placed| placed.entry.log_id.index) else {
            return;
        };
        let (count, mut bytes) = (entries.len(), 0);
        let mut state = replica.state.lock();
        for placed in entries {
            let place = Place {
                record: at,
                at: placed.at,
                length: placed.length,
            };
            bytes += placed.length as usize;
            // A hole is no harm if the replica is said to be gone later on; see `State::is_whole`.
            state.push(Meta::new(placed.entry, place));
        }
        if committed.is_some() {
            state.committed = committed;
        }
        drop(state);
        cache.added(&replica, first, count, bytes);
    }

    /// Takes a state record into account: who is not in it is no more.
    fn state(&mut self, states: Vec<ReplicaState>) {
        let mut kept = BTreeMap::new();
        for known in states {
            let replica = self.replica_of(known.of);
            let mut state = replica.state.lock();
            if let Some(vote) = known.vote {
                state.vote(vote);
            }
            if let Some(purged) = known.purged {
                state.purge(purged);
            }
            drop(state);
            kept.insert(known.of.group, replica);
        }
        self.replicas = kept;
    }

    /// The replica that a record is about. A record of another replica of the group means that the one
    /// before is no more.
    fn replica_of(&mut self, of: Of) -> Arc<Replica> {
        let new = || Arc::new(Replica::new(of));
        let replica = self.replicas.entry(of.group).or_insert_with(new);
        if replica.of != of {
            *replica = new();
        }
        Arc::clone(replica)
    }
}
