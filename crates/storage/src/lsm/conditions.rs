//! Writing a batch only if its conditions hold.
//!
//! Conditions are judged before the commit lock is taken, for that may read a disk. Under the lock it is
//! then certain what was judged if nobody wrote to the keys since: not by a batch that is visible by
//! now, nor by one that is still on its way. To know that, each write leaves its sequence in the slot that
//! its key hashes to, from the first conditional batch of an engine on. If a slot is newer than the
//! judgement, it is judged again, when the write in question is visible. Somebody else got ahead then, so
//! the engine as a whole always does.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::Inner;
use super::write::Commit;
use crate::batch::Batch;
use crate::engine::{ReadAt, Sequence};
use crate::error::Result;
use crate::key::Kind;
use crate::options::KeyspaceId;
use crate::planted::{self, Bug};
use crate::sync::MutexGuard;

/// More slots make it rarer that keys share one and a batch is judged again in vain.
const SLOTS: usize = 8192;

/// When keys were last written to, coarsely: too late, if anything.
#[derive(Default)]
pub(super) struct LastWrites {
    /// Empty until somebody wants to know.
    slots: Vec<Sequence>,
    /// All keys count as written at this sequence.
    all: Sequence,
}

fn slot(keyspace: KeyspaceId, key: &[u8]) -> usize {
    xxh3_64_with_seed(key, u64::from(keyspace.0)) as usize % SLOTS
}

impl LastWrites {
    /// A batch was given sequences up to this one.
    pub(super) fn note(&mut self, batch: &Batch, last: Sequence) {
        if self.slots.is_empty() {
            return;
        }
        for op in batch.iter() {
            match op.kind {
                Kind::RangeDelete => self.all = last,
                Kind::Put | Kind::Delete | Kind::Pointer | Kind::Expiring => {
                    self.slots[slot(op.keyspace, op.key)] = last;
                }
            }
        }
    }

    /// Any key may have been written to, up to this sequence.
    pub(super) fn note_all(&mut self, last: Sequence) {
        self.all = last;
    }

    /// No key that the batch has conditions on was written to after this sequence. `last` is the
    /// last that was given out.
    fn of_conditions(&mut self, batch: &Batch, last: Sequence) -> Sequence {
        if self.slots.is_empty() {
            self.slots = vec![0; SLOTS];
            self.all = last;
        }
        let slots = batch.requirements().iter();
        let written = slots.map(|r| self.slots[slot(r.keyspace, &r.key)]);
        written.fold(self.all, Sequence::max)
    }
}

impl Inner {
    /// The commit lock, at a moment when the conditions of a batch hold; `ConditionFailed` if there was
    /// one when they did not.
    pub(super) fn lock_if_conditions_hold(&self, batch: &Batch) -> Result<MutexGuard<'_, Commit>> {
        if batch.requirements().is_empty() {
            return Ok(self.commit.lock());
        }
        loop {
            let judged_at = self.publisher.visible();
            self.judge(batch)?;
            let mut commit = self.commit.lock();
            let last = commit.last;
            let written = commit.last_writes.of_conditions(batch, last);
            if written <= judged_at || planted::is_on(Bug::ConditionsAreNotLookedAtAgain) {
                return Ok(commit);
            }
            drop(commit);
            self.publisher.wait_for(&self.env, written);
        }
    }

    /// Fails if a condition does not hold of what is visible.
    pub(super) fn judge(&self, batch: &Batch) -> Result<()> {
        for requirement in batch.requirements() {
            let found = self.get(requirement.keyspace, &requirement.key, &ReadAt::NEWEST)?;
            requirement.check(found.as_ref())?;
        }
        Ok(())
    }
}
