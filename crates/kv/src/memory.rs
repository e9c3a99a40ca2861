//! [`MemoryKv`]: the contract over a map. For tests of what is built on [`Kv`], and the model that
//! the other implementations are compared with.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::{
    Batch, BatchResult, BoxFuture, Compare, CompareResult, Condition, Delete, Domain, Entry, Error,
    ErrorKind, Get, Kv, Limits, Mutation, Op, OpResult, Put, ReadLevel, Result, Scan, ScanOrder,
    ScanPage, Token, Version, Written,
};

/// One namespace held in memory. Every write takes the next version.
#[derive(Debug)]
pub struct MemoryKv {
    domain: Domain,
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    version: Version,
    entries: BTreeMap<Bytes, Entry>,
}

impl MemoryKv {
    /// An empty namespace.
    pub fn new(domain: Domain) -> Self {
        MemoryKv {
            domain,
            limits: Limits::default(),
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn token(&self, version: Version) -> Token {
        Token {
            domain: self.domain,
            version,
        }
    }

    fn check_level(&self, level: &ReadLevel) -> Result<()> {
        match level {
            ReadLevel::AtLeast(token) => token.check(&self.domain),
            _ => Ok(()),
        }
    }

    fn write(&self, key: Bytes, value: Option<Bytes>, condition: Condition) -> Result<Written> {
        self.limits.check_key(&key)?;
        self.limits
            .check_value(value.as_deref().unwrap_or_default())?;
        let mut state = self.lock();
        let present = state.version_of(&key);
        if !condition.holds(present) || (value.is_none() && present == 0) {
            return Ok(Written {
                applied: false,
                version: present,
                token: self.token(state.version),
            });
        }
        let version = state.next_version();
        state.change(key, value, version);
        Ok(Written {
            applied: true,
            version,
            token: self.token(version),
        })
    }

    fn write_batch(&self, batch: Batch) -> Result<BatchResult> {
        if batch.mutations.is_empty() {
            return Err(Error::new(ErrorKind::InvalidArgument, "the batch is empty"));
        }
        self.check_mutations(batch.mutations.iter())?;
        let mut state = self.lock();
        let version = state.next_version();
        for mutation in batch.mutations {
            state.mutate(mutation, version);
        }
        Ok(BatchResult {
            version,
            token: self.token(version),
        })
    }

    fn check_mutations<'a>(&self, mutations: impl Iterator<Item = &'a Mutation>) -> Result<()> {
        let mut bytes = 0;
        for mutation in mutations {
            self.limits.check_key(mutation.key())?;
            if let Mutation::Put { value, .. } = mutation {
                self.limits.check_value(value)?;
            }
            bytes += mutation.size_bytes();
        }
        self.limits.check_batch(bytes)
    }

    /// Refuses a branch whose gets would answer too much, each as it is after the operations before.
    fn check_answer(&self, state: &State, branch: &[Op]) -> Result<()> {
        let mut written: BTreeMap<&Bytes, Option<usize>> = BTreeMap::new();
        let mut bytes = 0;
        for op in branch {
            match op {
                Op::Mutate(Mutation::Put { key, value }) => {
                    written.insert(key, Some(value.len()));
                }
                Op::Mutate(Mutation::Delete { key }) => {
                    written.insert(key, None);
                }
                Op::Get { key } => {
                    let stored = || state.entries.get(key).map(|entry| entry.value.len());
                    let found = written.get(key).copied().unwrap_or_else(stored);
                    bytes += found.map_or(0, |value| OpResult::entry_size_bytes(key, value));
                }
            }
        }
        if bytes > self.limits.batch_bytes {
            return Err(self.limits.answer_too_large(bytes));
        }
        Ok(())
    }

    fn run_compare(&self, compare: Compare) -> Result<CompareResult> {
        let ops = compare.then_ops.iter().chain(&compare.else_ops);
        self.check_mutations(ops.clone().filter_map(|op| match op {
            Op::Mutate(mutation) => Some(mutation),
            Op::Get { .. } => None,
        }))?;
        let keys = compare
            .conditions
            .iter()
            .map(|(key, _)| key)
            .chain(ops.map(Op::key));
        keys.into_iter()
            .try_for_each(|key| self.limits.check_key(key))?;
        let mut state = self.lock();
        let succeeded = compare
            .conditions
            .iter()
            .all(|(k, c)| c.holds(state.version_of(k)));
        let branch = if succeeded {
            compare.then_ops
        } else {
            compare.else_ops
        };
        self.check_answer(&state, &branch)?;
        let writes = branch.iter().any(|op| matches!(op, Op::Mutate(_)));
        let version = if writes {
            state.next_version()
        } else {
            state.version
        };
        let results = branch
            .into_iter()
            .map(|op| match op {
                Op::Get { key } => OpResult::Entry(state.entries.get(&key).cloned()),
                Op::Mutate(mutation) => {
                    state.mutate(mutation, version);
                    OpResult::Done
                }
            })
            .collect();
        Ok(CompareResult {
            succeeded,
            results,
            version,
            token: self.token(version),
        })
    }

    fn read_page(&self, scan: Scan) -> Result<ScanPage> {
        self.check_level(&scan.level)?;
        if scan.limit == 0 {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "a scan's limit is at least 1",
            ));
        }
        let state = self.lock();
        let reverse = scan.order == ScanOrder::KeyReverse;
        let mut low = Bound::Included(scan.start);
        let mut high = if scan.end.is_empty() {
            Bound::Unbounded
        } else {
            Bound::Excluded(scan.end)
        };
        match scan.page {
            Some(last) if reverse => high = Bound::Excluded(last),
            Some(last) => low = Bound::Excluded(last),
            None => {}
        }
        if let (Bound::Included(l) | Bound::Excluded(l), Bound::Excluded(h)) = (&low, &high)
            && l >= h
        {
            return Ok(ScanPage {
                entries: Vec::new(),
                next: None,
            });
        }
        let range = state.entries.range((low, high)).map(|(_, e)| e.clone());
        let mut entries: Vec<Entry> = if reverse {
            range.rev().take(scan.limit.saturating_add(1)).collect()
        } else {
            range.take(scan.limit.saturating_add(1)).collect()
        };
        let more = entries.len() > scan.limit;
        entries.truncate(scan.limit);
        let next = if more {
            entries.last().map(|e| e.key.clone())
        } else {
            None
        };
        Ok(ScanPage { entries, next })
    }
}

impl State {
    fn next_version(&mut self) -> Version {
        self.version += 1;
        self.version
    }

    fn version_of(&self, key: &[u8]) -> Version {
        self.entries.get(key).map_or(0, |e| e.version)
    }

    fn mutate(&mut self, mutation: Mutation, version: Version) {
        match mutation {
            Mutation::Put { key, value } => self.change(key, Some(value), version),
            Mutation::Delete { key } => self.change(key, None, version),
        }
    }

    fn change(&mut self, key: Bytes, value: Option<Bytes>, version: Version) {
        let Some(value) = value else {
            self.entries.remove(&key);
            return;
        };
        let (create_version, write_count) = self
            .entries
            .get(&key)
            .map_or((version, 1), |e| (e.create_version, e.write_count + 1));
        let entry = Entry {
            key: key.clone(),
            value,
            version,
            create_version,
            write_count,
        };
        self.entries.insert(key, entry);
    }
}

impl Condition {
    /// Whether the condition holds for a key whose version is `present` (0: absent).
    pub fn holds(self, present: Version) -> bool {
        match self {
            Condition::None => true,
            Condition::Absent => present == 0,
            Condition::Present => present != 0,
            Condition::Version(version) => present == version,
        }
    }
}

impl Kv for MemoryKv {
    fn domain(&self) -> Domain {
        self.domain
    }

    fn get(&self, get: Get) -> BoxFuture<'_, Result<Option<Entry>>> {
        Box::pin(async move {
            self.limits.check_key(&get.key)?;
            self.check_level(&get.level)?;
            Ok(self.lock().entries.get(&get.key).cloned())
        })
    }

    fn put(&self, put: Put) -> BoxFuture<'_, Result<Written>> {
        Box::pin(async move { self.write(put.key, Some(put.value), put.condition) })
    }

    fn delete(&self, delete: Delete) -> BoxFuture<'_, Result<Written>> {
        Box::pin(async move { self.write(delete.key, None, delete.condition) })
    }

    fn batch(&self, batch: Batch) -> BoxFuture<'_, Result<BatchResult>> {
        Box::pin(async move { self.write_batch(batch) })
    }

    fn compare(&self, compare: Compare) -> BoxFuture<'_, Result<CompareResult>> {
        Box::pin(async move { self.run_compare(compare) })
    }

    fn scan(&self, scan: Scan) -> BoxFuture<'_, Result<ScanPage>> {
        Box::pin(async move { self.read_page(scan) })
    }
}
