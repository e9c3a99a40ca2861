//! A partition: records in order, from some offset on.

use std::collections::VecDeque;

use bytes::Bytes;

/// A stored message.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) key: Option<String>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) payload: Bytes,
}

/// A partition. Invariant: the record at index i has the offset `first + i`.
#[derive(Debug, Default)]
pub(super) struct Log {
    first: i64,
    records: VecDeque<Record>,
}

impl Log {
    pub(super) fn starting_at(first: i64) -> Log {
        Log {
            first,
            records: VecDeque::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// The offset of the first record that is kept.
    pub(super) fn first(&self) -> i64 {
        self.first
    }

    /// The offset that the next record gets.
    pub(super) fn end(&self) -> i64 {
        self.first + self.records.len() as i64
    }

    pub(super) fn push(&mut self, record: Record) {
        self.records.push_back(record);
    }

    pub(super) fn forget_before(&mut self, offset: i64) {
        while self.first < offset && self.records.pop_front().is_some() {
            self.first += 1;
        }
    }

    /// Records from `offset` on, with their offsets.
    pub(super) fn from(&self, offset: i64) -> impl Iterator<Item = (i64, &Record)> {
        let skipped = (offset - self.first).max(0) as usize;
        let from = self.first + skipped as i64;
        let records = self.records.iter().skip(skipped);
        records.enumerate().map(move |(i, r)| (from + i as i64, r))
    }
}
