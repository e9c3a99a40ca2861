//! The engine as it would be if memory were endless and crashes unheard of: a sorted map that
//! forgets nothing. It says what the real engine should answer.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;

use crate::batch::Batch;
use crate::engine::{Engine, Entry, Iter, IterOptions, KeyRange, ReadAt, Sequence, Snapshot};
use crate::error::Result;
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
    entries: BTreeMap<ModelKey, Option<Bytes>>,
    sequence: Sequence,
}

impl Model {
    /// An empty engine with these keyspaces.
    pub fn new(keyspaces: &[KeyspaceOptions]) -> Self {
        Model {
            keyspaces: Keyspaces::new(keyspaces),
            state: RwLock::default(),
        }
    }

    /// Forgets a range with all its history; see `Lsm::remove_range`.
    pub fn remove_range(&self, keyspace: KeyspaceId, range: KeyRange<'_>) {
        let inside = |id: KeyspaceId, key: &[u8]| {
            id == keyspace && range.lower <= key && range.upper.is_none_or(|upper| key < upper)
        };
        let mut state = self.state.write();
        state.entries.retain(|(id, key, ..), _| !inside(*id, key));
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
        for ((id, key, version, written), value) in state.entries.range(from..) {
            if *id != keyspace || options.upper.as_ref().is_some_and(|upper| key >= upper) {
                break;
            }
            if version.0 > options.at.version || written.0 > sequence {
                continue;
            }
            if seen
                .last()
                .is_some_and(|last| last.0 == *key && last.1 == version.0)
            {
                continue;
            }
            seen.push((key.clone(), version.0, value.clone()));
        }
        seen
    }
}

impl Engine for Model {
    fn write(&self, batch: &Batch, _options: WriteOptions) -> Result<Sequence> {
        self.keyspaces.check(batch)?;
        let mut state = self.state.write();
        for op in batch.iter() {
            state.sequence += 1;
            let version = Reverse(op.version.unwrap_or(0));
            let key = (
                op.keyspace,
                op.key.to_vec(),
                version,
                Reverse(state.sequence),
            );
            let value = (op.kind == Kind::Put).then(|| Bytes::copy_from_slice(op.value));
            state.entries.insert(key, value);
        }
        Ok(state.sequence)
    }

    fn get(&self, keyspace: KeyspaceId, key: &[u8], at: &ReadAt) -> Result<Option<Entry>> {
        self.keyspaces.get(keyspace)?;
        let state = self.state.read();
        let sequence = at.sequence().unwrap_or(state.sequence);
        let from = (
            keyspace,
            key.to_vec(),
            Reverse(at.version),
            Reverse(u64::MAX),
        );
        let to = (keyspace, key.to_vec(), Reverse(0), Reverse(0));
        let mut found = state.entries.range(from..=to);
        let found = found.find(|((.., written), _)| written.0 <= sequence);
        Ok(found.and_then(|((_, _, version, _), value)| {
            let value = value.clone()?;
            let version = version.0;
            Some(Entry { version, value })
        }))
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
