//! Tables that hold mostly what is dead: compacted by themselves, though no level is too large.
//!
//! Deletions cost twice: their own bytes, and what they hide further down. A queue that takes from its
//! head would leave long runs of them wherever the levels happen to be small enough. So a table in which
//! deletions, or entries that have expired, are a large share is merged into what lies under it. With
//! nothing under it, it is written anew alone, but only if the deletions can go: each such compaction makes
//! progress, and they end. While a snapshot is alive that keeps what they hide, they wait for its end.

use std::sync::Arc;

use super::{Choice, View, choose};
use crate::levels::{LEVELS, TableFile};
use crate::planted::{self, Bug};

/// What is dead in a table when space is short.
const SHORT_PERCENT: u32 = 10;

/// The compaction of a table, or of level 0, where at least so many percent are dead. The heaviest first.
/// `l0_tables` is from how many tables on level 0 is looked at.
pub(crate) fn pick_heavy(view: &View<'_>, percent: u32, l0_tables: usize) -> Option<Choice> {
    if percent == 0 || planted::is_on(Bug::HeavyTablesStay) {
        return None;
    }
    let (percent, l0_tables) = match view.is_short_of_space {
        true => (percent.min(SHORT_PERCENT), 1),
        false => (percent, l0_tables),
    };
    let l0 = view.levels.level(0);
    let settled = l0.iter().all(|table| no_snapshot_within(view, table));
    if l0.len() >= l0_tables && settled && share(view, l0) >= percent {
        let output = first_under(view, 0, l0).unwrap_or(1);
        if let Some(choice) = choose(view, 0, output, l0.to_vec()) {
            return Some(choice);
        }
    }
    let tables =
        (1..LEVELS).flat_map(|level| view.levels.level(level).iter().map(move |t| (level, t)));
    let mut heavy: Vec<(u32, usize, &Arc<TableFile>)> = tables
        .map(|(level, table)| (share(view, std::slice::from_ref(table)), level, table))
        .filter(|(share, _, table)| *share >= percent && no_snapshot_within(view, table))
        .collect();
    heavy.sort_by_key(|(share, ..)| std::cmp::Reverse(*share));
    heavy.into_iter().find_map(|(_, level, table)| {
        let upper = vec![Arc::clone(table)];
        let output = match first_under(view, level, &upper) {
            Some(under) => under,
            None if can_lose_all(view, table) => level,
            None => return None,
        };
        choose(view, level, output, upper)
    })
}

/// How many percent of some tables are dead.
fn share(view: &View<'_>, tables: &[Arc<TableFile>]) -> u32 {
    // What tables from outside say of themselves may be anything.
    let (mut dead, mut all) = (0, 0);
    for table in tables {
        let p = &table.meta.properties;
        all += u128::from(p.entries) + u128::from(p.range_deletions);
        dead += u128::from(p.deletions) + u128::from(p.range_deletions);
        let expired = p.keyspaces.iter().filter(|k| {
            let keyspace = view.keyspaces.find(k.id);
            keyspace.is_some_and(|known| known.expiry_at(view.now_ms).is_over(k.newest_ms))
        });
        dead += expired.map(|k| u128::from(k.expiring)).sum::<u128>();
    }
    (dead * 100 / all.max(1)).min(100) as u32
}

/// The first level under another with something where these tables are.
fn first_under(view: &View<'_>, level: usize, tables: &[Arc<TableFile>]) -> Option<usize> {
    let properties = || tables.iter().map(|t| &t.meta.properties);
    let smallest = properties().map(|p| &p.smallest).min()?;
    let end = properties().map(|p| &p.end).max()?;
    (level + 1..LEVELS).find(|under| !view.levels.overlapping(*under, smallest, end).is_empty())
}

/// Whether every snapshot sees all of a table, and so nothing that it hides.
fn no_snapshot_within(view: &View<'_>, table: &TableFile) -> bool {
    let (_, newest) = table.meta.sequences();
    newest <= view.oldest_snapshot
}

/// Whether no deletion of a table has to stay that has nothing under it and is seen by every snapshot: no
/// version of it is history that may be read.
fn can_lose_all(view: &View<'_>, table: &TableFile) -> bool {
    let spent = |of: &crate::table::KeyspaceProperties| {
        let keyspace = view.keyspaces.find(of.id);
        keyspace.is_some_and(|known| of.max_version <= known.watermark())
    };
    table.meta.properties.keyspaces.iter().all(spent)
}
