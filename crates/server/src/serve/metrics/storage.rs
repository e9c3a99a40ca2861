//! The storage engine's part of `/metrics`.

use quorate_storage::{LevelStats, STALL_BOUNDS_MICROS, Stats};

use super::Page;

/// A number of the engine, by name.
type Row<'a> = (&'a str, &'a str, u64);

impl Page {
    pub(super) fn storage(&mut self, stats: &Stats) {
        self.levels(stats);
        self.rows("gauge", "", &memory(stats));
        self.rows("gauge", "", &files(stats));
        self.rows("counter", "_total", &reading(stats));
        self.rows("counter", "_total", &writing(stats));
        self.stalls(stats);
    }

    fn rows(&mut self, kind: &str, suffix: &str, rows: &[Row<'_>]) {
        for (name, help, value) in rows {
            self.single(
                &format!("quorate_storage_{name}{suffix}"),
                kind,
                help,
                *value,
            );
        }
    }

    fn levels(&mut self, stats: &Stats) {
        type Of = fn(&LevelStats) -> u64;
        let families: [(&str, &str, &str, Of); 4] = [
            ("files", "gauge", "Tables of each level.", |level| {
                level.files
            }),
            ("bytes", "gauge", "Their size.", |level| level.size_bytes),
            (
                "read_bytes_total",
                "counter",
                "Bytes read from it by compaction.",
                |level| level.read_bytes,
            ),
            (
                "write_bytes_total",
                "counter",
                "Bytes written to it.",
                |level| level.write_bytes,
            ),
        ];
        for (name, kind, help, of) in families {
            let name = format!("quorate_storage_level_{name}");
            self.family(&name, kind, help);
            for (level, stats) in stats.levels.iter().enumerate() {
                self.sample(&name, &format!("level=\"{level}\""), of(stats));
            }
        }
    }

    /// Waits of writers, as a histogram.
    fn stalls(&mut self, stats: &Stats) {
        let name = "quorate_storage_stall_seconds";
        self.family(
            name,
            "histogram",
            "Writes slowed down or stopped, and for how long.",
        );
        let bucket = format!("{name}_bucket");
        let mut below = 0;
        let bounds = STALL_BOUNDS_MICROS.iter().map(|micros| seconds(*micros));
        for (bound, count) in bounds.chain(["+Inf".to_owned()]).zip(stats.stall_counts) {
            below += count;
            self.sample(&bucket, &format!("le=\"{bound}\""), below);
        }
        self.sample(&format!("{name}_sum"), "", seconds(stats.stall_micros));
        self.sample(&format!("{name}_count"), "", below);
        let longest = "quorate_storage_stall_longest_seconds";
        let value = seconds(stats.longest_stall_micros);
        self.single(
            longest,
            "gauge",
            "The longest of them since the start.",
            value,
        );
    }
}

fn seconds(micros: u64) -> String {
    (micros as f64 / 1e6).to_string()
}

fn memory(stats: &Stats) -> [Row<'static>; 7] {
    [
        (
            "memory_bytes",
            "All memory that is counted.",
            stats.memory_bytes,
        ),
        (
            "memtable_bytes",
            "What memtables hold.",
            stats.memtable_bytes,
        ),
        (
            "table_memory_bytes",
            "Indexes and filters of open tables.",
            stats.table_memory_bytes,
        ),
        (
            "cache_bytes",
            "What the block cache holds.",
            stats.cache_bytes,
        ),
        (
            "cache_bytes_max",
            "The most that it may hold now.",
            stats.cache_bytes_max,
        ),
        ("open_tables", "Tables that are open.", stats.open_tables),
        ("snapshots", "Snapshots alive.", stats.snapshots),
    ]
}

fn files(stats: &Stats) -> [Row<'static>; 4] {
    [
        ("value_files", "Files of large values.", stats.value_files),
        ("value_bytes", "Their size.", stats.value_bytes),
        (
            "value_dead_bytes",
            "Of that, what nothing needs any more.",
            stats.value_dead_bytes,
        ),
        (
            "wal_bytes",
            "Files of the write-ahead log.",
            stats.wal_bytes,
        ),
    ]
}

fn reading(stats: &Stats) -> [Row<'static>; 6] {
    [
        (
            "cache_hits",
            "Blocks and large values found in the cache.",
            stats.cache_hits,
        ),
        ("cache_misses", "Those read from disk.", stats.cache_misses),
        (
            "filter_stopped",
            "Lookups in a table that its filter ended.",
            stats.filter_stopped,
        ),
        (
            "filter_passed",
            "Lookups in a table that its filter let pass.",
            stats.filter_passed,
        ),
        (
            "filter_in_vain",
            "Of those, the ones that found nothing.",
            stats.filter_in_vain,
        ),
        (
            "prefix_stopped",
            "Tables that scans within a prefix went around.",
            stats.prefix_stopped,
        ),
    ]
}

fn writing(stats: &Stats) -> [Row<'static>; 12] {
    [
        ("batches", "Batches written.", stats.batches),
        ("batch_bytes", "Their size.", stats.batch_bytes),
        ("flushes", "Memtables written out.", stats.flushes),
        (
            "flush_bytes",
            "Bytes written by flushes.",
            stats.flush_bytes,
        ),
        ("compactions", "Compactions done.", stats.compactions),
        (
            "compaction_read_bytes",
            "Bytes read by compaction.",
            stats.compaction_read_bytes,
        ),
        (
            "compaction_write_bytes",
            "Bytes written by it.",
            stats.compaction_write_bytes,
        ),
        ("moves", "Tables moved down a level unread.", stats.moves),
        (
            "dropped_tables",
            "Tables that went unread: all in them was deleted or expired.",
            stats.dropped_tables,
        ),
        (
            "ingested_tables",
            "Tables taken in that were made outside.",
            stats.ingested_tables,
        ),
        (
            "value_write_bytes",
            "Bytes written to files of large values.",
            stats.value_write_bytes,
        ),
        (
            "value_moved_bytes",
            "Of that, values from files where most was dead.",
            stats.value_moved_bytes,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_of_the_engine_name_each_family_once_and_add_up_stalls() {
        let mut stats = Stats::default();
        stats.stall_counts = [1, 0, 2, 0, 0, 0, 0, 3];
        stats.stall_micros = 2_500_000;
        stats.levels = vec![LevelStats::default(); 2];
        let mut page = Page::default();
        page.storage(&stats);
        for line in [
            "quorate_storage_stall_seconds_bucket{le=\"0.0001\"} 1",
            "quorate_storage_stall_seconds_bucket{le=\"0.01\"} 3",
            "quorate_storage_stall_seconds_bucket{le=\"+Inf\"} 6",
            "quorate_storage_stall_seconds_sum 2.5",
            "quorate_storage_stall_seconds_count 6",
            "quorate_storage_level_files{level=\"1\"} 0",
        ] {
            assert!(
                page.text.lines().any(|l| l == line),
                "{line} in {}",
                page.text
            );
        }
        let types = page.text.lines().filter(|line| line.starts_with("# TYPE"));
        let mut names: Vec<&str> = types.filter_map(|line| line.split(' ').nth(2)).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
