//! Which value files are collected.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::live::{Held, ValueFiles};
use crate::compaction::{Choice, How, View, choose};
use crate::levels::{LEVELS, Levels, TableFile};

/// Value files of which a compaction moves what is alive.
#[derive(Clone, Default)]
pub(crate) struct Collect {
    pub(crate) numbers: BTreeSet<u64>,
    /// Those of the levels that are compacted.
    pub(crate) files: Arc<ValueFiles>,
    /// Values that can't be read are left out, with their entries, and noted.
    pub(crate) salvage: bool,
}

impl Collect {
    /// The files of which `percent` or more is dead: those with the greatest part first, and together no
    /// more than `most_bytes` that are alive, but one at least. So what a compaction does beside its own
    /// work is bounded, however many files get there at once.
    pub(crate) fn wasted(files: &Arc<ValueFiles>, percent: u64, most_bytes: u64) -> Collect {
        let share = |held: &Held| {
            let all = u128::from(held.file.meta.all.bytes.max(1));
            u128::from(held.dead_bytes()) * 1_000_000 / all
        };
        let wasted = |held: &&Held| share(held) >= u128::from(percent) * 10_000;
        let mut wasted: Vec<&Held> = files.iter().filter(wasted).collect();
        wasted.sort_by_key(|held| std::cmp::Reverse(share(held)));
        let mut numbers = BTreeSet::new();
        let mut bytes = 0_u64;
        for held in wasted {
            bytes = bytes.saturating_add(held.live.bytes);
            if bytes > most_bytes && !numbers.is_empty() {
                break;
            }
            numbers.insert(held.file.meta.number);
        }
        Collect {
            numbers,
            files: Arc::clone(files),
            salvage: false,
        }
    }

    /// Only of these files.
    pub(crate) fn only(mut self, wanted: impl Fn(u64) -> bool) -> Collect {
        self.numbers.retain(|number| wanted(*number));
        self
    }

    pub(crate) fn takes(&self, file: u64) -> bool {
        self.numbers.contains(&file)
    }

    fn concerns(&self, table: &TableFile) -> bool {
        let shares = &table.meta.properties.shares;
        shares.iter().any(|(file, _)| self.takes(*file))
    }
}

/// A compaction that only collects: of one table that needs something of these files. It is written anew
/// where it lies; level 0, which is ordered by age, goes down as a whole.
pub(crate) fn choose_collection(view: &View<'_>, collect: &Collect) -> Option<Choice> {
    if collect.numbers.is_empty() {
        return None;
    }
    let rewritten = |level: usize, upper: Vec<Arc<TableFile>>| {
        let output = level.max(1);
        let choice = choose(view, level, output, upper)?;
        // Moving a table collects nothing.
        Some(Choice {
            how: How::Merge,
            ..choice
        })
    };
    for level in (1..LEVELS).rev() {
        let concerned = view.levels.level(level).iter();
        for table in concerned.filter(|t| collect.concerns(t)) {
            if let Some(choice) = rewritten(level, vec![Arc::clone(table)]) {
                return Some(choice);
            }
        }
    }
    let top: &[Arc<TableFile>] = Levels::level(view.levels, 0);
    match top.iter().any(|t| collect.concerns(t)) {
        true => rewritten(0, top.to_vec()),
        false => None,
    }
}
