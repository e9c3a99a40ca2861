//! The engine as it would be if memory were endless and crashes unheard of: a sorted map that
//! forgets nothing. It says what the real engine should answer.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;
use quorate_env::Clock;

use crate::batch::Batch;
use crate::engine::{Engine, Entry, Iter, IterOptions, KeyRange, ReadAt, Sequence, Snapshot};
use crate::error::Result;
use crate::expiry::{Time, value_at};
use crate::key::Kind;
use crate::keyspaces::Keyspaces;
use crate::options::{KeyspaceId, KeyspaceOptions, WriteOptions};

type ModelKey = (KeyspaceId, Vec<u8>, Reverse<u64>, Reverse<Sequence>);

/// An engine in memory that keeps everything, for tests and as the oracle of [`Lsm`](crate::Lsm).
#[derive(Debug)]
pub struct Model {
    keyspaces: Keyspaces,
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<ModelKey, (Kind, Bytes)>,
    range_deletes: Vec<RangeDelete>,
    sequence: Sequence,
}

/// A deleted range, from `lower` to below `upper`, if there is one.
#[derive(Debug, Clone)]
struct RangeDelete {
    keyspace: KeyspaceId,
    lower: Vec<u8>,
    upper: Option<Vec<u8>>,
    version: u64,
    sequence: Sequence,
}

impl RangeDelete {
    fn covers(&self, keyspace: KeyspaceId, key: &[u8]) -> bool {
        let below = self.upper.as_deref().is_none_or(|upper| key < upper);
        self.keyspace == keyspace && self.lower.as_slice() <= key && below
    }

    /// What is left of it without a range.
    fn without(&self, range: KeyRange<'_>) -> Vec<RangeDelete> {
        let before = RangeDelete {
            upper: match &self.upper {
                Some(upper) => Some(upper.as_slice().min(range.lower).to_vec()),
                None => Some(range.lower.to_vec()),
            },
            ..self.clone()
        };
        let after = range.upper.map(|upper| RangeDelete {
            lower: self.lower.as_slice().max(upper).to_vec(),
            ..self.clone()
        });
        let left = after.into_iter().chain([before]);
        let is_empty = |d: &RangeDelete| d.upper.as_ref().is_some_and(|upper| *upper <= d.lower);
        left.filter(|d| !is_empty(d)).collect()
    }
}

impl State {
    /// The entry with its value as it is stored.
    fn get(&self, keyspace: KeyspaceId, key: &[u8], at: &ReadAt) -> Option<(u64, Kind, Bytes)> {
        let sequence = at.sequence().unwrap_or(self.sequence);
        let from = (
            keyspace,
            key.to_vec(),
            Reverse(at.version),
            Reverse(u64::MAX),
        );
        let to = (keyspace, key.to_vec(), Reverse(0), Reverse(0));
        let mut found = self.entries.range(from..=to);
        let found = found.find(|((.., written), _)| written.0 <= sequence);
        found.and_then(|((_, _, version, written), (kind, value))| {
            let version = version.0;
            let (entry, read) = ((version, written.0), (at.version, sequence));
            let deleted = self.is_deleted((keyspace, key), entry, read, false);
            (!deleted).then(|| (version, *kind, value.clone()))
        })
    }

    /// Whether a read hides an entry of this version and sequence because its range was deleted: at
    /// that version later on, or, unless `exactly`, at a higher one.
    fn is_deleted(
        &self,
        (keyspace, key): (KeyspaceId, &[u8]),
        (version, written): (u64, Sequence),
        (up_to, sequence): (u64, Sequence),
        exactly: bool,
    ) -> bool {
        self.range_deletes.iter().any(|d| {
            let seen = d.version <= up_to && d.sequence <= sequence;
            let later = d.version == version && d.sequence > written;
            seen && d.covers(keyspace, key) && (later || !exactly && d.version > version)
        })
    }
}

impl Model {
    /// An empty engine with these keyspaces.
    pub fn new(keyspaces: &[KeyspaceOptions]) -> Self {
        Model {
            keyspaces: Keyspaces::new(keyspaces, Time::stopped()),
            state: RwLock::default(),
        }
    }

    /// The same, with values that expire by a clock.
    pub fn with_clock(keyspaces: &[KeyspaceOptions], clock: Arc<dyn Clock>) -> Self {
        Model {
            keyspaces: Keyspaces::new(keyspaces, Time::running(clock)),
            state: RwLock::default(),
        }
    }

    /// A stored value as a read sees it now: without its time, and nothing if it has expired.
    fn opened(&self, keyspace: KeyspaceId, kind: Kind, stored: &Bytes) -> Option<Bytes> {
        let expiry = self.keyspaces.find(keyspace)?.expiry();
        let kind = expiry.kind(kind, stored);
        kind.is_value().then(|| stored.slice(value_at(kind)..))
    }

    fn find(&self, state: &State, keyspace: KeyspaceId, key: &[u8], at: &ReadAt) -> Option<Entry> {
        let (version, kind, stored) = state.get(keyspace, key, at)?;
        let value = self.opened(keyspace, kind, &stored)?;
        Some(Entry { version, value })
    }

    /// Forgets a range with all its history; see `Lsm::remove_range`.
    pub fn remove_range(&self, keyspace: KeyspaceId, range: KeyRange<'_>) {
        let inside = |id: KeyspaceId, key: &[u8]| {
            id == keyspace && range.lower <= key && range.upper.is_none_or(|upper| key < upper)
        };
        let mut state = self.state.write();
        state.entries.retain(|(id, key, ..), _| !inside(*id, key));
        let deletes = std::mem::take(&mut state.range_deletes);
        for delete in deletes {
            match delete.keyspace == keyspace {
                true => state.range_deletes.extend(delete.without(range)),
                false => state.range_deletes.push(delete),
            }
        }
    }

    /// The entries that a read may see, one for each key and version, newest first within a key.
    fn visible(
        &self,
        keyspace: KeyspaceId,
        options: &IterOptions,
    ) -> Vec<(Vec<u8>, u64, Option<Bytes>)> {
        let state = self.state.read();
        let sequence = options.at.sequence().unwrap_or(state.sequence);
        let from = (
            keyspace,
            options.lower.clone(),
            Reverse(u64::MAX),
            Reverse(u64::MAX),
        );
        let mut seen: Vec<(Vec<u8>, u64, Option<Bytes>)> = Vec::new();
        for ((id, key, version, written), (kind, value)) in state.entries.range(from..) {
            if *id != keyspace || options.upper.as_ref().is_some_and(|upper| key >= upper) {
                break;
            }
            if version.0 > options.at.version || written.0 > sequence {
                continue;
            }
            let read = (options.at.version, sequence);
            let entry = (version.0, written.0);
            if state.is_deleted((*id, key), entry, read, options.all_versions) {
                continue;
            }
            if seen
                .last()
                .is_some_and(|last| last.0 == *key && last.1 == version.0)
            {
                continue;
            }
            seen.push((key.clone(), version.0, self.opened(*id, *kind, value)));
        }
        seen
    }
}

impl Engine for Model {
    fn write(&self, batch: &Batch, _options: WriteOptions) -> Result<Sequence> {
        self.keyspaces.check(batch)?;
        let batch = &*self.keyspaces.stamped(batch);
        let mut state = self.state.write();
        for requirement in batch.requirements() {
            let found = self.find(
                &state,
                requirement.keyspace,
                &requirement.key,
                &ReadAt::NEWEST,
            );
            requirement.check(found.as_ref())?;
        }
        for op in batch.iter() {
            state.sequence += 1;
            if op.kind == Kind::RangeDelete {
                let delete = RangeDelete {
                    keyspace: op.keyspace,
                    lower: op.key.to_vec(),
                    upper: (!op.to_the_end).then(|| op.value.to_vec()),
                    version: op.version.unwrap_or(0),
                    sequence: state.sequence,
                };
                state.range_deletes.push(delete);
                continue;
            }
            let version = Reverse(op.version.unwrap_or(0));
            let key = (
                op.keyspace,
                op.key.to_vec(),
                version,
                Reverse(state.sequence),
            );
            let value = Bytes::copy_from_slice(op.value);
            state.entries.insert(key, (op.kind, value));
        }
        Ok(state.sequence)
    }

    fn get(&self, keyspace: KeyspaceId, key: &[u8], at: &ReadAt) -> Result<Option<Entry>> {
        self.keyspaces.get(keyspace)?;
        Ok(self.find(&self.state.read(), keyspace, key, at))
    }

    fn multi_get(
        &self,
        keyspace: KeyspaceId,
        keys: &[&[u8]],
        at: &ReadAt,
    ) -> Result<Vec<Option<Entry>>> {
        self.keyspaces.get(keyspace)?;
        let state = self.state.read();
        Ok(keys
            .iter()
            .map(|key| self.find(&state, keyspace, key, at))
            .collect())
    }

    fn iterate(&self, keyspace: KeyspaceId, options: IterOptions) -> Result<Box<dyn Iter>> {
        self.keyspaces.get(keyspace)?;
        let mut entries = self.visible(keyspace, &options);
        if !options.all_versions {
            entries.dedup_by(|later, first| later.0 == first.0);
            entries.retain(|entry| entry.2.is_some());
        }
        Ok(Box::new(ModelIter { entries, at: None }))
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.state.read().sequence, Arc::new(()))
    }
}

struct ModelIter {
    entries: Vec<(Vec<u8>, u64, Option<Bytes>)>,
    at: Option<usize>,
}

impl ModelIter {
    fn entry(&self) -> &(Vec<u8>, u64, Option<Bytes>) {
        &self.entries[self.at.expect("the iterator stands on an entry")]
    }

    fn go(&mut self, to: Option<usize>) -> Result<()> {
        self.at = to.filter(|at| *at < self.entries.len());
        Ok(())
    }
}

impl Iter for ModelIter {
    fn seek_to_first(&mut self) -> Result<()> {
        self.go(Some(0))
    }

    fn seek_to_last(&mut self) -> Result<()> {
        self.go(self.entries.len().checked_sub(1))
    }

    fn seek(&mut self, key: &[u8]) -> Result<()> {
        self.go(Some(self.entries.partition_point(|e| e.0.as_slice() < key)))
    }

    fn seek_for_prev(&mut self, key: &[u8]) -> Result<()> {
        let behind = self.entries.partition_point(|e| e.0.as_slice() <= key);
        self.go(behind.checked_sub(1))
    }

    fn next(&mut self) -> Result<()> {
        self.go(self.at.map(|at| at + 1))
    }

    fn prev(&mut self) -> Result<()> {
        self.go(self.at.and_then(|at| at.checked_sub(1)))
    }

    fn valid(&self) -> bool {
        self.at.is_some()
    }

    fn key(&self) -> &[u8] {
        &self.entry().0
    }

    fn version(&self) -> u64 {
        self.entry().1
    }

    fn value(&self) -> &[u8] {
        self.entry().2.as_deref().unwrap_or_default()
    }

    fn is_deletion(&self) -> bool {
        self.entry().2.is_none()
    }
}
