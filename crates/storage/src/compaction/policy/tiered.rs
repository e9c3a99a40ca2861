//! Sorted runs that are merged with others of their size (RocksDB's universal compaction).
//!
//! Each table of level 0 is a run, and so is each deeper level that has tables, the newest on top. When
//! level 0 is full, all of it is merged, as a run of its own right above the others while there may be
//! more runs; else together with the runs below that are not larger than what is merged so far. So an
//! entry is rewritten about once each time that its run grows by a factor, instead of `level_factor` times
//! in each level, and reads look into more runs.
//!
//! ```text
//!          L0 full               runs_max reached          too much space
//! L0   ▪▪▪▪            →       ▪▪▪▪            →         ▪▪▪▪             →
//! L4                                                     ▪▪▪
//! L5              ▪▪▪▪         ▪▪▪▪      ▪▪▪▪▪▪▪▪        ▪▪▪▪▪▪▪▪
//! L6   ▪▪▪▪▪▪▪▪   ▪▪▪▪▪▪▪▪     ▪▪▪▪▪▪▪▪  ▪▪▪▪▪▪▪▪        ▪▪▪▪▪▪▪▪          ▪▪▪▪▪▪▪▪▪
//! ```
//!
//! Two bounds hold whenever it has nothing to do: level 0 is not full and there are at most `runs_max` runs
//! below it; and the runs above the last are at most `space_percent_max` of it, which bounds what is on
//! disk and shadowed.

use std::sync::Arc;

use super::{Choice, CompactionPolicy, How, View, anything_busy, pick_heavy};
use crate::levels::{LEVELS, Levels, TableFile};
use crate::options::{Options, TieredOptions};
use crate::planted::{self, Bug};

/// See the head of this file.
pub(crate) struct Tiered {
    l0_compact: usize,
    runs_max: usize,
    space_percent_max: u64,
    dead_percent: u32,
}

impl Tiered {
    pub(crate) fn new(options: &Options, tiered: &TieredOptions) -> Self {
        Tiered {
            l0_compact: options.l0_compact,
            runs_max: tiered.runs_max,
            space_percent_max: u64::from(tiered.space_percent_max),
            dead_percent: options.dead_percent,
        }
    }

    /// Whether what lies above the last run is too much for it.
    fn wastes_space(&self, levels: &Levels, runs: &[usize]) -> bool {
        let Some(last) = runs.last() else {
            return false;
        };
        let above = (0..*last).map(|level| levels.bytes(level)).sum::<u64>();
        above.saturating_mul(100) > levels.bytes(*last).saturating_mul(self.space_percent_max)
    }

    /// How many of the runs, from the top, are to be merged with level 0.
    fn to_merge(&self, levels: &Levels, runs: &[usize]) -> usize {
        if self.wastes_space(levels, runs) {
            return runs.len();
        }
        let room_above = runs.first().is_none_or(|first| *first > 1);
        if runs.len() < self.runs_max && room_above {
            return 0;
        }
        let mut merged = levels.bytes(0);
        let mut count = 0;
        // Two at least become one, or nothing would be won.
        let least = if levels.level(0).is_empty() { 2 } else { 1 };
        for run in runs {
            let bytes = levels.bytes(*run);
            if count >= least && bytes > merged {
                break;
            }
            merged = merged.saturating_add(bytes);
            count += 1;
        }
        count
    }
}

/// The levels from 1 on that have tables.
fn runs(levels: &Levels) -> Vec<usize> {
    let filled = |level: &usize| !levels.level(*level).is_empty();
    (1..LEVELS).filter(filled).collect()
}

impl CompactionPolicy for Tiered {
    fn pick(&self, view: &View<'_>) -> Option<Choice> {
        let levels = view.levels;
        let runs = runs(levels);
        let full = levels.level(0).len() >= self.l0_compact
            || runs.len() > self.runs_max
            || self.wastes_space(levels, &runs);
        // Where a run ends up depends on all others: one compaction at a time.
        if anything_busy(view) {
            return None;
        }
        if !full {
            return pick_heavy(view, self.dead_percent, self.l0_compact.div_ceil(2));
        }
        let (mut merged, rest) = runs.split_at(self.to_merge(levels, &runs));
        if planted::is_on(Bug::TieredSkipsARun) && merged.len() > 1 {
            merged = &merged[1..];
        }
        let of = |level: usize| (level, levels.level(level).to_vec());
        let inputs = std::iter::once(0).chain(merged.iter().copied()).map(of);
        let inputs: Vec<(usize, Vec<Arc<TableFile>>)> =
            inputs.filter(|(_, tables)| !tables.is_empty()).collect();
        let choice = Choice {
            output: rest.first().map_or(LEVELS - 1, |next| next - 1),
            inputs,
            how: How::Merge,
        };
        (!choice.inputs.is_empty()).then_some(choice)
    }

    fn debt_bytes(&self, levels: &Levels) -> u64 {
        match levels.level(0).len() > self.l0_compact {
            true => levels.bytes(0),
            false => 0,
        }
    }

    fn runs_waiting(&self, levels: &Levels) -> usize {
        levels.level(0).len()
    }
}
