//! Reading a shard's data from the engine, and the checks of form that need no state.

use bytes::Bytes;
use quorate_kv::{Condition, Entry, Error, ErrorKind, Limits, Mutation, Op, Result};
use quorate_sharding::Answer;
use quorate_storage::{Engine, Iter, IterOptions, ReadAt};

use crate::keys::{DATA, data_key, data_range, encoded_of};
use crate::machine::ShardMachine;
use crate::value;

/// Reads one key.
pub(crate) fn get(machine: &ShardMachine, key: &Bytes, encoded: &[u8]) -> Result<Option<Entry>> {
    let data_key = data_key(machine.shard().namespace, encoded);
    let found = machine
        .engine
        .get(DATA, &data_key, &ReadAt::NEWEST)
        .map_err(engine_error)?;
    let entry = found.map(|found| value::to_entry(key.clone(), found.version, &found.value));
    entry.transpose().map_err(damaged)
}

/// What part of a shard a scan reads.
pub(crate) struct ScanBounds<'a> {
    pub start: &'a [u8],
    pub end: &'a [u8],
    pub limit: usize,
    pub limit_bytes: usize,
    pub reverse: bool,
}

/// Reads a range of a shard: the part of the bounds that the shard holds.
pub(crate) fn scan(machine: &ShardMachine, bounds: &ScanBounds<'_>) -> Result<Answer> {
    let shard = machine.shard();
    let start = bounds.start.max(&shard.start[..]);
    let end = match (bounds.end.is_empty(), shard.end.is_empty()) {
        (true, _) => &shard.end[..],
        (false, true) => bounds.end,
        (false, false) => bounds.end.min(&shard.end[..]),
    };
    let mut page = Page::default();
    if !end.is_empty() && start >= end {
        return Ok(page.into_answer());
    }
    let (lower, upper) = data_range(shard.namespace, start, end);
    let options = IterOptions::range(&lower, &upper);
    let mut iter = machine
        .engine
        .iterate(DATA, options)
        .map_err(engine_error)?;
    let first = if bounds.reverse {
        iter.seek_to_last()
    } else {
        iter.seek_to_first()
    };
    first.map_err(engine_error)?;
    while iter.valid() {
        if page.is_full(bounds) {
            page.more = true;
            break;
        }
        page.push(machine, &*iter)?;
        let moved = if bounds.reverse {
            iter.prev()
        } else {
            iter.next()
        };
        moved.map_err(engine_error)?;
    }
    Ok(page.into_answer())
}

#[derive(Default)]
struct Page {
    entries: Vec<Entry>,
    bytes: usize,
    last: Option<Bytes>,
    more: bool,
}

impl Page {
    fn is_full(&self, bounds: &ScanBounds<'_>) -> bool {
        self.entries.len() >= bounds.limit || self.bytes > bounds.limit_bytes.max(1)
    }

    fn push(&mut self, machine: &ShardMachine, iter: &dyn Iter) -> Result<()> {
        let encoded = encoded_of(iter.key());
        let key = machine.kind().encoding().decode(&encoded)?;
        let entry = value::to_entry(key, iter.version(), &iter.value_bytes()).map_err(damaged)?;
        self.bytes += entry.key.len() + entry.value.len();
        self.entries.push(entry);
        self.last = Some(encoded);
        Ok(())
    }

    fn into_answer(self) -> Answer {
        Answer::Scan {
            entries: self.entries,
            more: self.more,
            last: self.last,
        }
    }
}

/// Checks the form of a batch.
pub(crate) fn check_mutations<'a>(
    limits: &Limits,
    mutations: impl Iterator<Item = &'a Mutation>,
) -> Result<()> {
    let mut bytes = 0;
    for mutation in mutations {
        limits.check_key(mutation.key())?;
        if let Mutation::Put { value, .. } = mutation {
            limits.check_value(value)?;
        }
        bytes += mutation.size_bytes();
    }
    limits.check_batch(bytes)
}

/// Checks the form of a compare.
pub(crate) fn check_compare(
    limits: &Limits,
    conditions: &[(Bytes, Condition)],
    then_ops: &[Op],
    else_ops: &[Op],
) -> Result<()> {
    let ops = || then_ops.iter().chain(else_ops);
    conditions
        .iter()
        .try_for_each(|(key, _)| limits.check_key(key))?;
    ops().try_for_each(|op| limits.check_key(op.key()))?;
    let mutations = ops().filter_map(|op| match op {
        Op::Mutate(mutation) => Some(mutation),
        _ => None,
    });
    check_mutations(limits, mutations)
}

fn engine_error(error: quorate_storage::Error) -> Error {
    let kind = match error.kind() {
        quorate_storage::ErrorKind::Corruption => ErrorKind::Corruption,
        quorate_storage::ErrorKind::DiskFull => ErrorKind::DiskFull,
        quorate_storage::ErrorKind::Closed => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, error.to_string())
}

fn damaged(error: crate::codec::Damaged) -> Error {
    Error::new(ErrorKind::Corruption, error.to_string())
}
