//! Counting, without a lock where it is hot.

use std::cell::Cell;

use quorate_log::Log;

use super::Inner;
use crate::compaction::Written;
use crate::levels::{LEVELS, TableFile};
use crate::stats::{LevelStats, STALL_BOUNDS_MICROS, Stats};
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::values::Held;

/// Counters since opening.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) batches: AtomicU64,
    pub(super) batch_bytes: AtomicU64,
    pub(super) stalls: AtomicU64,
    pub(super) stall_micros: AtomicU64,
    longest_stall_micros: AtomicU64,
    stall_counts: [AtomicU64; STALL_BOUNDS_MICROS.len() + 1],
    pub(super) flushes: AtomicU64,
    pub(super) flush_bytes: AtomicU64,
    pub(super) compactions: AtomicU64,
    pub(super) compaction_read_bytes: AtomicU64,
    pub(super) compaction_write_bytes: AtomicU64,
    pub(super) moves: AtomicU64,
    pub(super) dropped_tables: AtomicU64,
    pub(super) ingested_tables: AtomicU64,
    pub(super) ingested_bytes: AtomicU64,
    value_write_bytes: AtomicU64,
    value_moved_bytes: AtomicU64,
    /// For each level what was read and written.
    levels: [(AtomicU64, AtomicU64); LEVELS],
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Counters {
    pub(super) fn read_from(&self, level: usize, bytes: u64) {
        if let Some((read, _)) = self.levels.get(level) {
            add(read, bytes);
        }
    }

    pub(super) fn written_to(&self, level: usize, bytes: u64) {
        if let Some((_, written)) = self.levels.get(level) {
            add(written, bytes);
        }
    }

    /// Flushes and compactions wrote value files.
    pub(super) fn wrote_values(&self, written: &Written) {
        add(&self.value_write_bytes, written.value_bytes());
        add(&self.value_moved_bytes, written.moved_bytes);
    }

    pub(super) fn count_stall(&self, micros: u64) {
        add(&self.stalls, 1);
        add(&self.stall_micros, micros);
        self.longest_stall_micros
            .fetch_max(micros, Ordering::Relaxed);
        let class = STALL_BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        if let Some(count) = self.stall_counts.get(class) {
            add(count, 1);
        }
    }
}

/// What filters did in one lookup.
#[derive(Default)]
pub(super) struct Filtered {
    pub(super) stopped: u64,
    pub(super) passed: u64,
    pub(super) in_vain: u64,
    /// Tables that a scan went around by their prefixes.
    pub(super) prefix_stopped: u64,
}

/// The counters of some threads, on a line of the cache of their own.
#[derive(Default)]
#[repr(align(128))]
struct Lane {
    stopped: AtomicU64,
    passed: AtomicU64,
    in_vain: AtomicU64,
    prefix_stopped: AtomicU64,
}

const LANES: usize = 16;

/// What filters did in all lookups.
#[derive(Default)]
pub(super) struct FilterCounters {
    lanes: [Lane; LANES],
}

static NEXT_LANE: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static LANE: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The lane of this thread.
fn lane() -> usize {
    LANE.get().unwrap_or_else(|| {
        let lane = NEXT_LANE.fetch_add(1, Ordering::Relaxed) % LANES;
        LANE.set(Some(lane));
        lane
    })
}

impl FilterCounters {
    pub(super) fn count(&self, filtered: &Filtered) {
        let Some(lane) = self.lanes.get(lane()) else {
            return;
        };
        let counters = [
            (&lane.stopped, filtered.stopped),
            (&lane.passed, filtered.passed),
            (&lane.in_vain, filtered.in_vain),
            (&lane.prefix_stopped, filtered.prefix_stopped),
        ];
        for (counter, more) in counters {
            if more > 0 {
                add(counter, more);
            }
        }
    }

    fn sum(&self, counter: impl Fn(&Lane) -> &AtomicU64) -> u64 {
        self.lanes.iter().map(|lane| get(counter(lane))).sum()
    }
}

impl Inner {
    pub(super) fn stats(&self) -> Stats {
        let state = self.state();
        let c = &self.counters;
        let last_error = {
            let work = self.work.lock();
            let errors = [&work.poison, &work.full, &work.unreadable];
            errors.into_iter().flatten().next().map(ToString::to_string)
        };
        let level =
            |(tables, (read, written)): (&[std::sync::Arc<TableFile>], &(AtomicU64, AtomicU64))| {
                LevelStats {
                    files: tables.len() as u64,
                    size_bytes: tables.iter().map(|t| t.meta.size_bytes).sum(),
                    read_bytes: get(read),
                    write_bytes: get(written),
                }
            };
        let tables = || state.levels.iter().flatten();
        let values = || state.levels.values().iter();
        let filters = &state.filters;
        let cache = &self.shelf.cache;
        Stats {
            memory_bytes: cache.memory().memtable_bytes()
                + cache.memory().table_bytes()
                + cache.size_bytes()
                + cache.pinned_bytes(),
            cache_bytes_max: cache.capacity(),
            pinned_bytes: cache.pinned_bytes(),
            open_tables: cache.memory().tables(),
            levels: state.levels.iter().zip(&c.levels).map(level).collect(),
            memtables: 1 + state.sealed.len() as u64,
            memtable_bytes: state.memtable_bytes(),
            table_memory_bytes: tables().map(|t| t.memory_bytes() as u64).sum(),
            cache_bytes: self.shelf.cache.size_bytes(),
            cache_hits: self.shelf.cache.hits(),
            cache_misses: self.shelf.cache.misses(),
            filter_stopped: filters.sum(|lane| &lane.stopped),
            filter_passed: filters.sum(|lane| &lane.passed),
            filter_in_vain: filters.sum(|lane| &lane.in_vain),
            prefix_stopped: filters.sum(|lane| &lane.prefix_stopped),
            stalls: get(&c.stalls),
            stall_micros: get(&c.stall_micros),
            stall_counts: std::array::from_fn(|n| c.stall_counts.get(n).map_or(0, get)),
            longest_stall_micros: get(&c.longest_stall_micros),
            batches: get(&c.batches),
            batch_bytes: get(&c.batch_bytes),
            flushes: get(&c.flushes),
            flush_bytes: get(&c.flush_bytes),
            compactions: get(&c.compactions),
            compaction_read_bytes: get(&c.compaction_read_bytes),
            compaction_write_bytes: get(&c.compaction_write_bytes),
            moves: get(&c.moves),
            dropped_tables: get(&c.dropped_tables),
            ingested_tables: get(&c.ingested_tables),
            ingested_bytes: get(&c.ingested_bytes),
            value_files: values().count() as u64,
            value_bytes: values().map(|held| held.file.meta.size_bytes()).sum(),
            value_dead_bytes: values().map(Held::dead_bytes).sum(),
            value_write_bytes: get(&c.value_write_bytes),
            value_moved_bytes: get(&c.value_moved_bytes),
            logged: self.options.wal,
            wal_bytes: self.wal.get().map_or(0, Log::size_bytes),
            sequence: self.publisher.visible(),
            flushed_sequence: self.flushed.load(Ordering::Acquire),
            snapshots: self.snapshots.count() as u64,
            last_error,
        }
    }
}
