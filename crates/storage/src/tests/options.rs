//! What may change from one opening to the next, and what the statistics say.

use std::time::Duration;

use quorate_env::sim::Sim;

use super::crash::{Script, dump};
use super::workload::{META, dir, option_sets, tiny, tiny_apart, write_options};
use crate::{
    Batch, Compaction, Compression, Engine, FifoOptions, KeyspaceOptions, Lsm, Options, Prefix,
    ReadAt, STALL_BOUNDS_MICROS, Stats, TieredOptions, WriteOptions,
};

/// Each setting that may change, with another value.
fn changes() -> Vec<(&'static str, Options)> {
    let base = tiny;
    vec![
        (
            "wal",
            Options {
                wal: true,
                ..base()
            },
        ),
        ("wal off", base()),
        (
            "wal_segment_bytes",
            Options {
                wal: true,
                wal_segment_bytes: 64 << 10,
                ..base()
            },
        ),
        (
            "memtable_bytes",
            Options {
                memtable_bytes: 100,
                ..base()
            },
        ),
        (
            "memtables_waiting",
            Options {
                memtables_waiting: 1,
                ..base()
            },
        ),
        (
            "cache_bytes",
            Options {
                cache_bytes: 0,
                ..base()
            },
        ),
        (
            "block_bytes",
            Options {
                block_bytes: 4096,
                ..base()
            },
        ),
        (
            "table_bytes",
            Options {
                table_bytes: 100,
                ..base()
            },
        ),
        (
            "level_base_bytes",
            Options {
                level_base_bytes: 1 << 20,
                ..base()
            },
        ),
        (
            "level_factor",
            Options {
                level_factor: 10,
                ..base()
            },
        ),
        (
            "l0",
            Options {
                l0_compact: 1,
                l0_slow: 1,
                l0_stop: 2,
                ..base()
            },
        ),
        (
            "filter_bits_per_key",
            Options {
                filter_bits_per_key: 0,
                ..base()
            },
        ),
        (
            "more filter_bits_per_key",
            Options {
                filter_bits_per_key: 20,
                ..base()
            },
        ),
        (
            "compression",
            Options {
                compression: Compression::None,
                ..base()
            },
        ),
        ("values apart", tiny_apart()),
        (
            "larger values apart",
            Options {
                large_value_bytes: 100,
                value_file_bytes: 1 << 20,
                compression: Compression::None,
                ..base()
            },
        ),
        (
            "level_compression",
            Options {
                level_compression: vec![Compression::Lz4, Compression::None],
                bottom_compression: Some(Compression::Lz4),
                ..base()
            },
        ),
        (
            "compactions",
            Options {
                compactions: 3,
                ..base()
            },
        ),
        (
            "compaction",
            Options {
                compaction: Compaction::Tiered(TieredOptions::default()),
                ..base()
            },
        ),
        (
            "no compaction",
            Options {
                compaction: Compaction::Fifo(FifoOptions {
                    size_bytes_max: u64::MAX,
                    age_max: None,
                }),
                ..base()
            },
        ),
        (
            "dead_percent",
            Options {
                dead_percent: 1,
                ..base()
            },
        ),
        (
            "memory_bytes and open_tables",
            Options {
                memory_bytes: 64 << 10,
                open_tables: 1,
                ..base()
            },
        ),
        (
            "ttl and prefix",
            Options {
                keyspaces: changed_keyspaces(),
                ..base()
            },
        ),
        (
            "auto_compact",
            Options {
                auto_compact: false,
                ..base()
            },
        ),
        (
            "defaults",
            Options {
                keyspaces: base().keyspaces,
                ..Options::default()
            },
        ),
    ]
}

/// The same keyspaces with what may change changed: nothing expires that soon.
fn changed_keyspaces() -> Vec<KeyspaceOptions> {
    let changed = |k: KeyspaceOptions| {
        k.with_ttl(Duration::from_secs(1 << 30))
            .with_prefix(Prefix::Fixed(1))
    };
    tiny().keyspaces.into_iter().map(changed).collect()
}

#[test]
fn lsm_reopened_with_any_other_setting_keeps_all_data() {
    let from = [
        tiny(),
        option_sets().remove(1),
        option_sets().remove(2),
        tiny_apart(),
    ];
    for (first, options) in from.iter().enumerate() {
        for (name, other) in changes() {
            let mut script = Script::new(first as u64, options.wal, 40);
            script.options = options.clone();
            let sim = Sim::new(1);
            let mut written = 0;
            for (n, options) in [options, &other, options, &other].into_iter().enumerate() {
                let lsm = Lsm::open(&sim.env(), dir(), options.clone());
                let lsm = lsm.unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_eq!(dump(&lsm), script.states[written], "{name}, opening {n}");
                for batch in &script.batches[written..written + 10] {
                    let how = write_options(options, &sim.random);
                    lsm.write(batch, how).unwrap();
                }
                written += 10;
                // Once cleanly, once as if killed where the log has it all.
                if n % 2 == 0 || !options.wal {
                    lsm.close().unwrap();
                }
                drop(lsm);
                sim.jobs.pump_all();
            }
            let lsm = Lsm::open(&sim.env(), dir(), other).unwrap();
            lsm.compact_all().unwrap();
            assert_eq!(dump(&lsm), script.states[40], "{name}, compacted");
        }
    }
}

/// An engine after some thousand writes and lookups.
fn worked(options: &Options, writes: u64) -> Stats {
    let sim = Sim::new(1);
    let lsm = Lsm::open(&sim.env(), dir(), options.clone()).unwrap();
    for n in 0..writes {
        let mut batch = Batch::new();
        batch.put(META, &(n * 7 % 1000 * 2).to_be_bytes(), &[n as u8; 100]);
        let how = match options.wal {
            true => WriteOptions::default(),
            false => WriteOptions {
                throttle: true,
                ..WriteOptions::APPLY
            },
        };
        lsm.write(&batch, how).unwrap();
    }
    lsm.flush().unwrap();
    sim.jobs.pump_all();
    for n in 0..2000u64 {
        // Every other one is not there.
        let found = lsm.get(META, &n.to_be_bytes(), &ReadAt::NEWEST).unwrap();
        assert_eq!(found.is_some(), n % 2 == 0);
    }
    lsm.stats()
}

#[test]
fn stats_count_what_was_done() {
    let stats = worked(&tiny(), 3000);
    let sum = |of: fn(&crate::LevelStats) -> u64| stats.levels.iter().map(of).sum::<u64>();
    let written = stats.flush_bytes + stats.compaction_write_bytes;
    assert_eq!(sum(|l| l.write_bytes), written);
    assert_eq!(sum(|l| l.read_bytes), stats.compaction_read_bytes);
    assert!(stats.levels[2].write_bytes > 0, "{stats:?}");
    assert_eq!(stats.stall_counts.iter().sum::<u64>(), stats.stalls);
    assert!(stats.stalls > 0 && stats.stall_counts.len() == STALL_BOUNDS_MICROS.len() + 1);
    assert!(stats.longest_stall_micros <= stats.stall_micros);
    assert_eq!(stats.batches, 3000);
    assert!(stats.batch_bytes > 3000 * 100);
    // Half of the lookups are in vain, and almost none of them passes a filter.
    assert!(stats.filter_stopped >= 900, "{stats:?}");
    assert!(stats.filter_passed >= 1000);
    assert!(stats.filter_in_vain * 10 < stats.filter_passed, "{stats:?}");
    let hit_rate = stats.cache_hit_rate().unwrap();
    assert!((0.0..=1.0).contains(&hit_rate));
    let amplification = stats.write_amplification().unwrap();
    assert!((0.5..50.0).contains(&amplification), "{amplification}");
    assert!(stats.space_amplification().unwrap() >= 1.0);
    let logged = Options {
        wal: true,
        filter_bits_per_key: 0,
        ..tiny()
    };
    let with_log = worked(&logged, 3000);
    assert!(with_log.write_amplification().unwrap() > 1.0);
    assert_eq!((with_log.filter_stopped, with_log.filter_passed), (0, 0));
    assert_eq!(Stats::default().write_amplification(), None);
    assert_eq!(Stats::default().cache_hit_rate(), None);
}
