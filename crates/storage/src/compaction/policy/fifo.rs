//! No merging at all: what is oldest goes, whole tables of it, when there is too much or it is too old
//! (RocksDB's FIFO compaction). For logs, metrics and caches, where losing the oldest is the point.
//!
//! Tables stay in level 0 as they were flushed, by age. A store that was leveled or tiered before has
//! deeper levels too: they are older than all above, so the deepest goes first, table by table. Nothing
//! lies under what is dropped, so nothing older comes to light.

use std::sync::Arc;

use super::{Choice, CompactionPolicy, How, View, anything_busy};
use crate::levels::{LEVELS, Levels, TableFile};
use crate::options::FifoOptions;
use crate::planted::{self, Bug};

/// See the head of this file.
pub(crate) struct Fifo {
    size_bytes_max: u64,
    age_ms_max: Option<u64>,
}

impl Fifo {
    pub(crate) fn new(options: &FifoOptions) -> Self {
        let age = options.age_max;
        Fifo {
            size_bytes_max: options.size_bytes_max,
            age_ms_max: age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        }
    }

    fn is_too_old(&self, table: &TableFile, now_ms: u64) -> bool {
        let written = table.meta.properties.written_ms;
        // What is not known is not old.
        self.age_ms_max
            .is_some_and(|age| written > 0 && written.saturating_add(age) <= now_ms)
    }
}

/// What goes with a table: its values that lie apart too.
fn size(table: &TableFile) -> u64 {
    let apart = table.meta.properties.apart();
    table.meta.size_bytes.saturating_add(apart.bytes)
}

/// The deepest level that has tables, and they, the oldest first.
fn oldest(levels: &Levels) -> Option<(usize, Vec<Arc<TableFile>>)> {
    let filled = |level: &usize| !levels.level(*level).is_empty();
    let level = (0..LEVELS).rev().find(filled)?;
    let mut tables = levels.level(level).to_vec();
    match level {
        0 if planted::is_on(Bug::FifoDropsTheNewest) => {}
        0 => tables.reverse(),
        _ => tables.sort_by_key(|t| (t.meta.properties.written_ms, t.meta.number)),
    }
    Some((level, tables))
}

impl CompactionPolicy for Fifo {
    fn pick(&self, view: &View<'_>) -> Option<Choice> {
        if anything_busy(view) {
            return None;
        }
        let (level, tables) = oldest(view.levels)?;
        let mut too_much = self.debt_bytes(view.levels);
        let mut dropped = Vec::new();
        for table in tables {
            if too_much == 0 && !self.is_too_old(&table, view.now_ms) {
                break;
            }
            too_much = too_much.saturating_sub(size(&table));
            dropped.push(table);
        }
        (!dropped.is_empty()).then(|| Choice {
            inputs: vec![(level, dropped)],
            output: level,
            how: How::Drop,
        })
    }

    fn debt_bytes(&self, levels: &Levels) -> u64 {
        let sizes = levels.iter().flatten().map(|t| size(t));
        let bytes = sizes.fold(0, u64::saturating_add);
        bytes.saturating_sub(self.size_bytes_max)
    }

    /// Level 0 is where tables are meant to be.
    fn runs_waiting(&self, _: &Levels) -> usize {
        0
    }
}
