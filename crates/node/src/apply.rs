//! Applying writes: from state and command alone, the same on every replica.
//!
//! One [`Applier`] takes the commands of one call in order and gathers their effects in one engine
//! batch, together with the position that they lead to. What it writes it also sees: later
//! conditions look at the overlay first.
//!
//! Versions: in a wide namespace the first write of a command gets `max(stamp, last + 1)`, in a
//! compact one `last + 1`; each further write of the command gets the next. So every write of a
//! group has its own version, and they only grow.

use std::collections::HashMap;

use bytes::Bytes;
use quorate_env::switch;
use quorate_kv::{Condition, Mutation, Op, OpResult, VERSION_MAX, Version};
use quorate_replication::EntryId;
use quorate_sharding::{Answer, Encoding, NamespaceKind, Operation, Shard};
use quorate_storage::{Batch, Engine, Entry, ReadAt, Sequence, WriteOptions};

use crate::codec::{Damaged, Reader, put_u64};
use crate::command::Write;
use crate::keys::{DATA, GroupField, META, data_key, group_key};
use crate::outcome::{Outcome, Outcomes};
use crate::value::{self, Header};

/// Why applying stopped: the replica can't go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error(transparent)]
    Engine(#[from] quorate_storage::Error),
    #[error(transparent)]
    Damaged(#[from] Damaged),
}

/// Where a group stands, as it is stored with its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Position {
    pub entry: Option<EntryId>,
    /// The newest version that the group gave.
    pub version: Version,
}

impl Position {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(40);
        put_u64(&mut out, self.version);
        if let Some(entry) = self.entry {
            put_u64(&mut out, entry.term);
            put_u64(&mut out, entry.leader);
            put_u64(&mut out, entry.index);
        }
        out
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Position, Damaged> {
        let mut reader = Reader::new(bytes);
        let version = reader.u64()?;
        if reader.is_empty() {
            return Ok(Position {
                entry: None,
                version,
            });
        }
        let entry = EntryId {
            term: reader.u64()?,
            leader: reader.u64()?,
            index: reader.u64()?,
        };
        Ok(Position {
            entry: Some(entry),
            version,
        })
    }
}

/// What the applier knows of a key: its version (0: absent) and what is stored.
#[derive(Debug, Clone)]
struct Current {
    version: Version,
    stored: Bytes,
}

impl Current {
    fn of(found: Option<Entry>) -> Current {
        let (version, stored) = found.map_or_else(Default::default, |e| (e.version, e.value));
        Current { version, stored }
    }
}

/// So many writes' keys are looked up at once: enough for the engine to overlap its waits for memory, and
/// few enough that their old values are no matter.
const LOOKED_UP: usize = 32;

/// A key of the shard, and what the engine has of it.
struct Stored {
    data_key: Vec<u8>,
    found: Option<Entry>,
}

/// The effects of some commands, in the making.
pub(crate) struct Applier<'a> {
    engine: &'a dyn Engine,
    shard: &'a Shard,
    encoding: Encoding,
    wide: bool,
    position: Position,
    /// Of the command in hand: the most that the gets of a compare may answer.
    answer_bytes_max: usize,
    batch: Batch,
    overlay: HashMap<Vec<u8>, Current>,
}

impl<'a> Applier<'a> {
    pub(crate) fn new(
        engine: &'a dyn Engine,
        shard: &'a Shard,
        kind: NamespaceKind,
        position: Position,
    ) -> Applier<'a> {
        Applier {
            engine,
            shard,
            encoding: kind.encoding(),
            wide: matches!(kind, NamespaceKind::Wide { .. }),
            position,
            answer_bytes_max: usize::MAX,
            batch: Batch::new(),
            overlay: HashMap::new(),
        }
    }

    /// Applies the writes of one command, each on its own.
    pub(crate) fn writes(
        &mut self,
        stamp: Version,
        answer_bytes_max: usize,
        writes: Vec<Write>,
    ) -> Result<Bytes, ApplyError> {
        self.answer_bytes_max = answer_bytes_max;
        if self.wide {
            let last = match switch::bug("versions_follow_the_clock") {
                true => 0,
                false => self.position.version,
            };
            self.position.version = last.max(stamp.saturating_sub(1)).min(VERSION_MAX - 1);
        }
        let mut outcomes = Outcomes::new();
        let mut writes = writes.into_iter();
        loop {
            let some: Vec<Write> = writes.by_ref().take(LOOKED_UP).collect();
            if some.is_empty() {
                return Ok(outcomes.finish());
            }
            let stored = self.look_up(&some)?;
            for (write, stored) in some.into_iter().zip(stored) {
                let outcome = if write.range_epoch == self.shard.epoch.range {
                    self.write(write.operation, stored)?
                } else {
                    Outcome::WrongEpoch
                };
                outcomes.push(&outcome);
            }
        }
    }

    /// What the engine has of the keys of puts and deletes, before anything of this call is applied; `None` for
    /// other operations, and keys that are not the shard's.
    fn look_up(&self, writes: &[Write]) -> Result<Vec<Option<Stored>>, ApplyError> {
        let key_of = |write: &Write| match &write.operation {
            Operation::Put { key, .. } | Operation::Delete { key, .. } => {
                let encoded = self.encoding.encode(key);
                let is_ours = self.shard.contains(&encoded);
                is_ours.then(|| data_key(self.shard.namespace, &encoded))
            }
            _ => None,
        };
        let keys: Vec<Option<Vec<u8>>> = writes.iter().map(key_of).collect();
        let asked: Vec<&[u8]> = keys.iter().flatten().map(Vec::as_slice).collect();
        let found = match asked[..] {
            [] => Vec::new(),
            [key] => vec![self.engine.get(DATA, key, &ReadAt::NEWEST)?],
            _ => self.engine.multi_get(DATA, &asked, &ReadAt::NEWEST)?,
        };
        let mut found = found.into_iter();
        let stored = keys.into_iter().map(|key| {
            let data_key = key?;
            let found = found.next()?;
            Some(Stored { data_key, found })
        });
        Ok(stored.collect())
    }

    /// An entry is applied once, and none is left out: whatever stands above, that is held here.
    pub(crate) fn check_next(&self, entry: EntryId) -> Result<(), ApplyError> {
        let next = self.position.entry.map_or(0, |last| last.index + 1);
        if entry.index != next {
            return Err(Damaged("an entry is not the next one to apply").into());
        }
        Ok(())
    }

    /// The position moves, whatever the entry was.
    pub(crate) fn advance(&mut self, entry: EntryId) {
        self.position.entry = Some(entry);
    }

    /// Whether there is something to commit for a group that stands at `position`.
    pub(crate) fn is_ahead_of(&self, position: &Position) -> bool {
        self.position.entry != position.entry
    }

    pub(crate) fn membership(&mut self, membership: &[u8]) {
        let key = group_key(self.shard.id, GroupField::Membership);
        self.batch.put(META, &key, membership);
    }

    /// Writes everything at once; the position is the group's from now on.
    pub(crate) fn commit(mut self) -> Result<(Position, Sequence), ApplyError> {
        let key = group_key(self.shard.id, GroupField::Applied);
        let mut stored = self.position;
        if switch::bug("applied_again_after_restart") {
            stored.entry = stored.entry.map(|entry| EntryId {
                index: entry.index.saturating_sub(1),
                ..entry
            });
        }
        if switch::bug("position_apart_from_data") {
            let mut ahead = Batch::new();
            ahead.put(META, &key, &stored.encode());
            self.engine.write(&ahead, WriteOptions::APPLY)?;
        }
        self.batch.put(META, &key, &stored.encode());
        let sequence = self.engine.write(&self.batch, WriteOptions::APPLY)?;
        Ok((self.position, sequence))
    }

    fn write(
        &mut self,
        operation: Operation,
        stored: Option<Stored>,
    ) -> Result<Outcome, ApplyError> {
        match operation {
            Operation::Put {
                value, condition, ..
            } => self.write_one(stored, Some(&value), condition),
            Operation::Delete { condition, .. } => self.write_one(stored, None, condition),
            Operation::Batch { mutations } => {
                if !mutations.iter().all(|m| self.holds_key(m.key())) {
                    return Ok(Outcome::OutOfRange);
                }
                let version = self.next_version();
                for mutation in &mutations {
                    self.mutate(mutation, version)?;
                }
                Ok(Outcome::Done(Answer::Batch { version }))
            }
            Operation::Compare {
                conditions,
                then_ops,
                else_ops,
            } => self.compare(&conditions, then_ops, else_ops),
            _ => Err(Damaged("a read in a command").into()),
        }
    }

    fn holds_key(&self, key: &[u8]) -> bool {
        self.shard.contains(&self.encoding.encode(key))
    }

    fn next_version(&mut self) -> Version {
        self.position.version = (self.position.version + 1).min(VERSION_MAX);
        self.position.version
    }

    fn write_one(
        &mut self,
        stored: Option<Stored>,
        value: Option<&[u8]>,
        condition: Condition,
    ) -> Result<Outcome, ApplyError> {
        let Some(Stored { data_key, found }) = stored else {
            return Ok(Outcome::OutOfRange);
        };
        let current = match self.overlay.get(&data_key) {
            Some(current) => current.clone(),
            None => Current::of(found),
        };
        let holds =
            condition.holds(current.version) || switch::bug("conditions_judged_on_arrival_only");
        let refused = !holds || (value.is_none() && current.version == 0);
        let version = if refused {
            current.version
        } else {
            let version = self.next_version();
            self.change(data_key, current, value, version)?;
            version
        };
        let group_version = self.position.version;
        Ok(Outcome::Done(Answer::Written {
            applied: !refused,
            version,
            group_version,
        }))
    }

    fn compare(
        &mut self,
        conditions: &[(Bytes, Condition)],
        then_ops: Vec<Op>,
        else_ops: Vec<Op>,
    ) -> Result<Outcome, ApplyError> {
        let mut keys = conditions.iter().map(|(key, _)| key);
        let mut op_keys = then_ops.iter().chain(&else_ops).map(Op::key);
        if !(keys.all(|key| self.holds_key(key)) && op_keys.all(|key| self.holds_key(key))) {
            return Ok(Outcome::OutOfRange);
        }
        let mut succeeded = true;
        for (key, condition) in conditions {
            let data_key = self.data_key(key);
            succeeded &= condition.holds(self.current(&data_key)?.version);
        }
        let branch = if succeeded { then_ops } else { else_ops };
        let bytes = self.answer_bytes(&branch)?;
        if bytes > self.answer_bytes_max {
            return Ok(Outcome::AnswerTooLarge {
                bytes: bytes as u64,
            });
        }
        let writes = branch.iter().any(|op| matches!(op, Op::Mutate(_)));
        let version = if writes {
            self.next_version()
        } else {
            self.position.version
        };
        let mut results = Vec::with_capacity(branch.len());
        for op in branch {
            results.push(match op {
                Op::Mutate(mutation) => {
                    self.mutate(&mutation, version)?;
                    OpResult::Done
                }
                other => {
                    let key = other.key().clone();
                    let current = self.current(&self.data_key(&key))?;
                    let found = current.version != 0;
                    let entry = found
                        .then(|| value::to_entry(key, current.version, &current.stored))
                        .transpose()?;
                    OpResult::Entry(entry)
                }
            });
        }
        Ok(Outcome::Done(Answer::Compare {
            succeeded,
            results,
            version,
        }))
    }

    /// What the gets of a branch will answer, each as it is after the operations before it, without
    /// doing these; counted no further than to above the limit.
    fn answer_bytes(&self, branch: &[Op]) -> Result<usize, ApplyError> {
        let mut written: HashMap<&[u8], Option<usize>> = HashMap::new();
        let mut bytes = 0;
        for op in branch {
            match op {
                Op::Mutate(Mutation::Put { key, value }) => {
                    written.insert(key, Some(value.len()));
                }
                Op::Mutate(mutation) => {
                    written.insert(mutation.key(), None);
                }
                other => {
                    let key = other.key();
                    let value_bytes = match written.get(&key[..]) {
                        Some(value_bytes) => *value_bytes,
                        None => self.stored_bytes(key)?,
                    };
                    bytes += value_bytes.map_or(0, |value| OpResult::entry_size_bytes(key, value));
                }
            }
            if bytes > self.answer_bytes_max {
                break;
            }
        }
        Ok(bytes)
    }

    /// The size of a key's value, if there is one.
    fn stored_bytes(&self, key: &[u8]) -> Result<Option<usize>, ApplyError> {
        let current = self.current(&self.data_key(key))?;
        if current.version == 0 {
            return Ok(None);
        }
        Ok(Some(value::value_bytes(&current.stored)?))
    }

    fn data_key(&self, key: &[u8]) -> Vec<u8> {
        data_key(self.shard.namespace, &self.encoding.encode(key))
    }

    fn mutate(&mut self, mutation: &Mutation, version: Version) -> Result<(), ApplyError> {
        let data_key = self.data_key(mutation.key());
        let current = self.current(&data_key)?;
        let value = match mutation {
            Mutation::Put { value, .. } => Some(&value[..]),
            _ => None,
        };
        if value.is_none() && current.version == 0 {
            return Ok(());
        }
        self.change(data_key, current, value, version)
    }

    fn current(&self, data_key: &[u8]) -> Result<Current, ApplyError> {
        if let Some(current) = self.overlay.get(data_key) {
            return Ok(current.clone());
        }
        let found = self.engine.get(DATA, data_key, &ReadAt::NEWEST)?;
        Ok(Current::of(found))
    }

    fn change(
        &mut self,
        data_key: Vec<u8>,
        current: Current,
        value: Option<&[u8]>,
        version: Version,
    ) -> Result<(), ApplyError> {
        debug_assert!(version >= current.version, "a key's version would decrease");
        let now = match value {
            None => {
                self.batch.delete_at(DATA, &data_key, version);
                Current {
                    version: 0,
                    stored: Bytes::new(),
                }
            }
            Some(value) => {
                let header = if current.version == 0 {
                    Header {
                        create_version: version,
                        write_count: 1,
                    }
                } else {
                    let old = value::decode_header(&current.stored)?;
                    Header {
                        write_count: old.write_count + 1,
                        ..old
                    }
                };
                let stored = value::encode(header, value);
                self.batch.put_at(DATA, &data_key, version, &stored);
                Current {
                    version,
                    stored: stored.into(),
                }
            }
        };
        self.overlay.insert(data_key, now);
        Ok(())
    }
}
