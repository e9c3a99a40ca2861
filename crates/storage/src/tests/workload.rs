//! Random batches and settings, from a seed.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use quorate_env::Random;

use crate::{
    Batch, Compaction, Compression, Durability, FifoOptions, KeyRange, KeyspaceId, KeyspaceOptions,
    Options, Prefix, TieredOptions, WriteOptions,
};

pub(super) const DATA: KeyspaceId = KeyspaceId(0);
pub(super) const META: KeyspaceId = KeyspaceId(1);
pub(super) const FAR: KeyspaceId = KeyspaceId(700);

/// So many seeds, or as many times that as the environment variable `QUORATE_TEST_SEEDS` says.
pub(super) fn seeds(count: u64) -> std::ops::Range<u64> {
    let times = std::env::var("QUORATE_TEST_SEEDS")
        .ok()
        .and_then(|n| n.parse().ok());
    0..count * times.unwrap_or(1)
}

pub(super) fn dir() -> &'static Path {
    Path::new("/store")
}

pub(super) fn keyspaces() -> Vec<KeyspaceOptions> {
    vec![
        KeyspaceOptions::versioned(DATA.0, "data"),
        KeyspaceOptions::plain(META.0, "meta"),
        KeyspaceOptions::versioned(FAR.0, "far"),
    ]
}

/// Everything so small that a few hundred entries fill several levels.
pub(super) fn tiny() -> Options {
    Options {
        keyspaces: keyspaces(),
        wal: false,
        wal_segment_bytes: 16 << 10,
        memtable_bytes: 4 << 10,
        memtables_waiting: 2,
        cache_bytes: 32 << 10,
        block_bytes: 256,
        table_bytes: 2 << 10,
        level_base_bytes: 6 << 10,
        level_factor: 3,
        l0_compact: 2,
        l0_slow: 4,
        l0_stop: 8,
        ..Options::default()
    }
}

/// The same with almost every value apart from its key, in files of a few.
pub(super) fn tiny_apart() -> Options {
    Options {
        large_value_bytes: 16,
        value_file_bytes: 2 << 10,
        value_garbage_percent: 30,
        ..tiny()
    }
}

/// Settings that differ in what matters.
pub(super) fn option_sets() -> Vec<Options> {
    vec![
        tiny(),
        Options {
            wal: true,
            compression: Compression::None,
            filter_bits_per_key: 0,
            ..tiny()
        },
        Options {
            wal: true,
            memtable_bytes: 1 << 10,
            block_bytes: 1,
            table_bytes: 1,
            cache_bytes: 0,
            compactions: 3,
            ..tiny()
        },
        Options {
            memtable_bytes: 64 << 10,
            block_bytes: 4096,
            auto_compact: false,
            ..tiny()
        },
        Options {
            keyspaces: keyspaces(),
            wal_segment_bytes: 256 << 10,
            memtable_bytes: 1 << 20,
            ..Options::default()
        },
        tiny_apart(),
        Options {
            wal: true,
            large_value_bytes: 1,
            value_file_bytes: 1,
            value_garbage_percent: 1,
            compression: Compression::None,
            compactions: 2,
            ..tiny_apart()
        },
        Options {
            keyspaces: with_prefixes(),
            compaction: Compaction::Tiered(TieredOptions {
                runs_max: 2,
                space_percent_max: 100,
            }),
            dead_percent: 5,
            open_tables: 1,
            ..tiny()
        },
        Options {
            wal: true,
            // Nothing is lost to a bound that is never reached.
            compaction: Compaction::Fifo(FifoOptions {
                size_bytes_max: u64::MAX,
                age_max: None,
            }),
            memory_bytes: 64 << 10,
            ..tiny()
        },
    ]
}

fn with_prefixes() -> Vec<KeyspaceOptions> {
    let extractors = [Prefix::Delimiter(b'/'), Prefix::Fixed(1), Prefix::Fixed(2)];
    let with = keyspaces().into_iter().zip(extractors);
    with.map(|(keyspace, prefix)| keyspace.with_prefix(prefix))
        .collect()
}

fn random_compression(random: &Random) -> Compression {
    match random.below(3) {
        0 => Compression::None,
        #[cfg(feature = "zstd")]
        1 => Compression::Zstd,
        _ => Compression::Lz4,
    }
}

/// Settings at random, all of them: whoever adds a setting finds it missing here.
pub(super) fn random_options(random: &Random) -> Options {
    let pick = |of: &[u64]| of[random.below(of.len() as u64) as usize];
    let l0_compact = 1 + random.below(4) as usize;
    let l0_slow = l0_compact + random.below(4) as usize;
    // Nothing may be lost to a bound.
    let fifo = FifoOptions {
        size_bytes_max: u64::MAX,
        age_max: None,
    };
    let tiered = TieredOptions {
        runs_max: 2 + random.below(5) as usize,
        space_percent_max: pick(&[10, 100, 400]) as u32,
    };
    Options {
        keyspaces: match random.one_in(2) {
            true => keyspaces(),
            false => with_prefixes(),
        },
        compaction: match random.below(4) {
            0 => Compaction::Tiered(tiered),
            1 => Compaction::Fifo(fifo),
            _ => Compaction::Leveled,
        },
        dead_percent: pick(&[0, 5, 50, 100]) as u32,
        memory_bytes: pick(&[0, 0, 64 << 10, 1 << 20]),
        open_tables: pick(&[0, 0, 1, 8]) as usize,
        wal: random.one_in(2),
        wal_segment_bytes: pick(&[8 << 10, 8 << 10, 16 << 10, 256 << 10]),
        memtable_bytes: pick(&[100, 1 << 10, 2 << 10, 4 << 10, 64 << 10]) as usize,
        memtables_waiting: 1 + random.below(3) as usize,
        cache_bytes: pick(&[0, 2000, 32 << 10, 1 << 20]),
        block_bytes: pick(&[1, 64, 256, 4096]) as usize,
        table_bytes: pick(&[1, 2 << 10, 16 << 10, 1 << 20]),
        level_base_bytes: pick(&[1 << 10, 6 << 10, 1 << 20]),
        level_factor: 2 + random.below(9),
        l0_compact,
        l0_slow,
        l0_stop: l0_slow + random.below(8) as usize,
        filter_bits_per_key: pick(&[0, 1, 10, 20]) as u32,
        compression: random_compression(random),
        level_compression: match random.one_in(2) {
            true => Vec::new(),
            false => (0..1 + random.below(4))
                .map(|_| random_compression(random))
                .collect(),
        },
        bottom_compression: random.one_in(3).then(|| random_compression(random)),
        large_value_bytes: pick(&[0, 0, 1, 16, 16, 100]) as usize,
        value_file_bytes: pick(&[200, 2 << 10, 16 << 10, 1 << 20]),
        value_garbage_percent: pick(&[10, 30, 50, 100]),
        compactions: 1 + random.below(3) as usize,
        auto_compact: !random.one_in(5),
    }
}

/// How a batch may be written with these settings.
pub(super) fn write_options(options: &Options, random: &Random) -> WriteOptions {
    let durability = match (options.wal, random.one_in(2)) {
        (false, _) => Durability::None,
        (true, false) => Durability::Buffered,
        (true, true) => Durability::Synced,
    };
    WriteOptions {
        durability,
        throttle: random.one_in(2),
        ..WriteOptions::default()
    }
}

/// Makes batches.
pub(super) struct Workload {
    pub(super) random: Random,
    pub(super) version: u64,
    /// Whether old versions are written now and then, as by a replay.
    pub(super) replays: bool,
    pub(super) keys: u64,
    /// Of so many operations one deletes a range.
    pub(super) range_delete_one_in: u64,
}

impl Workload {
    pub(super) fn new(seed: u64) -> Self {
        let random = Random::from_seed(seed);
        Workload {
            version: 10,
            replays: true,
            keys: 5 + random.below(60),
            range_delete_one_in: 20,
            random,
        }
    }

    /// Keys with common beginnings, of different lengths, with bytes at the ends of their range.
    pub(super) fn key(&self) -> Vec<u8> {
        let n = self.random.below(self.keys);
        let mut key = match n % 4 {
            0 => vec![0; (n / 4 % 3) as usize],
            1 => vec![0xff; (n / 4 % 4) as usize],
            2 => b"shared prefix/".to_vec(),
            _ => b"k".to_vec(),
        };
        key.extend_from_slice(&(n / 4).to_be_bytes()[7 - (n % 2) as usize..]);
        key
    }

    pub(super) fn value(&self) -> Vec<u8> {
        let length = match self.random.below(40) {
            0 => 3000,
            1..=5 => 0,
            n => n * 3,
        };
        let byte = self.random.next_u64();
        (0..length).map(|n| (byte >> (n % 8)) as u8).collect()
    }

    /// A version, mostly rising, sometimes an old one again.
    fn next_version(&mut self) -> u64 {
        match self.random.below(10) {
            0 if self.replays => 1 + self.random.below(self.version),
            0..=3 => self.version,
            _ => {
                self.version += 1 + self.random.below(3);
                self.version
            }
        }
    }

    pub(super) fn batch(&mut self) -> Batch {
        let mut batch = Batch::new();
        for _ in 0..=self.random.below(6) {
            if self.random.one_in(self.range_delete_one_in) {
                self.delete_range(&mut batch);
                continue;
            }
            let (key, value) = (self.key(), self.value());
            let delete = self.random.one_in(4);
            match (self.random.below(3), delete) {
                (0, true) => batch.delete(META, &key),
                (0, false) => batch.put(META, &key, &value),
                (n, delete) => {
                    let keyspace = if n == 1 { DATA } else { FAR };
                    let version = self.next_version();
                    match delete {
                        true => batch.delete_at(keyspace, &key, version),
                        false => batch.put_at(keyspace, &key, version, &value),
                    }
                }
            }
        }
        batch
    }

    fn delete_range(&mut self, batch: &mut Batch) {
        let (a, b) = (self.key(), self.key());
        let range = KeyRange {
            lower: a.as_slice().min(&b),
            upper: Some(a.as_slice().max(&b)).filter(|_| !self.random.one_in(8)),
        };
        match self.keyspace() {
            META => batch.delete_range(META, range),
            keyspace => {
                let version = self.next_version();
                batch.delete_range_at(keyspace, range, version);
            }
        }
    }

    pub(super) fn keyspace(&self) -> KeyspaceId {
        [DATA, META, FAR][self.random.below(3) as usize]
    }
}

/// Sets a flag at its end, also when a check fails: the threads beside stop, and the failure shows.
pub(super) struct AtEnd<'a>(pub(super) &'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
