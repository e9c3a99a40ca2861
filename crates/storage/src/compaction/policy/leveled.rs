//! Levels whose sizes grow by a factor (LevelDB, RocksDB's leveled compaction).
//!
//! Of the level that is furthest over its size it takes the table that overlaps the next level least for
//! its size, so that the fewest bytes are rewritten for each that gets down.

use std::sync::Arc;

use super::{Choice, CompactionPolicy, View, choose, pick_heavy};
use quorate_env::switch;

use crate::levels::{LEVELS, Levels};
use crate::options::Options;

/// See the head of this file.
pub(crate) struct Leveled {
    l0_compact: usize,
    base_bytes: u64,
    factor: u64,
    dead_percent: u32,
}

impl Leveled {
    pub(crate) fn new(options: &Options) -> Self {
        Leveled {
            l0_compact: options.l0_compact,
            base_bytes: options.level_base_bytes,
            factor: options.level_factor,
            dead_percent: options.dead_percent,
        }
    }

    fn target_bytes(&self, level: usize) -> u64 {
        let exponent = u32::try_from(level.saturating_sub(1)).unwrap_or(u32::MAX);
        self.base_bytes
            .saturating_mul(self.factor.saturating_pow(exponent))
    }

    /// How much a level needs compaction; from 1 on it does.
    fn score(&self, levels: &Levels, level: usize) -> f64 {
        let tables = levels.level(0).len();
        if level == 0 && tables > 0 && switch::fires("storage.compaction_begins_early") {
            return 1.0;
        }
        match level {
            0 => levels.level(0).len() as f64 / self.l0_compact as f64,
            _ => levels.bytes(level) as f64 / self.target_bytes(level) as f64,
        }
    }

    fn pick_from(&self, view: &View<'_>, level: usize) -> Option<Choice> {
        if level == 0 {
            return choose(view, 0, 1, view.levels.level(0).to_vec());
        }
        let mut best: Option<(f64, Choice)> = None;
        for table in view.levels.level(level) {
            let Some(choice) = choose(view, level, level + 1, vec![Arc::clone(table)]) else {
                continue;
            };
            let below = choice.tables().filter(|(of, _)| *of > level);
            let below: u64 = below.map(|(_, t)| t.meta.size_bytes).sum();
            // Deletions do the most good further down.
            let p = &table.meta.properties;
            let dead = p.deletions as f64 / p.entries.max(1) as f64;
            let cost = match p.range_deletions > p.entries {
                // Most of what is below is covered, and goes unread.
                true => -1.0,
                false => below as f64 / table.meta.size_bytes.max(1) as f64 - dead,
            };
            if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                best = Some((cost, choice));
            }
        }
        best.map(|(_, choice)| choice)
    }
}

impl CompactionPolicy for Leveled {
    fn pick(&self, view: &View<'_>) -> Option<Choice> {
        let mut scores: Vec<(f64, usize)> = (0..LEVELS - 1)
            .map(|level| (self.score(view.levels, level), level))
            .filter(|(score, _)| *score >= 1.0)
            .collect();
        scores.sort_by(|a, b| b.0.total_cmp(&a.0));
        scores
            .into_iter()
            .find_map(|(_, level)| self.pick_from(view, level))
            .or_else(|| pick_heavy(view, self.dead_percent, self.l0_compact.div_ceil(2)))
    }

    fn debt_bytes(&self, levels: &Levels) -> u64 {
        let deeper = (1..LEVELS - 1)
            .map(|level| levels.bytes(level).saturating_sub(self.target_bytes(level)));
        let l0 = match levels.level(0).len() > self.l0_compact {
            true => levels.bytes(0),
            false => 0,
        };
        deeper.sum::<u64>() + l0
    }

    fn runs_waiting(&self, levels: &Levels) -> usize {
        levels.level(0).len()
    }
}
