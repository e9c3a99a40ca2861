//! What an engine tells of itself.
//!
//! Counting takes no lock: counters are relaxed atomics, those of lookups spread over lines of the
//! cache by thread, and a lookup counts once at its end. Each is exact; together they are of about one
//! moment, not of one. Asking for them takes a few short locks, none of which a read or write waits for.
//!
//! What the numbers say:
//!
//! | of | by |
//! |---|---|
//! | how much of the reading the cache saves | [`Stats::cache_hit_rate`] |
//! | whether filters earn their memory | `filter_stopped` against `filter_in_vain` |
//! | what each level costs | [`LevelStats`]: read and written by compaction |
//! | how often writers wait, and how long | `stall_counts`, `longest_stall_micros` |
//! | bytes written for each byte of the user's | [`Stats::write_amplification`] |
//! | bytes on disk for each byte that is alive | [`Stats::space_amplification`], an estimate |

/// A level of tables.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LevelStats {
    /// How many tables.
    pub files: u64,
    /// Their size.
    pub size_bytes: u64,
    /// Read from it by compactions and removals of ranges.
    pub read_bytes: u64,
    /// Written to it by flushes, compactions and removals of ranges. Tables that were moved or
    /// ingested are not written.
    pub write_bytes: u64,
}

/// The upper bounds of the classes that stalls are counted in; the last class has none.
pub const STALL_BOUNDS_MICROS: [u64; 7] = [
    100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 60_000_000,
];

/// Gauges and counters since opening. Names end in their unit, as Prometheus wants them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// The levels, from 0.
    pub levels: Vec<LevelStats>,
    /// Memtables in memory, those that wait to be written included.
    pub memtables: u64,
    /// Their content.
    pub memtable_bytes: u64,
    /// What indexes and filters of open tables take.
    pub table_memory_bytes: u64,
    /// How many tables are open.
    pub open_tables: u64,
    /// What the block cache holds.
    pub cache_bytes: u64,
    /// The most that it may hold now: with `Options::memory_bytes` this follows what the others take.
    pub cache_bytes_max: u64,
    /// What iterators and values hold of blocks that the cache has let go of. Counted only with
    /// `Options::memory_bytes`.
    pub pinned_bytes: u64,
    /// The memory that is counted: the room of memtables, open tables, the cache and what is pinned.
    pub memory_bytes: u64,
    /// Blocks found in the cache.
    pub cache_hits: u64,
    /// Blocks read from disk.
    pub cache_misses: u64,
    /// Lookups in a table that its filter ended.
    pub filter_stopped: u64,
    /// Lookups in a table that its filter let pass.
    pub filter_passed: u64,
    /// Of those, the ones that found nothing.
    pub filter_in_vain: u64,
    /// Tables that scans within a prefix went around.
    pub prefix_stopped: u64,
    /// Writes that were slowed down or stopped.
    pub stalls: u64,
    /// How long, all together.
    pub stall_micros: u64,
    /// How many stalls took up to so long: the classes of [`STALL_BOUNDS_MICROS`], and what is above.
    pub stall_counts: [u64; 8],
    /// The longest of them.
    pub longest_stall_micros: u64,
    /// Batches written.
    pub batches: u64,
    /// Their size, as it is logged.
    pub batch_bytes: u64,
    /// Flushes done.
    pub flushes: u64,
    /// Written by them.
    pub flush_bytes: u64,
    /// Compactions done, moves not counted.
    pub compactions: u64,
    /// Read by them.
    pub compaction_read_bytes: u64,
    /// Written by them.
    pub compaction_write_bytes: u64,
    /// Tables moved down a level without being read.
    pub moves: u64,
    /// Tables that went as a whole, unread: all they held had expired or was covered by range
    /// deletions, or was the oldest of a `Compaction::Fifo`.
    pub dropped_tables: u64,
    /// Tables taken in that were made outside.
    pub ingested_tables: u64,
    /// Their size.
    pub ingested_bytes: u64,
    /// Value files.
    pub value_files: u64,
    /// Their size.
    pub value_bytes: u64,
    /// Of that, values that no table needs any more. They go when their file does.
    pub value_dead_bytes: u64,
    /// Written to value files by flushes, compactions and removals of ranges, which count it nowhere
    /// else.
    pub value_write_bytes: u64,
    /// Of that, values that came from files where most was dead.
    pub value_moved_bytes: u64,
    /// Whether batches are logged.
    pub logged: bool,
    /// The write-ahead log's files.
    pub wal_bytes: u64,
    /// The last operation visible.
    pub sequence: u64,
    /// The last operation in tables on disk.
    pub flushed_sequence: u64,
    /// Snapshots alive.
    pub snapshots: u64,
    /// The last failure of background work, if it still matters.
    pub last_error: Option<String>,
}

impl Stats {
    /// What part of the blocks that were asked for was in the cache; `None` if none were.
    pub fn cache_hit_rate(&self) -> Option<f64> {
        ratio(self.cache_hits, self.cache_hits + self.cache_misses)
    }

    /// Bytes written to log, tables and value files for each byte of batches, since opening; `None` if there were
    /// none. What is not flushed yet counts below only.
    pub fn write_amplification(&self) -> Option<f64> {
        let log = if self.logged { self.batch_bytes } else { 0 };
        let written: u64 = self.levels.iter().map(|level| level.write_bytes).sum();
        ratio(log + written + self.value_write_bytes, self.batch_bytes)
    }

    /// Bytes of all tables and value files for each byte of the deepest level that has any and of values
    /// that tables need: about how much there is more than what is alive, since the levels above shadow
    /// or add to that one. `None` without tables.
    pub fn space_amplification(&self) -> Option<f64> {
        let sizes = || self.levels.iter().map(|level| level.size_bytes);
        let deepest = sizes().rev().find(|bytes| *bytes > 0)?;
        let values = self.value_bytes;
        let needed = values.saturating_sub(self.value_dead_bytes);
        ratio(sizes().sum::<u64>() + values, deepest + needed)
    }
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// How far background work is behind.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Debt {
    /// In memtables: not flushed.
    pub memtable_bytes: u64,
    /// In levels that are over their size.
    pub compaction_bytes: u64,
    /// Tables in level 0.
    pub l0_files: u64,
    /// 0 when all is well, 1 where throttled writes stop: the largest of memory and level 0, each
    /// against its limit.
    pub pressure: f64,
}
