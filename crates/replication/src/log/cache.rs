//! The entry cache: payloads of the newest entries of all groups, first in, first out, bounded in
//! bytes over the whole node. Replication and apply read what was just written, so nothing cleverer
//! is needed; a replica that is far behind reads from the disk.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::replica::Replica;

/// What an entry takes beside its payload.
const ENTRY_OVERHEAD: usize = 64;

pub(crate) struct Cache {
    limit: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    bytes: usize,
    runs: VecDeque<Run>,
}

/// Entries that came together.
struct Run {
    replica: Weak<Replica>,
    first: u64,
    end: u64,
    bytes: usize,
}

impl Cache {
    pub fn new(limit: usize) -> Cache {
        Cache {
            limit,
            held: Mutex::default(),
        }
    }

    /// Counts entries that were just put into a replica, and evicts others if they are too many.
    /// REQUIRES: the caller holds no replica's lock.
    pub fn added(&self, replica: &Arc<Replica>, first: u64, count: usize, payload_bytes: usize) {
        let bytes = payload_bytes + count * ENTRY_OVERHEAD;
        let end = first + count as u64;
        let mut evicted = Vec::new();
        {
            let mut held = self.held.lock();
            held.bytes += bytes;
            held.runs.push_back(Run {
                replica: Arc::downgrade(replica),
                first,
                end,
                bytes,
            });
            while held.bytes > self.limit {
                let Some(run) = held.runs.pop_front() else {
                    break;
                };
                held.bytes -= run.bytes;
                evicted.push(run);
            }
        }
        for run in evicted {
            let Some(replica) = run.replica.upgrade() else {
                continue;
            };
            let mut state = replica.state.lock();
            let positions = state.positions(run.first..run.end);
            for meta in state.entries.range_mut(positions) {
                meta.cached = None;
            }
        }
    }
}
