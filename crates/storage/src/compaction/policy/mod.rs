//! What to compact next: pure functions of a picture of the levels.
//!
//! A policy looks at a [`View`] and returns a [`Choice`]; it touches no file, and the executor knows no
//! policy. Which policy an engine has may change from one opening to the next: each takes the levels as
//! it finds them.
//!
//! # What every choice keeps
//!
//! The invariants of the levels hold afterwards because ([`Choice::check`] asks for all of it):
//!
//! - what takes part is in the levels, and nothing else works on it;
//! - nothing is overtaken: what lies under a table that goes down, on its way or where it ends, comes along;
//! - what comes out can't overlap a table that stays: all tables of the output level between the first and
//!   the last place of the choice take part;
//! - a table that is dropped with its data has nothing under it that would come to light.

mod fifo;
mod heavy;
mod leveled;
#[cfg(test)]
mod tests;
mod tiered;

use std::collections::BTreeSet;
use std::sync::Arc;

pub(crate) use fifo::Fifo;
pub(crate) use heavy::pick_heavy;
pub(crate) use leveled::Leveled;
pub(crate) use tiered::Tiered;

use crate::engine::Sequence;
use crate::keyspaces::Keyspaces;
#[cfg(test)]
use crate::levels::LEVELS;
use crate::levels::{Levels, TableFile};
use crate::options::{Compaction, Options};

/// What a policy sees.
pub(crate) struct View<'a> {
    pub(crate) levels: &'a Levels,
    /// Tables that a running compaction reads.
    pub(crate) busy: &'a BTreeSet<u64>,
    /// For watermarks, and which entries expire.
    pub(crate) keyspaces: &'a Keyspaces,
    /// The oldest live snapshot; the highest number if there is none.
    pub(crate) oldest_snapshot: Sequence,
    /// The time by which entries expire.
    pub(crate) now_ms: u64,
    /// Whether space counts for more than the work of making it.
    pub(crate) is_short_of_space: bool,
}

/// What is done with the tables of a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// They become new tables in the output level.
    Merge,
    /// Nothing to merge: they only change level.
    Move,
    /// They go, with all they hold.
    Drop,
}

/// Tables to be compacted.
#[derive(Clone)]
pub(crate) struct Choice {
    /// By level, from the top down; none is empty.
    pub(crate) inputs: Vec<(usize, Vec<Arc<TableFile>>)>,
    pub(crate) output: usize,
    pub(crate) how: How,
}

impl Choice {
    /// All tables that take part, each with its level.
    pub(crate) fn tables(&self) -> impl Iterator<Item = (usize, &Arc<TableFile>)> {
        self.inputs
            .iter()
            .flat_map(|(level, tables)| tables.iter().map(move |t| (*level, t)))
    }

    /// Whether nothing lies below what it writes.
    pub(crate) fn is_at_bottom(&self, levels: &Levels) -> bool {
        let properties = || self.tables().map(|(_, t)| &t.meta.properties);
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
    fn pick(&self, view: &View<'_>) -> Option<Choice>;

    /// How many bytes wait to be compacted.
    fn debt_bytes(&self, levels: &Levels) -> u64;

    /// How many sorted runs wait, to be held against `l0_slow` and `l0_stop`.
    fn runs_waiting(&self, levels: &Levels) -> usize;
}

/// The policy that the options name.
pub(crate) fn policy(options: &Options) -> Box<dyn CompactionPolicy> {
    match &options.compaction {
        Compaction::Leveled => Box::new(Leveled::new(options)),
        Compaction::Tiered(tiered) => Box::new(Tiered::new(options, tiered)),
        Compaction::Fifo(fifo) => Box::new(Fifo::new(fifo)),
    }
}

/// The compaction of these tables of a level into another, with all that lies there; unless one that
/// takes part is busy. REQUIRES: nothing lies under them in levels between the two.
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
    let moves = lower.is_empty() && disjoint && output != level && !upper.iter().any(idle);
    let mut inputs = vec![(level, upper)];
    if !lower.is_empty() {
        inputs.push((output, lower));
    }
    Some(Choice {
        inputs,
        output,
        how: if moves { How::Move } else { How::Merge },
    })
}

/// Whether a running compaction works on any table.
fn anything_busy(view: &View<'_>) -> bool {
    !view.busy.is_empty()
}

#[cfg(test)]
impl Choice {
    /// Whether the choice keeps the invariants of the levels; the text says which it breaks.
    pub(crate) fn check(&self, view: &View<'_>) -> Result<(), String> {
        let chosen: BTreeSet<u64> = self.tables().map(|(_, t)| t.meta.number).collect();
        if chosen.is_empty() || chosen.len() != self.tables().count() {
            return Err("it is empty, or has a table twice".to_owned());
        }
        if self.output >= LEVELS || !self.inputs.is_sorted_by(|a, b| a.0 < b.0) {
            return Err("its levels are nonsense".to_owned());
        }
        for (level, table) in self.tables() {
            let number = table.meta.number;
            let there = |t: &Arc<TableFile>| t.meta.number == number;
            if !view.levels.level(level).iter().any(there) || view.busy.contains(&number) {
                return Err(format!(
                    "table {number} is not in level {level}, or is busy"
                ));
            }
            self.check_under(view, level, table, &chosen)?;
        }
        match self.how {
            How::Drop => Ok(()),
            How::Merge | How::Move => self.check_output(view, &chosen),
        }
    }

    /// What lies under a table, down to the output, takes part; under one that is dropped, all.
    fn check_under(
        &self,
        view: &View<'_>,
        level: usize,
        table: &TableFile,
        chosen: &BTreeSet<u64>,
    ) -> Result<(), String> {
        let p = &table.meta.properties;
        let last = match self.how {
            How::Drop => LEVELS - 1,
            _ if level > self.output => return Err("a table goes up".to_owned()),
            _ => self.output,
        };
        for under in level..=last {
            for other in view.levels.level(under) {
                let older = under > level || under == 0 && other.meta.number < table.meta.number;
                let overlaps = other.meta.properties.overlaps(&p.smallest, Some(&p.end));
                if older && overlaps && !chosen.contains(&other.meta.number) {
                    let (over, under) = (table.meta.number, other.meta.number);
                    return Err(format!("table {over} leaves table {under} under it behind"));
                }
            }
        }
        Ok(())
    }

    fn check_output(&self, view: &View<'_>, chosen: &BTreeSet<u64>) -> Result<(), String> {
        if self.output == 0 {
            return Err("nothing may come out in level 0, which is ordered by age".to_owned());
        }
        let properties = || self.tables().map(|(_, t)| &t.meta.properties);
        let smallest = properties()
            .map(|p| &p.smallest)
            .min()
            .ok_or("it is empty")?;
        let end = properties().map(|p| &p.end).max().ok_or("it is empty")?;
        let mut there = view.levels.overlapping(self.output, smallest, end).iter();
        match there.find(|t| !chosen.contains(&t.meta.number)) {
            Some(t) => Err(format!(
                "table {} may overlap what comes out",
                t.meta.number
            )),
            None => Ok(()),
        }
    }
}
