//! Settings: plain data, with their defaults in one place. `docs/tuning.md` says what each trades.

use std::path::Path;
use std::time::Duration;

use crate::batch::Batch;
use crate::engine::KeyRange;
use crate::error::{Error, ErrorKind, Result};
use crate::prefix::Prefix;

/// Names a keyspace. The caller picks the number once; the manifest remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyspaceId(pub u16);

impl KeyspaceId {
    /// No keyspace has the highest number, so that there is a place behind each.
    pub(crate) const RESERVED: KeyspaceId = KeyspaceId(u16::MAX);
}

/// A keyspace: keys of their own, in the same files and batches as those of the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyspaceOptions {
    /// Its number, for ever; at most 65534.
    pub id: KeyspaceId,
    /// Its name, for people; for ever as well.
    pub name: String,
    /// Whether the caller gives each write a version and may read at one. For ever too.
    pub versioned: bool,
    /// How long values live: older ones read as deletions, and compaction takes them away. In whole
    /// milliseconds, at least one. `None` is for ever. May be another at each opening and holds for
    /// what is there as well, but for values that were written while there was none: these stay. By
    /// which time values expire, and what leaps of the clock do, is told in `docs/tuning.md`.
    pub ttl: Option<Duration>,
    /// What filters know of keys beside themselves, so that scans within one prefix go around tables
    /// without it. May be another at each opening.
    pub prefix: Prefix,
}

impl KeyspaceOptions {
    /// A keyspace that keeps versions.
    pub fn versioned(id: u16, name: &str) -> Self {
        KeyspaceOptions {
            id: KeyspaceId(id),
            name: name.to_owned(),
            versioned: true,
            ttl: None,
            prefix: Prefix::None,
        }
    }

    /// A keyspace where a write replaces what was there.
    pub fn plain(id: u16, name: &str) -> Self {
        KeyspaceOptions {
            versioned: false,
            ..KeyspaceOptions::versioned(id, name)
        }
    }

    /// The same, with values that live so long.
    #[must_use]
    pub fn with_ttl(self, ttl: Duration) -> Self {
        let ttl = Some(ttl);
        KeyspaceOptions { ttl, ..self }
    }

    /// The same, with filters that know prefixes.
    #[must_use]
    pub fn with_prefix(self, prefix: Prefix) -> Self {
        KeyspaceOptions { prefix, ..self }
    }

    pub(crate) fn ttl_ms(&self) -> Option<u64> {
        let ms = self.ttl?.as_millis();
        Some(u64::try_from(ms).unwrap_or(u64::MAX).clamp(1, u64::MAX - 1))
    }

    /// Whether it may stand for another one: all but what may change is the same.
    pub(crate) fn is_same(&self, other: &KeyspaceOptions) -> bool {
        (self.id, &self.name, self.versioned) == (other.id, &other.name, other.versioned)
    }
}

/// Which tables are merged, and when. For all keyspaces together, since they share tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Compaction {
    /// Levels, each [`level_factor`](Options::level_factor) times as large as the one above. Reads look
    /// into few tables and little space is wasted; each entry is rewritten about `level_factor` times
    /// for each level that it goes down.
    #[default]
    Leveled,
    /// Few large sorted runs, merged with others of their size: entries are rewritten far less often,
    /// reads look into more tables, and more that is shadowed is still on disk.
    Tiered(TieredOptions),
    /// No merging. The oldest tables are dropped, with all they hold of whatever keyspace, though
    /// snapshots see it: for logs, metrics and caches, which may lose what is oldest.
    Fifo(FifoOptions),
}

/// The bounds of [`Compaction::Tiered`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TieredOptions {
    /// How many runs there may be below level 0: 2 to 6.
    pub runs_max: usize,
    /// How large all but the last run may be, in percent of it: what is shadowed is at most that.
    pub space_percent_max: u32,
}

impl Default for TieredOptions {
    fn default() -> Self {
        TieredOptions {
            runs_max: 4,
            space_percent_max: 200,
        }
    }
}

/// When [`Compaction::Fifo`] drops tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FifoOptions {
    /// How large all tables may be together, with their values that lie apart. The oldest go until they are; one may be about as large
    /// as a memtable.
    pub size_bytes_max: u64,
    /// How old the newest entry of a table may become; `None` is as old as it likes. The age counts
    /// from when the table was flushed, by the time that values expire by.
    pub age_max: Option<Duration>,
}

/// How blocks of tables are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// By LZ4, unless that saves less than an eighth.
    Lz4,
    /// By zstd at level 3, under the same condition: smaller and slower. Only with the feature `zstd` of
    /// this crate; without it an engine neither writes nor opens a store with it.
    Zstd,
}

impl Compression {
    /// Fails if this build lacks it.
    fn check(self) -> Result<()> {
        if self == Compression::Zstd && !cfg!(feature = "zstd") {
            let what = "zstd is not in this build: build quorate-storage with its feature zstd";
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        Ok(())
    }

    /// Fails if a file was written with it and this build can't read that.
    pub(crate) fn check_readable(self, path: &Path) -> Result<()> {
        self.check().map_err(|e| {
            let text = format!("{} is compressed with {e}", path.display());
            Error::new(ErrorKind::Incompatible, text)
        })
    }

    /// Its number on disk.
    pub(crate) fn code(self) -> u8 {
        match self {
            Compression::None => 0,
            Compression::Lz4 => 1,
            Compression::Zstd => 2,
        }
    }

    pub(crate) fn from_code(code: u64) -> Option<Compression> {
        match code {
            0 => Some(Compression::None),
            1 => Some(Compression::Lz4),
            2 => Some(Compression::Zstd),
            _ => None,
        }
    }
}

/// The settings of an engine. Sizes are in bytes.
///
/// Each may be another at the next opening, `wal` too: a log that is no longer wanted is written to
/// tables when the engine opens. What is about tables holds for those that are written from then on.
/// Of `keyspaces` only more may come.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// All keyspaces. One that the store has and this list lacks, or has otherwise, is an error at
    /// opening; one that the store lacks is made.
    pub keyspaces: Vec<KeyspaceOptions>,
    /// Whether batches go to a write-ahead log. Without one only a flush makes them durable, and
    /// what survives a crash is a prefix of the batches in sequence order.
    pub wal: bool,
    /// The size of a segment of the write-ahead log.
    pub wal_segment_bytes: u64,
    /// The size at which a memtable is written out.
    pub memtable_bytes: usize,
    /// How many full memtables may wait for that before writes are stopped.
    pub memtables_waiting: usize,
    /// The block cache, unless [`memory_bytes`](Self::memory_bytes) says what it may take.
    pub cache_bytes: u64,
    /// What memtables, indexes and filters of open tables, the block cache, and blocks that iterators
    /// and values hold may take together; 0 is no such bound. A quarter is for memtables, whatever
    /// `memtable_bytes` says, and a quarter for open tables; the cache has what the others leave.
    /// Writes that are not throttled may overdo it, and values that are kept.
    pub memory_bytes: u64,
    /// How many tables may be open; 0 is any number. The one that was read the longest ago is closed
    /// for another. What iterators and compactions still read stays open beside them.
    pub open_tables: usize,
    /// The size of a data block before compression.
    pub block_bytes: usize,
    /// The size of a table that compaction writes.
    pub table_bytes: u64,
    /// Which tables are merged. May change at each opening: every policy takes over what it finds.
    pub compaction: Compaction,
    /// A table of which so many percent are deletions, or values that expired, is compacted whatever
    /// the sizes of levels; 0 is never.
    pub dead_percent: u32,
    /// The size of level 1; each further level is [`level_factor`](Self::level_factor) times larger.
    pub level_base_bytes: u64,
    /// See [`level_base_bytes`](Self::level_base_bytes).
    pub level_factor: u64,
    /// The number of tables in level 0 that starts a compaction.
    pub l0_compact: usize,
    /// The number of tables in level 0 from which writes are slowed down.
    pub l0_slow: usize,
    /// The number of tables in level 0 at which throttled writes get least.
    pub l0_stop: usize,
    /// Filter bits for each key; 0 is no filter.
    pub filter_bits_per_key: u32,
    /// Compression of data blocks, and of values that lie apart.
    pub compression: Compression,
    /// Compression of data blocks by level, from 0 on, instead of the above: the last one counts for all
    /// levels below as well. Empty: as above.
    pub level_compression: Vec<Compression>,
    /// Compression of data blocks where nothing lies below, if another than that of the level.
    pub bottom_compression: Option<Compression>,
    /// Values of this size or above lie apart from their keys, in value files, and compaction does not
    /// rewrite them; 0: none do. What lies otherwise follows as compaction meets it.
    pub large_value_bytes: usize,
    /// The size at which a value file ends.
    pub value_file_bytes: u64,
    /// Once so many percent of a value file are dead, compaction moves the rest to another, and it goes.
    pub value_garbage_percent: u64,
    /// How many compactions may run at once.
    pub compactions: usize,
    /// Whether compaction starts by itself; if not, only by `compact_range`.
    pub auto_compact: bool,
}

const MIB: u64 = 1 << 20;

impl Default for Options {
    fn default() -> Self {
        Options {
            keyspaces: Vec::new(),
            wal: true,
            wal_segment_bytes: 8 * MIB,
            memtable_bytes: 64 << 20,
            memtables_waiting: 3,
            cache_bytes: 256 * MIB,
            memory_bytes: 0,
            open_tables: 0,
            block_bytes: 4096,
            table_bytes: 32 * MIB,
            compaction: Compaction::Leveled,
            dead_percent: 50,
            level_base_bytes: 256 * MIB,
            level_factor: 10,
            l0_compact: 4,
            l0_slow: 12,
            l0_stop: 24,
            filter_bits_per_key: 10,
            compression: Compression::Lz4,
            level_compression: Vec::new(),
            bottom_compression: None,
            large_value_bytes: 4096,
            value_file_bytes: 256 * MIB,
            value_garbage_percent: 50,
            compactions: 1,
            auto_compact: true,
        }
    }
}

impl Options {
    /// How blocks of tables of a level are compressed; `bottom` is where nothing lies below.
    pub(crate) fn compression_of(&self, level: usize, bottom: bool) -> Compression {
        if let Some(compression) = self.bottom_compression.filter(|_| bottom) {
            return compression;
        }
        let by_level = &self.level_compression;
        let compression = by_level.get(level).or(by_level.last());
        *compression.unwrap_or(&self.compression)
    }

    /// The size of a memtable, with the whole budget in mind.
    pub(crate) fn memtable_size(&self) -> usize {
        let share = self.memory_bytes / 4 / (self.memtables_waiting as u64 + 1);
        match self.memory_bytes {
            0 => self.memtable_bytes,
            _ => self.memtable_bytes.min(share.max(1) as usize),
        }
    }

    /// Fails on settings that can't work.
    pub(crate) fn check(&self) -> Result<()> {
        let sane = [
            (self.keyspaces.is_empty(), "there is no keyspace"),
            (self.memtable_bytes == 0, "memtable_bytes is 0"),
            (
                self.memtable_bytes > 1 << 30,
                "memtable_bytes is above 1 GiB",
            ),
            (self.memtables_waiting == 0, "memtables_waiting is 0"),
            (self.block_bytes == 0, "block_bytes is 0"),
            (self.block_bytes > 1 << 20, "block_bytes is above 1 MiB"),
            (self.table_bytes == 0, "table_bytes is 0"),
            (self.level_base_bytes == 0, "level_base_bytes is 0"),
            (self.level_factor < 2, "level_factor is below 2"),
            (self.l0_compact == 0, "l0_compact is 0"),
            (
                self.l0_stop < self.l0_slow || self.l0_slow < self.l0_compact,
                "l0_compact, l0_slow and l0_stop are not in this order",
            ),
            (self.compactions == 0, "compactions is 0"),
            (self.dead_percent > 100, "dead_percent is above 100"),
            (
                self.memory_bytes > 0 && self.memory_bytes < 64 << 10,
                "memory_bytes is below 64 KiB",
            ),
            (
                matches!(self.compaction, Compaction::Tiered(t) if !(2..=6).contains(&t.runs_max)),
                "runs_max is not from 2 to 6",
            ),
            (self.value_file_bytes == 0, "value_file_bytes is 0"),
            (
                !(1..=100).contains(&self.value_garbage_percent),
                "value_garbage_percent is not from 1 to 100",
            ),
        ];
        if let Some((_, what)) = sane.iter().find(|(wrong, _)| *wrong) {
            return Err(Error::invalid(*what));
        }
        let by_level = self.level_compression.iter();
        for compression in by_level
            .chain(&self.bottom_compression)
            .chain([&self.compression])
        {
            compression.check()?;
        }
        for (at, one) in self.keyspaces.iter().enumerate() {
            if one.id == KeyspaceId::RESERVED {
                let what = format!("keyspace {}: the highest number is 65534", one.name);
                return Err(Error::invalid(what));
            }
            let has_nothing = one.ttl.is_some_and(|ttl| ttl < Duration::from_millis(1));
            if has_nothing || one.prefix == Prefix::Fixed(0) {
                let what = "its ttl is below a millisecond, or its prefix of no bytes";
                return Err(Error::invalid(format!("keyspace {}: {what}", one.name)));
            }
            let before = &self.keyspaces[..at];
            if before.iter().any(|k| k.id == one.id || k.name == one.name) {
                return Err(Error::invalid(format!(
                    "keyspace {} ({}) is listed twice",
                    one.name, one.id.0
                )));
            }
        }
        Ok(())
    }
}

/// When a write may be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// When it is in memory. Not logged: only a flush makes it durable. The only choice for an
    /// engine without a write-ahead log, and none with one.
    None,
    /// When the operating system has it: survives the end of the process.
    #[default]
    Buffered,
    /// When the disk has it: survives a power cut.
    Synced,
}

/// How a batch is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteOptions {
    /// When it may be answered.
    pub durability: Durability,
    /// Whether the write waits when flushes and compaction fall behind. The path that applies
    /// replicated commands must not; whoever sets this to false watches `Lsm::debt`.
    pub throttle: bool,
    /// A write that would have to wait so is refused instead, with `Busy`, and was not applied.
    pub refuse_if_busy: bool,
    /// A write that is not under way by then is refused, with `DeadlineExceeded`, and was not applied: it
    /// is neither logged nor seen. A time of the clock of the engine's `Env`, by its `now`. Once a write is
    /// under way it is carried through, however long the disk takes.
    pub deadline: Option<Duration>,
}

impl Default for WriteOptions {
    fn default() -> Self {
        WriteOptions {
            durability: Durability::default(),
            throttle: true,
            refuse_if_busy: false,
            deadline: None,
        }
    }
}

impl WriteOptions {
    /// Answered when the disk has it.
    pub const SYNCED: WriteOptions = WriteOptions {
        durability: Durability::Synced,
        throttle: true,
        refuse_if_busy: false,
        deadline: None,
    };

    /// Into memory, at once: for an engine without a write-ahead log.
    pub const APPLY: WriteOptions = WriteOptions {
        durability: Durability::None,
        throttle: false,
        refuse_if_busy: false,
        deadline: None,
    };
}

/// How tables are taken in; see `Lsm::ingest`.
#[derive(Debug, Clone, Copy, Default)]
pub struct IngestOptions<'a> {
    /// Ranges whose content goes, with all its history, in the same edit and before what comes in. In
    /// tables and batch they mean nothing.
    pub excise: &'a [(KeyspaceId, KeyRange<'a>)],
    /// A small batch that is made durable in the same edit, over what the tables hold: the position in
    /// a log that they stand for, say. Costs a table of its own.
    pub batch: Option<&'a Batch>,
    /// Whether the files lose their old names, once they are in.
    pub move_files: bool,
    /// Whether every block is read and checked before. Without it only header, index, filter and
    /// properties are.
    pub verify: bool,
}
