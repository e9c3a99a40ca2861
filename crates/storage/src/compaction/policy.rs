//! What to compact next: a pure function of the levels.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::levels::{LEVELS, Levels, TableFile};
use crate::options::Options;

/// What a policy sees.
pub(crate) struct View<'a> {
    pub(crate) levels: &'a Levels,
    /// Tables that a running compaction reads.
    pub(crate) busy: &'a BTreeSet<u64>,
}

/// Tables to merge into `output`. `upper` are those of level `level`; `lower` all those of level
/// `output` that overlap them.
#[derive(Clone)]
pub(crate) struct Choice {
    pub(crate) level: usize,
    pub(crate) output: usize,
    pub(crate) upper: Vec<Arc<TableFile>>,
    pub(crate) lower: Vec<Arc<TableFile>>,
    /// Nothing to merge: the tables only change level.
    pub(crate) moves: bool,
}

impl Choice {
    /// Whether nothing lies below what it writes.
    pub(crate) fn is_at_bottom(&self, levels: &Levels) -> bool {
        let properties = || self.upper.iter().map(|t| &t.meta.properties);
        let smallest = properties().map(|p| &p.smallest).min();
        let end = properties().map(|p| &p.end).max();
        let (Some(smallest), Some(end)) = (smallest, end) else {
            return false;
        };
        levels.nothing_within(self.output + 1, smallest, end)
    }
}

/// Chooses compactions.
pub(crate) trait CompactionPolicy: Send + Sync {
    /// What to do now; `None` when all is well or all that is to do waits for tables that are busy.
    /// No table of the choice is busy.
    fn pick(&self, view: &View<'_>) -> Option<Choice>;

    /// How many bytes the levels are over their sizes.
    fn debt_bytes(&self, levels: &Levels) -> u64;
}

/// Levels whose sizes grow by a factor (LevelDB, RocksDB's leveled compaction). Of the level that is
/// furthest over its size it takes the table that overlaps the next level least for its size, so
/// that the fewest bytes are rewritten for each that gets down.
pub(crate) struct Leveled {
    l0_compact: usize,
    base_bytes: u64,
    factor: u64,
}

impl Leveled {
    pub(crate) fn new(options: &Options) -> Self {
        Leveled {
            l0_compact: options.l0_compact,
            base_bytes: options.level_base_bytes,
            factor: options.level_factor,
        }
    }

    fn target_bytes(&self, level: usize) -> u64 {
        let exponent = u32::try_from(level.saturating_sub(1)).unwrap_or(u32::MAX);
        self.base_bytes
            .saturating_mul(self.factor.saturating_pow(exponent))
    }

    /// How much a level needs compaction; from 1 on it does.
    fn score(&self, levels: &Levels, level: usize) -> f64 {
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
            let below: u64 = choice.lower.iter().map(|t| t.meta.size_bytes).sum();
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

/// The compaction of these tables of a level, unless one that takes part is busy.
pub(crate) fn choose(
    view: &View<'_>,
    level: usize,
    output: usize,
    upper: Vec<Arc<TableFile>>,
) -> Option<Choice> {
    let properties = || upper.iter().map(|t| &t.meta.properties);
    let smallest = properties().map(|p| &p.smallest).min()?;
    let end = properties().map(|p| &p.end).max()?;
    let lower = match output == level {
        true => Vec::new(),
        false => view.levels.overlapping(output, smallest, end).to_vec(),
    };
    let busy = |t: &Arc<TableFile>| view.busy.contains(&t.meta.number);
    if upper.iter().chain(&lower).any(busy) {
        return None;
    }
    let disjoint = level > 0 || upper.len() == 1;
    // With nothing further down range deletions are of no use: merging loses them, moving does not.
    let idle = |t: &Arc<TableFile>| {
        let p = &t.meta.properties;
        p.range_deletions > 0 && view.levels.nothing_within(output + 1, &p.smallest, &p.end)
    };
    Some(Choice {
        level,
        output,
        moves: lower.is_empty() && disjoint && !upper.iter().any(idle),
        upper,
        lower,
    })
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
}
