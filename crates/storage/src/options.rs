//! Settings: plain data, with their defaults in one place.

use std::path::Path;

use crate::batch::Batch;
use crate::engine::KeyRange;
use crate::error::{Error, ErrorKind, Result};

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
}

impl KeyspaceOptions {
    /// A keyspace that keeps versions.
    pub fn versioned(id: u16, name: &str) -> Self {
        KeyspaceOptions {
            id: KeyspaceId(id),
            name: name.to_owned(),
            versioned: true,
        }
    }

    /// A keyspace where a write replaces what was there.
    pub fn plain(id: u16, name: &str) -> Self {
        KeyspaceOptions {
            versioned: false,
            ..KeyspaceOptions::versioned(id, name)
        }
    }
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
    /// The block cache.
    pub cache_bytes: u64,
    /// The size of a data block before compression.
    pub block_bytes: usize,
    /// The size of a table that compaction writes.
    pub table_bytes: u64,
    /// The size of level 1; each further level is [`level_factor`](Self::level_factor) times larger.
    pub level_base_bytes: u64,
    /// See [`level_base_bytes`](Self::level_base_bytes).
    pub level_factor: u64,
    /// The number of tables in level 0 that starts a compaction.
    pub l0_compact: usize,
    /// The number of tables in level 0 from which writes are slowed down.
    pub l0_slow: usize,
    /// The number of tables in level 0 at which throttled writes stop.
    pub l0_stop: usize,
    /// Filter bits for each key; 0 is no filter.
    pub filter_bits_per_key: u32,
    /// Compression of data blocks from level 1 down; level 0 is short-lived and never compressed. Also
    /// of values that lie apart, wherever their keys are.
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
            wal_segment_bytes: 64 * MIB,
            memtable_bytes: 64 << 20,
            memtables_waiting: 3,
            cache_bytes: 256 * MIB,
            block_bytes: 4096,
            table_bytes: 32 * MIB,
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
        match by_level.get(level).or(by_level.last()) {
            Some(compression) => *compression,
            None if level == 0 => Compression::None,
            None => self.compression,
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
}

impl Default for WriteOptions {
    fn default() -> Self {
        WriteOptions {
            durability: Durability::default(),
            throttle: true,
        }
    }
}

impl WriteOptions {
    /// Answered when the disk has it.
    pub const SYNCED: WriteOptions = WriteOptions {
        durability: Durability::Synced,
        throttle: true,
    };

    /// Into memory, at once: for an engine without a write-ahead log.
    pub const APPLY: WriteOptions = WriteOptions {
        durability: Durability::None,
        throttle: false,
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
