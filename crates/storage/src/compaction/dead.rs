//! Tables that hold nothing any read sees: they go as a whole, unread.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::garbage::Keep;
use super::policy::{Choice, How, View};
use super::run::is_hidden;
use crate::error::Result;
use crate::levels::{LEVELS, TableFile};
use crate::planted::{self, Bug};
use crate::tombstones::Tombstones;

/// The tables that may be dropped as they are, none of them busy. Opens those with range deletions.
pub(crate) fn find_dead(view: &View<'_>, keep: &Keep) -> Result<Option<Choice>> {
    let mut found = BTreeSet::new();
    find_covered(view, keep, &mut found)?;
    find_expired(view, &mut found);
    let of_level = |level: usize| {
        let tables = view.levels.level(level).iter();
        let dead = tables.filter(|t| found.contains(&t.meta.number)).cloned();
        (level, dead.collect::<Vec<_>>())
    };
    let inputs: Vec<_> = (0..LEVELS)
        .map(of_level)
        .filter(|(_, t)| !t.is_empty())
        .collect();
    let Some(output) = inputs.last().map(|(level, _)| *level) else {
        return Ok(None);
    };
    Ok(Some(Choice {
        inputs,
        output,
        how: How::Drop,
    }))
}

/// With more range deletions than this, looking costs more than compaction does that drops the same.
const MOST_RANGES: u64 = 16 << 10;

fn may_go(view: &View<'_>, table: &TableFile) -> bool {
    !view.busy.contains(&table.meta.number)
}

/// Adds tables that range deletions above hide from every read. What lies under them is hidden by the same
/// range deletions, so nothing comes to light.
fn find_covered(view: &View<'_>, keep: &Keep, found: &mut BTreeSet<u64>) -> Result<()> {
    let tables = view.levels.iter().flatten();
    let ranges = tables.map(|t| t.meta.properties.range_deletions);
    // What tables from outside say of themselves may be anything.
    let ranges = ranges.fold(0, u64::saturating_add);
    if ranges > MOST_RANGES {
        return Ok(());
    }
    let mut above = Tombstones::default();
    for level in 0..LEVELS {
        let tables = view.levels.level(level);
        // In level 0 a table is above all that are older; further down none is above its neighbours.
        for table in tables {
            if !above.is_empty()
                && may_go(view, table)
                && is_hidden(&table.meta, &above, view.keyspaces, keep)
            {
                found.insert(table.meta.number);
            }
            if level == 0 {
                add_ranges(&mut above, table)?;
            }
        }
        if level > 0 {
            tables.iter().try_for_each(|t| add_ranges(&mut above, t))?;
        }
    }
    Ok(())
}

fn add_ranges(above: &mut Tombstones, table: &TableFile) -> Result<()> {
    if table.meta.properties.range_deletions > 0 {
        above.add(table.table()?.tombstones());
    }
    Ok(())
}

/// Adds tables of which every entry has expired, with nothing under them that would come to light.
fn find_expired(view: &View<'_>, found: &mut BTreeSet<u64>) {
    if !view.keyspaces.expire() {
        return;
    }
    for level in 0..LEVELS {
        for table in view.levels.level(level) {
            if may_go(view, table) && is_expired(view, table) && is_lowest(view, level, table) {
                found.insert(table.meta.number);
            }
        }
    }
}

fn is_expired(view: &View<'_>, table: &TableFile) -> bool {
    let p = &table.meta.properties;
    p.range_deletions == 0
        && p.keyspaces.iter().all(|of| {
            view.keyspaces.find(of.id).is_some_and(|keyspace| {
                of.expiring == of.entries
                    && of.max_version <= keyspace.watermark()
                    && keyspace.expiry_at(view.now_ms).is_over(of.newest_ms)
            })
        })
}

fn is_lowest(view: &View<'_>, level: usize, table: &TableFile) -> bool {
    let p = &table.meta.properties;
    let older = |t: &Arc<TableFile>| t.meta.number < table.meta.number;
    let overlaps = |t: &Arc<TableFile>| t.meta.properties.overlaps(&p.smallest, Some(&p.end));
    let in_l0 = level == 0 && view.levels.level(0).iter().any(|t| older(t) && overlaps(t));
    planted::is_on(Bug::ExpiredTablesUncover)
        || !in_l0 && view.levels.nothing_within(level + 1, &p.smallest, &p.end)
}
