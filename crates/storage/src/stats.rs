//! What an engine tells of itself.

/// A level of tables.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LevelStats {
    /// How many tables.
    pub files: u64,
    /// Their size.
    pub size_bytes: u64,
}

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
    /// What the block cache holds.
    pub cache_bytes: u64,
    /// Blocks found in the cache.
    pub cache_hits: u64,
    /// Blocks read from disk.
    pub cache_misses: u64,
    /// Writes that were slowed down or stopped.
    pub stalls: u64,
    /// How long, all together.
    pub stall_micros: u64,
    /// Batches written.
    pub batches: u64,
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
